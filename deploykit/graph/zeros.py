"""How many weights are zero: what a store's compression finds, and nothing that a runtime computes faster for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.products import PRODUCTS
from deploykit.graph.weights import Constants

if TYPE_CHECKING:
    import onnx

__all__ = ["zero_share"]


def zero_share(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Constants) -> float | None:
    """Share of the weights a node multiplies with that stand for exactly 0.

    Args:
        node: Of the graph.
        makers: The node that makes a tensor, by its name.
        constants: Of the graph, with their data.

    Returns:
        From 0 to 1; of integers behind DequantizeLinear those at the zero point. None without weights, and for packed
        ones.
    """
    from onnx import numpy_helper

    product = PRODUCTS.get(node.op_type)
    if product is None or len(node.input) <= product.weight:
        return None
    name, scaled = node.input[product.weight], None
    while name in makers and constants.is_constant(name) and makers[name].input:
        scaled = makers[name] if makers[name].op_type == "DequantizeLinear" else scaled
        name = makers[name].input[0]
    held = constants.stored.get(name)
    if held is None or not held.elements or not (held.is_float or (scaled and _plain_integer(held.tensor.data_type))):
        return None
    values = numpy_helper.to_array(held.tensor)
    zero = 0 if held.is_float or scaled is None else _zero_point(scaled, constants, values.ndim)
    return None if zero is None else float(np.count_nonzero(values == zero) / held.elements)


def _plain_integer(kind: int) -> bool:
    import onnx

    return kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def _zero_point(scaled: onnx.NodeProto, constants: Constants, rank: int) -> NDArray[Any] | int | None:
    """The zero point along its axis; 0 where there is none, None where it cannot be read."""
    from onnx import numpy_helper

    if len(scaled.input) < 3 or not scaled.input[2]:
        return 0
    held = constants.stored.get(scaled.input[2])
    if held is None:
        return None
    point = numpy_helper.to_array(held.tensor)
    if point.size == 1:
        return point.reshape(())
    axis = {item.name: item.i for item in scaled.attribute}.get("axis", 1)
    return point.reshape([-1 if index == axis % rank else 1 for index in range(rank)]) if point.ndim == 1 else None
