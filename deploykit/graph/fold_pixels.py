"""The normalisation of pixels, folded into the layer that reads it: integers then begin with the picture itself.

``pixel * factor + offset`` before a layer with weights is ``step * (pixel - zero)``, which is DequantizeLinear, with
what is left of it in the layer's weights and bias. A runtime that computes the layer in integers reads the pixels as
they are; no pass over the picture is left.

A convolution that pads puts its zero, the mean pixel, around the picture; the folded one puts ``zero`` there, a whole
number and the same for all channels. Where the channels' means differ, a border of the mean pixel in whole numbers is
put around the picture instead (``pixel_border``). That is the only difference, and ``FoldedPixels.border`` bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import array_of, only_reader, set_weight
from deploykit.graph.normalisation import (
    MOST_LEVELS,
    FoldedPixels,
    Normalisation,
    find_normalisation,
    folded_around,
    order_of,
    pads,
    put_pixels,
)
from deploykit.graph.pixel_border import Border, insert_border
from deploykit.graph.weight_rows import channel_axis, groups_of, quantizable_product, weights_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["FoldedPixels", "fold_pixels"]

_HALF = 0.5  # levels that rounding the mean to a whole number leaves
_VIEWS = frozenset({"Flatten", "Reshape"})


def fold_pixels(model: onnx_ir.Model) -> FoldedPixels | None:
    """Folds the normalisation of a float graph; changes ``model``, or leaves it alone and returns None.

    1. It is Cast → Mul → Add of uint8 that comes from an input, with stored numbers, one in all or one a channel of
       (N, C, H, W); Mul or Add may be missing.
    2. All that read it are convolutions with stored weights, or matrices behind a view where all channels have the
       same numbers.
    3. The border differs by at most 2 levels. A single padded convolution that reads colours with means of their own
       gets it from ``pixel_border``, and pads no more.
    4. A Gather that reorders the channels of the pixels before goes into the weights too.
    """
    found = find_normalisation(model)
    layers = [] if found is None else list(_layers(found))
    if found is None or not layers or any(not _takes(found, layer) for layer in layers):
        return None
    folded = folded_around(found, padded=any(map(pads, layers)))
    if folded is None or folded.border > _HALF:
        folded = _bordered(model, found, layers) or folded
    if folded is None:
        return None
    for layer in layers:
        _fold_into(model, found, layer, folded)
    pixels = _without_reorder(model, found, layers) if found.reorder is not None else found.pixels
    put_pixels(model, found, folded, pixels)
    return folded


def _layers(found: Normalisation) -> Iterator[onnx_ir.Node]:
    """What reads the normalised picture, past views."""
    if found.result.is_graph_output():
        yield found.nodes[0]  # no layer: nothing is folded
    for use in found.result.uses():
        node = use.node
        while node.op_type in _VIEWS and not node.domain and (reader := only_reader(node.outputs[0])) is not None:
            node = reader
        yield node


def _takes(found: Normalisation, layer: onnx_ir.Node) -> bool:
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


def _bordered(model: onnx_ir.Model, found: Normalisation, layers: list[onnx_ir.Node]) -> FoldedPixels | None:
    """With the mean pixel around the picture, which the only layer pads no more; None where that cannot be."""
    import onnx_ir as ir

    source = found.pixels if found.reorder is None else found.reorder.inputs[0]
    turn = None if source is None else source.producer()
    size, around, bare = _known_size(turn), _known_pads(layers), folded_around(found, padded=False)
    color = np.clip(np.rint(found.means), 0, 255)
    levels = float(np.abs(found.means - color).max())
    if turn is None or size is None or around is None or bare is None or found.alike or levels > MOST_LEVELS:
        return None
    if found.reorder is not None:  # the pixels come in another order than the means
        color = color[np.argsort(order_of(found.reorder))]
    if not insert_border(model, turn, Border(size, around, color.astype(np.uint8))):
        return None
    layers[0].attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
    return replace(bare, border=levels)


def _known_size(turn: onnx_ir.Node | None) -> tuple[int, int] | None:
    """Height and width of what alone is turned from (N, H, W, C) to (N, C, H, W)."""
    if turn is None or turn.op_type != "Transpose" or tuple(turn.attributes.get_ints("perm", ())) != (0, 3, 1, 2):
        return None
    value = turn.inputs[0]
    if value is None or value.shape is None or len(turn.outputs[0].uses()) != 1:
        return None
    height, width = value.shape[1], value.shape[2]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _known_pads(layers: list[onnx_ir.Node]) -> tuple[int, int, int, int] | None:
    """Of the only layer, a convolution."""
    around = layers[0].attributes.get_ints("pads", ())
    plain = layers[0].attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    if len(layers) != 1 or len(around) != 4 or not plain or min(around) < 0:
        return None
    top, left, bottom, right = around
    return top, left, bottom, right


def _fold_into(model: onnx_ir.Model, found: Normalisation, layer: onnx_ir.Node, folded: FoldedPixels) -> None:
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


def _without_reorder(model: onnx_ir.Model, found: Normalisation, layers: list[onnx_ir.Node]) -> onnx_ir.Value:
    """The pixels in the order that they come in; the layers' weights follow."""
    reorder = found.reorder
    if reorder is None or reorder.inputs[0] is None:
        raise AssertionError("there is no other order")
    back = np.argsort(order_of(reorder))
    for layer in layers:
        set_weight(model, layer, 1, weights_of(layer)[:, back], str(layer.inputs[1].name))  # type: ignore[union-attr]
    return reorder.inputs[0]
