"""Types and shapes of every tensor of a graph, with the batch axis set to one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.errors import InputError

if TYPE_CHECKING:
    import onnx

__all__ = ["Shapes", "bits_of", "infer", "light"]

_STANDARD_DOMAINS = ("", "ai.onnx")
# What ONNX Runtime saves for one kind of CPU: the standard operators on channels in blocks, with the same shapes.
_BLOCKED = "com.microsoft.nchwc"

# Operators of ONNX Runtime's own domain for which ONNX knows no shapes: the standard operator and the inputs that give
# the same shape (onnxruntime/docs/ContribOperators.md).
_STAND_INS: Mapping[str, tuple[str, slice | tuple[int, ...]]] = {
    "QGemm": ("Gemm", (0, 3)),
    "FusedGemm": ("Gemm", (0, 1)),
    "QLinearConv": ("QLinearConv", slice(None)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FusedConv": ("Conv", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "Gelu": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "BiasGelu": ("Identity", (0,)),
    "QuantizeLinear": ("QuantizeLinear", (0, 1, 2)),
    "DequantizeLinear": ("DequantizeLinear", (0, 1, 2)),
}


@dataclass
class Shapes:
    """Dimensions (None where unknown) and ONNX element types by tensor name; the graph they belong to.

    ``graph`` is the model's graph with its functions inlined and without its weights' data.
    """

    graph: onnx.GraphProto
    dims: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape when every axis is known."""
        dims = self.dims.get(name)
        known = tuple(axis for axis in dims if axis is not None) if dims is not None else ()
        return None if dims is None or len(known) < len(dims) else known

    def elements(self, name: str) -> int | None:
        """Number of elements, when known."""
        shape = self.shape(name)
        return None if shape is None else math.prod(shape)

    def size_bytes(self, name: str) -> int | None:
        """Bytes, when shape and type are known; types below a byte are packed."""
        elements, bits = self.elements(name), bits_of(self.types.get(name, 0))
        return None if elements is None or bits is None else -(-elements * bits // 8)


def bits_of(element_type: int) -> int | None:
    """Bits of one element of an ONNX type; None for strings and unknown types."""
    import onnx

    name = onnx.TensorProto.DataType.Name(element_type) if element_type in onnx.TensorProto.DataType.values() else ""
    if name in ("", "UNDEFINED", "STRING"):
        return None
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize) * 8


def infer(model: onnx.ModelProto, given: Mapping[str, int | Sequence[int]]) -> Shapes:
    """Infers every shape for one picture.

    Args:
        model: Left as it is.
        given: Whole shapes by input name, or sizes by the name of a dynamic axis. A dynamic first axis is one picture
            where nothing is given.

    Raises:
        InputError: A name that is neither an input nor a dynamic axis, or a shape of another rank.
    """
    import onnx

    bare = light(model)
    found = Shapes(graph=onnx.GraphProto())
    found.graph.CopyFrom(bare.graph)
    bound = _bind(bare.graph, given)
    _stand_in(bare.graph)
    _trim_value_info(bare, bound)
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError as problem:
        found.warnings.append(f"shapes cannot be inferred: {str(problem).splitlines()[0]}")
    _collect(bare.graph, found)
    return found


def light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the data of larger tensors, its functions inlined. Small ones stay: they may be shapes."""
    import onnx
    from onnx import inliner

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        small = math.prod(tensor.dims) <= 64
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        graph.initializer.append(tensor if small else bare)
    for sparse in model.graph.sparse_initializer:  # which runtimes expand when they load it
        kind, name = sparse.values.data_type, sparse.values.name
        graph.initializer.append(onnx.TensorProto(name=name, data_type=kind, dims=sparse.dims))
    return inliner.inline_local_functions(copy) if model.functions else copy


def _bind(graph: onnx.GraphProto, given: Mapping[str, int | Sequence[int]]) -> dict[str, int]:
    """Sets the dynamic axes of the inputs; returns the size of every named axis that is set."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    bound = {name: size for name, size in given.items() if isinstance(size, int)}
    axes = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    if unknown := sorted(set(given) - axes - {value.name for value in inputs}):
        allowed = ", ".join([*(value.name for value in inputs), *sorted(axes)])
        raise InputError(f"shape for {unknown[0]!r}, which is no input or dynamic axis; allowed: {allowed}")
    for value in inputs:
        sizes = given.get(value.name)
        if sizes is not None and not isinstance(sizes, int):
            _set_shape(value, tuple(sizes))
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            if dims[0].dim_param:
                bound.setdefault(dims[0].dim_param, 1)
            dims[0].dim_value = bound.get(dims[0].dim_param, 1)
    for value in inputs:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") and dim.dim_param in bound:
                dim.dim_value = bound[dim.dim_param]
    return bound


def _set_shape(value: onnx.ValueInfoProto, sizes: tuple[int, ...]) -> None:
    kind = value.type.tensor_type
    if kind.HasField("shape") and len(kind.shape.dim) != len(sizes):
        raise InputError(f"shape {sizes} for input {value.name!r}; it has {len(kind.shape.dim)} axes")
    if min(sizes, default=1) < 1:
        raise InputError(f"shape {sizes} for input {value.name!r}; allowed: positive sizes")
    del kind.shape.dim[:]
    for size in sizes:
        kind.shape.dim.add().dim_value = size


def _stand_in(graph: onnx.GraphProto) -> None:
    _cast_integers(graph)
    for node in graph.node:
        if node.domain in _STANDARD_DOMAINS:
            continue
        if node.domain == _BLOCKED:
            _unblock(node, graph)
        elif node.op_type in ("MatMulNBits", "MatMulBnb4"):
            _unpack(node, graph)
        elif node.op_type in _STAND_INS and not _is_channels_last(node):
            op_type, picked = _STAND_INS[node.op_type]
            names = list(node.input)
            kept = names[picked] if isinstance(picked, slice) else [names[i] for i in picked if i < len(names)]
            _become(node, op_type, kept)


def _unblock(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """The standard operator; on the way back from blocks the channels that filled the last one are cut off."""
    import onnx

    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "ReorderOutput":
        ends = {"first": 0, "last": sizes.get("channels", 0), "axis": 1}
        names = [f"{node.output[0]}.{name}" for name in ends]
        for name, value in zip(names, ends.values(), strict=True):
            graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]))
        _become(node, "Slice", (node.input[0], *names))
    elif node.op_type == "ReorderInput":
        _become(node, "Identity", node.input[:1])
    else:
        _become(node, node.op_type, node.input[:2])


def _is_channels_last(node: onnx.NodeProto) -> bool:
    return any(item.name == "channels_last" and item.i for item in node.attribute)


def _cast_integers(graph: onnx.GraphProto) -> None:
    """MatMulIntegerToFloat is a MatMul of what its integers are as floats."""
    import onnx

    nodes = []
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            casts = [f"{node.output[0]}.{side}" for side in ("a", "b")]
            given = zip(node.input[:2], casts, strict=True)
            nodes += [onnx.helper.make_node("Cast", [name], [cast], to=onnx.TensorProto.FLOAT) for name, cast in given]
            _become(node, "MatMul", casts)
        nodes.append(node)
    if len(nodes) > len(graph.node):
        copy = onnx.GraphProto(node=nodes)
        del graph.node[:]
        graph.node.extend(copy.node)


def _become(node: onnx.NodeProto, op_type: str, inputs: Iterable[str]) -> None:
    """Turns a node into a standard one, with the attributes that the standard one knows."""
    import onnx

    known = onnx.defs.get_schema(op_type).attributes
    attributes = [attribute for attribute in node.attribute if attribute.name in known]
    names = list(inputs)
    node.op_type, node.domain = op_type, ""
    del node.input[:], node.attribute[:]
    node.input.extend(names)
    node.attribute.extend(attributes)


def _unpack(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """MatMulNBits and MatMulBnb4 are a MatMul with K×N weights, which lie packed in their second input."""
    import onnx

    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    weight = f"{node.output[0]}.unpacked"
    dims = (sizes.get("K", 0), sizes.get("N", 0))
    graph.initializer.append(onnx.TensorProto(name=weight, data_type=onnx.TensorProto.FLOAT, dims=dims))
    _become(node, "MatMul", (node.input[0], weight))


def _trim_value_info(model: onnx.ModelProto, bound: Mapping[str, int]) -> None:
    """Drops what inference finds anew, since the file's symbolic axes would win over the sizes set here."""
    foreign = {name for node in model.graph.node if node.domain not in _STANDARD_DOMAINS for name in node.output}
    kept = [value for value in model.graph.value_info if value.name in foreign]
    del model.graph.value_info[:]
    for value in (*kept, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") and dim.dim_param in bound:
                dim.dim_value = bound[dim.dim_param]
    model.graph.value_info.extend(kept)
    for value in model.graph.output:
        if value.name not in foreign:
            value.type.tensor_type.ClearField("shape")


def _collect(graph: onnx.GraphProto, found: Shapes) -> None:
    import onnx

    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        found.types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            dims = kind.shape.dim
            found.dims[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    for tensor in graph.initializer:
        found.types[tensor.name], found.dims[tensor.name] = tensor.data_type, tuple(tensor.dims)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, found)
