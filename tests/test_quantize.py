from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, matmul, relu, save_graph

from deploykit import cli, data, files
from deploykit.artifact import Artifact
from deploykit.errors import DataError, DeploykitError, InputError, ModelFileError, OutputError, UnknownNameError
from deploykit.evaluate import Classifier
from deploykit.files import sha256_file
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.results import read_record


def test_int8_is_smaller_and_answers_alike(trained: Trained) -> None:
    record = trained.quantization
    assert record.file_bytes == trained.int8.stat().st_size < 0.36 * trained.onnx.stat().st_size
    assert record.agreement > 0.95
    assert record.snr_db is not None and record.snr_db > 20.0
    assert record.warnings == ()
    assert record.model_sha256 == sha256_file(trained.int8)


def test_lineage_travels(trained: Trained) -> None:
    parent, child = Artifact.read(trained.onnx), Artifact.read(trained.int8)
    assert child.parent_sha256 == parent.sha256
    assert (child.recipe, child.precision, child.parity) == ("int8", "int8", None)
    assert (child.labels, child.preprocess, child.network) == (parent.labels, parent.preprocess, parent.network)


def test_portable_rounding(trained: Trained) -> None:
    """uint8 activations; per-channel int8 weights of which no two neighbours pass 16 bits together."""
    model = onnx.load(trained.int8)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    eight_bit = [w for n, w in weights.items() if w.dtype == np.int8 and w.ndim >= 2]
    assert len(eight_bit) == 4  # two convolutions, two fully connected layers
    for weight in eight_bit:
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1) if weight.ndim == 4 else weight
        even = rows.shape[1] // 2 * 2
        pairs = rows[:, 0:even:2].astype(int) + rows[:, 1:even:2]
        assert np.abs(pairs).max() * 255 < 2**15
        assert 64 < np.abs(rows.astype(int)).max() <= 127  # more than the seven bits that would do without pairs
    per_channel = [w for n, w in weights.items() if n.endswith("weight_scale")]
    assert per_channel and all(scale.ndim == 1 and len(scale) > 1 for scale in per_channel)
    zero_points = [w for n, w in weights.items() if n.endswith("zero_point") and w.ndim == 0]
    assert {w.dtype for w in zero_points} == {np.dtype(np.uint8)}


def test_optimised_and_unoptimised_sessions_agree(trained: Trained) -> None:
    """ORT once had int8 kernels that gave other answers than the QDQ graph says; this machine's do not."""
    test = data.load("shapes", "test")
    pictures = test.pictures(np.arange(300))
    fast = Classifier.open(trained.int8).predict(pictures)
    plain = Classifier.open(trained.int8, optimize=False).predict(pictures)
    assert (fast.argmax(1) == plain.argmax(1)).mean() >= 0.99
    assert np.abs(fast - plain).max() < 0.1 * np.abs(plain).max()


def test_arrays_as_calibration_and_repeatability(trained: Trained, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((40, 3, 28, 28)).astype(np.float32)
    records = [
        quantize_onnx(trained.onnx, tmp_path / f"{name}.onnx", calibration=[inputs[:25], inputs[25:]])
        for name in ("a", "b")
    ]
    assert records[0].model_sha256 == records[1].model_sha256
    assert records[0].calibration_samples == 40


def test_few_samples_and_missing_classes_are_said(trained: Trained, tmp_path: Path) -> None:
    record = quantize_onnx(
        trained.onnx, tmp_path / "a.onnx", calibration=data.load("shapes", "train"), options=QuantizeOptions(samples=5)
    )
    assert any("only 5 calibration samples" in warning for warning in record.warnings)
    assert any("classes have no calibration sample" in warning for warning in record.warnings)


def test_the_input_file_is_never_changed(trained: Trained, tmp_path: Path) -> None:
    before = sha256_file(trained.onnx)
    with pytest.raises(InputError, match="never changed"):
        quantize_onnx(trained.onnx, trained.onnx, calibration=data.load("shapes"), overwrite=True)
    with pytest.raises(OutputError, match="--overwrite"):
        quantize_onnx(trained.onnx, trained.int8, calibration=data.load("shapes"))
    assert sha256_file(trained.onnx) == before == Artifact.read(trained.int8).parent_sha256


def _nan_weights(path: Path) -> Path:
    model = onnx.load(conv_chain(path))
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[7] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w0"))
    onnx.save(model, path)
    return path


def _tanh_only(path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((3, 24, 24), np.float32), "b")
    nodes = [helper.make_node("Pow", ["x", "b"], ["z"]), helper.make_node("Tanh", ["z"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 24, 24])], [("y", TensorProto.FLOAT, ["N", 3, 24, 24])]
    return save_graph(path, nodes, *ends, [weight])


SAMPLES = np.random.default_rng(0).standard_normal((8, 16, 24, 24)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "samples", "error", "says"),
    [
        (_nan_weights, SAMPLES, ModelFileError, "'w0' hold NaN"),
        (conv_chain, SAMPLES[:, :3], InputError, r"\(3, 24, 24\).*takes \(16, 24, 24\)"),
        (conv_chain, SAMPLES.astype(np.float64), InputError, "float64.*takes float32"),
        (conv_chain, SAMPLES * np.nan, DataError, "NaN"),
        (conv_chain, SAMPLES[:0], DataError, "no calibration samples"),
        (lambda path: relu(path, shape=("N", 16, 24, 24)), SAMPLES, ModelFileError, "no float weights"),
        (_tanh_only, SAMPLES[:, :3], ModelFileError, "no operator that int8 can quantize"),
    ],
    ids=["nan", "shape", "dtype", "nan-samples", "none", "no-weights", "nothing"],
)
def test_bad_input_is_one_line_and_writes_nothing(
    make: object, samples: np.ndarray, error: type[DeploykitError], says: str, tmp_path: Path
) -> None:
    model = make(tmp_path / "model.onnx")  # type: ignore[operator]
    with pytest.raises(error, match=says) as caught:
        quantize_onnx(model, tmp_path / "out" / "q.onnx", calibration=[samples])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_quantized_already_and_unknown_recipe(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantized already"):
        quantize_onnx(trained.int8, tmp_path / "q.onnx", calibration=data.load("shapes"))
    with pytest.raises(UnknownNameError, match="recipe 'int9'; did you mean 'int8'"):
        quantize_onnx(trained.onnx, tmp_path / "q.onnx", calibration=data.load("shapes"), recipe="int9")


def test_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    model = conv_chain(tmp_path / "m.onnx", batch=3)
    record = quantize_onnx(model, tmp_path / "q.onnx", calibration=[SAMPLES])  # 8 samples do not fill threes
    assert record.compared_samples == 8
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": SAMPLES[:3]})[0].shape == (3, 16, 24, 24)


def test_a_model_with_its_weights_beside_it(tmp_path: Path) -> None:
    together = conv_chain(tmp_path / "m.onnx")
    apart, beside = tmp_path / "folder" / "m.onnx", tmp_path / "folder" / "m.data"
    apart.parent.mkdir()
    onnx.save(onnx.load(together), apart, save_as_external_data=True, location=beside.name, size_threshold=0)
    records = [
        quantize_onnx(model, tmp_path / f"{index}.onnx", calibration=[SAMPLES])
        for index, model in enumerate((together, apart))
    ]
    assert records[0].snr_db == records[1].snr_db
    assert records[1].parent_bytes == apart.stat().st_size + beside.stat().st_size
    assert not list(tmp_path.glob("*.data"))  # what was made is one file


def test_weights_that_operators_make(tmp_path: Path) -> None:
    """The ONNX project's light test models: below IR 4, their larger weights made by ConstantOfShape."""
    weights = [
        numpy_helper.from_array(np.ones(4, np.float32), "b"),
        numpy_helper.from_array(np.array([4, 3, 3, 3], np.int64), "w__SHAPE"),
    ]
    fill = numpy_helper.from_array(np.full(1, 0.02, np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["w__SHAPE"], ["w"], value=fill),
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
    ]
    types = {"b": TensorProto.FLOAT, "w__SHAPE": TensorProto.INT64}
    inputs = [("x", TensorProto.FLOAT, ["N", 3, 8, 8]), *((name, types[name], [4]) for name in types)]
    path = save_graph(tmp_path / "m.onnx", nodes, inputs, [("y", TensorProto.FLOAT, None)], weights, opset=9)
    model = onnx.load(path)
    model.ir_version = 3
    onnx.save(model, path)
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[ROWS])
    assert record.snr_db is not None and record.snr_db > 25.0


def test_a_file_that_did_not_get_smaller_is_said(tmp_path: Path) -> None:
    record = quantize_onnx(
        matmul(tmp_path / "m.onnx", 8, 4),
        tmp_path / "q.onnx",
        calibration=[np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)],
    )
    assert record.file_bytes > record.parent_bytes
    assert len(record.warnings) == 1
    assert "not smaller" in record.warnings[0]


def test_kernels_are_compared_with_the_plain_graph(trained: Trained, tmp_path: Path) -> None:
    """The figure equals a count with two bare sessions on the same samples."""
    train = data.load("shapes", "train")
    assert trained.quantization.unoptimised_agreement is not None
    pictures = train.take(256).pictures(np.arange(256))
    fast, plain = (Classifier.open(trained.int8, optimize=flag).predict(pictures).argmax(1) for flag in (True, False))
    assert trained.quantization.unoptimised_agreement == pytest.approx((fast == plain).mean())


def _odd_end(path: Path) -> Path:
    """A convolution whose answer is a sequence."""
    model = onnx.load(conv_chain(path))
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y1"], ["list"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    onnx.save(model, path)
    return path


def _wrong_shapes(path: Path) -> Path:
    """A product that no shape inference accepts."""
    weight = numpy_helper.from_array(np.ones((7, 4), np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 16, 24, 24])], [("y", TensorProto.FLOAT, ["N", 4])]
    return save_graph(path, nodes, *ends, [weight])


def _unknown_operator(path: Path) -> Path:
    model = onnx.load(conv_chain(path))
    model.graph.node.append(helper.make_node("NoSuch", ["y1"], ["z"], domain="nowhere"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("make", [_odd_end, _wrong_shapes, _unknown_operator])
def test_what_the_quantizer_did_not_foresee_ends_in_one_line(make: object, tmp_path: Path) -> None:
    model = make(tmp_path / "model.onnx")  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        quantize_onnx(model, tmp_path / "out" / "q.onnx", calibration=[SAMPLES])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def _older(path: Path, opset: int, ir_version: int, *, constants: bool = False) -> Path:
    """A convolution and a product; below IR 4 its weights are inputs, with ``constants`` they are nodes."""
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "f": (256, 5), "b": (5,)}
    weights = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        *(helper.make_node("Constant", [], [weight.name], value=weight) for weight in weights if constants),
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["z"]),
        helper.make_node("Gemm", ["z", "f", "b"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    if ir_version < 4 and not constants:
        inputs += [(name, TensorProto.FLOAT, list(shape)) for name, shape in shapes.items()]
    outputs = [("y", TensorProto.FLOAT, ["N", 5])]
    save_graph(path, nodes, inputs, outputs, [] if constants else weights, opset=opset)
    model = onnx.load(path)
    model.ir_version = ir_version
    onnx.save(model, path)
    return path


ROWS = np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("opset", "ir_version", "constants"), [(7, 3, False), (9, 4, False), (12, 7, False), (9, 4, True), (17, 8, True)]
)
def test_older_operator_sets_and_constant_nodes(opset: int, ir_version: int, constants: bool, tmp_path: Path) -> None:
    model = _older(tmp_path / "m.onnx", opset, ir_version, constants=constants)
    record = quantize_onnx(model, tmp_path / "q.onnx", calibration=[ROWS])
    assert record.snr_db is not None and record.snr_db > 25.0
    assert any(f"raised from {opset} to 13" in warning for warning in record.warnings) == (opset < 13)
    made = onnx.load(tmp_path / "q.onnx")
    assert {entry.version for entry in made.opset_import if not entry.domain} == {max(opset, 13)}
    (scale,) = (tensor for tensor in made.graph.initializer if tensor.name == "w_scale")
    assert list(scale.dims) == [4]  # one a channel
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": ROWS[:3]})[0].shape == (3, 5)


def test_an_operator_set_that_cannot_be_raised_is_refused(tmp_path: Path) -> None:
    model = _older(tmp_path / "m.onnx", 1, 3)
    with pytest.raises(ModelFileError, match="has opset 1; allowed: 7 or later") as caught:
        quantize_onnx(model, tmp_path / "q.onnx", calibration=[ROWS])
    assert "\n" not in str(caught.value)


def test_other_tools_keys_keep_their_own_values(trained: Trained, tmp_path: Path) -> None:
    model = onnx.load(trained.onnx)
    model.metadata_props.add(key="onnx.infer", value="theirs")
    onnx.save(model, tmp_path / "m.onnx")
    samples = data.load("shapes", "train")
    quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", calibration=samples, options=QuantizeOptions(samples=40))
    assert {prop.key: prop.value for prop in onnx.load(tmp_path / "q.onnx").metadata_props}["onnx.infer"] == "theirs"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_are_checked(seed: int) -> None:
    with pytest.raises(InputError, match=r"seed -?\d+; allowed: 0 to 4294967295"):
        QuantizeOptions(seed=seed)


def _command(trained: Trained, output: Path, *more: str) -> int:
    return cli.main(
        ["quantize", str(trained.onnx), "-o", str(output), "--calibrate", "shapes", "--samples", "40", *more]
    )


def test_the_record_beside_is_never_lost(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, beside = tmp_path / "q.onnx", tmp_path / "q.quantization.json"
    beside.write_text("mine")
    assert _command(trained, output) == 2
    assert "q.quantization.json exists already" in capsys.readouterr().err
    assert (beside.read_text(), output.exists()) == ("mine", False)
    assert _command(trained, output, "--overwrite") == 0
    assert read_record(beside).to_document()["model"] == "q.onnx"


def test_no_model_without_its_record(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full once the model lies on it."""

    def full(path: Path, *_: object, **__: object) -> None:
        raise OutputError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(files, "write_json", full)
    assert _command(trained, tmp_path / "q.onnx") == 2
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_its_check_is_not_moved_into_place(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Artifact:
        assert path.is_file()
        raise ModelFileError(f"{path} is not a valid ONNX model")

    monkeypatch.setattr(Artifact, "read", refuse)
    with pytest.raises(ModelFileError):
        quantize_onnx(trained.onnx, tmp_path / "q.onnx", calibration=data.load("shapes", "train"))
    assert not list(tmp_path.iterdir())
