"""``inspect``: the papers' tables from the profiles, names without weights, two side by side, ONNX Runtime's arena."""

import contextlib
import dataclasses
import functools
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import models
from deploykit.cli import main
from deploykit.errors import InputError
from deploykit.graph.profile import profile_onnx
from deploykit.models.profile import profile_network
from deploykit.models.stage_rows import stages
from deploykit.results import Comparison, LayerProfile, read_record
from deploykit.weigh import compare, weigh

profiled = functools.cache(profile_network)
slow = pytest.mark.slow
ARENA = Path(__file__).parent.parent / "benchmarks" / "arena.py"

# Szegedy et al. 2015, table 1: channels that enter, #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj; output size;
# params in K (1,024), ops in M.
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32, (256, 28, 28), 159, 128),
    "3b": (256, 128, 128, 192, 32, 96, 64, (480, 28, 28), 380, 304),
    "4a": (480, 192, 96, 208, 16, 48, 64, (512, 14, 14), 364, 73),
    "4b": (512, 160, 112, 224, 24, 64, 64, (512, 14, 14), 437, 88),
    "4c": (512, 128, 128, 256, 24, 64, 64, (512, 14, 14), 463, 100),
    "4d": (512, 112, 144, 288, 32, 64, 64, (528, 14, 14), 580, 119),
    "4e": (528, 256, 160, 320, 32, 128, 128, (832, 14, 14), 840, 170),
    "5a": (832, 256, 160, 320, 32, 128, 128, (832, 7, 7), 1072, 54),
    "5b": (832, 384, 192, 384, 48, 128, 128, (1024, 7, 7), 1388, 71),
}
# Where the printed figure is not what the table's own columns give: by how much the columns exceed it, in its unit.
MISPRINTED_PARAMS = {"4a": 3, "4c": 35, "4d": 11, "4e": 8, "5a": -53, "5b": 22}
MISPRINTED_OPS = {"5a": -3}


@pytest.fixture(scope="module")
def googlenet():
    return {stage.name: stage for stage in profiled("googlenet").stages}


@pytest.mark.parametrize("module", INCEPTIONS)
def test_googlenets_table(googlenet, module):
    inputs, one, reduce3, three, reduce5, five, pool, output, params, ops = INCEPTIONS[module]
    row = googlenet[f"inception ({module})"]
    weights = inputs * (one + reduce3 + reduce5 + pool) + 9 * reduce3 * three + 25 * reduce5 * five
    assert row.parameters == weights + one + reduce3 + three + reduce5 + five + pool
    assert row.macs == weights * output[1] * output[2]
    assert row.output_shape == output
    assert row.op == f"inception {one}, {reduce3}→{three}, {reduce5}→{five}, {pool}"
    assert row.published == f"{params}K {ops}M"
    assert row.parameters / 1024 - params == pytest.approx(MISPRINTED_PARAMS.get(module, 0), abs=1.7)
    assert row.macs / 1e6 - ops == pytest.approx(MISPRINTED_OPS.get(module, 0), abs=0.7)


def test_the_rest_of_googlenets_table(googlenet):
    shapes = [(name, row.output_shape) for name, row in googlenet.items() if not name.startswith("inception")]
    assert shapes == [
        ("conv1", (64, 112, 112)),
        ("max pool", (832, 7, 7)),  # the last of four of that name
        ("conv2", (192, 56, 56)),
        ("avg pool", (1024, 1, 1)),
        ("linear", (1000,)),
    ]
    first, second, last = googlenet["conv1"], googlenet["conv2"], googlenet["linear"]
    assert (first.op, first.published) == ("convolution 7×7/2", "2.7K 34M")
    assert (first.parameters, first.macs) == (9_408 + 64, 9_408 * 112 * 112)
    separable = (7 * 1 + 1 * 7) * 3 * 64  # what the paper counted
    assert (round(separable / 1000, 1), round(separable * 112 * 112 / 1e6)) == (2.7, 34)
    assert (round((second.parameters - 256) / 1024), round(second.macs / 1e6)) == (112, 360)
    assert (round((last.parameters - 1000) / 1024), round(last.macs / 1e6)) == (1000, 1)


# He et al. 2016, table 1, in 10⁹; 18 and 34, 50 are cut off after the first digit, not rounded.
@pytest.mark.parametrize(
    ("depth", "flops"),
    [(18, 1.8), (34, 3.6), (50, 3.8), pytest.param(101, 7.6, marks=slow), pytest.param(152, 11.3, marks=slow)],
)
def test_resnets_flops(depth, flops):
    profile = profiled(f"resnet{depth}")
    rows = {stage.name: stage for stage in profile.stages}
    assert list(rows) == ["conv1", "max pool", *(f"conv{n}_x" for n in (2, 3, 4, 5)), "average pool", "fc"]
    shapes = [rows[f"conv{n}_x"].output_shape[1:] for n in (2, 3, 4, 5)]
    assert shapes == [(56, 56), (28, 28), (14, 14), (7, 7)]
    less = 0
    for layer in profile.layers:  # the paper strides in the first 1×1, whose output then is a quarter
        if re.fullmatch(r"layer[234]\.0\.conv1", layer.name) and layer.kernel == (1, 1):
            less += layer.macs * 3 // 4
    assert 0 <= (profile.macs - less) / 1e9 - flops + 0.05 < 0.15
    assert f"{flops} ×10⁹" in profile.published


def test_resnets_blocks_as_the_table_has_them():
    rows = {stage.name: stage.op for stage in profiled("resnet50").stages}
    assert rows["conv1"] == "7×7, 64, stride 2"
    assert rows["max pool"] == "3×3/2"
    assert rows["conv4_x"] == "[1×1, 256 | 3×3, 256 | 1×1, 1024] ×6"
    rows = {stage.name: stage.op for stage in profiled("resnet34").stages}
    assert rows["conv3_x"] == "[3×3, 128 | 3×3, 128] ×4"


# Simonyan & Zisserman 2015, table 2, and the columns of table 1.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("vgg11", 133), ("vgg11-lrn", 133), ("vgg13", 133), ("vgg16-c", 134), ("vgg16", 138), ("vgg19", 144)],
)
def test_vggs_parameters(name, millions):
    profile = profiled(name)
    assert round(profile.parameters / 1e6) == millions
    assert f"{millions} M" in profile.published
    rows = [stage.name for stage in profile.stages]
    assert rows.count("maxpool") == 5
    assert rows[-3:] == ["FC-4096", "FC-4096", "FC-1000"]
    assert len(rows) - 5 == int(re.search(r"\d+", name)[0])


def test_vggs_configuration_c():
    rows = [stage.name for stage in profiled("vgg16-c").stages]
    assert rows[6:10] == ["conv3-256", "conv3-256", "conv1-256", "maxpool"]


def test_alexnets_layers():
    rows = [stage.name for stage in profiled("alexnet").stages]
    assert rows == ["C1", "max pool", "C2", "max pool", "C3", "C4", "C5", "max pool", "F6", "F7", "F8"]
    parameters = [stage.parameters for stage in profiled("alexnet").stages if stage.parameters]
    assert parameters == [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]


# Huang et al. 2017, table 1: layers of the four blocks.
@pytest.mark.parametrize(("depth", "blocks"), [(121, (6, 12, 24, 16)), pytest.param(264, (6, 12, 64, 48), marks=slow)])
def test_densenets_blocks(depth, blocks):
    rows = {stage.name: stage for stage in profiled(f"densenet{depth}").stages}
    found = [rows[f"dense block ({n})"].op for n in (1, 2, 3, 4)]
    assert found == [f"[1×1, 128 | 3×3, 32] ×{count}" for count in blocks]
    assert rows["dense block (1)"].output_shape == (64 + 6 * 32, 56, 56)
    assert [rows[f"transition ({n})"].output_shape[1] for n in (1, 2, 3)] == [28, 14, 7]


def test_squeezenets_modules():
    rows = {stage.name: stage for stage in profiled("squeezenet1.1").stages}
    assert rows["fire2"].op == "fire 16→64+64"
    assert rows["fire9"].output_shape == (512, 13, 13)
    assert [name for name in rows if name.startswith("fire")] == [f"fire{n}" for n in range(2, 10)]


@slow
def test_mobilenets_bottlenecks():
    """Sandler et al. 2018, table 2, and Howard et al. 2019, table 2."""
    rows = [stage.op for stage in profiled("mobilenet-v2").stages if stage.name.startswith("bottleneck")]
    columns = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    assert rows == [f"t={t}, c={c}, n={n}, s={s}" for t, c, n, s in columns]
    rows = [stage.op for stage in profiled("mobilenet-v3-small").stages if stage.name.startswith("bneck")]
    assert len(rows) == 11
    assert (rows[0], rows[1], rows[4]) == (
        "3×3, exp 16, SE, RE, s=2",
        "3×3, exp 72, RE, s=2",
        "5×5, exp 240, SE, HS, s=1",
    )


QUICK = (
    "lenet1",
    "lenet4",
    "lenet5",
    "lenet5-1998",
    "lenet-caffe",
    "alexnet",
    "alexnet-owt",
    "zfnet",
    "vgg16-c",
    "googlenet",
    "resnet18",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else slow) for name in models.names()])
def test_rows_hold_every_layer_that_counts(name):
    profile = profiled(name)
    if models.spec(name).family == "small":
        assert not profile.stages  # the notes' table is the list of the layers
        return
    for figure in ("parameters", "connections", "macs"):
        assert sum(getattr(stage, figure) for stage in profile.stages) == getattr(profile, figure), figure
    inside = [layer for stage in profile.stages for layer in stage.layers]
    left_out = [layer for layer in profile.layers if layer.name not in inside]
    assert all("Pool" in layer.op and not layer.parameters for layer in left_out), left_out


def layer(name, op="Conv", macs=1, shape=(8, 4, 4), kernel=(1, 1), precision="fp32"):
    return LayerProfile(name, op, shape, 1, macs, macs, kernel, (1, 1), 1, precision, shape)


def test_poolings_without_names_belong_to_what_is_around_them():
    """As an exported file has them: node names for poolings, module names for what has weights."""
    pool = layer("node_max_pool2d_3", "MaxPool", 0, kernel=(3, 3), precision=None)
    names = [
        "inception3a.branch1",
        "inception3a.branch5",
        pool,
        "inception3a.pool_project",
        pool,
        "inception3b.branch1",
    ]
    layers = [item if isinstance(item, LayerProfile) else layer(item) for item in names]
    layers.append(layer("mean", "ReduceMean", 0, kernel=None, precision=None))
    rows = [(stage.name, len(stage.layers)) for stage in stages("googlenet", layers)]
    assert rows == [("inception (3a)", 4), ("max pool", 1), ("inception (3b)", 1), ("average pool", 1)]


def test_rows_of_mixed_precision():
    (row,) = stages("resnet18", [layer("layer1.0.conv1"), layer("layer1.0.conv2", precision="int8")])
    assert (row.name, row.precision) == ("conv2_x", "mixed")


@pytest.mark.parametrize("network", [None, "", "somebody's", "mnist-cnn", "resnet18"])
def test_what_has_no_table_has_no_rows(network):
    assert stages(network, [layer("odd"), layer("names")]) == ()


def weighed(*arguments, capsys):
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_size_options_classes_and_channels_together(capsys):
    arguments = ("--option", "pictures=small", "--classes", "10", "--channels", "1", "--shape", "1x64x64")
    found = weighed("resnet18", *arguments, capsys=capsys)
    assert found["input_shape"] == [1, 64, 64]
    # 11,689,512, less 7×7×3 for 3×3×1 kernels of conv1, less 990 classes.
    assert found["parameters"] == 11_689_512 - 64 * (147 - 9) - 990 * 513
    assert found["stages"][0]["op"] == "3×3, 64"
    assert found["stages"][0]["output_shape"] == [64, 64, 64]
    assert found["published"] is None
    assert found["metadata"]["deploykit.preprocess"]["size"] == [64, 64]


def test_what_is_not_said_follows_from_the_rest():
    assert weigh("resnet18", options={"pictures": "small"}).input_shape == (3, 32, 32)
    assert weigh("lenet5", in_channels=3).input_shape == (3, 32, 32)
    assert weigh("alexnet-owt", input_shape=(1, 128, 96)).input_shape == (1, 128, 96)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("vgg16", {"input_shape": (3, 16, 16)}, "received pictures of 16×16; allowed: 32×32 or more"),
        ("lenet5", {"input_shape": (1, 28, 28)}, "lenet5 on pictures of 28×28; allowed: 32×32"),
        ("resnet18", {"input_shape": (3, 64, 64), "in_channels": 1}, "1 channels on an input of 3×64×64"),
        ("resnet18", {"input_shape": (2, 64, 64)}, "2 input channels; allowed: 1"),
        ("resnet18", {"options": {"pictures": "tiny"}}, "allowed: large, small"),
    ],
)
def test_what_a_network_does_not_take_is_refused(source, arguments, message):
    with pytest.raises(InputError, match=message):
        weigh(source, **arguments)


def test_two_networks_side_by_side(capsys, tmp_path):
    record = tmp_path / "both.json"
    assert main(["inspect", "alexnet", "googlenet", "-o", str(record)]) == 0
    assert re.search(r"parameters +60,965,224 +6,998,552 +8\.71×", capsys.readouterr().out)
    found = read_record(record)
    assert isinstance(found, Comparison)
    assert found.ratios["parameters"] == 60_965_224 / 6_998_552
    assert found.ratios["file_bytes"] is None
    document = json.loads(record.read_text())
    assert document["schema"] == "deploykit.comparison/1"
    assert document["a"]["schema"] == document["b"]["schema"] == "deploykit.profile/1"
    assert (document["a"]["name"], document["b"]["parameters"]) == ("alexnet", 6_998_552)
    assert not document["same_rows"]


def test_rows_that_differ_are_told():
    found = compare(weigh("vgg16"), weigh("vgg16"))
    assert found.same_rows
    assert found.differences == ()
    assert set(found.ratios.values()) == {1.0, None}
    found = compare(weigh("resnet18"), weigh("resnet34"))
    assert [difference.name for difference in found.differences] == ["conv2_x", "conv3_x", "conv4_x", "conv5_x"]
    assert found.differences[0].b.op == "[3×3, 64 | 3×3, 64] ×3"


def test_a_quantized_layer_is_a_difference():
    profile = weigh("lenet5")
    first, *rest = profile.stages
    other = dataclasses.replace(profile, stages=(dataclasses.replace(first, precision="int8"), *rest))
    (difference,) = compare(profile, other).differences
    assert (difference.name, difference.a.precision, difference.b.precision) == ("C1", "fp32", "int8")


def test_more_than_two_are_refused(capsys):
    assert main(["inspect", "lenet1", "lenet4", "lenet5"]) == 2
    assert "3 sources; allowed: one, or two to compare" in capsys.readouterr().err


def test_googlenets_table_on_the_terminal(capsys):
    assert main(["inspect", "googlenet", "--layers"]) == 0
    out = capsys.readouterr().out
    row = r"inception \(3a\) .* 256×28×28 +163,696 +[\d,]+ +128,049,152 +159\.9K +128\.0M +159K 128M\n"
    assert re.search(row, out)
    assert out.index("inception (5b)") < out.index("inception3a")  # the paper's table first, then every layer


@slow
def test_a_large_network_is_profiled_without_its_weights():
    """VGG-19's weights alone are 575 MB; a fresh process holds torch and little else."""
    program = (
        "from deploykit.models.profile import profile_network\nfrom deploykit.process_memory import peak_bytes\n"
        "profile_network('vgg19')\nprint(peak_bytes() // 1024)"  # getrusage would count the tests' own process, forked
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 450_000  # KiB, whatever the machine does meanwhile


def chain(path):
    """Conv, Relu in place, MaxPool at 64×64."""
    weight = numpy_helper.from_array(np.random.default_rng(0).random((16, 3, 3, 3), np.float32), "c.weight")
    nodes = [
        helper.make_node("Conv", ["input", "c.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("input", ["n", 3, 64, 64]), ("y", ["n", 16, 32, 32]))
    ]
    graph = helper.make_graph(nodes, "chain", *ends, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def arena(*arguments):
    done = subprocess.run([sys.executable, ARENA, "--json", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the C library of the Linux wheel")
def test_the_prediction_is_what_the_arena_hands_out(tmp_path):
    path = chain(tmp_path / "chain.onnx")
    off, on = arena(path)
    assert off["predicted_bytes"] == on["predicted_bytes"] == 4 * (16 * 64 * 64 + 16 * 32 * 32)
    assert off["in_use_bytes"] == on["in_use_bytes"] == on["predicted_bytes"]
    assert profile_onnx(path).peak_activation_bytes == on["predicted_bytes"]  # the input is gone by then
    assert on["arena_bytes"] > on["in_use_bytes"]


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the C library of the Linux wheel")
def test_the_prediction_holds_for_three_networks(exported):
    """Within 1 % of the runtime's own plan; beyond it lie LRN's squares and scales, and buffers kept for reuse."""
    for name, beyond in (("alexnet-owt", 0), ("resnet18", 0), ("googlenet", 6_000_000)):
        (on,) = arena("--only", "on", exported(name))
        assert on["planned_bytes"] == pytest.approx(on["predicted_bytes"], rel=0.01)
        assert 0 <= on["in_use_bytes"] - on["predicted_bytes"] <= beyond + 0.01 * on["predicted_bytes"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network's file, written without the parity checks of ``export``."""
    import torch

    @functools.cache
    def write(name):
        module = models.build(name).eval()
        path = tmp_path_factory.mktemp("exported") / f"{name}.onnx"
        example = torch.zeros(2, *models.spec(name).input)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torch's own
            program = torch.onnx.export(
                module, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
            )
        program.save(str(path))
        model = onnx.load(path)
        model.metadata_props.add(key="deploykit.network", value=name)
        onnx.save(model, path)
        return path

    return write


@slow
def test_an_exported_file_has_the_rows_of_its_network(exported):
    for name in ("alexnet-owt", "resnet18", "googlenet"):
        own, file = weigh(name), weigh(exported(name))
        rows = [[stage.macs for stage in profile.stages if stage.macs] for profile in (own, file)]
        assert rows[0] == rows[1], name
        shapes = [[stage.output_shape for stage in profile.stages if stage.macs] for profile in (own, file)]
        assert shapes[0] == shapes[1], name
        assert [stage.name for stage in own.stages if stage.macs] == [stage.name for stage in file.stages if stage.macs]
        assert file.macs == own.macs
