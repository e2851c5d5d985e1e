"""A mean over space as the operator that every runtime has a kernel for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import axes_of, nodes_of_model, operator, rank_of, replace_node

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["global_pool"]


def global_pool(model: onnx_ir.Model) -> int:
    """Turns ``ReduceMean`` over all of a picture's positions into ``GlobalAveragePool``; returns how many.

    1. (N, C, H, W) over axes 2 and 3, all axes behind the channels in general, kept: ``GlobalAveragePool``.
    2. Not kept: ``Flatten`` to (N, C) follows.
    3. (N, H, W, C) over axes 1 and 2 behind a ``Transpose`` that put the channels last (Keras): as 1 and 2, on what the
       Transpose reads; where the axes are kept, the same Transpose follows.
    """
    return sum(_convert(node) for node in nodes_of_model(model, "ReduceMean"))


def _convert(node: onnx_ir.Node) -> bool:
    source, rank, axes = node.inputs[0], rank_of(node.inputs[0]), axes_of(node)
    if source is None or rank is None or rank < 3 or not axes:
        return False
    positions = sorted(axis % rank for axis in axes)
    kept = bool(node.attributes.get_int("keepdims", 1))
    if positions == list(range(2, rank)):
        _replace(node, source, kept)
        return True
    turned = source.producer()
    channels_last = [0, *range(2, rank), 1]
    if turned is None or turned.op_type != "Transpose" or positions != list(range(1, rank - 1)):
        return False
    if list(turned.attributes.get_ints("perm", ())) != channels_last:
        return False
    _replace(node, turned.inputs[0], kept, channels_last)
    return True


def _replace(node: onnx_ir.Node, source: onnx_ir.Value | None, kept: bool, perm: list[int] | None = None) -> None:
    pool = operator("GlobalAveragePool", [source], name=node.name)
    if not kept:
        replace_node(node, pool, operator("Flatten", pool.outputs, {"axis": 1}))
    elif perm:
        replace_node(node, pool, operator("Transpose", pool.outputs, {"perm": perm}))
    else:
        replace_node(node, pool)
