from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, relu, save_graph

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.errors import DataError, DeploykitError, InputError, ModelFileError, OutputError, UnknownNameError
from deploykit.evaluate import Classifier
from deploykit.files import sha256_file
from deploykit.quantize import QuantizeOptions, quantize_onnx


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
    """uint8 activations; per-channel int8 weights of seven bits, so that no pair of products passes 16 bits."""
    model = onnx.load(trained.int8)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    eight_bit = [w for n, w in weights.items() if w.dtype == np.int8 and w.ndim >= 2]
    assert len(eight_bit) == 4  # two convolutions, two fully connected layers
    assert max(np.abs(w.astype(int)).max() for w in eight_bit) <= 64
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
