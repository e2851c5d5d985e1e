"""HardSwish as what it is: a value times its HardSigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["split_hard_swish"]


def split_hard_swish(model: onnx_ir.Model) -> int:
    """HardSwish(x) → Mul(x, HardSigmoid(x, alpha=1/6, beta=1/2)), which is its definition (ONNX operator HardSwish).

    ONNX Runtime does the same when it loads a model; integer forms exist for the two, and not for the one.

    Returns:
        Number of places; the model is changed.
    """
    import onnx_ir as ir

    found = [node for node in model.graph.all_nodes() if node.op_type == "HardSwish" and not node.domain]
    for node in found:
        value, before = node.inputs[0], node.outputs[0]
        gate = ir.node("HardSigmoid", [value], {"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}_gate")
        product = ir.node("Mul", [value, gate.outputs[0]], name=node.name)
        gate.outputs[0].name, after = f"{before.name}_gate", product.outputs[0]
        after.shape, after.type, name = before.shape, before.type, before.name
        graph = node.graph
        if graph is None:
            raise AssertionError(f"{node.name} stands in no graph")
        graph.insert_after(node, [gate, product])
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        after.name = name
    return len(found)
