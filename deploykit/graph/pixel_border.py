"""A border of one colour around pixels: what a convolution's padding with the mean pixel is, once the mean is folded.

Rows of pixels are joined with stored ones, which only copies: (N, H, W, C) as rows (N, H, W·C) gets pixels at both ends
of each row, then rows above and below. ONNX's Pad knows a single number, not one a channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import constant, operator, opset_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Border", "insert_border"]

_OLDEST_OPSET = 15  # the first whose Shape gives a part of a shape
_STEM = "picture.border"


@dataclass(frozen=True)
class Border:
    """What goes around a picture.

    Attributes:
        size: ``(H, W)`` of the picture.
        pads: Rows above, columns on the left, rows below, columns on the right.
        color: One number a channel, in the order of the picture's.
    """

    size: tuple[int, int]
    pads: tuple[int, int, int, int]
    color: NDArray[np.uint8]


def insert_border(model: onnx_ir.Model, reader: onnx_ir.Node, border: Border) -> bool:
    """Puts the border around what a node reads first, uint8 (N, H, W, C); False where the operator set is too old."""
    pixels = reader.inputs[0]
    if pixels is None or opset_of(model) < _OLDEST_OPSET:
        return False
    (height, width), (top, left, bottom, right), depth = border.size, border.pads, len(border.color)
    writer, wide = _Writer(model, pixels, border.color), left + width + right
    rows = writer.reshaped(pixels, [0, height, width * depth], "rows")
    rows = writer.joined([writer.filled(height, left), rows, writer.filled(height, right)], axis=2)
    rows = writer.joined([writer.filled(top, wide), rows, writer.filled(bottom, wide)], axis=1)
    made = writer.reshaped(rows, [0, top + height + bottom, wide, depth], "done")
    model.graph.insert_before(reader, writer.nodes)
    reader.replace_input_with(0, made)
    return True


class _Writer:
    """Makes nodes and keeps them in their order; parts of one size are made once."""

    def __init__(self, model: onnx_ir.Model, pixels: onnx_ir.Value, color: NDArray[np.uint8]) -> None:
        self.model, self.color, self.nodes = model, color, list[Any]()
        self.parts: dict[tuple[int, int], onnx_ir.Value] = {}
        self.batch = self.made("Shape", [pixels], {"start": 0, "end": 1}, "batch")

    def made(
        self, op_type: str, inputs: Sequence[onnx_ir.Value], attributes: Mapping[str, Any], what: str
    ) -> onnx_ir.Value:
        node = operator(op_type, inputs, attributes, name=f"{_STEM}.{what}")
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def stored(self, array: NDArray[Any], what: str) -> onnx_ir.Value:
        return constant(self.model, array, f"{_STEM}.{what}")

    def reshaped(self, value: onnx_ir.Value, shape: Sequence[int], what: str) -> onnx_ir.Value:
        return self.made("Reshape", [value, self.stored(np.array(shape, np.int64), f"{what}_shape")], {}, what)

    def filled(self, rows: int, columns: int) -> onnx_ir.Value | None:
        """(N, rows, columns · C) of the colour; None where there is nothing to fill."""
        if not rows or not columns:
            return None
        if (rows, columns) not in self.parts:
            what = f"{rows}x{columns}"
            row = self.stored(np.tile(self.color, columns), f"{what}_row")
            rest = self.stored(np.array([rows, columns * len(self.color)], np.int64), f"{what}_size")
            shape = self.made("Concat", [self.batch, rest], {"axis": 0}, f"{what}_shape")
            self.parts[rows, columns] = self.made("Expand", [row, shape], {}, what)
        return self.parts[rows, columns]

    def joined(self, parts: Sequence[onnx_ir.Value | None], *, axis: int) -> onnx_ir.Value:
        found = [part for part in parts if part is not None]
        return found[0] if len(found) == 1 else self.made("Concat", found, {"axis": axis}, f"joined.{axis}")
