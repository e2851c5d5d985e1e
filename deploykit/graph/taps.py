"""Looks into an ONNX graph: its operations, and a copy that also gives the values between its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelFileError
from deploykit.figures import byte_text
from deploykit.graph.products import PRODUCTS
from deploykit.graph.weights import nodes_of
from deploykit.stages import Operation

if TYPE_CHECKING:
    import onnx

__all__ = ["FirstWeight", "TappedGraph"]

_MOST_BYTES = 2**31 - 2**20  # protobuf's limit of 2 GiB, with room for the outputs
_POOLINGS = ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool")
_WITHOUT_VALUES = ("Shape", "Size")  # they tell how large a picture is, nothing of what it shows
# Where an 8-bit operator has its output's scale and zero point (onnxruntime/docs/ContribOperators.md).
_SCALES = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearConcat": (0, 1),
    "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSigmoid": (3, 4),
}
_KEEPS_SCALE = ("MaxPool", "Identity", "Reshape", "Transpose", "Relu", "Clip")
# Where an 8-bit operator has its weight's scale and zero point.
_WEIGHT_SCALES = {"QLinearConv": (4, 5), "QLinearMatMul": (4, 5), "QGemm": (4, 5)}


@dataclass(frozen=True)
class FirstWeight:
    """The weight of the first layer.

    Attributes:
        value: Its name, dequantized, among the graph's values.
        layer: The layer's path, or the node's name.
        is_convolution: Its shape is (out, in/groups, h, w).
        turned: A fully connected one is (in, out), not (out, in).
    """

    value: str
    layer: str
    is_convolution: bool
    turned: bool = False


class TappedGraph:
    """A copy of a model that can be given more outputs.

    Args:
        model: Left as it is.
        path: Its file, for messages.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        import onnx
        from onnx import inliner

        if model.ByteSize() > _MOST_BYTES:
            raise ModelFileError(f"{path} has {byte_text(model.ByteSize())} with its weights; allowed: below 2 GiB")
        self._model = onnx.ModelProto()
        self._model.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        self.given = next(value.name for value in graph.input if value.name not in constants)
        self.answers = tuple(value.name for value in graph.output)
        self._maker = {name: node for node in graph.node for name in node.output}

    def operations(self) -> tuple[Operation, ...]:
        """In the order of the file, which ONNX demands to be one of execution."""
        return tuple(
            Operation(_kind(node.op_type), tuple(_reads(node)), tuple(filter(None, node.output)), _scope(node))
            for node in self._model.graph.node
            if node.op_type not in _WITHOUT_VALUES
        )

    def first_weight(self) -> FirstWeight | None:
        """The weight of the first layer that computes with the picture; None when it has none or a packed one."""
        depends = {self.given}
        for node in self._model.graph.node:
            if not depends.intersection(node.input):
                continue
            product = PRODUCTS.get(node.op_type)
            if product is None:
                depends.update(node.output)
                continue
            weight = node.input[product.weight]
            if node.op_type == "MatMulNBits" or weight in depends:
                return None
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            turned = product.kind == "matmul" and not flags.get("transB", 0)
            value = self._dequantized_weight(node, weight, channel_axis=1 if turned else 0)
            return FirstWeight(value, _scope(node) or node.name, product.kind == "conv", turned)
        return None

    def with_outputs(self, values: Iterable[str]) -> bytes:
        """The model with ``values`` as outputs behind its own, in their order; each given once."""
        import onnx

        outputs = self._model.graph.output
        for name in values:
            if name not in {value.name for value in outputs}:
                outputs.append(onnx.ValueInfoProto(name=name))
        content: bytes = self._model.SerializeToString()
        return content

    def dequantized(self, value: str) -> str:
        """The name of ``value`` as real numbers: its own, or that of a DequantizeLinear node added here."""
        scales = self._scales(value)
        return self._with_node(value, scales) if scales else value

    def _scales(self, value: str) -> Sequence[str] | None:
        node = self._maker.get(value)
        while node is not None and node.op_type in _KEEPS_SCALE:
            node = self._maker.get(node.input[0])
        if node is None or node.op_type not in _SCALES:
            return None
        return [node.input[index] for index in _SCALES[node.op_type] if index < len(node.input)]

    def _dequantized_weight(self, node: onnx.NodeProto, weight: str, channel_axis: int) -> str:
        places = _WEIGHT_SCALES.get(node.op_type)
        scales = [node.input[index] for index in places if index < len(node.input)] if places else None
        if scales:
            return self._with_node(weight, scales, axis=channel_axis)
        if weight in self._maker:
            return weight
        return self._add("Identity", [weight])  # an initializer is no output of its own in every version

    def _with_node(self, value: str, scales: Sequence[str], axis: int | None = None) -> str:
        opset = max(entry.version for entry in self._model.opset_import if entry.domain in ("", "ai.onnx"))
        per_channel = axis is not None and opset >= 13  # before, there was one scale for all
        return self._add("DequantizeLinear", [value, *scales], {"axis": axis} if per_channel else {})

    def _add(self, op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None) -> str:
        import onnx

        name = f"deploykit.tap.{inputs[0]}"
        if name not in self._maker:
            node = onnx.helper.make_node(op_type, list(inputs), [name], **(attributes or {}))
            self._model.graph.node.append(node)
            self._maker[name] = node
        return name


def _kind(op_type: str) -> str:
    product = PRODUCTS.get(op_type)
    if product is not None and product.kind in ("conv", "transposed"):
        return "conv"
    return "pool" if op_type in _POOLINGS else "other"


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its bodies included."""
    import onnx

    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in nodes_of(attribute.g):
                yield from filter(None, inner.input)


def _scope(node: onnx.NodeProto) -> str:
    """The layer's path, from the node's name (``/layer1/layer1.0/conv1/Conv``) or its weight's (``c1.weight``)."""
    path = ""
    for part in [part for part in node.name.split("/") if part][:-1]:
        # torch's older exporter writes a layer's whole path below its parent's.
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    product = PRODUCTS.get(node.op_type)
    if path or product is None or len(node.input) <= product.weight:
        return path
    weight: str = node.input[product.weight]
    return weight.rpartition(".")[0]
