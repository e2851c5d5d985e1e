"""A model whose file fixes the batch, made to take any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from deploykit.graph.dynamic_batch import dynamic_batch
from deploykit.graph.inferred import forget_shapes, infer_values, inferred

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["free_batch"]

_NAME = "batch"


def free_batch(model: onnx_ir.Model) -> int:
    """Frees the first axis of inputs and outputs; returns how many of both, 0 where the graph would not follow.

    1. The batch is the first axis of the first input; other inputs with the same one are freed with it.
    2. Every output has to begin with it, before and after: ``dynamic_batch`` frees what Reshape fixes, and then ONNX's
       shape inference must find the batch at the beginning of every output. Otherwise the file stays as it was, but
       for shapes of Reshape that are equal at the old batch.

    Off by default: the batch of 1 may be meant.
    """
    ends = [*_with_first(model.graph.inputs, _first(model)), *_with_first(model.graph.outputs, _first(model))]
    outputs = list(model.graph.outputs)
    if _first(model) is None or any(value not in ends for value in outputs):
        return 0
    before = [value.shape.copy() for value in ends if value.shape is not None]
    _set_first(ends, _NAME)
    infer_values(model)
    dynamic_batch(model, spelled_out=True)
    follows = _follows(model)
    if not follows:
        for value, shape in zip(ends, before, strict=True):
            value.shape = shape
    infer_values(model)
    return len(ends) if follows else 0


def _first(model: onnx_ir.Model) -> int | None:
    """The fixed first axis of the first input."""
    inputs = model.graph.inputs
    shape = inputs[0].shape if inputs else None
    return shape[0] if shape is not None and len(shape) > 1 and isinstance(shape[0], int) else None


def _with_first(values: Iterable[onnx_ir.Value], size: int | None) -> list[onnx_ir.Value]:
    return [value for value in values if value.shape is not None and len(value.shape) and value.shape[0] == size]


def _set_first(values: list[onnx_ir.Value], size: str | None) -> None:
    for value in values:
        if value.shape is not None:
            shape = value.shape.copy()
            shape[0] = size
            value.shape = shape


def _follows(model: onnx_ir.Model) -> bool:
    """Whether every output begins with the batch by inference alone, its own word left out."""
    outputs = list(model.graph.outputs)
    promised = [value.shape for value in outputs]
    forget_shapes(model)
    _set_first(outputs, None)
    found = [info.type.tensor_type.shape for info in inferred(model).output]
    for value, shape in zip(outputs, promised, strict=True):
        value.shape = shape
    return all(shape.dim and shape.dim[0].dim_param == _NAME for shape in found)
