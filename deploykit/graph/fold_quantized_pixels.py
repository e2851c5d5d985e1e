"""The normalisation of pixels, folded into the first layer of a graph that is quantized already.

The rounded weights stay as they are, so that only one factor for all channels can go; what is left goes into the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import array_of, constant, only_reader, operator
from deploykit.graph.normalisation import (
    FoldedPixels,
    Numbers,
    find_normalisation,
    folded_around,
    forget,
    pads,
    put_pixels,
)
from deploykit.graph.weight_rows import channel_axis

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["fold_quantized_pixels"]


def fold_quantized_pixels(model: onnx_ir.Model) -> FoldedPixels | None:
    """Changes ``model``, or leaves it alone and returns None; exact but for the border, as ``FoldedPixels`` says.

    1. The normalisation is as ``fold_pixels`` takes it, with the same numbers for all channels.
    2. It is read by QuantizeLinear to uint8 alone, this by DequantizeLinear alone, this by Conv and Gemm alone, whose
       weights are int8 and whose biases int32 behind DequantizeLinear.
    """
    found = find_normalisation(model)
    rounded = None if found is None else only_reader(found.result)
    if found is None or not found.alike or found.reorder is not None or rounded is None:
        return None
    restored = _restored_alone(rounded)
    if restored is None:
        return None
    layers = [use.node for use in restored.outputs[0].uses()]
    biases = [_IntegerBias.of(layer) for layer in layers]
    folded = folded_around(found, padded=any(map(pads, layers)))
    if folded is None or any(bias is None for bias in biases):
        return None
    for bias in biases:
        if bias is not None:
            bias.store(model, folded.step, float(found.at(folded.zero)[0]))
    put_pixels(model, found, folded, found.pixels, rounded, restored)
    return folded


def _restored_alone(rounded: onnx_ir.Node) -> onnx_ir.Node | None:
    """DequantizeLinear behind a QuantizeLinear to uint8, when nothing else reads in between or answers."""
    if rounded.op_type != "QuantizeLinear" or len(rounded.inputs) < 3:
        return None
    zero, restored = array_of(rounded.inputs[2]), only_reader(rounded.outputs[0])
    if zero is None or zero.dtype != np.uint8 or zero.size != 1 or restored is None:
        return None
    plain = restored.op_type == "DequantizeLinear" and not restored.outputs[0].is_graph_output()
    return restored if plain else None


@dataclass(frozen=True)
class _IntegerBias:
    """A layer's bias in int32, and what it needs to be written for another step of the input.

    Attributes:
        layer: Conv or Gemm.
        bias: In float64, one a channel.
        steps: Of the weights, one a channel.
        sums: Of the weights as they are restored, over all that one output reads.
    """

    layer: onnx_ir.Node
    bias: Numbers
    steps: Numbers
    sums: Numbers

    @classmethod
    def of(cls, layer: onnx_ir.Node) -> _IntegerBias | None:
        if layer.domain or layer.op_type not in ("Conv", "Gemm") or len(layer.inputs) < 3:
            return None
        weight, bias = _stored_integers(layer.inputs[1]), _stored_integers(layer.inputs[2])
        if weight is None or bias is None or bias[0].dtype != np.int32 or layer.inputs[0] is layer.inputs[1]:
            return None
        axis = channel_axis(layer)
        others = tuple(index for index in range(weight[0].ndim) if index != axis)
        steps = np.broadcast_to(weight[1], bias[0].shape).astype(np.float64)
        sums = weight[0].astype(np.float64).sum(axis=others) * steps
        return cls(layer, bias[0].astype(np.float64) * bias[1], steps, sums)

    def store(self, model: onnx_ir.Model, step: float, rest: float) -> None:
        """For an input in this step, of which ``rest`` goes into the bias."""
        maker = self.layer.inputs[2].producer()  # type: ignore[union-attr]
        if maker is None:
            raise AssertionError("a bias without DequantizeLinear")
        scale = (self.steps * step).astype(np.float32)
        exact = (self.bias + rest * self.sums) / scale.astype(np.float64)
        integers = np.clip(np.rint(exact), -(2**31), 2**31 - 1).astype(np.int32)
        near = str(maker.inputs[0].name)  # type: ignore[union-attr]
        zeros = constant(model, np.zeros(integers.shape, np.int32), f"{near}.zero_point")
        inputs = [constant(model, integers, near), constant(model, scale, f"{near}.scale"), zeros]
        fresh = operator("DequantizeLinear", inputs, {"axis": 0}, name=f"{maker.name}.pixels")
        fresh.outputs[0].name = f"{self.layer.inputs[2].name}.pixels"  # type: ignore[union-attr]
        model.graph.insert_before(self.layer, fresh)
        self.layer.replace_input_with(2, fresh.outputs[0])
        if not maker.outputs[0].uses():
            forget(model, maker)


def _stored_integers(value: onnx_ir.Value | None) -> tuple[NDArray[np.integer], NDArray[np.float32]] | None:
    """Integers and steps behind DequantizeLinear with zero points of 0."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    integers, steps = array_of(maker.inputs[0]), array_of(maker.inputs[1])
    zero = array_of(maker.inputs[2]) if len(maker.inputs) > 2 else np.zeros(1)
    if integers is None or steps is None or zero is None or zero.any() or steps.ndim > 1:
        return None
    return integers, steps
