"""The layers of a graph: what holds weights, what multiplies, and poolings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.graph.activations import VIEWS
from deploykit.graph.precision import weight_precision
from deploykit.graph.products import PRODUCTS, Product
from deploykit.graph.shapes import Shapes
from deploykit.graph.weights import Constant, Constants, nodes_of
from deploykit.graph.zeros import zero_share
from deploykit.results import LayerProfile

if TYPE_CHECKING:
    import onnx

__all__ = ["LayerCounter"]

_UNCOUNTED = frozenset(
    {
        *(
            "Attention",
            "DeformConv",
            "DynamicQuantizeLSTM",
            "Einsum",
            "GRU",
            "GroupQueryAttention",
        ),
        *(
            "LSTM",
            "MultiHeadAttention",
            "NhwcConv",
            "QAttention",
            "QLinearConvTranspose",
            "RNN",
        ),
    }
)


@dataclass
class _Row:
    layer: LayerProfile
    passes_on: tuple[int, ...] | None


class LayerCounter:
    """Walks the nodes once: rows, and what could not be counted."""

    def __init__(self, shapes: Shapes, constants: Constants) -> None:
        self.shapes, self.constants = shapes, constants
        self.rows: list[_Row] = []
        self.names: dict[str, str] = {}  # constant -> layer that holds it
        self.unknown: list[str] = []
        self.uncounted: set[str] = set()
        self.batch = self._fixed_batch()
        self.makers = {name: node for node in nodes_of(shapes.graph) for name in node.output}
        for node in nodes_of(shapes.graph):
            self._visit(node)

    def _fixed_batch(self) -> int:
        inputs = [value for value in self.shapes.graph.input if not self.constants.is_constant(value.name)]
        dims = self.shapes.dims.get(inputs[0].name, ()) if inputs else ()
        return (dims[0] or 1) if len(dims) > 1 else 1

    def _visit(self, node: onnx.NodeProto) -> None:
        if all(self.constants.is_constant(name) for name in node.output):
            return
        if node.op_type in _UNCOUNTED:
            self.uncounted.add(node.op_type)
        held = [constant for constant in self.constants.weights_of(node) if constant.parameters]
        fresh = [constant for constant in held if constant.name not in self.names]
        name = _layer_name(node, held)
        self.names |= dict.fromkeys((constant.name for constant in fresh), name)
        connections, macs = self._multiplications(node, name)
        shape = self._shape(node.output[0])
        if not (fresh or macs or self._pools(node)):
            self._hand_on(node, shape)
            return
        kernel, stride, groups = self._window(node)
        row = LayerProfile(
            name=name,
            op=node.op_type,
            output_shape=shape,
            parameters=sum(constant.parameters for constant in fresh),
            connections=connections // self.batch,
            macs=macs // self.batch,
            kernel=kernel,
            stride=stride,
            groups=groups,
            precision=weight_precision(node, self.makers, self.constants),
            zeros=zero_share(node, self.makers, self.constants),
        )
        self.rows.append(_Row(row, shape))

    def _pools(self, node: onnx.NodeProto) -> bool:
        """Poolings, and what exporters write for a global one: a mean over the picture's axes that keeps them."""
        if "Pool" in node.op_type:
            return True
        dims = self.shapes.dims.get(node.output[0], ())
        return node.op_type == "ReduceMean" and len(dims) == 4 and dims[2:] == (1, 1)

    def layers(self) -> tuple[LayerProfile, ...]:
        """The rows in the order of the nodes."""
        return tuple(replace(row.layer, passes_on=row.passes_on) for row in self.rows)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        shape = self.shapes.shape(name)
        return None if shape is None else shape[1:]

    def _hand_on(self, node: onnx.NodeProto, shape: tuple[int, ...] | None) -> None:
        """The last layer passes on what this node makes of it; arithmetic with shapes and views make nothing."""
        import onnx

        is_index = self.shapes.types.get(node.output[0]) in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
        if self.rows and node.op_type not in VIEWS and not is_index:
            self.rows[-1].passes_on = shape

    def _window(self, node: onnx.NodeProto) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, int]:
        """Kernel, strides and groups of a convolution or pooling."""
        import onnx

        given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        kernel = tuple(given.get("kernel_shape", ()))
        product = PRODUCTS.get(node.op_type)
        if not kernel and product is not None and product.kind != "matmul":
            kernel = (self.shapes.shape(node.input[product.weight]) or ())[2:]
        if not kernel:
            return None, None, 1
        return kernel, tuple(given.get("strides", (1,) * len(kernel))), int(given.get("group", 1))

    def _multiplications(self, node: onnx.NodeProto, name: str) -> tuple[int, int]:
        product = PRODUCTS.get(node.op_type)
        if product is None:
            return 0, 0
        macs = self._macs(node, product)
        outputs = self.shapes.elements(node.output[0])
        if macs is None or outputs is None:
            self.unknown.append(name)
            return 0, 0
        index = product.bias
        has_bias = index is not None and len(node.input) > index and bool(node.input[index])
        return macs + (outputs if has_bias else 0), macs

    def _macs(self, node: onnx.NodeProto, product: Product) -> int | None:
        data, outputs = self.shapes.shape(node.input[product.data]), self.shapes.elements(node.output[0])
        if data is None or outputs is None:
            return None
        if product.kind == "matmul":
            turned = {item.name: item.i for item in node.attribute}.get("transA", 0)
            return outputs * data[-2 if turned and len(data) > 1 else -1]
        weight = self.shapes.shape(node.input[product.weight])
        if weight is None:
            return None
        return (math.prod(data) if product.kind == "transposed" else outputs) * math.prod(weight[1:])

    def warnings(self, artifact: Artifact) -> Iterator[str]:
        yield from self.shapes.warnings
        for entry in artifact.inputs:
            if self.shapes.shape(entry.name) is None:
                axes = ", ".join(str(axis) for axis in entry.shape or () if not isinstance(axis, int))
                yield f"input {entry.name!r} has axes of unknown size ({axes or 'all'}); give its shape"
        if self.unknown:
            yield f"unknown shapes: {len(self.unknown)} layers without MACs, the first is {self.unknown[0]!r}"
        if self.uncounted:
            yield f"operators that are not counted in MACs: {', '.join(sorted(self.uncounted))}"
        if self.batch > 1:
            yield f"the batch is fixed at {self.batch}: peak activations are of the batch, counts of one picture"
        bodies = {node.op_type for node in self.shapes.graph.node if any(item.HasField("g") for item in node.attribute)}
        if bodies:
            yield f"bodies of {', '.join(sorted(bodies))} count once, and not towards peak activations"


def _layer_name(node: onnx.NodeProto, held: Sequence[Constant]) -> str:
    """The layer's name in the network it was exported from, as far as its weights keep it."""
    for constant in held:
        for kind in (".weight", ".bias"):
            stem, found, _ = constant.name.partition(kind)
            if found and stem:
                return stem
    return str(node.name or node.output[0])
