"""Local response normalisation by operators that runtimes compute fast.

ONNX Runtime's LRN raises every value to a power, one after the other; a sum over neighbouring channels is a 1×1
convolution with a band of ones, and s^0.75 is √s · √√s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.weight_rows import KEEP_FLOAT

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["split_lrn"]

_MOST_CHANNELS = 1024  # the band is stored as a full matrix


def split_lrn(model: onnx_ir.Model) -> int:
    """LRN(x) → x / (k + α/n · Σ x²)^β, the sum as a convolution (ONNX operator LRN); changes ``model``.

    1. Only where the number of channels is known and at most 1,024.
    2. β = 0.75 takes two square roots, any other β a power.
    3. The convolution is marked to stay in float: rounding squares would lose the small ones.

    Returns:
        Number of places.
    """
    found = [node for node in model.graph if node.op_type == "LRN" and not node.domain and _channels(node)]
    for node in found:
        _replace(model.graph, node)
    return len(found)


def _channels(node: onnx_ir.Node) -> int | None:
    """Of what the node reads, None where it is not known or too large."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    return shape[1] if shape[1] <= _MOST_CHANNELS else None


def _band(channels: int, size: int, alpha: float) -> NDArray[np.float32]:
    """(C, C, 1, 1): α/n where a channel is in another one's window."""
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    inside = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    return (inside * (alpha / size)).astype(np.float32)[:, :, None, None]


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    import onnx_ir as ir

    read = node.attributes
    alpha, beta = read.get_float("alpha", 1e-4), read.get_float("beta", 0.75)
    channels, stem = _channels(node) or 0, str(node.outputs[0].name)

    def stored(kind: str, array: NDArray[np.float32]) -> onnx_ir.Value:
        value = ir.Value(name=f"{stem}_{kind}", const_value=ir.tensor(array, name=f"{stem}_{kind}"))
        graph.register_initializer(value)
        return value

    def made(kind: str, op: str, inputs: list[onnx_ir.Value]) -> onnx_ir.Node:
        new = ir.node(op, inputs, name=f"{stem}_{kind}")
        new.outputs[0].name = f"{stem}_{kind}"
        nodes.append(new)
        return new

    nodes: list[onnx_ir.Node] = []
    value = node.inputs[0]
    if value is None:
        raise AssertionError("LRN without an input")
    square = made("square", "Mul", [value, value])
    band = stored("band", _band(channels, read.get_int("size", 5), alpha))
    bias = stored("bias", np.full(channels, read.get_float("bias", 1.0), np.float32))
    total = made("sum", "Conv", [square.outputs[0], band, bias])
    total.metadata_props[KEEP_FLOAT] = "sums of squares"
    if beta == 0.75:
        root = made("root", "Sqrt", [total.outputs[0]])
        fourth = made("fourth_root", "Sqrt", [root.outputs[0]])
        power = made("power", "Mul", [root.outputs[0], fourth.outputs[0]])
    else:
        power = made("power", "Pow", [total.outputs[0], stored("beta", np.asarray(beta, np.float32))])
    result, before = made("quotient", "Div", [value, power.outputs[0]]), node.outputs[0]
    after = result.outputs[0]
    after.shape, after.type = before.shape, before.type
    graph.insert_after(node, nodes)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    after.name = stem
