"""The one rule by which an ONNX model's precision gets its name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from deploykit.graph.products import PRODUCTS
from deploykit.graph.shapes import light
from deploykit.graph.weights import Constants, collect, nodes_of

if TYPE_CHECKING:
    import onnx

__all__ = ["QUANTIZED_OPERATORS", "precision_of", "weight_precision"]

QUANTIZED_OPERATORS = frozenset(
    (
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    )
)
"""Operators that only quantized models have."""

_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}


def precision_of(model: onnx.ModelProto) -> str:
    """``"fp32"``, ``"fp16"``, ``"int8"``, ``"mixed"`` and the like; signed and unsigned integers have one name.

    1. What the file says in ``deploykit.precision``.
    2. As the weights that are multiplied with are stored; "mixed" when they differ.
    3. Without such weights: int8 if some operator quantizes, else the type of most floats, else the first input's.
    """
    told = {entry.key: entry.value for entry in model.metadata_props}.get("deploykit.precision")
    if told:
        return str(told)
    graph = light(model).graph
    constants = collect(graph, graph)
    found = set(_multiplied(graph, constants))
    if found:
        return found.pop() if len(found) == 1 else "mixed"
    if any(node.op_type in QUANTIZED_OPERATORS for node in nodes_of(graph)):
        return "int8"
    sizes: Counter[int] = Counter()
    for constant in constants.stored.values():
        if constant.is_float:
            sizes[constant.tensor.data_type] += math.prod(constant.tensor.dims)
    entries = [value.type.tensor_type.elem_type for value in graph.input if not constants.is_constant(value.name)]
    kinds = [kind for kind, _ in sizes.most_common(1)] + entries
    return next((_name(kind) for kind in kinds if kind), "unknown")


def weight_precision(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Constants) -> str | None:
    """How a node's weights are stored: those it multiplies with, otherwise the first; None without weights.

    Args:
        node: Of the graph.
        makers: The node that makes a tensor, by its name.
        constants: Of the graph.
    """
    product = PRODUCTS.get(node.op_type)
    if product is not None:
        names = [node.input[product.weight]] if len(node.input) > product.weight else []
    else:
        names = [name for name in node.input if any(constant.parameters for constant in constants.held(name))]
    names = [name for name in names if constants.is_constant(name)]
    if not names:
        return None
    attributes = {item.name: item.i for item in node.attribute}
    if node.op_type == "MatMulNBits":  # packed into bytes
        return f"int{attributes.get('bits', 4)}"
    if node.op_type == "MatMulBnb4":
        return "nf4" if attributes.get("quant_type") else "fp4"
    kind = _stored_type(names[0], makers, constants)
    return _name(kind) if kind else None


def _multiplied(graph: onnx.GraphProto, constants: Constants) -> Iterator[str]:
    makers = {name: node for node in nodes_of(graph) for name in node.output}
    for node in nodes_of(graph):
        precision = weight_precision(node, makers, constants) if node.op_type in PRODUCTS else None
        if precision is not None:
            yield precision


def _stored_type(name: str, makers: Mapping[str, onnx.NodeProto], constants: Constants) -> int:
    """The element type behind DequantizeLinear, Transpose and the like; 0 when it cannot be told."""
    import onnx

    maker = makers.get(name)
    while maker is not None and maker.input and maker.op_type != "QuantizeLinear":
        name = maker.input[0]
        maker = makers.get(name)
    if maker is not None and maker.op_type == "QuantizeLinear":
        zero = constants.stored.get(maker.input[2]) if len(maker.input) > 2 else None
        return int(zero.tensor.data_type if zero else onnx.TensorProto.UINT8)
    return int(constants.stored[name].tensor.data_type) if name in constants.stored else 0


def _name(element_type: int) -> str:
    import onnx

    kind = onnx.TensorProto.DataType.Name(element_type)
    return _NAMES.get(kind) or kind.lower().removeprefix("u")
