"""One range for what a Concat joins and what it writes, so that joining is copying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploykit.graph.quantization_plan import FOLDED, MOVERS, Plan

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["tie_concats"]

_WIDENED = 4.0  # a range that others read too may grow by so much: two bits of its eight
_NARROWED = 0.8  # or shrink by so much, where the joint range was cut


def tie_concats(
    model: onnx_ir.Model, plan: Plan, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Ranges in which the inputs of a Concat that is computed in integers have that of its output.

    A runtime rounds a second time where they differ, value by value.

    1. An input that nothing else reads takes the output's range: what it holds is read through that anyway.
    2. One that others read takes it if it grows by no more than a factor of 4 and loses no more than a fifth.
    3. What a Relu or Clip made keeps its lower end: the rounding's end does their work (``quantization_plan``, rule 2).

    Args:
        model: Left as it is.
        plan: What is computed in integers.
        ranges: Lowest and highest value by tensor, those of tied tensors (``Plan.tied``) included.
    """
    found = dict(ranges)
    for node in reversed(list(model.graph)):
        if node.op_type != "Concat" or node.name not in plan.nodes or node.outputs[0].name not in found:
            continue
        shared = found[str(node.outputs[0].name)]
        for value in node.inputs:
            if value is not None and _may_take(value, found[str(value.name)], shared, plan):
                found[str(value.name)] = shared
    return found


def _may_take(value: onnx_ir.Value, own: tuple[float, float], shared: tuple[float, float], plan: Plan) -> bool:
    maker = value.producer()
    if maker is None or value.name in plan.tied or maker.op_type in MOVERS:
        return False
    if maker.op_type in FOLDED and (maker.op_type == "Clip" or own[0] != shared[0]):
        return False
    width, wanted = own[1] - own[0], shared[1] - shared[0]
    return len(value.uses()) == 1 or _NARROWED * width <= wanted <= _WIDENED * width
