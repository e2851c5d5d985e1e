"""Half precision: weights and arithmetic in float16, inputs and outputs as they were.

Rule: every float32 weight becomes float16; a Cast follows each float32 input and goes before each float32 output. A
runtime without a half kernel for an operator puts casts around it and computes in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import InputError, ModelFileError

if TYPE_CHECKING:
    import onnx

__all__ = ["half_precision"]

_LARGEST = 65504.0  # IEEE 754 binary16
_FLOAT_ONLY = {"Resize": (1, 2), "Upsample": (1,)}  # inputs that the standard wants in float32


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in half precision.

    Raises:
        InputError: It is quantized, or has subgraphs.
        ModelFileError: A weight is beyond what half precision holds (65,504).
    """
    import onnx
    from onnx import TensorProto, helper

    _check(model)
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, kept = half.graph, _float_only(half.graph)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            _halve(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if (
                node.op_type == "Constant"
                and attribute.t.data_type == TensorProto.FLOAT
                and not kept & set(node.output)
            ):
                _halve(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    inputs = [item.name for item in graph.input if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [item.name for item in graph.output if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    _rename(graph, {name: f"{name}.half" for name in (*inputs, *outputs)})
    before = [helper.make_node("Cast", [name], [f"{name}.half"], to=TensorProto.FLOAT16) for name in inputs]
    after = [helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT) for name in outputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return half


def _check(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if "Quantize" in node.op_type or "QLinear" in node.op_type or node.op_type.endswith("Integer"):
            raise InputError(f"the model is quantized ({node.op_type}); half precision is made from the float model")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(f"the model has subgraphs ({node.op_type}), which half precision does not reach")


def _float_only(graph: onnx.GraphProto) -> set[str]:
    return {
        node.input[index]
        for node in graph.node
        for index in _FLOAT_ONLY.get(node.op_type, ())
        if index < len(node.input) and node.input[index]
    }


def _halve(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if values.size and np.abs(values).max() > _LARGEST:
        raise ModelFileError(f"the weight {tensor.name} reaches {np.abs(values).max():g}; half precision ends at 65504")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames values within the nodes only: the graph's own inputs and outputs keep their names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
