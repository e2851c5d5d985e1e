"""What a dense block needs: Concats in a chain and in one rounding, means in front of the transition's convolution."""

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

ROWS = np.random.default_rng(0).standard_normal((4, 6, 8, 8)).astype(np.float32)
SHAPE = ["N", 6, 8, 8]


def _conv(name: str, source: str, channels: tuple[int, int], size: int, seed: int, scale: float = 1.0):
    weight = np.random.default_rng(seed).standard_normal((*channels, size, size)).astype(np.float32) * scale
    node = helper.make_node("Conv", [source, f"{name}.w"], [name], pads=[size // 2] * 4, name=name)
    return node, numpy_helper.from_array(weight, f"{name}.w")


def _dense_block(path: Path, *, scale: float = 1.0) -> Path:
    """Three layers, each of which reads all that were before, as torchvision's DenseNet is exported."""
    nodes, weights, joined = [], [], ["stem"]
    node, weight = _conv("stem", "x", (8, 6), 3, 0)
    nodes.append(node)
    weights.append(weight)
    for layer in range(3):
        nodes.append(helper.make_node("Concat", list(joined), [f"all{layer}"], axis=1)) if len(joined) > 1 else None
        source = f"all{layer}" if len(joined) > 1 else "stem"
        node, weight = _conv(f"c{layer}", source, (4, 8 + 4 * layer), 3, layer + 1, 0.2 * scale**layer)
        nodes.append(node)
        weights.append(weight)
        joined.append(f"c{layer}")
    nodes.append(helper.make_node("Concat", joined, ["last"], axis=1))
    node, weight = _conv("y", "last", (5, 20), 1, 9)
    ends = [("x", TensorProto.FLOAT, SHAPE)], [("y", TensorProto.FLOAT, ["N", 5, 8, 8])]
    return save_graph(path, [*nodes, node], *ends, [*weights, weight])


def _transition(path: Path, *, pads: tuple[int, ...] = (0, 0, 0, 0), size: int = 1, strides: int = 2) -> Path:
    node, weight = _conv("c", "x", (4, 6), size, 1)
    node.input.append("b")
    pool = helper.make_node("AveragePool", ["c"], ["y"], kernel_shape=[2, 2], strides=[strides] * 2, pads=pads)
    bias = numpy_helper.from_array(np.arange(4, dtype=np.float32), "b")
    ends = [("x", TensorProto.FLOAT, SHAPE)], [("y", TensorProto.FLOAT, ["N", 4, None, None])]
    return save_graph(path, [node, pool], *ends, [weight, bias])


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_concat_reads_what_is_joined_already(tmp_path: Path) -> None:
    path = _dense_block(tmp_path / "m.onnx")
    made, counts = rewrite_model(onnx.load(path), only=("chain_concat",))
    assert counts == {"chain_concat": 2}
    concats = [node for node in made.graph.node if node.op_type == "Concat"]
    assert [len(node.input) for node in concats] == [2, 2, 2]
    got = create_session(made.SerializeToString(), optimize=False).run_rows(ROWS)
    np.testing.assert_array_equal(got, create_session(path, optimize=False).run_rows(ROWS))


def test_another_axis_or_order_is_another_concat(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["a"], axis=1),
        helper.make_node("Concat", ["x", "x", "x"], ["b"], axis=2),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Concat", ["x", "r"], ["c"], axis=1),
        helper.make_node("Concat", ["r", "x", "x"], ["d"], axis=1),
    ]
    ends = [("x", TensorProto.FLOAT, SHAPE)], [(name, TensorProto.FLOAT, None) for name in "abcd"]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends)
    assert rewrite_model(onnx.load(path), only=("chain_concat",))[1] == {"chain_concat": 0}


def test_the_mean_moves_before_the_convolution(tmp_path: Path) -> None:
    path = _transition(tmp_path / "m.onnx")
    made, counts = rewrite_model(onnx.load(path), only=("pool_before_pointwise",))
    assert counts == {"pool_before_pointwise": 1} and _operators(made) == ["Conv", "Conv"]
    assert made.graph.node[0].attribute[0].name == "group" and made.graph.node[0].attribute[0].i == 6
    before = create_session(path, optimize=False).run_rows(ROWS)
    got = create_session(made.SerializeToString(), optimize=False).run_rows(ROWS)
    np.testing.assert_allclose(got, before, atol=1e-5)
    plain = ROWS.reshape(4, 6, 4, 2, 4, 2).mean(axis=(3, 5))  # (4, 6, 4, 4)
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0])[:, :, 0, 0]
    formula = np.einsum("oc,nchw->nohw", weight, plain) + np.arange(4)[:, None, None]
    np.testing.assert_allclose(got, formula, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"pads": (0, 0, 1, 1)}, {"size": 3}, {"strides": 1}], ids=str)
def test_a_mean_that_cannot_move_stays(wrong: dict, tmp_path: Path) -> None:
    path = _transition(tmp_path / "m.onnx", **wrong)
    assert rewrite_model(onnx.load(path), only=("pool_before_pointwise",))[1] == {"pool_before_pointwise": 0}


def _concat_scales(path: Path) -> list[tuple[list[float], float]]:
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}

    def scale(node: onnx.NodeProto) -> float:
        return float(numpy_helper.to_array(stored[node.input[1]]))

    concats = [node for node in model.graph.node if node.op_type == "Concat"]
    return [([scale(makers[name]) for name in node.input], scale(readers[node.output[0]])) for node in concats]


def test_a_dense_block_is_joined_in_one_rounding(tmp_path: Path) -> None:
    path = _dense_block(tmp_path / "m.onnx")
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[ROWS], options=QuantizeOptions(effort="low"))
    scales = _concat_scales(tmp_path / "q.onnx")
    assert len(scales) == 3 and all(one == wrote for read, wrote in scales for one in read)
    assert record.snr_db is not None and record.snr_db > 20


def test_a_range_that_would_drown_keeps_its_own(tmp_path: Path) -> None:
    """Each layer is some 50 times as large as what it reads: in one rounding the first ones would be lost."""
    path = _dense_block(tmp_path / "m.onnx", scale=50.0)
    quantize_onnx(path, tmp_path / "q.onnx", calibration=[ROWS], options=QuantizeOptions(effort="low"))
    (_, first_wrote), *_, (last_read, last_wrote) = _concat_scales(tmp_path / "q.onnx")
    assert last_wrote > 20 * first_wrote
    assert last_read[-1] == last_wrote  # read by this Concat alone: it may take its range
    assert last_read[0] < last_wrote / 4  # read by others too, and small
