"""MatMul and Add as Gemm, which integer kernels compute with its bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import array_of, nodes_of_model, only_reader, operator, rank_of, remove, replace_node

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["matmul_to_gemm"]


def matmul_to_gemm(model: onnx_ir.Model) -> int:
    """Turns ``MatMul`` of a matrix (N, K) with stored weights (K, M), and the ``Add`` behind it, into ``Gemm``.

    1. The Add alone reads the product, and its other input is stored and has M numbers, or one.

    Returns how many. Off by default: runtimes fuse the two themselves.
    """
    return sum(_convert(node) for node in nodes_of_model(model, "MatMul"))


def _convert(node: onnx_ir.Node) -> bool:
    weight, add = array_of(node.inputs[1]), only_reader(node.outputs[0])
    if weight is None or weight.ndim != 2 or rank_of(node.inputs[0]) != 2:
        return False
    if add is None or add.domain or add.op_type != "Add" or add.graph is not node.graph:
        return False
    bias = next(value for value in add.inputs if value is not node.outputs[0])
    numbers = array_of(bias)
    channels = weight.shape[1]
    if numbers is None or numbers.shape not in ((), (1,), (1, 1), (channels,), (1, channels)):
        return False
    replace_node(add, operator("Gemm", [*node.inputs, bias], name=node.name))
    remove(node)
    return True
