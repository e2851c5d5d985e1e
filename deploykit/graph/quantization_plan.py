"""Which operators of a float graph are computed in integers, and which tensors are rounded for that.

The rules, for runtimes that compute an operator in integers when every tensor that it reads and writes is rounded:

1. A product with stored weights is computed in integers (``weight_rows.quantizable_product``).
2. Relu and Clip behind an integer operator cost nothing: rounding cuts at the range's end.
3. Add, Mul, Concat, averaging and tabulated functions follow when all that they read was computed in integers: what
   was not would have to be rounded for them alone.
   HardSigmoid is one of them: rounding to its own step and range is what it computes (``quantize_linear``).
4. So do operators that only move values (pooling by maximum, views); they keep the rounding of what they read.
   Pooling by maximum that feeds integer products alone is always one: integers pool several times faster than float.
5. What feeds no product any more stays in float: rounding the answers costs accuracy and saves nothing.
6. The last matrix product writes float.
7. What comes out of DequantizeLinear, as pixels do (``fold_pixels``), is rounded already and keeps its own step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.graph.weight_rows import quantizable_product

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Plan", "plan_quantization"]

FOLDED = frozenset({"Relu", "Clip"})
FOLLOWERS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "HardSigmoid", "LeakyRelu", "Sigmoid"}
)
MOVERS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_READERS = frozenset({"Add", "MaxPool", "AveragePool", "GlobalAveragePool"})
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})


@dataclass
class Plan:
    """What becomes of a graph.

    Attributes:
        products: Names of the layers that are computed in integers, in the order of the graph.
        nodes: All operators that are, products included.
        points: Tensors to be rounded, in the order of the graph.
        tied: Tensors that take the rounding of another, by name.
        tables: Names of HardSigmoids that become a rounding of their own.
    """

    products: list[str] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    points: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)

    @property
    def measured(self) -> list[str]:
        """The tensors whose ranges calibration has to find."""
        return [name for name in self.points if name not in self.tied]


def plan_quantization(
    model: onnx_ir.Model, *, without: Collection[str] = (), inputs_only: bool = False, tables: bool = True
) -> Plan:
    """Applies the rules to a graph whose nodes all have names.

    Args:
        model: Left as it is.
        without: Names of operators that stay in float.
        tables: Whether HardSigmoid becomes a rounding of its own, which takes a zero point that is not 0.
        inputs_only: Round what products, residual additions and pooling read, and nothing else: what OpenVINO's graph
            wants.
    """
    planner = _Planner(model, frozenset(without), FOLLOWERS if tables else FOLLOWERS - {"HardSigmoid"})
    return planner.inputs_only() if inputs_only else planner.everywhere()


class _Planner:
    def __init__(self, model: onnx_ir.Model, without: frozenset[str], followers: frozenset[str]) -> None:
        self.graph, self.without, self.followers = model.graph, without, followers
        self.integer: set[str] = set()

    def everywhere(self) -> Plan:
        for node in self.graph:
            if node.name not in self.without and self._joins(node):
                self.integer.add(str(node.name))
        self._drop_tail()
        plan = Plan(nodes=set(self.integer))
        for node in self.graph:
            if node.name in self.integer:
                self._add(plan, node)
        return plan

    def inputs_only(self) -> Plan:
        plan = Plan()
        for node in self.graph:
            if node.name in self.without or node.domain:
                continue
            read = _activations(node)
            if quantizable_product(node):
                plan.products.append(str(node.name))
            elif node.op_type not in _READERS or len(read) != self._expected(node):
                continue
            plan.nodes.add(str(node.name))
            for value in read:
                if not _is_restored(value):
                    _append(plan.points, str(value.name))
        return plan

    def _joins(self, node: onnx_ir.Node) -> bool:
        if node.domain:
            return False
        if quantizable_product(node):
            return True
        read = _activations(node)
        if node.op_type == "MaxPool" and self._feeds_products_alone(node):
            return True
        if node.op_type in FOLDED | self.followers | MOVERS:
            return bool(read) and len(read) == self._expected(node) and all(map(self._is_integer, read))
        return False

    def _feeds_products_alone(self, node: onnx_ir.Node) -> bool:
        readers = node.outputs[0].consumers()
        products = [user for user in readers if quantizable_product(user) and user.name not in self.without]
        return bool(readers) and len(products) == len(readers) and not node.outputs[0].is_graph_output()

    @staticmethod
    def _expected(node: onnx_ir.Node) -> int:
        """How many inputs have to be activations: all of those that are no parameters of the operator."""
        if node.op_type in ("Add", "Mul"):
            return 2
        return len(node.inputs) if node.op_type == "Concat" else 1

    def _is_integer(self, value: onnx_ir.Value) -> bool:
        maker = value.producer()
        return maker is not None and (maker.name in self.integer or _is_restored(value))

    def _drop_tail(self) -> None:
        """Rule 5, with what is folded into a product belonging to it."""
        feeding: set[str] = set()
        for node in reversed(list(self.graph)):
            users = [user for output in node.outputs for user in output.consumers() if user.name in self.integer]
            if any(quantizable_product(user) or user.name in feeding for user in users):
                feeding.add(str(node.name))
        for node in self.graph:
            if not (quantizable_product(node) or node.name in feeding or self._folds(node)):
                self.integer.discard(str(node.name))

    def _folds(self, node: onnx_ir.Node) -> bool:
        """Whether this is a Relu or Clip, the only reader of an integer operator."""
        if node.op_type not in FOLDED or node.name not in self.integer:
            return False
        read = node.inputs[0]
        return read is not None and len(read.uses()) == 1 and not read.is_graph_output()

    def _add(self, plan: Plan, node: onnx_ir.Node) -> None:
        if quantizable_product(node):
            plan.products.append(str(node.name))
        if not self._folds(node):
            for value in _activations(node):
                if not (self._is_table(value.producer()) or _is_restored(value)):
                    _append(plan.points, str(value.name))
        written = node.outputs[0]
        if self._is_table(node):
            plan.tables.add(str(node.name))
            return
        if self._is_folded_away(written) or self._may_write_float(written):
            return
        _append(plan.points, str(written.name))
        if node.op_type in MOVERS:
            plan.tied[str(written.name)] = str(node.inputs[0].name)  # type: ignore[union-attr]

    def _is_table(self, node: onnx_ir.Node | None) -> bool:
        return node is not None and node.op_type == "HardSigmoid" and node.name in self.integer

    def _is_folded_away(self, value: onnx_ir.Value) -> bool:
        users = value.consumers()
        return len(users) == 1 and self._folds(users[0])

    def _may_write_float(self, value: onnx_ir.Value) -> bool:
        """Rule 6; a Relu in between is computed in float then."""
        maker = value.producer()
        if maker is None or (maker.op_type not in _FLOAT_OUTPUT and not self._folds(maker)):
            return False
        if maker.op_type in FOLDED:
            below = maker.inputs[0].producer()  # type: ignore[union-attr]
            if below is None or below.op_type not in _FLOAT_OUTPUT:
                return False
        return not any(user.name in self.integer for user in value.consumers())


def _activations(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """What the operator reads and calibration has to measure: float tensors that are not stored."""
    import onnx_ir as ir

    reads_one = node.op_type in MOVERS | FOLDED or quantizable_product(node)
    values = node.inputs[:1] if reads_one else node.inputs
    return [
        value
        for value in values
        if value is not None and value.const_value is None and value.dtype in (None, ir.DataType.FLOAT)
    ]


def _is_restored(value: onnx_ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear" and not maker.domain


def _append(points: list[str], name: str) -> None:
    if name not in points:
        points.append(name)
