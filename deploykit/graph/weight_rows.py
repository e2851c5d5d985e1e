"""The weights of a layer as rows: what one output is a sum over, in the order in which integer kernels walk it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir

__all__ = [
    "KEEP_FLOAT",
    "channel_axis",
    "groups_of",
    "quantizable_product",
    "to_rows",
    "weights_from_rows",
    "weights_of",
]


KEEP_FLOAT = "deploykit.keep_float"
"""Key of a node's metadata: whoever made it knows that integers would not do; the value says why."""


def quantizable_product(node: onnx_ir.Node) -> bool:
    """Whether this is a convolution or fully connected layer with stored float32 weights, of a form with a kernel.

    1. ``Conv`` of pictures or sequences, in groups or not.
    2. ``Gemm`` with alpha and beta 1, its data not transposed and its bias, if any, one number a channel.
    3. ``MatMul`` with a matrix at its right.
    4. None that carries ``KEEP_FLOAT``.
    """
    import onnx_ir as ir

    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or KEEP_FLOAT in node.metadata_props:
        return False
    weight = node.inputs[1].const_value if node.inputs[1] is not None else None
    if weight is None or weight.dtype != ir.DataType.FLOAT or _is_input(node.inputs[1]):
        return False
    if node.op_type == "Conv":
        return _bias_fits(node, weight.shape[0]) and len(weight.shape) in (3, 4)
    if node.op_type == "MatMul":
        return len(weight.shape) == 2
    plain = node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
    return plain and not node.attributes.get_int("transA", 0) and _bias_fits(node, weight.shape[channel_axis(node)])


def _is_input(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()


def _bias_fits(node: onnx_ir.Node, channels: object) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = node.inputs[2].const_value
    return bias is not None and not _is_input(node.inputs[2]) and tuple(bias.shape) == (channels,)


def channel_axis(node: onnx_ir.Node) -> int:
    """The axis of the weights that counts the outputs."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else 1


def groups_of(node: onnx_ir.Node) -> int:
    """Groups of a convolution; 1 of a matrix."""
    return int(node.attributes.get_int("group", 1)) if node.op_type == "Conv" else 1


def weights_of(node: onnx_ir.Node) -> NDArray[np.float32]:
    """The layer's weights as they are stored."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        raise AssertionError(f"{node.name} has no stored weights")  # ``quantizable_product`` asks that before
    return weight.const_value.numpy()


def to_rows(node: onnx_ir.Node, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(channels, K). ONNX Runtime's integer convolutions lay pictures out channels last, so a row goes over the
    kernel's positions and, within each, over the channels (onnxruntime/core/mlas/lib/qgemm.h, conv via im2col).
    """
    if node.op_type == "Conv":
        rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
    else:
        rows = weights if channel_axis(node) == 0 else weights.T
    return np.ascontiguousarray(rows)


def weights_from_rows(node: onnx_ir.Node, rows: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The inverse of ``to_rows`` for weights that are stored in ``shape``."""
    if node.op_type == "Conv":
        channels, inner, *window = shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *window, inner), -1, 1))
    return rows if channel_axis(node) == 0 else np.ascontiguousarray(rows.T)
