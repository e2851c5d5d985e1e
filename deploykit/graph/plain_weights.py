"""Weights in the one form that rewrites know: stored tensors, dense, and no inputs of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["dense_weights", "freeze_weights"]

_OLDEST_IR = 4  # below, every weight has to be an input of the graph


def freeze_weights(model: onnx_ir.Model) -> None:
    """Takes stored tensors off the graph's inputs.

    Before IR 4 the standard wanted them there, and exporters did so for longer; nobody feeds them. An input with a
    default value is frozen to that too.
    """
    inputs = model.graph.inputs
    kept = [value for value in inputs if not value.is_initializer()]
    if len(kept) < len(inputs):
        inputs.clear()
        inputs.extend(kept)
    model.ir_version = max(model.ir_version, _OLDEST_IR)


def dense_weights(model: onnx_ir.Model, sparse: list[onnx.SparseTensorProto]) -> None:
    """Stores the sparse tensors of a file, which onnx_ir passes over, as runtimes expand them when they load it."""
    import onnx_ir as ir

    named = {value.name: value for node in model.graph.all_nodes() for value in node.inputs if value is not None}
    for tensor in sparse:
        value = named.get(tensor.values.name)
        if value is None:
            continue
        array = _expanded(tensor)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        model.graph.register_initializer(value)


def _expanded(tensor: onnx.SparseTensorProto) -> NDArray[Any]:
    """onnx.proto, SparseTensorProto: indices are places in the flat tensor, or one row of coordinates a value."""
    from onnx import numpy_helper

    values, places = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return dense
