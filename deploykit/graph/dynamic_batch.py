"""Reshape that keeps whatever batch it is given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import array_of, constant, flag_of, nodes_of_model

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["dynamic_batch"]

_HANDED_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def dynamic_batch(model: onnx_ir.Model, *, spelled_out: bool = False) -> int:
    """Frees the batch in ``Reshape`` where the first axis of the model's inputs is free; returns how many.

    Of data (N, …) with N the free first axis of an input:

    1. A stored shape (b, …) whose other sizes multiply to those of one sample can only be meant for a batch of b: the
       first becomes 0, which copies the data's.
    2. With −1 among the others it would put several samples into one; it becomes (0, …) if the file says that all its
       answers begin with N.
    3. A shape put together from N, as the file computes it, and stored sizes becomes a stored (0, …).
    4. With ``spelled_out``, so does (−1, …) where the −1 can only be the batch: it takes any, but shape inference
       cannot see that.
    """
    batches = _free_axes(model.graph.inputs)
    promised = bool(model.graph.outputs) and all(_first_axis(value) in batches for value in model.graph.outputs)
    return sum(_free(model, node, batches, promised, spelled_out) for node in nodes_of_model(model, "Reshape"))


def _free_axes(values: Iterable[onnx_ir.Value]) -> set[str]:
    return {axis for value in values if (axis := _first_axis(value)) is not None}


def _first_axis(value: onnx_ir.Value) -> str | None:
    """The name of a free first axis."""
    if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
        return None
    return value.shape[0].value


def _free(model: onnx_ir.Model, node: onnx_ir.Node, batches: set[str], promised: bool, spelled_out: bool) -> bool:
    data = node.inputs[0]
    if data is None or data.shape is None or len(node.inputs) < 2 or _first_axis(data) not in batches:
        return False
    stored = array_of(node.inputs[1])
    if stored is None:
        shape = _assembled(node.inputs[1], str(_first_axis(data)))
    else:
        shape = _stored(node, [int(size) for size in stored.reshape(-1)], promised, spelled_out)
    if shape is None or (0 in shape[1:] and flag_of(node, "allowzero")):
        return False
    node.attributes.pop("allowzero", None)
    near = str(node.inputs[1].name)  # type: ignore[union-attr]
    node.replace_input_with(1, constant(model, np.array(shape, np.int64), near))
    return True


def _stored(node: onnx_ir.Node, shape: list[int], promised: bool, spelled_out: bool) -> list[int] | None:
    """Rules 1, 2 and 4."""
    if len(shape) < 2 or min(shape[1:]) < -1 or not (shape[0] > 0 or (spelled_out and shape[0] == -1)):
        return None
    axes = list(node.inputs[0].shape)[1:]  # type: ignore[union-attr,arg-type]
    rest = [axes[index] if size == 0 and index < len(axes) else size for index, size in enumerate(shape[1:])]
    if -1 in rest:
        return [0, *shape[1:]] if promised else None
    if not all(isinstance(size, int) for size in (*axes, *rest)):
        return None
    same = math.prod(map(int, axes)) == math.prod(map(int, rest))
    return [0, *map(int, rest)] if same else None


def _assembled(value: onnx_ir.Value | None, batch: str) -> list[int] | None:
    """Rule 3."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Concat" or not maker.inputs or _axis_behind(maker.inputs[0]) != batch:
        return None
    arrays = [array_of(part) for part in maker.inputs[1:]]
    if not arrays or any(array is None for array in arrays):
        return None
    return [0, *(int(size) for array in arrays if array is not None for size in array.reshape(-1))]


def _axis_behind(value: onnx_ir.Value | None) -> str | None:
    """The name of the free first axis whose size a value of one element holds."""
    maker = None if value is None else value.producer()
    while maker is not None and not maker.domain and maker.op_type in _HANDED_ON:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    index = 0
    if maker is not None and maker.op_type == "Gather":
        place = array_of(maker.inputs[1])
        if place is None or place.size != 1 or maker.inputs[0] is None:
            return None
        index, maker = int(place.reshape(-1)[0]), maker.inputs[0].producer()
        one = True
    else:
        one = False
    if maker is None or maker.domain or maker.op_type != "Shape" or maker.inputs[0] is None or index != 0:
        return None
    start, end = maker.attributes.get_int("start", 0), maker.attributes.get_int("end", 0)
    return _first_axis(maker.inputs[0]) if start == 0 and (one or end == 1) else None
