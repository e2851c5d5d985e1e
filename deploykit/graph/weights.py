"""The constants of a graph: which are parameters, which only describe them, and how many bytes they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ModelFileError
from deploykit.graph.shapes import bits_of, light

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Constant",
    "Constants",
    "check_weights",
    "collect",
    "external_files",
    "nodes_of",
    "not_finite",
    "stored_bytes",
]

# Inputs that hold settings: neither parameters nor part of the weights.
_SETTINGS = {"Resize": (1, 2, 3), "Upsample": (1,), "Clip": (1, 2), "Pad": (1, 2), "Dropout": (1,), "Range": (0, 1, 2)}
# Inputs that belong to the weights' bytes without being parameters: scales, zero points, running statistics.
_COMPANIONS = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "MatMulNBits": (2, 3, 4),
    "MatMulBnb4": (2,),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "QAttention": (3, 4, 6, 7),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "GatherBlockQuantized": (2, 3),
}
# Inputs where integers are weights; elsewhere they are shapes and indices.
_INTEGER_WEIGHTS = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QGemm": (3, 6),
    "MatMulNBits": (1,),
    "MatMulBnb4": (1,),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (0, 1),
    "QAttention": (1,),
    "DynamicQuantizeLSTM": (1, 2),
    "GatherBlockQuantized": (0,),
    "Gather": (0,),  # a quantized embedding; see _is_weight
}
# Operators that hand a weight on; the other operators compute with it.
_CARRIERS = frozenset(
    (
        "DequantizeLinear",
        "QuantizeLinear",
        "Transpose",
        "Cast",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Identity",
        "Flatten",
    )
)


@dataclass
class Constant:
    """An initializer or the value of a Constant node; of a sparse one ``tensor`` has what is not zero."""

    name: str
    tensor: onnx.TensorProto
    dims: tuple[int, ...]
    parameters: int = 0
    counted_bytes: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        return int(-(-math.prod(self.tensor.dims) * (bits_of(self.tensor.data_type) or 0) // 8))

    @property
    def is_float(self) -> bool:
        import onnx

        kinds = onnx.TensorProto
        return self.tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE)


@dataclass
class Constants:
    """All constants of a graph, and what stands behind the tensors that are computed from constants alone."""

    stored: dict[str, Constant] = field(default_factory=dict)
    behind: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def is_constant(self, name: str) -> bool:
        """Whether the tensor does not depend on the graph's inputs."""
        return name in self.behind

    def weights_of(self, node: onnx.NodeProto) -> list[Constant]:
        """The constants that a node computes with, those behind DequantizeLinear, Transpose and the like included."""
        found = [constant for source in node.input for constant in self.held(source)]
        return list({constant.name: constant for constant in found}.values())

    def held(self, name: str) -> list[Constant]:
        """The constants behind one tensor; none when it depends on the graph's inputs."""
        return [self.stored[source] for source in self.behind.get(name, ())]


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of If, Loop and Scan bodies after the node that holds them."""
    import onnx

    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def collect(full: onnx.GraphProto, graph: onnx.GraphProto) -> Constants:
    """Finds the constants and counts each once, by the most telling of its uses.

    Args:
        full: The graph with its weights' data.
        graph: The same with functions inlined; its nodes are walked.
    """
    constants = Constants()
    for sparse in full.sparse_initializer:
        name = sparse.values.name
        constants.stored[name] = Constant(name, sparse.values, tuple(sparse.dims))
    for tensor in (*_initializers(full), *_initializers(graph)):
        constants.stored.setdefault(tensor.name, Constant(tensor.name, tensor, tuple(tensor.dims)))
    for node in nodes_of(graph):
        if node.op_type == "Constant":
            constants.behind[node.output[0]] = ()  # a number, a text or a list of them
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants.stored[node.output[0]] = Constant(node.output[0], attribute.t, tuple(attribute.t.dims))
    constants.behind.update({name: (name,) for name in constants.stored})
    for node in nodes_of(graph):
        _follow(node, constants)
        _count(node, constants)
    return constants


def not_finite(constants: Constants) -> Iterator[tuple[Constant, str]]:
    """The weights that hold NaN or infinities, and which of the two.

    Open bounds of Clip are settings. Minus infinity and zero alone are a mask, which opens and closes.
    """
    import numpy as np
    import onnx

    for constant in constants.stored.values():
        if not constant.is_float or not constant.counted_bytes:
            continue
        values = onnx.numpy_helper.to_array(constant.tensor)
        values = values if values.dtype.kind == "f" else values.astype(np.float32)  # bfloat16
        if np.isnan(values).any():
            yield constant, "NaN"
        elif np.isinf(values).any() and not np.isin(values, (0.0, -np.inf)).all():
            yield constant, "infinities"


def check_weights(model: onnx.ModelProto, path: Path) -> Constants:
    """The constants of a model from ``path``. Raises: ModelFileError naming weights that are not finite."""
    constants = collect(model.graph, light(model).graph)
    for constant, what in not_finite(constants):
        raise ModelFileError(f"{path}: the weights {constant.name!r} hold {what}; all must be finite")
    return constants


def external_files(source: Path) -> list[Path]:
    """The files beside a model that hold its weights."""
    import onnx

    model = onnx.load(str(source), format="protobuf", load_external_data=False)
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [source.parent / location for location in sorted(locations)]


def stored_bytes(source: Path) -> int:
    """Bytes of a model's file, and of those beside it that hold its weights."""
    return sum(file.stat().st_size for file in (source, *external_files(source)))


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    import onnx

    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _initializers(attribute.g)


def _follow(node: onnx.NodeProto, constants: Constants) -> None:
    """Marks the outputs of a node whose inputs are all constant."""
    inputs = [name for name in node.input if name]
    if not inputs or not all(name in constants.behind for name in inputs):
        return
    carried = inputs[:1] if node.op_type in _CARRIERS else inputs
    sources = tuple(dict.fromkeys(name for source in carried for name in constants.behind[source]))
    constants.behind.update(dict.fromkeys(node.output, sources))


def _count(node: onnx.NodeProto, constants: Constants) -> None:
    for index, name in enumerate(node.input):
        constant = constants.stored.get(name)
        if constant is None or index in _SETTINGS.get(node.op_type, ()):
            continue
        if index in _COMPANIONS.get(node.op_type, ()):
            constant.counted_bytes = constant.size_bytes
        elif constant.dims and (constant.is_float or _is_weight(node, index, constant)):
            constant.parameters = _numbers(node, constant)
            constant.counted_bytes = constant.size_bytes


def _is_weight(node: onnx.NodeProto, index: int, constant: Constant) -> bool:
    """Whether integers are weights at this place; Gather also reads shapes and indices, which are wider."""
    wide = (bits_of(constant.tensor.data_type) or 0) > 8
    return index in _INTEGER_WEIGHTS.get(node.op_type, ()) and not (node.op_type == "Gather" and wide)


def _numbers(node: onnx.NodeProto, constant: Constant) -> int:
    if node.op_type not in ("MatMulNBits", "MatMulBnb4") or constant.is_float:
        return constant.elements
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes.get("K", 0) * sizes.get("N", 0))  # packed, padded to whole blocks
