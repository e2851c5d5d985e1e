"""The stage: foreign files raised, rewritten, compared, written with a record; and the reference networks."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lived_in import live
from onnx import TensorProto, helper, numpy_helper
from test_rewrites import answers, build, channels_last, norm, norm_weights, normal, operators, reshaped, response_norm
from torch import nn

from deploykit import cli, models
from deploykit.artifact import Artifact, load_model
from deploykit.equality import check_equal
from deploykit.errors import InputError, ModelFileError, OutputError, ParityError, UnknownNameError
from deploykit.export import export_onnx
from deploykit.files import sha256_file
from deploykit.graph.opset import upgraded
from deploykit.graph.rewrites import rewrite_model
from deploykit.results import read_record
from deploykit.rewriting import rewrite_onnx

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))


def saved(model, path):
    onnx.save(model, str(path))
    return path


def test_the_record_says_what_was_done_and_how_near_both_are(tmp_path):
    source = saved(channels_last(), tmp_path / "net.onnx")
    digest = sha256_file(source)
    record = rewrite_onnx(source, tmp_path / "out.onnx", samples=[normal(20, 6, 6, 3), normal(7, 6, 6, 3)])
    assert {name: places for name, places in record.changes.items() if places} == {
        "fold_batch_norm": 2,
        "global_pool": 1,
    }
    assert (record.nodes_before, record.nodes_after) == (12, 10)
    assert (record.random_samples, record.real_samples) == (4, 27)
    assert 0 < record.max_rel < 1e-5 and 0 < record.real_max_rel < 1e-5
    made = Artifact.read(tmp_path / "out.onnx")
    assert (made.sha256, made.parent_sha256, sha256_file(source)) == (record.model_sha256, digest, digest)
    (tmp_path / "r.json").write_text(json.dumps(record.to_document()))
    assert read_record(tmp_path / "r.json") == record


def test_nothing_is_written_when_the_answers_differ(tmp_path):
    """Folding rounds anew, so that a tolerance of nothing cannot be met."""
    source = saved(channels_last(), tmp_path / "net.onnx")
    with pytest.raises(ParityError, match=r"random inputs: output 'y' differs by .*allowed 0; nothing was written"):
        rewrite_onnx(source, tmp_path / "out.onnx", tolerance=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_bad_calls_are_refused_in_a_line(tmp_path):
    source = saved(channels_last(), tmp_path / "net.onnx")
    target = tmp_path / "out.onnx"
    for kind, arguments in (
        (InputError, {"output": source, "overwrite": True}),
        (InputError, {"output": target, "tolerance": float("nan")}),
        (UnknownNameError, {"output": target, "without": ["fold_batchnorm"]}),
        (UnknownNameError, {"output": target, "also": ["nothing"]}),
        (InputError, {"output": target, "samples": [normal(2, 3, 6, 6)]}),
        (InputError, {"output": target, "samples": []}),
    ):
        with pytest.raises(kind) as caught:
            rewrite_onnx(source, **arguments)
        assert "\n" not in str(caught.value)
    target.write_bytes(b"mine")
    with pytest.raises(OutputError):
        rewrite_onnx(source, target)
    assert target.read_bytes() == b"mine"


def test_differences_are_found(tmp_path):
    one, other = reshaped([-1, 12]), reshaped([-1, 12])
    feeds = [{"x": normal(2, 3, 2, 2)}]
    assert check_equal(one, other, feeds).max_abs == 0.0
    other.graph.node[0].op_type = "Abs"
    with pytest.raises(ParityError, match="output 'y' differs by"):
        check_equal(one, other, feeds)
    other.graph.node[0].op_type = "Sqrt"  # NaN where numbers were
    with pytest.raises(ParityError, match="differs by inf"):
        check_equal(one, saved(other, tmp_path / "nan.onnx"), feeds)
    with pytest.raises(InputError):
        check_equal(one, one, [{"x": normal(2, 3, 3, 3)}])


def old_model(*, opset=7, ir_version=3):
    """As exporters of 2018 wrote: every weight is an input too, ``spatial`` and ``axes`` are attributes."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        norm("c", "n", spatial=1, momentum=0.9) if opset < 9 else norm("c", "n"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Dropout", ["r"], ["d"], ratio=0.5),
        helper.make_node("ReduceMean", ["d"], ["m"], axes=[2, 3]),
        helper.make_node("Squeeze", ["m"], ["s"], axes=[2, 3]),
        helper.make_node("Gemm", ["s", "v", "b"], ["g"], transB=1),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    weights = {"w": normal(16, 8, 3, 3), **norm_weights(16), "v": normal(5, 16), "b": normal(5)}
    model = build(nodes, {"x": [2, 8, 5, 5]}, {"y": [2, 5]}, weights, opset=opset, ir_version=ir_version)
    for name, array in weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    model.metadata_props.add(key="theirs", value="kept")
    return model


@pytest.mark.parametrize("opset", [7, 8, 9, 11])
def test_old_models_are_raised_and_rewritten(tmp_path, opset):
    source = saved(old_model(opset=opset), tmp_path / "old.onnx")
    record = rewrite_onnx(source, tmp_path / "new.onnx")
    made = load_model(tmp_path / "new.onnx")
    assert (record.opset_before, record.opset_after) == (opset, 13)
    assert [value.name for value in made.graph.input] == ["x"]
    assert {"BatchNormalization", "Dropout", "ReduceMean", "Constant"}.isdisjoint(operators(made))
    assert record.random_samples == 4 and record.max_rel < 1e-5
    assert ("theirs", "kept") in [(entry.key, entry.value) for entry in made.metadata_props]


def test_what_cannot_be_raised_is_refused_by_its_opset(tmp_path):
    ancient = old_model(opset=6)
    with pytest.raises(ModelFileError, match="has opset 6; allowed: 7 or later"):
        upgraded(ancient, Path("old.onnx"), 13)
    # Before opset 9, one number a position and channel: no later operator does that.
    spatial = old_model(opset=7)
    helper_node = spatial.graph.node[1]
    next(item for item in helper_node.attribute if item.name == "spatial").i = 0
    with pytest.raises(ModelFileError, match="has opset 7, which ONNX cannot raise to the 13") as caught:
        upgraded(spatial, Path("old.onnx"), 13)
    assert "\n" not in str(caught.value)


def test_raising_leaves_the_model_and_operators_of_others_alone():
    nodes = [helper.make_node("Mystery", ["x"], ["m"], domain="my.own"), helper.make_node("Softmax", ["m"], ["y"])]
    model = build(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, domains=["my.own"], opset=9)
    before = model.SerializeToString(deterministic=True)
    made = upgraded(model, Path("m.onnx"), 13)
    assert model.SerializeToString(deterministic=True) == before
    assert next((node.op_type, node.domain) for node in made.graph.node) == ("Mystery", "my.own")
    assert {entry.domain: entry.version for entry in made.opset_import} == {"": 13, "my.own": 1}
    assert upgraded(made, Path("m.onnx"), 13) is made


def test_operators_that_the_runtime_lacks_are_refused_by_name(tmp_path):
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="my.own")]
    source = saved(build(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, domains=["my.own"]), tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="Mystery") as caught:
        rewrite_onnx(source, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value) and len(list(tmp_path.iterdir())) == 1


def test_several_inputs_and_outputs_of_other_types(tmp_path):
    """A small detector: boxes, the index of the best class, and a second input of integers."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("c", "boxes"),
        helper.make_node("Cast", ["offset"], ["o"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["boxes", "o"], ["s"]),
        helper.make_node("ArgMax", ["s"], ["best"], axis=1),
    ]
    model = build(nodes, {"x": [1, 3, 4, 4]}, {"boxes": [1, 6, 4, 4]}, {"w": normal(6, 3, 1, 1), **norm_weights(6)})
    model.graph.input.append(helper.make_tensor_value_info("offset", TensorProto.INT64, [1]))
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [1, 1, 4, 4]))
    record = rewrite_onnx(saved(model, tmp_path / "d.onnx"), tmp_path / "out.onnx")
    assert record.changes["fold_batch_norm"] == 1


def test_a_fixed_batch_is_freed_and_compared_sample_by_sample(tmp_path):
    source = saved(reshaped([1, 12], source=(1, 3, 2, 2), target=(1, 12)), tmp_path / "one.onnx")
    record = rewrite_onnx(source, tmp_path / "any.onnx", also=["free_batch"])
    assert (record.changes["free_batch"], record.random_samples) == (2, 4)
    assert Artifact.read(tmp_path / "any.onnx").inputs[0].shape == ("batch", 3, 2, 2)


@pytest.mark.parametrize("name", ["light_squeezenet", "light_zfnet512"])
def test_light_models_of_onnx_pass(name, tmp_path):
    record = rewrite_onnx(LIGHT[0].with_name(f"{name}.onnx"), tmp_path / "out.onnx")
    assert record.opset_after == 13
    assert operators(load_model(tmp_path / "out.onnx"))["Dropout"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_every_light_model_gives_the_answers_that_onnx_stores(path, tmp_path):
    rewrite_onnx(path, tmp_path / "out.onnx")
    made = load_model(tmp_path / "out.onnx")
    assert {"BatchNormalization", "Dropout", "Identity"}.isdisjoint(operators(made))
    # onnx/backend/test/runner feeds the light models so.
    shape = [axis.dim_value for axis in made.graph.input[0].type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    feed = (np.arange(count).reshape(shape) / count).astype(np.float32)
    stored = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    np.testing.assert_allclose(
        answers(made, {made.graph.input[0].name: feed})[0], numpy_helper.to_array(stored), rtol=1e-3, atol=1e-6
    )


class Normed(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(size, alpha=0.3, beta=0.7, k=2.0)

    def forward(self, x):
        return torch.relu(self.norm(torch.relu(x)))


def traced(size, *, dynamo, opset, dynamic):
    """PyTorch's own exports: by torch.export, and by TorchScript as older files were made."""
    buffer, x = io.BytesIO(), torch.randn(2, 7, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            program = torch.onnx.export(Normed(size), (x,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            return program.model_proto
        axes = {"x": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            Normed(size), (x,), buffer, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes
        )
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize(
    ("dynamo", "opset", "dynamic"),
    [
        (True, 20, True),
        pytest.param(True, 20, False, marks=pytest.mark.slow),
        *((False, opset, dynamic) for opset in (9, 13, 17) for dynamic in (True, False)),
    ],
)
def test_pytorchs_response_norm_becomes_one_operator(dynamo, opset, dynamic):
    model = traced(5, dynamo=dynamo, opset=opset, dynamic=dynamic)
    made, _ = rewrite_model(model)
    assert operators(made) == {"Relu": 2, "LRN": 1}
    x = normal(3 if dynamic else 2, 7, 3, 4)
    with torch.no_grad():
        wanted = Normed(5)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers(made, {made.graph.input[0].name: x})[0], wanted, rtol=1e-5, atol=1e-6)


def test_an_even_response_norm_stays_a_chain():
    made, counts = rewrite_model(traced(4, dynamo=False, opset=17, dynamic=True))
    assert counts["lrn_chain"] == 0
    x = normal(3, 7, 3, 4)
    with torch.no_grad():
        wanted = Normed(4)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers(made, {made.graph.input[0].name: x})[0], wanted, rtol=1e-5, atol=1e-6)


def exported(network, path, size, **options):
    module = models.build(network, **options)
    pictures = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    export_onnx(live(module, pictures), path, example=pictures)
    return module, pictures.numpy()


def check_network(network, size, tmp_path, **options):
    """The operators of the rewritten network, which answers as PyTorch does."""
    module, pictures = exported(network, tmp_path / "net.onnx", size, **options)
    rewrite_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", samples=[pictures], shapes={"input": (1, 3, size, size)})
    made = load_model(tmp_path / "out.onnx")
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(pictures)).numpy()
    got = answers(made, {"input": pictures})[0]
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert {"BatchNormalization", "ReduceMean", "Identity", "Dropout", "Constant", "Shape"}.isdisjoint(operators(made))
    return operators(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("resnet18", 64, {"GlobalAveragePool": 1, "Conv": 20}),
        ("densenet121", 64, {"GlobalAveragePool": 1, "Conv": 185, "Concat": 58}),
        ("googlenet", 64, {"LRN": 2}),
        ("alexnet", 96, {"LRN": 2}),
        ("mobilenet-v3-small", 64, {}),
    ],
)
def test_reference_networks_keep_their_answers(network, size, expected, tmp_path):
    found = check_network(network, size, tmp_path)
    assert {name: found[name] for name in expected} == expected


def test_the_command_prints_what_was_done_or_one_document(tmp_path, capsys):
    source = saved(response_norm(), tmp_path / "net.onnx")
    assert cli.main(["rewrite", str(source), "-o", str(tmp_path / "a.onnx")]) == 0
    out = capsys.readouterr().out
    assert "9 → 1 operators; lrn_chain ×1" in out and "4 random inputs" in out
    arguments = ["rewrite", str(source), "-o", str(tmp_path / "b.onnx"), "--json", "--without", "lrn_chain"]
    assert cli.main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["nodes_after"]) == ("deploykit.rewriting/1", 9)
    assert "lrn_chain" not in document["changes"]
    assert cli.main(["rewrite", str(source), "-o", str(tmp_path / "c.onnx"), "--without", "lrnchain"]) == 2
    assert "did you mean 'lrn_chain'" in capsys.readouterr().err
