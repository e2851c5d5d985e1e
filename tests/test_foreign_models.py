"""Models of other tools: each quantized, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit.errors import InputError, ModelFileError
from deploykit.graph.profile import profile_onnx
from deploykit.quantize import QuantizeOptions, quantize_onnx

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((48, 3, 16, 16)).astype(np.float32)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = QuantizeOptions(effort="low")


def _weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    arrays = {name: RANDOM.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _detector(path: Path) -> Path:
    """Boxes and scores from one trunk, transposed and reshaped as exporters of detectors do."""
    stored = _weights(w=(8, 3, 3, 3), boxes=(8, 8, 1, 1), scores=(6, 8, 1, 1))
    stored += [
        numpy_helper.from_array(np.array(shape), name) for name, shape in (("b4", [0, -1, 4]), ("s3", [0, -1, 3]))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["t"]),
        *(helper.make_node("Conv", ["t", name], [f"{name}_maps"]) for name in ("boxes", "scores")),
        *(
            helper.make_node("Transpose", [f"{name}_maps"], [f"{name}_last"], perm=[0, 2, 3, 1])
            for name in ("boxes", "scores")
        ),
        helper.make_node("Reshape", ["boxes_last", "b4"], ["found"]),
        helper.make_node("Reshape", ["scores_last", "s3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=-1),
    ]
    inputs = [("x", TensorProto.FLOAT, ["N", 3, 16, 16])]
    outputs = [("found", TensorProto.FLOAT, None), ("probability", TensorProto.FLOAT, None)]
    return save_graph(path, nodes, inputs, outputs, stored, opset=17)


def test_a_detector_with_two_outputs(tmp_path: Path) -> None:
    path = _detector(tmp_path / "m.onnx")
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[ROWS])
    assert record.snr_db is not None and record.snr_db > 30
    run = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (path, tmp_path / "q.onnx")
    ]
    for wanted, got in zip(*(session.run(None, {"x": ROWS}) for session in run), strict=True):
        assert wanted.shape == got.shape
        assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 25
    assert profile_onnx(tmp_path / "q.onnx").float_islands == ()


def _keras(path: Path) -> Path:
    """Channels last, as tf2onnx writes it: Transpose at both ends of every convolution, MatMul and Add for Dense."""
    stored = _weights(w=(8, 3, 3, 3), v=(8, 8, 3, 3), scale=(8,), shift=(8,), d=(8, 5), e=(5,))
    stored += [
        numpy_helper.from_array(np.zeros(8, np.float32), "mean"),
        numpy_helper.from_array(np.ones(8, np.float32), "var"),
        numpy_helper.from_array(np.array([2, 3]), "space"),
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["k"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Clip", ["k", "zero", "six"], ["six_cut"]),
        helper.make_node("ReduceMean", ["six_cut", "space"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "d"], ["product"]),
        helper.make_node("Add", ["product", "e"], ["y"]),
    ]
    stored += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("zero", 0), ("six", 6))]
    ends = [("x", TensorProto.FLOAT, ["N", 16, 16, 3])], [("y", TensorProto.FLOAT, ["N", 5])]
    return save_graph(path, nodes, *ends, stored, opset=18)


@pytest.mark.parametrize("effort", ["low", "high"])
def test_a_keras_export(effort: str, tmp_path: Path) -> None:
    rows = np.ascontiguousarray(ROWS.transpose(0, 2, 3, 1))
    record = quantize_onnx(
        _keras(tmp_path / "m.onnx"), tmp_path / "q.onnx", calibration=[rows], options=QuantizeOptions(effort=effort)
    )
    assert record.snr_db is not None and record.snr_db > 28
    assert record.unoptimised_agreement == 1.0
    operators = profile_onnx(tmp_path / "q.onnx").operators
    assert "BatchNormalization" not in operators and operators["GlobalAveragePool"] == 1


def test_a_model_of_custom_operators_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Whiten", ["c"], ["y"], domain="com.acme")]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 16, 16])], [("y", TensorProto.FLOAT, None)]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends, _weights(w=(4, 3, 3, 3)), opset=17)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(model, path)
    with pytest.raises(InputError, match="Whiten") as caught:
        quantize_onnx(path, tmp_path / "q.onnx", calibration=[ROWS])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "q.onnx").exists()


def _old(path: Path) -> Path:
    """As CNTK wrote its MNIST network in opset 8: biases that are added, a Reshape by a stored shape, a batch of 1."""
    stored = _weights(w=(8, 1, 5, 5), b=(8, 1, 1), v=(16, 8, 5, 5), c=(16, 1, 1), d=(256, 10), e=(1, 10))
    stored.append(numpy_helper.from_array(np.array([1, 256]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c1"], auto_pad="SAME_UPPER", kernel_shape=[5, 5]),
        helper.make_node("Add", ["c1", "b"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "v"], ["c2"], auto_pad="SAME_UPPER", kernel_shape=[5, 5]),
        helper.make_node("Add", ["c2", "c"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Reshape", ["p2", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "d"], ["m"]),
        helper.make_node("Add", ["m", "e"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, [1, 1, 28, 28])]
    inputs += [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in stored]
    path = save_graph(path, nodes, inputs, [("y", TensorProto.FLOAT, [1, 10])], stored, opset=8)
    model = onnx.load(path)
    model.ir_version = 3
    onnx.save(model, path)
    return path


def test_an_old_model_with_a_fixed_batch(tmp_path: Path) -> None:
    rows = np.abs(RANDOM.standard_normal((40, 1, 28, 28))).astype(np.float32)
    record = quantize_onnx(_old(tmp_path / "m.onnx"), tmp_path / "q.onnx", calibration=[rows])
    assert record.snr_db is not None and record.snr_db > 28
    assert any("raised from 8" in warning for warning in record.warnings)
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: rows[:1]})[0].shape == (1, 10)


# Every matrix of theirs is a ConstantOfShape too large to store: nothing is left whose weights are known.
_COMPUTED = ("light_bvlc_alexnet", "light_zfnet512")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_light_models_of_the_onnx_wheel(path: Path, tmp_path: Path) -> None:
    """Their weights are constants, their answers nearly so; what counts is that each is quantized and runs."""
    shape = [int(size) for size in onnxruntime.InferenceSession(path).get_inputs()[0].shape]
    rows = np.abs(RANDOM.standard_normal((4 * shape[0], *shape[1:]))).astype(np.float32)
    if path.stem in _COMPUTED:
        with pytest.raises(ModelFileError, match=r"no float weights|no operator that int8 can quantize"):
            quantize_onnx(path, tmp_path / "q.onnx", calibration=[rows], options=QUICK)
        assert not (tmp_path / "q.onnx").exists()
        return
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[rows], options=QUICK)
    assert record.precision == "int8"
    assert record.max_abs < 0.05
    onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
