"""The normalisation of pixels, folded into the layer that reads it: integers then begin with the picture itself.

``pixel * factor + offset`` before a layer with weights is ``step * (pixel - zero)``, which is DequantizeLinear, with
what is left of it in the layer's weights and bias. A runtime that computes the layer in integers reads the pixels as
they are; no pass over the picture is left.

A convolution that pads puts its zero, the mean pixel, around the picture; the folded one puts ``zero`` there, a whole
number and the same for all channels. That is the only difference, and ``FoldedPixels.border`` bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import array_of, constant, nodes_of_model, only_reader, operator, remove, set_weight
from deploykit.graph.weight_rows import channel_axis, groups_of, quantizable_product, weights_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["FoldedPixels", "fold_pixels", "fold_quantized_pixels"]

_MOST_LEVELS = 16.0  # that the border may differ by; means of ImageNet's channels lie 20 apart, so it is 10 there
_ON_PIXELS = frozenset({"Gather", "Pad", "Reshape", "Resize", "Slice", "Transpose"})  # what may make uint8 of uint8
_VIEWS = frozenset({"Flatten", "Reshape"})

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class FoldedPixels:
    """What was folded.

    Attributes:
        step: Of DequantizeLinear.
        zero: Its zero point, a pixel.
        border: Levels of 255 by which the padding of a convolution differs from the mean pixel, at most; 0 where
            nothing is padded.
    """

    step: float
    zero: int
    border: float


def fold_pixels(model: onnx_ir.Model) -> FoldedPixels | None:
    """Folds the normalisation of a float graph; changes ``model``, or leaves it alone and returns None.

    1. It is Cast → Mul → Add of uint8 that comes from an input, with stored numbers, one in all or one a channel of
       (N, C, H, W); Mul or Add may be missing.
    2. All that read it are convolutions with stored weights, or matrices behind a view where all channels have the
       same numbers.
    3. The border differs by at most 16 levels.
    4. A Gather that reorders the channels of the pixels before goes into the weights too.
    """
    found = _normalisation(model)
    layers = [] if found is None else list(_layers(found))
    if found is None or not layers or any(not _takes(found, layer) for layer in layers):
        return None
    folded = _folded(found, padded=any(map(_pads, layers)))
    if folded is None:
        return None
    for layer in layers:
        _fold_into(model, found, layer, folded)
    pixels = _without_reorder(model, found, layers) if found.reorder is not None else found.pixels
    restored = operator("DequantizeLinear", [pixels, *_parameters(model, folded)], name="picture.dequantize")
    _put(model, found, restored)
    return folded


def fold_quantized_pixels(model: onnx_ir.Model) -> FoldedPixels | None:
    """The same for a quantized graph, where the rounded weights stay as they are; exact but for the border.

    1. As there; all channels have the same numbers.
    2. It is read by QuantizeLinear to uint8 alone, this by DequantizeLinear alone, this by Conv and Gemm alone, whose
       weights are int8 and whose biases int32 behind DequantizeLinear.
    """
    found = _normalisation(model)
    rounded = None if found is None else only_reader(found.result)
    if found is None or not found.alike or found.reorder is not None or rounded is None:
        return None
    restored = _restored_alone(rounded)
    if restored is None:
        return None
    layers = [use.node for use in restored.outputs[0].uses()]
    biases = [_IntegerBias.of(layer) for layer in layers]
    folded = _folded(found, padded=any(map(_pads, layers)))
    if folded is None or any(bias is None for bias in biases):
        return None
    for bias in biases:
        if bias is not None:
            bias.store(model, folded.step, float(found.at(folded.zero)[0]))
    fresh = operator("DequantizeLinear", [found.pixels, *_parameters(model, folded)], name="picture.dequantize")
    _put(model, found, fresh, rounded, restored)
    return folded


@dataclass(frozen=True)
class _Normalisation:
    """``result`` is ``pixels * factor + offset``, channel by channel; ``nodes`` are Cast, and Mul and Add if there."""

    nodes: tuple[onnx_ir.Node, ...]
    pixels: onnx_ir.Value
    factor: Numbers
    offset: Numbers
    reorder: onnx_ir.Node | None

    @property
    def result(self) -> onnx_ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def alike(self) -> bool:
        """Whether all channels have the same numbers."""
        return bool((self.factor == self.factor[0]).all() and (self.offset == self.offset[0]).all())

    def at(self, pixel: float) -> Numbers:
        """What a pixel of this value becomes in each channel."""
        return self.factor * pixel + self.offset


def _normalisation(model: onnx_ir.Model) -> _Normalisation | None:
    import onnx_ir as ir

    casts = [node for node in nodes_of_model(model, "Cast") if node.graph is model.graph and _reads_pixels(node)]
    if len(casts) != 1 or casts[0].attributes["to"].as_int() != ir.DataType.FLOAT:
        return None
    pixels, nodes, found = casts[0].inputs[0], casts, dict[str, Numbers]()
    for op in ("Mul", "Add"):
        node = only_reader(nodes[-1].outputs[0])
        numbers = None if node is None or node.op_type != op else _numbers(node, nodes[-1].outputs[0])
        if node is not None and numbers is not None:
            nodes, found = [*nodes, node], {**found, op: numbers}
    factor, offset = np.broadcast_arrays(found.get("Mul", np.ones(1)), found.get("Add", np.zeros(1)))
    if pixels is None or len(pixels.uses()) != 1 or (factor <= 0).any():
        return None
    return _Normalisation(tuple(nodes), pixels, np.array(factor), np.array(offset), _reorder(pixels))


def _reads_pixels(cast: onnx_ir.Node) -> bool:
    """Whether this goes back to a uint8 input through what leaves pixels pixels."""
    import onnx_ir as ir

    value = cast.inputs[0]
    while value is not None and not value.is_graph_input():
        maker = value.producer()
        if maker is None or maker.domain or maker.op_type not in _ON_PIXELS:
            return False
        value = maker.inputs[0]
    return value is not None and value.dtype == ir.DataType.UINT8


def _numbers(node: onnx_ir.Node, value: onnx_ir.Value) -> Numbers | None:
    """What is stored beside ``value``: one number, or one a channel of (N, C, H, W)."""
    others = [item for item in node.inputs if item is not value]
    array = array_of(others[0]) if len(others) == 1 else None
    if array is None or array.dtype != np.float32:
        return None
    if array.size == 1 and array.ndim <= 1:
        return array.astype(np.float64).reshape(1)
    shape = array.shape[1:] if array.ndim == 4 and array.shape[0] == 1 else array.shape
    return array.astype(np.float64).reshape(-1) if len(shape) == 3 and shape[1:] == (1, 1) else None


def _reorder(pixels: onnx_ir.Value) -> onnx_ir.Node | None:
    """The Gather along axis 1 that puts the channels into another order."""
    maker = pixels.producer()
    if maker is None or maker.op_type != "Gather" or maker.attributes.get_int("axis", 0) != 1:
        return None
    order = array_of(maker.inputs[1])
    return maker if order is not None and sorted(order.reshape(-1)) == list(range(order.size)) else None


def _layers(found: _Normalisation) -> Iterator[onnx_ir.Node]:
    """What reads the normalised picture, past views."""
    if found.result.is_graph_output():
        yield found.nodes[0]  # no layer: nothing is folded
    for use in found.result.uses():
        node = use.node
        while node.op_type in _VIEWS and not node.domain and (reader := only_reader(node.outputs[0])) is not None:
            node = reader
        yield node


def _takes(found: _Normalisation, layer: onnx_ir.Node) -> bool:
    if not quantizable_product(layer) or len(layer.inputs[1].uses()) != 1:  # type: ignore[union-attr]
        return False
    read, direct = layer.inputs[0], layer.inputs[0] is found.result
    if read is None or layer.op_type == "MatMul":
        return False  # it has no bias to put a rest into
    if layer.op_type == "Gemm":
        return found.alike and found.reorder is None
    groups, shape = groups_of(layer), weights_of(layer).shape
    if found.reorder is not None and groups > 1:
        return False
    return direct and len(shape) == 4 and len(found.factor) in (1, shape[1] * groups)


def _pads(layer: onnx_ir.Node) -> bool:
    if layer.op_type != "Conv":
        return False
    given = layer.attributes.get_string("auto_pad", "NOTSET")
    return given.startswith("SAME") or any(layer.attributes.get_ints("pads", (0,)))


def _folded(found: _Normalisation, *, padded: bool) -> FoldedPixels | None:
    """The zero point in the middle of the channels' mean pixels; None where it lies too far from one of them."""
    means = -found.offset / found.factor
    zero = int(np.clip(np.rint((means.min() + means.max()) / 2), 0, 255))
    border = float(np.abs(means - zero).max()) if padded else 0.0
    return FoldedPixels(float(np.float32(found.factor.max())), zero, border) if border <= _MOST_LEVELS else None


def _parameters(model: onnx_ir.Model, folded: FoldedPixels) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    step = constant(model, np.asarray(folded.step, np.float32), "picture.scale")
    return step, constant(model, np.asarray(folded.zero, np.uint8), "picture.zero_point")


def _fold_into(model: onnx_ir.Model, found: _Normalisation, layer: onnx_ir.Node, folded: FoldedPixels) -> None:
    """Of w · (f·p + o) = (w·f / step) · step·(p − z) + w · (f·z + o) the layer keeps what is not step·(p − z)."""
    weights = weights_of(layer).astype(np.float64)
    rest, ratio = found.at(folded.zero), found.factor / folded.step
    if layer.op_type == "Conv":
        shape = (groups_of(layer), -1) if len(rest) > 1 else (1, 1)
        by_group = [np.repeat(array.reshape(shape), len(weights) // shape[0], axis=0) for array in (rest, ratio)]
        rests, ratios = (array[:, :, None, None] for array in by_group)
        added = (weights * rests).sum(axis=(1, 2, 3))
    else:
        ratios, added = ratio, (weights * rest).sum(axis=1 - channel_axis(layer))
    bias = array_of(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else np.zeros(1)
    near = str(layer.inputs[1].name)  # type: ignore[union-attr]
    set_weight(model, layer, 1, (weights * ratios).astype(np.float32), near)
    set_weight(model, layer, 2, (np.asarray(bias, np.float64) + added).astype(np.float32), f"{near}.bias")


def _without_reorder(model: onnx_ir.Model, found: _Normalisation, layers: list[onnx_ir.Node]) -> onnx_ir.Value:
    """The pixels in the order that they come in; the layers' weights follow."""
    reorder = found.reorder
    order = None if reorder is None else array_of(reorder.inputs[1])
    if reorder is None or order is None or reorder.inputs[0] is None:
        raise AssertionError("the order of the channels is not stored")
    back = np.argsort(order)
    for layer in layers:
        set_weight(model, layer, 1, weights_of(layer)[:, back], str(layer.inputs[1].name))  # type: ignore[union-attr]
    return reorder.inputs[0]


def _put(model: onnx_ir.Model, found: _Normalisation, fresh: onnx_ir.Node, *behind: onnx_ir.Node) -> None:
    """``fresh`` takes the place of the normalisation, and of the nodes ``behind`` it."""
    import onnx_ir as ir

    old = [*found.nodes, *behind]
    before, after = old[-1].outputs[0], fresh.outputs[0]
    after.name, after.type, after.shape = "picture.dequantized", ir.TensorType(ir.DataType.FLOAT), before.shape
    model.graph.insert_before(old[0], fresh)
    before.replace_all_uses_with(after)
    if found.reorder is not None:
        old.insert(0, found.reorder)
    for node in reversed(old):
        _forget(model, node)


def _forget(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Takes out a node, and the stored tensors that nothing else reads."""
    read = [value for value in node.inputs if value is not None and value.is_initializer()]
    remove(node)
    for value in read:
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            model.graph.initializers.pop(str(value.name), None)


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
            _forget(model, maker)


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
