"""Concat of what another Concat has joined already."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["chain_concat"]


def chain_concat(model: onnx_ir.Model) -> int:
    """Concat(a, b, c) behind Concat(a, b) of the same axis → Concat(Concat(a, b), c); returns how many.

    1. The longest beginning that an earlier Concat of the graph has is read from there.

    DenseNet joins all earlier features before each layer (Huang et al. 2017, equation 2): behind the rewrite a layer
    copies one long run and its newest feature, where it copied every feature apart.
    """
    known: dict[tuple[object, ...], onnx_ir.Value] = {}
    changed = 0
    for node in [node for node in model.graph if node.op_type == "Concat" and not node.domain]:
        inputs, axis = list(node.inputs), node.attributes.get_int("axis")
        for length in range(len(inputs) - 1, 1, -1):
            if joined := known.get((axis, *inputs[:length])):
                _read(node, [joined, *inputs[length:]])
                changed += 1
                break
        known.setdefault((axis, *inputs), node.outputs[0])
    return changed


def _read(node: onnx_ir.Node, inputs: list[onnx_ir.Value | None]) -> None:
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
