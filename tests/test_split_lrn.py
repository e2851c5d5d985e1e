"""LRN by a banded convolution, against the operator and against its formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit.graph.rewrites import rewrite_model
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.runtime import create_session

ROWS = np.random.default_rng(0).standard_normal((3, 7, 6, 6)).astype(np.float32) * 5


def _lrn(path: Path, channels: int | str = 7, **attributes: float) -> Path:
    nodes = [helper.make_node("LRN", ["x"], ["y"], **attributes)]
    ends = [("x", TensorProto.FLOAT, ["N", channels, 6, 6])], [("y", TensorProto.FLOAT, ["N", channels, 6, 6])]
    return save_graph(path, nodes, *ends, [], opset=17)


def _formula(x: np.ndarray, size: int, alpha: float, beta: float, bias: float) -> np.ndarray:
    total = np.zeros_like(x, dtype=np.float64)
    for channel in range(x.shape[1]):
        window = slice(max(0, channel - (size - 1) // 2), channel + size // 2 + 1)
        total[:, channel] = (x[:, window].astype(np.float64) ** 2).sum(axis=1)
    return x / (bias + alpha / size * total) ** beta


@pytest.mark.parametrize(
    ("size", "alpha", "beta", "bias"), [(5, 5e-4, 0.75, 2.0), (3, 1.0, 0.5, 1.0), (1, 0.1, 0.75, 1.0)]
)
def test_the_function_stays(size: int, alpha: float, beta: float, bias: float, tmp_path: Path) -> None:
    path = _lrn(tmp_path / "m.onnx", size=size, alpha=alpha, beta=beta, bias=bias)
    made, counts = rewrite_model(onnx.load(path), only=("split_lrn",))
    assert counts == {"split_lrn": 1} and "LRN" not in {node.op_type for node in made.graph.node}
    got = create_session(made.SerializeToString(), optimize=False).run_rows(ROWS)
    np.testing.assert_allclose(got, create_session(path, optimize=False).run_rows(ROWS), rtol=1e-5)
    np.testing.assert_allclose(got, _formula(ROWS, size, alpha, beta, bias), rtol=1e-5)
    assert [value.name for value in made.graph.output] == ["y"]


def test_an_unknown_number_of_channels_is_left_alone(tmp_path: Path) -> None:
    path = _lrn(tmp_path / "m.onnx", channels="C", size=5)
    assert rewrite_model(onnx.load(path), only=("split_lrn",))[1] == {"split_lrn": 0}


def test_its_convolution_stays_in_float_and_pooling_behind_it_does_not(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) * 0.3, name)
        for name, shape in (("w", (8, 7, 3, 3)), ("v", (4, 8, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("LRN", ["r"], ["n"], size=5, alpha=0.1),
        helper.make_node("MaxPool", ["n"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "v"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 7, 6, 6])], [("y", TensorProto.FLOAT, None)]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends, weights, opset=17)
    record = quantize_onnx(
        path, tmp_path / "q.onnx", calibration=[np.tile(ROWS, (12, 1, 1, 1))], options=QuantizeOptions(effort="low")
    )
    assert record.rewrites["split_lrn"] == 1
    assert record.snr_db is not None and record.snr_db > 28
    made = onnx.load(tmp_path / "q.onnx")
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    assert [makers[node.input[0]] for node in convolutions] == ["DequantizeLinear", "Mul", "DequantizeLinear"]
    (pool,) = (node for node in made.graph.node if node.op_type == "MaxPool")
    assert makers[pool.input[0]] == "DequantizeLinear"
