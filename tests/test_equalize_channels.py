"""Equalised channels compute the same, and weigh alike on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit.graph.equalize_channels import equalize_channels
from deploykit.runtime import create_session


def _chain(path: Path, groups: int, activation: str = "Relu") -> Path:
    """Convolution, activation, pooling, convolution in groups; the first one's channels differ by a thousand times."""
    random = np.random.default_rng(0)
    one = random.standard_normal((8, 3, 3, 3)) * np.geomspace(0.01, 10, 8).reshape(-1, 1, 1, 1)
    two = random.standard_normal((16, 8 // groups, 3, 3))
    one[3] = 0
    arrays = {"w": one, "b": random.standard_normal(8), "v": two}
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "v"], ["y"], group=groups),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 12, 12])], [("y", TensorProto.FLOAT, None)]
    return save_graph(path, nodes, *ends, stored, opset=17)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_function_stays_and_the_ranges_meet(groups: int, tmp_path: Path) -> None:
    path = _chain(tmp_path / "m.onnx", groups)
    model = ir.load(path)
    assert equalize_channels(model) == 1
    rows = np.random.default_rng(1).standard_normal((4, 3, 12, 12)).astype(np.float32)
    wanted = create_session(path, optimize=False).run_rows(rows)
    made = ir.to_proto(model)
    np.testing.assert_allclose(
        create_session(made.SerializeToString(), optimize=False).run_rows(rows), wanted, atol=2e-4
    )
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    ahead = np.abs(arrays["w"]).max(axis=(1, 2, 3))
    behind = np.abs(arrays["v"]).reshape(groups, 16 // groups, 8 // groups, 9).max(axis=(1, 3)).reshape(-1)
    there = ahead > 0  # a channel without weights keeps its own
    np.testing.assert_allclose(ahead[there], behind[there], rtol=1e-5)


def test_what_is_not_linear_is_no_pair(tmp_path: Path) -> None:
    path = _chain(tmp_path / "m.onnx", 1, "Sigmoid")
    model = ir.load(path)
    assert equalize_channels(model) == 0
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(ir.load(path)).SerializeToString()


def test_what_another_operator_reads_is_no_pair(tmp_path: Path) -> None:
    path = _chain(tmp_path / "m.onnx", 1)
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("Neg", ["r"], ["z"]))
    proto.graph.output.append(helper.make_empty_tensor_value_info("z"))
    assert equalize_channels(ir.from_proto(proto)) == 0
