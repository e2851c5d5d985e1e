"""Arithmetic with one stored number a channel, folded into the layer before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import bypass, float_arrays, nodes_of_model, only_reader
from deploykit.graph.folding import Numbers, channels_of, folded_behind, store_layer

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["fold_scale"]


def fold_scale(model: onnx_ir.Model) -> int:
    """Folds ``Add``, ``Sub``, ``Mul`` and ``Div`` with stored numbers into a layer, in float64; returns how many.

    1. The layer is a ``Conv``, ``ConvTranspose`` or ``Gemm`` that nothing else reads; the stored tensor has one number
       a channel, (C, 1, 1) or (1, C, 1, 1) behind a convolution, or one in all.
    2. It may stand on the left of Add and Mul only, and divides only without zeros.

    Keras writes biases so, and Caffe its Scale layers behind BatchNormalization.
    """
    return sum(_fold(model, node) for node in nodes_of_model(model, "Add", "Sub", "Mul", "Div"))


def _fold(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    for data, other in ((0, 1), (1, 0)) if node.op_type in ("Add", "Mul") else ((0, 1),):
        value = node.inputs[data]
        layer = None if value is None else value.producer()
        if value is None or layer is None or only_reader(value) is not node or layer.graph is not node.graph:
            continue
        numbers = _numbers(layer, node.inputs[other])
        if numbers is None or (node.op_type == "Div" and not numbers.all()):
            continue
        folded = folded_behind(layer, *_factor_and_summand(node.op_type, numbers))
        if folded is not None and store_layer(model, layer, *folded):
            if data:  # what remains is on the right
                node.replace_input_with(0, value)
            return bypass(node)
    return False


def _numbers(layer: onnx_ir.Node, value: onnx_ir.Value | None) -> Numbers | None:
    """(C,) of a stored tensor that broadcasts along axis 1 of what the layer writes."""
    known, arrays = channels_of(layer), float_arrays([value])
    if known is None or arrays is None or arrays[0].ndim > known[1]:
        return None
    channels, rank = known
    shape = (1,) * (rank - arrays[0].ndim) + arrays[0].shape
    if arrays[0].size != 1 and shape != (1, channels, *[1] * (rank - 2)):
        return None
    return np.array(np.broadcast_to(arrays[0].reshape(-1), channels))


def _factor_and_summand(op_type: str, numbers: Numbers) -> tuple[Numbers, Numbers]:
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if op_type in ("Add", "Sub"):
        return ones, numbers if op_type == "Add" else -numbers
    return numbers if op_type == "Mul" else 1.0 / numbers, zeros
