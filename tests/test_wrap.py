"""Models that take pixels: the same answers as Python's preprocessing and the model before, or no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from pixel_networks import photo, pixel_network, preprocess, write_odd_pictures
from tiny_onnx import relu, save_graph

from deploykit import cli, data, files
from deploykit.artifact import Artifact, Preprocess
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.classifier import Classifier
from deploykit.data.picture import read_picture
from deploykit.errors import DeploykitError, InputError, ParityError
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.graph.float_islands import float_islands
from deploykit.graph.weights import Constants
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.results import Wrapping, read_record
from deploykit.runtime import create_session, save_optimized
from deploykit.verify import VerifyOptions, verify_onnx
from deploykit.wrap import WrapOptions, wrap_onnx

FIXED = WrapOptions(fixed_size=True)
PLAIN = QuantizeOptions(never_slower=False, samples=64)


def answers(path: Path, pictures: list[np.ndarray]) -> np.ndarray:
    return Classifier.open(path).predict(pictures)


@pytest.mark.parametrize(
    "pre",
    [
        preprocess(resize=32, crop="center"),
        preprocess(size=(24, 30), resize=[24, 30]),
        preprocess(channels="L", size=(32, 32), resize=[28, 28], crop="center"),
        preprocess(channels="BGR", resize=[28, 28]),
        preprocess(layout="NHWC", resize=30, crop="center"),
        preprocess(channels="BGR", layout="NHWC", resize=30, crop="center"),
    ],
    ids=["cut", "stretched", "grey", "BGR", "NHWC", "BGR NHWC"],
)
def test_pictures_of_all_kinds_get_the_answers_of_before(tmp_path: Path, pre: dict) -> None:
    """Odd sizes, grey, transparent and turned by EXIF, as files, and as an app decodes them."""
    before, after = pixel_network(tmp_path / "net.onnx", pre), tmp_path / "pixels.onnx"
    record = wrap_onnx(before, after)
    assert record.any_size and record.max_levels == 1 and record.top1_agreement == 1.0
    channels = 1 if pre["channels"] == "L" else 3
    pictures = [read_picture(path, channels) for path in write_odd_pictures(tmp_path / "pictures")]
    wanted, got = answers(before, pictures), answers(after, pictures)
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    assert (got.argmax(1) == wanted.argmax(1)).all()
    spec = Artifact.read(after).inputs[0]
    assert (spec.dtype, spec.rank, spec.shape[3]) == ("uint8", 4, channels)
    assert not any(isinstance(axis, int) for axis in spec.shape[:3])


def test_equal_pixels_give_equal_answers(tmp_path: Path) -> None:
    """The float arithmetic in the graph is Python's to the last bit."""
    before, after = pixel_network(tmp_path / "net.onnx", preprocess(resize=32, crop="center")), tmp_path / "p.onnx"
    wrap_onnx(before, after, options=FIXED)
    pictures = [photo(28 + 3 * seed, 31, seed=seed) for seed in range(6)]
    assert (answers(before, pictures) == answers(after, pictures)).all()
    assert [node.op_type for node in onnx.load(after).graph.node][:4] == ["Transpose", "Cast", "Mul", "Add"]
    assert Artifact.read(after).inputs[0].shape == ("N", 28, 28, 3)


def test_half_precision_inputs(tmp_path: Path) -> None:
    before = pixel_network(tmp_path / "net.onnx", preprocess(dtype="float16", resize=[28, 28]), dtype=np.float16)
    record = wrap_onnx(before, tmp_path / "p.onnx")
    assert record.top1_agreement == 1.0 and record.max_levels == 1


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    pre = preprocess(resize=32, crop="center")
    before, after = pixel_network(tmp_path / "net.onnx", pre), tmp_path / "pixels.onnx"
    record = wrap_onnx(before, after)
    parent, child = Artifact.read(before), Artifact.read(after)
    assert child.graph_preprocess == parent.preprocess and child.parent_sha256 == parent.sha256
    assert child.preprocess == Preprocess(
        size=(32, 32), resize=32, crop="center", scale=1.0, layout="NHWC", dtype="uint8", any_size=True
    )
    assert child.graph_parity is not None
    assert child.graph_parity["max_levels"] == record.max_levels == 1
    assert child.graph_parity["max_abs"] == record.max_abs > 0
    kinds = {item.pictures: item for item in record.parity}
    assert set(kinds) == {"as they are", "odd sizes", "turned", "grey", "noise"}
    assert kinds["odd sizes"].samples == 8 and record.samples == sum(item.samples for item in record.parity)
    properties = {item.key: item.value for item in onnx.load(after).metadata_props}
    assert properties["Image.NominalPixelRange"] == "NominalRange_0_255"
    assert properties["Image.BitmapPixelFormat"] == "Rgb8"


def test_the_record_comes_back(tmp_path: Path) -> None:
    record = wrap_onnx(pixel_network(tmp_path / "net.onnx", preprocess()), tmp_path / "p.onnx")
    files.write_json(tmp_path / "r.json", record.to_document())
    again = read_record(tmp_path / "r.json")
    assert isinstance(again, Wrapping) and again.parity == record.parity
    assert again.input_shape == ("N", "height", "width", 3)


def test_topk_outputs_stand_behind_the_logits(tmp_path: Path) -> None:
    before, after = pixel_network(tmp_path / "net.onnx", preprocess()), tmp_path / "p.onnx"
    record = wrap_onnx(before, after, options=WrapOptions(topk=3))
    assert record.outputs == ("y", "probabilities", "top_probabilities", "top_indices")
    images = np.stack([photo(40, 50, seed=seed) for seed in range(5)])
    logits, probabilities, best, places = create_session(after).run(images)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(probabilities - powers / powers.sum(1, keepdims=True)).max() < 1e-6
    order = np.argsort(-logits, axis=1)[:, :3]
    assert places.dtype == np.int64 and (places == order).all()
    assert (best == np.take_along_axis(probabilities, order, 1)).all()


def test_topk_of_a_model_that_ends_in_a_softmax(tmp_path: Path) -> None:
    """A softmax of probabilities would flatten them."""
    model = onnx.load(pixel_network(tmp_path / "net.onnx", preprocess()))
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], axis=1))
    model.graph.output[0].name = "p"
    onnx.save(model, tmp_path / "soft.onnx")
    wrap_onnx(tmp_path / "soft.onnx", tmp_path / "p.onnx", options=WrapOptions(topk=2))
    first, probabilities, _, _ = create_session(tmp_path / "p.onnx").run(photo(28, 28)[None])
    assert (first == probabilities).all()


def test_an_operator_set_without_antialiasing_is_raised(tmp_path: Path) -> None:
    before = pixel_network(tmp_path / "net.onnx", preprocess(), opset=13)
    record = wrap_onnx(before, tmp_path / "p.onnx")
    assert (record.opset_before, record.opset_after) == (13, 18)
    assert wrap_onnx(before, tmp_path / "fixed.onnx", options=FIXED).opset_after == 13


def two_inputs(path: Path) -> Path:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    shape = ["N", 3, 28, 28]
    ends = ([(name, TensorProto.FLOAT, shape) for name in "ab"], [("y", TensorProto.FLOAT, shape)])
    return save_graph(path, [node], *ends)


REFUSED = {
    "two inputs": (two_inputs, {}, "has 2 inputs"),
    "no picture": (lambda path: relu(path), {}, "is float32 of shape"),
    "pixels already": (lambda path: relu(path, dtype=TensorProto.UINT8, shape=("N", 8, 8, 3)), {}, "is uint8 of shape"),
    "unknown preprocessing": (lambda path: relu(path, shape=("N", 3, 8, 8)), {}, "name it with --preprocess"),
    "another layout": (
        lambda path: pixel_network(path, preprocess()),
        {"preprocess": Preprocess((28, 28), layout="NHWC")},
        "takes float32 of shape",
    ),
    "another type": (
        lambda path: pixel_network(path, preprocess()),
        {"preprocess": Preprocess((28, 28), dtype="float16")},
        "gives float16",
    ),
    "too many classes": (
        lambda path: pixel_network(path, preprocess()),
        {"options": WrapOptions(topk=6)},
        "topk=6 of 5 classes; allowed: 1 to 5",
    ),
    "no classes": (
        lambda path: relu(path, shape=("N", 3, 8, 8)),
        {"preprocess": "unit", "options": WrapOptions(topk=1)},
        "topk is for (N, classes)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_is_said_in_a_line(tmp_path: Path, case: str) -> None:
    make, given, reason = REFUSED[case]
    before = make(tmp_path / "net.onnx")
    with pytest.raises(InputError) as caught:
        wrap_onnx(before, tmp_path / "p.onnx", **given)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "p.onnx").exists()


def test_wrapped_twice_or_onto_itself(tmp_path: Path) -> None:
    before = pixel_network(tmp_path / "net.onnx", preprocess())
    wrap_onnx(before, tmp_path / "p.onnx")
    with pytest.raises(InputError, match="wrapped already"):
        wrap_onnx(tmp_path / "p.onnx", tmp_path / "q.onnx")
    with pytest.raises(InputError, match="never changed"):
        wrap_onnx(before, before, overwrite=True)
    with pytest.raises(InputError, match="topk=0"):
        WrapOptions(topk=0)


def test_a_network_that_a_level_upsets_is_not_written(tmp_path: Path) -> None:
    """Resizing in the graph may differ by a level; what makes a mountain of it would answer otherwise in an app."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["large"]),
        helper.make_node("Sin", ["large"], ["wild"]),
        helper.make_node("Flatten", ["wild"], ["y"]),
    ]
    ends = ([("x", TensorProto.FLOAT, ["N", 3, 28, 28])], [("y", TensorProto.FLOAT, ["N", 3 * 28 * 28])])
    gain = numpy_helper.from_array(np.float32(400.0), "gain")
    told = {"deploykit.preprocess": json.dumps(preprocess())}
    before = save_graph(tmp_path / "net.onnx", nodes, *ends, [gain], metadata=told)
    with pytest.raises(ParityError, match="nothing was written") as caught:
        wrap_onnx(before, tmp_path / "p.onnx")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.glob("p.onnx*"))
    assert wrap_onnx(before, tmp_path / "p.onnx", options=FIXED).max_abs == 0.0  # there the pixels are equal


def forms_of(path: Path, folder: Path, pictures: data.Dataset, options: WrapOptions | None = None) -> dict[str, Path]:
    """int8 with float input, wrapped and then quantized, quantized and then wrapped."""
    made = {name: folder / f"{name}.onnx" for name in ("pixels", "int8", "pixels.int8", "int8.pixels")}
    wrap_onnx(path, made["pixels"], options=options)
    quantize_onnx(path, made["int8"], calibration=pictures, options=PLAIN)
    quantize_onnx(made["pixels"], made["pixels.int8"], calibration=pictures, options=PLAIN)
    wrap_onnx(made["int8"], made["int8.pixels"], options=options)
    return made


def first_operators(path: Path, folder: Path) -> list[str]:
    """The operators between the picture and the first layer, in the graph that the runtime has made of the file."""
    save_optimized(path, folder / "optimised.onnx", weights="w", inline_bytes=1 << 30)
    graph = onnx.load(folder / "optimised.onnx").graph
    reached, found = {"image"}, []
    for node in graph.node:
        if reached & set(node.input):
            found.append(node.op_type)
            if node.op_type.startswith("QLinear") or node.op_type in ("Conv", "FusedConv", "QGemm"):
                return found
            reached.update(node.output)
    raise AssertionError(found)


ON_PIXELS = {"Flatten", "Pad", "Reshape", "Resize", "Shape", "Slice", "Transpose"}
ON_SIZES = {"Add", "Concat", "Div", "Expand", "Max", "Mod", "Mul", "ReduceMin", "Sub"}


@pytest.mark.parametrize("fixed", [True, False])
def test_integers_read_the_pixels_in_both_orders(tmp_path: Path, fixed: bool) -> None:
    pictures = data.load("shapes", "test")
    path = pixel_network(tmp_path / "n.onnx", preprocess(channels="L", size=(32, 32), resize=[28, 28], crop="center"))
    made = forms_of(path, tmp_path, pictures, FIXED if fixed else None)
    for name in ("pixels.int8", "int8.pixels"):
        before = first_operators(made[name], tmp_path)
        assert before[-1] == "QLinearConv" and set(before[:-1]) <= ON_PIXELS, (name, before)
        graph = onnx.load(made[name]).graph
        assert float_islands(graph, Constants(graph)) == ()
    shown = list(pictures.pictures(range(200)))
    wanted = answers(path, shown)
    noise = {name: float(((answers(made[name], shown) - wanted) ** 2).mean()) for name in made}
    assert noise["pixels"] == 0.0
    assert noise["pixels.int8"] < 1.1 * noise["int8"] and noise["int8.pixels"] < 1.1 * noise["int8"]


def test_colours_with_statistics_of_their_own_are_read_as_pixels(tmp_path: Path) -> None:
    """ImageNet's means: folded into the weights before they are rounded; of rounded weights it stays in float."""
    pictures = data.load("shapes", "test")
    made = forms_of(pixel_network(tmp_path / "n.onnx", preprocess(resize=32, crop="center")), tmp_path, pictures)
    record = quantize_onnx(made["pixels"], tmp_path / "again.onnx", calibration=pictures, options=PLAIN)
    assert record.border_levels == pytest.approx(0.47, abs=0.01) and record.rewrites["fold_pixels"] == 1
    assert record.agreement > 0.95
    before = first_operators(made["pixels.int8"], tmp_path)
    assert before[-1] == "QLinearConv" and set(before[:-1]) <= ON_PIXELS | ON_SIZES, before
    assert "QuantizeLinear" in first_operators(made["int8.pixels"], tmp_path)
    shown = [photo(28 + seed, 40, seed=seed) for seed in range(40)]
    assert (answers(made["int8.pixels"], shown).argmax(1) == answers(made["int8"], shown).argmax(1)).mean() > 0.9


def test_half_of_the_channels_as_signed_integers_keep_a_float_pass(tmp_path: Path) -> None:
    """ARM's form has signed tensors; pixels are unsigned, and are rounded anew."""
    pictures = data.load("shapes", "test")
    wrap_onnx(pixel_network(tmp_path / "n.onnx", preprocess()), tmp_path / "p.onnx")
    for recipe in ("int8-arm", "int8-openvino", "int8-tensorrt", "fp16"):
        given = QuantizeOptions(recipe=recipe, never_slower=False, samples=64)
        record = quantize_onnx(tmp_path / "p.onnx", tmp_path / f"{recipe}.onnx", calibration=pictures, options=given)
        assert record.agreement > 0.95 and "fold_pixels" not in record.rewrites and record.border_levels is None


def test_a_first_layer_in_float_reads_pixels_without_being_rounded(tmp_path: Path) -> None:
    """Behind DequantizeLinear the runtime would round its weights all the same."""
    pictures = data.load("shapes", "test")
    wrap_onnx(pixel_network(tmp_path / "n.onnx", preprocess()), tmp_path / "p.onnx", options=FIXED)
    given = QuantizeOptions(never_slower=False, samples=64, keep_float=("first",))
    record = quantize_onnx(tmp_path / "p.onnx", tmp_path / "float.onnx", calibration=pictures, options=given)
    before = first_operators(tmp_path / "float.onnx", tmp_path)
    assert before[-1] in ("Conv", "FusedConv") and "Cast" in before, before
    assert record.agreement > 0.95 and record.unoptimised_agreement == 1.0


def test_a_search_for_float_layers_works_on_pixels(tmp_path: Path) -> None:
    pictures = data.load("shapes", "test")
    wrap_onnx(pixel_network(tmp_path / "n.onnx", preprocess()), tmp_path / "p.onnx")
    options = QuantizeOptions(never_slower=False, samples=64, held_out=64, max_drop=0.01, effort="high")
    record = quantize_onnx(tmp_path / "p.onnx", tmp_path / "high.onnx", calibration=pictures, options=options)
    assert record.agreement > 0.95 and not record.kept_float
    assert "first" in {harm["layer"] for harm in record.sensitivity}


def test_a_plain_network_reads_the_pixels_past_its_view(tmp_path: Path) -> None:
    pictures = data.load("shapes", "test")
    path = pixel_network(tmp_path / "n.onnx", preprocess(channels="L"), head="flat")
    wrap_onnx(path, tmp_path / "p.onnx", options=FIXED)
    record = quantize_onnx(tmp_path / "p.onnx", tmp_path / "p.int8.onnx", calibration=pictures, options=PLAIN)
    assert record.rewrites["fold_pixels"] == 1 and record.agreement > 0.95
    before = first_operators(tmp_path / "p.int8.onnx", tmp_path)
    assert before[-1] == "QGemm" and set(before[:-1]) <= ON_PIXELS, before


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Two classes of pictures of many sizes."""
    from PIL import Image

    for label, first in (("a", 0), ("b", 20)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for seed in range(first, first + 20):
            picture = Image.fromarray(photo(30 + 7 * (seed % 5), 80 - 3 * (seed % 7), seed=seed))
            picture.save(tmp_path / "photos" / label / f"{seed}.png")
    return tmp_path / "photos"


def test_the_measuring_stages_show_pictures_as_they_are(tmp_path: Path, mixed_folder: Path) -> None:
    """evaluate, quantize, verify and bench on pictures whose sizes all differ."""
    before = pixel_network(tmp_path / "n.onnx", preprocess(resize=32, crop="center"), classes=2)
    after, int8 = tmp_path / "p.onnx", tmp_path / "p.int8.onnx"
    photos = data.load(mixed_folder, "all")
    wrap_onnx(before, after, samples=photos)
    first, second = evaluate_onnx(before, photos), evaluate_onnx(after, photos, reference=before)
    assert second.agreement == 1.0 and second.top1 == first.top1
    quantized = quantize_onnx(
        after, int8, calibration=photos, options=QuantizeOptions(never_slower=False, max_drop=0.2)
    )
    assert quantized.agreement > 0.9 and quantized.held_out_samples
    assert verify_onnx(int8, photos, options=VerifyOptions(samples=16, max_flips="2")).verdict == "same"
    timing = bench_onnx([int8], BenchOptions(threads=1, samples=4, min_time_s=0.0, processes=1)).results[0]
    assert timing.latency_ms.median > 0
    with pytest.raises(InputError, match="allowed: 1 crop"):
        evaluate_onnx(after, photos, options=EvaluateOptions(crops=10))
    wrap_onnx(before, tmp_path / "fixed.onnx", options=FIXED)
    ten = EvaluateOptions(crops=10)
    assert (
        evaluate_onnx(tmp_path / "fixed.onnx", photos, options=ten).top1
        == evaluate_onnx(before, photos, options=ten).top1
    )


def test_export_gives_a_file_for_an_app_at_once(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "app.onnx"
    arguments = ["export", str(trained.folder), "-o", str(output), "--input", "uint8", "--output", "topk=3"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "equals PyTorch within" in said and "takes pixels of any size" in said
    bare, made = Artifact.read(trained.onnx), Artifact.read(output)
    assert made.parent_sha256 == bare.parent_sha256  # the checkpoint's, as the step between is gone
    assert made.parity is not None and made.parity["max_abs"] < 1e-4
    assert made.graph_parity is not None and made.graph_parity["pictures"] == "shapes-color-shape/test"
    test = data.load("shapes", "test")
    quantize_onnx(output, tmp_path / "app.int8.onnx", calibration=data.load("shapes", "train"), options=PLAIN)
    one, two = evaluate_onnx(trained.onnx, test), evaluate_onnx(tmp_path / "app.int8.onnx", test, reference=output)
    assert abs(one.top1 - two.top1) < 0.01 and two.agreement is not None and two.agreement > 0.98
    assert {path.name for path in tmp_path.iterdir()} == {"app.onnx", "app.int8.onnx"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before, after = pixel_network(tmp_path / "net.onnx", preprocess()), tmp_path / "über pixels.onnx"
    assert cli.main(["wrap", str(before), "-o", str(after), "--output", "topk=2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "deploykit.wrapping/1"
    assert document["outputs"][1:] == ["probabilities", "top_probabilities", "top_indices"]
    assert document["model"] == after.name and document["max_levels"] <= 2
    assert cli.main(["wrap", str(before), "-o", str(after)]) == 2  # it is there already
    assert cli.main(["wrap", str(before), "-o", str(after), "--fixed-size", "--overwrite"]) == 0
    assert "takes pixels of this size, uint8 (N, 28, 28, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["-o", "a.onnx", "-o", "b.onnx"], "allowed: one file, and topk=N once"),
        (["--output", "topk=5"], "allowed: one file, and topk=N once"),
        (["-o", "a.onnx", "--output", "topk=many"], "allowed: a whole number of classes"),
        (["-o", "a.onnx", "--output", "topk=0"], "topk=0; allowed: 1 or more"),
    ],
)
def test_outputs_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture, given: list[str], reason: str
) -> None:
    assert cli.main(["wrap", str(tmp_path / "net.onnx"), *given]) == 2
    assert reason in capsys.readouterr().err


def test_export_refuses_what_belongs_to_pixels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for given in (["--fixed-size"], ["--output", "topk=2"], ["--input", "uint16"]):
        assert cli.main(["export", "lenet5", "-o", str(tmp_path / "a.onnx"), *given]) == 2
        assert "allowed:" in capsys.readouterr().err
    with pytest.raises(DeploykitError):
        Artifact.read(tmp_path / "a.onnx")
