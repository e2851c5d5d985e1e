"""Operators that hand on what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import array_of, bypass, nodes_of_model

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["drop_identity"]


def drop_identity(model: onnx_ir.Model) -> int:
    """Takes out what changes nothing; returns how many nodes.

    1. ``Identity``.
    2. ``Dropout`` that is not training and whose mask nobody reads.
    3. ``Cast`` to the type that the value has.

    A node between an input or a stored tensor and an answer of the graph stays: both names are promised.
    """
    return sum(
        bypass(node)
        for node in nodes_of_model(model, "Identity", "Dropout", "Cast")
        if node.op_type == "Identity" or _idle_dropout(node) or _idle_cast(node)
    )


def _idle_dropout(node: onnx_ir.Node) -> bool:
    if node.op_type != "Dropout":
        return False
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:  # before opset 12 it only trains where opset 6 says is_test=0
        return True
    training = array_of(node.inputs[2])
    return training is not None and not training.any()


def _idle_cast(node: onnx_ir.Node) -> bool:
    if node.op_type != "Cast" or node.inputs[0] is None or node.inputs[0].dtype is None:
        return False
    return node.attributes.get_int("to", 0) == node.inputs[0].dtype.value
