"""Float islands: operators of a quantized model that are computed in float between two that are not.

Each costs a pass over the tensor on its way into float and another on its way back, which is where int8 models lose the
time that their integer operators save.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from deploykit.graph.activations import FOLDED_INTO_QUANTIZE, INT8_KERNELS, VIEWS
from deploykit.graph.precision import QUANTIZED_OPERATORS
from deploykit.graph.weights import Constants

if TYPE_CHECKING:
    import onnx

__all__ = ["float_islands"]

_WRITES_FLOAT = frozenset({"Gemm", "MatMul"})  # their integer kernels need no QuantizeLinear behind them
_EDGES = frozenset({"QuantizeLinear", "DequantizeLinear"})


def float_islands(graph: onnx.GraphProto, constants: Constants) -> tuple[tuple[str, ...], ...]:
    """The islands, each as the operators that it consists of, in the order of the graph.

     1. An operator is computed in integers when the CPU provider has a kernel for it, all that it reads comes out of
        DequantizeLinear, and all that it writes goes into QuantizeLinear, past Relu and Clip; operators that only
    quantized models have are.
     2. What is left and hangs together is one group; it is an island when it reads something that was rounded and
        something that it writes is rounded.
    """
    return _Islands(graph, constants).found()


class _Islands:
    def __init__(self, graph: onnx.GraphProto, constants: Constants) -> None:
        self.constants = constants
        self.nodes = [node for node in graph.node if not all(map(constants.is_constant, node.output))]
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(index)
        integer = {index for index, node in enumerate(self.nodes) if self._is_integer(node)}
        folded = {index for index, node in enumerate(self.nodes) if self._is_folded(node, integer)}
        edges = {index for index, node in enumerate(self.nodes) if node.op_type in _EDGES}
        self.float = set(range(len(self.nodes))) - integer - folded - edges

    def found(self) -> tuple[tuple[str, ...], ...]:
        left, islands = set(self.float), []
        for index in sorted(self.float):
            if index not in left:
                continue
            group = self._group(index)
            left -= group
            if self._reads_rounded(group) and self._is_rounded(group):
                islands.append(tuple(self.nodes[member].op_type for member in sorted(group)))
        return tuple(islands)

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        if node.op_type.startswith("QLinear") or node.op_type in QUANTIZED_OPERATORS - _EDGES:
            return True
        read = [name for name in node.input if name and not self.constants.is_constant(name)]
        read = read[:1] if node.op_type in VIEWS else read  # a shape that is computed is not rounded
        if node.op_type not in INT8_KERNELS or not read or not all(map(self._is_restored, read)):
            return False
        return node.op_type in _WRITES_FLOAT or all(map(self._goes_to_quantize, node.output))

    def _is_restored(self, name: str) -> bool:
        return name in self.maker and self.nodes[self.maker[name]].op_type == "DequantizeLinear"

    def _goes_to_quantize(self, name: str) -> bool:
        readers = [self.nodes[index] for index in self.readers[name]]
        if len(readers) == 1 and readers[0].op_type in FOLDED_INTO_QUANTIZE:
            return self._goes_to_quantize(readers[0].output[0])
        return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)

    def _is_folded(self, node: onnx.NodeProto, integer: set[int]) -> bool:
        maker = self.maker.get(node.input[0]) if node.input else None
        below = maker is not None and (maker in integer or self._is_folded(self.nodes[maker], integer))
        return node.op_type in FOLDED_INTO_QUANTIZE and below and self._goes_to_quantize(node.output[0])

    def _group(self, start: int) -> set[int]:
        group, todo = {start}, [start]
        while todo:
            node = self.nodes[todo.pop()]
            near = [self.maker[name] for name in node.input if name in self.maker]
            near += [reader for name in node.output for reader in self.readers[name]]
            fresh = {index for index in near if index in self.float} - group
            group |= fresh
            todo += fresh
        return group

    def _reads_rounded(self, group: set[int]) -> bool:
        read = {name for index in group for name in self.nodes[index].input if not self.constants.is_constant(name)}
        return any(name in self.maker and self.maker[name] not in group for name in read)

    def _is_rounded(self, group: set[int]) -> bool:
        readers = {reader for index in group for name in self.nodes[index].output for reader in self.readers[name]}
        return any(self.nodes[reader].op_type == "QuantizeLinear" for reader in readers)
