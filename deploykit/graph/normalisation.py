"""Finds the normalisation of pixels in a graph, and puts DequantizeLinear in its place.

``pixel * factor + offset`` is ``step * (pixel - zero)``, which is DequantizeLinear, and a rest that belongs into the
layer that reads it (``fold_pixels``, ``fold_quantized_pixels``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import array_of, constant, nodes_of_model, only_reader, operator, remove

if TYPE_CHECKING:
    import onnx_ir

__all__ = [
    "MOST_LEVELS",
    "FoldedPixels",
    "Normalisation",
    "Numbers",
    "find_normalisation",
    "folded_around",
    "forget",
    "order_of",
    "pads",
    "put_pixels",
]

MOST_LEVELS = 2.0
"""That a border may differ by; 19 cost 3 % of the answers of a network for photos of 128 pixels."""

_ON_PIXELS = frozenset({"Gather", "Pad", "Reshape", "Resize", "Slice", "Transpose"})  # what may make uint8 of uint8

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class FoldedPixels:
    """What was folded.

    Attributes:
        step: Of DequantizeLinear.
        zero: Its zero point, a pixel.
        border: Levels of 255 by which the padding of a convolution differs from the mean pixel, at most: half of one,
            unless the picture's size is unknown; 0 where nothing is padded.
    """

    step: float
    zero: int
    border: float


@dataclass(frozen=True)
class Normalisation:
    """What makes floats of pixels.

    Attributes:
        nodes: Cast, and Mul and Add where they are there.
        pixels: uint8, read by Cast alone.
        factor: Of each channel, or one for all.
        offset: Likewise, in units of the result.
        reorder: A Gather that has put the channels of the pixels into another order.
    """

    nodes: tuple[onnx_ir.Node, ...]
    pixels: onnx_ir.Value
    factor: Numbers
    offset: Numbers
    reorder: onnx_ir.Node | None

    @property
    def result(self) -> onnx_ir.Value:
        """``pixels * factor + offset``, channel by channel."""
        return self.nodes[-1].outputs[0]

    @property
    def alike(self) -> bool:
        """Whether all channels have the same numbers."""
        return bool((self.factor == self.factor[0]).all() and (self.offset == self.offset[0]).all())

    @property
    def means(self) -> Numbers:
        """The pixel that becomes 0 in each channel."""
        return -self.offset / self.factor

    def at(self, pixel: float) -> Numbers:
        """What a pixel of this value becomes in each channel."""
        return self.factor * pixel + self.offset


def find_normalisation(model: onnx_ir.Model) -> Normalisation | None:
    """Cast → Mul → Add of uint8 that comes from an input, with stored numbers; Mul or Add may be missing."""
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
    return Normalisation(tuple(nodes), pixels, np.array(factor), np.array(offset), _reorder(pixels))


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


def pads(layer: onnx_ir.Node) -> bool:
    """Whether this is a convolution with padding."""
    if layer.op_type != "Conv":
        return False
    given = layer.attributes.get_string("auto_pad", "NOTSET")
    return given.startswith("SAME") or any(layer.attributes.get_ints("pads", (0,)))


def folded_around(found: Normalisation, *, padded: bool) -> FoldedPixels | None:
    """The zero point in the middle of the channels' mean pixels; None where it lies too far from one of them."""
    means = found.means
    zero = int(np.clip(np.rint((means.min() + means.max()) / 2), 0, 255))
    border = float(np.abs(means - zero).max()) if padded else 0.0
    return FoldedPixels(float(np.float32(found.factor.max())), zero, border) if border <= MOST_LEVELS else None


def order_of(reorder: onnx_ir.Node) -> NDArray[np.integer]:
    """Which channel of the picture each of the network's is."""
    order = array_of(reorder.inputs[1])
    if order is None:
        raise AssertionError("the order of the channels is not stored")  # ``_reorder`` asks that before
    return order.reshape(-1)


def put_pixels(
    model: onnx_ir.Model, found: Normalisation, folded: FoldedPixels, pixels: onnx_ir.Value, *behind: onnx_ir.Node
) -> None:
    """DequantizeLinear of ``pixels`` takes the place of the normalisation, and of the nodes ``behind`` it."""
    import onnx_ir as ir

    step = constant(model, np.asarray(folded.step, np.float32), "picture.scale")
    zero = constant(model, np.asarray(folded.zero, np.uint8), "picture.zero_point")
    fresh = operator("DequantizeLinear", [pixels, step, zero], name="picture.dequantize")
    old = [*found.nodes, *behind]
    before, after = old[-1].outputs[0], fresh.outputs[0]
    after.name, after.type, after.shape = "picture.dequantized", ir.TensorType(ir.DataType.FLOAT), before.shape
    model.graph.insert_before(old[0], fresh)
    before.replace_all_uses_with(after)
    if found.reorder is not None:
        old.insert(0, found.reorder)
    for node in reversed(old):
        forget(model, node)


def forget(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Takes out a node, and the stored tensors that nothing else reads."""
    read = [value for value in node.inputs if value is not None and value.is_initializer()]
    remove(node)
    for value in read:
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            model.graph.initializers.pop(str(value.name), None)
