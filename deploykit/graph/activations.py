"""Memory of the activations of a graph, by liveness, as a runtime that fuses QDQ pairs would hold them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from deploykit.graph.shapes import Shapes
from deploykit.graph.weights import Constants
from deploykit.liveness import Step, peak_live_bytes

if TYPE_CHECKING:
    import onnx

__all__ = ["FOLDED_INTO_QUANTIZE", "INT8_KERNELS", "VIEWS", "peak_activation_bytes"]

VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"))
"""Operators whose output is their input in another shape; a runtime copies nothing."""

_ELEMENTWISE = frozenset(
    {
        *(
            "Abs",
            "Add",
            "BatchNormalization",
            "Clip",
            "Div",
            "Elu",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
        ),
        *(
            "Log",
            "Mul",
            "Neg",
            "PRelu",
            "Pow",
            "QLinearAdd",
            "QLinearLeakyRelu",
            "QLinearMul",
            "QLinearSigmoid",
            "Relu",
        ),
        *("Selu", "Sigmoid", "Silu", "Softplus", "Sqrt", "Sub", "Tanh"),
    }
)
INT8_KERNELS = frozenset(
    {
        *("Add", "AveragePool", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm", "GlobalAveragePool"),
        *("LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Between DequantizeLinear and QuantizeLinear these run on 8-bit tensors (ONNX Runtime's CPU provider, 1.31)."""

FOLDED_INTO_QUANTIZE = frozenset(("Relu", "Clip"))
"""Before QuantizeLinear these cost nothing: its range cuts as they do."""


def peak_activation_bytes(shapes: Shapes, constants: Constants, *, inputs: bool = True) -> int | None:
    """Peak of the main graph's live activations in bytes; None when a size is unknown.

    Without ``inputs`` the graph's inputs count nothing: a runtime reads them where the caller has them.

    1. Tensors computed from constants alone are weights, not activations.
    2. Reshape and its like share their input's buffer.
    3. Where an operator with an 8-bit kernel stands between DequantizeLinear and QuantizeLinear, neither the
       dequantized inputs nor the float output exist; a Relu or Clip before QuantizeLinear goes with it.
    """
    walk = _Walk(shapes, constants)
    if not inputs:
        walk.sizes |= dict.fromkeys(walk.given, 0)
    return walk.peak()


class _Walk:
    def __init__(self, shapes: Shapes, constants: Constants) -> None:
        self.shapes, self.constants = shapes, constants
        graph = shapes.graph
        self.given = [value.name for value in graph.input if not constants.is_constant(value.name)]
        self.answers = [value.name for value in graph.output if not constants.is_constant(value.name)]
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.root: dict[str, str] = {}
        self.sizes: dict[str, int | None] = {name: shapes.size_bytes(name) for name in self.given}
        self.steps: list[Step] = []

    def peak(self) -> int | None:
        for node in self.shapes.graph.node:
            self._visit(node)
        sizes = {name: size for name, size in self.sizes.items() if size is not None}
        if len(sizes) < len(self.sizes):
            return None
        answers = {self._buffer(name) for name in self.answers}
        return peak_live_bytes(self.steps, sizes, self.given, answers)

    def _buffer(self, name: str) -> str:
        return self.root.get(name, name)

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name and not self.constants.is_constant(name)]
        outputs = [name for name in node.output if name and not self.constants.is_constant(name)]
        if not outputs:
            return
        if inputs and self._shares(node):
            self.root[outputs[0]] = self._buffer(inputs[0])
            return
        for name in outputs:
            self.sizes[name] = self.shapes.size_bytes(self._quantized(name) or name)
        read = tuple(dict.fromkeys(map(self._buffer, inputs)))
        self.steps.append(Step(read, tuple(outputs), in_place=node.op_type in _ELEMENTWISE))

    def _shares(self, node: onnx.NodeProto) -> bool:
        """Rules 2 and 3: the node's output lies where its input lies."""
        if node.op_type in VIEWS:
            return True
        if node.op_type == "DequantizeLinear":
            readers = self.readers[node.output[0]]
            return bool(readers) and all(self._runs_in_int8(reader) for reader in readers)
        if node.op_type == "QuantizeLinear" or node.op_type in FOLDED_INTO_QUANTIZE:
            return self._quantized(node.input[0]) is not None
        return False

    def _quantized(self, name: str) -> str | None:
        """The 8-bit tensor that stands for a float one which is never written."""
        maker = self.maker.get(name)
        if maker is not None and maker.op_type in FOLDED_INTO_QUANTIZE:
            return self._quantized(maker.input[0])
        if maker is None or not self._runs_in_int8(maker):
            return None
        return self._next_quantized(name)

    def _next_quantized(self, name: str) -> str | None:
        readers = self.readers[name]
        if len(readers) != 1 or name in self.answers:
            return None
        reader = readers[0]
        if reader.op_type == "QuantizeLinear":
            return str(reader.output[0])
        return self._next_quantized(reader.output[0]) if reader.op_type in FOLDED_INTO_QUANTIZE else None

    def _runs_in_int8(self, node: onnx.NodeProto) -> bool:
        sources = [self.maker.get(name) for name in node.input if name and not self.constants.is_constant(name)]
        dequantized = all(source is not None and source.op_type == "DequantizeLinear" for source in sources)
        return node.op_type in INT8_KERNELS and bool(sources) and dequantized
