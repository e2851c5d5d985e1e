"""Gemm as MatMul and Add, for runtimes and kernels that only know products without a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import array_of, constant, flag_of, nodes_of_model, operator, replace_node

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["gemm_to_matmul"]


def gemm_to_matmul(model: onnx_ir.Model) -> int:
    """Turns ``Gemm`` with stored weights into ``MatMul`` and, with a bias, ``Add``; returns how many.

    1. Weights that Gemm reads turned (transB) are stored turned.
    2. alpha goes into the weights, beta into the bias; data that is turned (transA) or a computed bias with a beta stay
       a Gemm.

    Off by default: it is for recipes such as 4-bit weights, whose operator takes a MatMul's place.
    """
    return sum(_convert(model, node) for node in nodes_of_model(model, "Gemm"))


def _convert(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    weight, attributes = array_of(node.inputs[1]), node.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    numbers = array_of(bias)
    if weight is None or flag_of(node, "transA") or (bias is not None and numbers is None and beta != 1.0):
        return False
    right = node.inputs[1]
    if flag_of(node, "transB") or alpha != 1.0:
        turned = weight.T if flag_of(node, "transB") else weight
        right = constant(model, turned if alpha == 1.0 else (turned * alpha).astype(weight.dtype), str(right.name))  # type: ignore[union-attr]
    product = operator("MatMul", [node.inputs[0], right], name=node.name)
    if bias is None:
        replace_node(node, product)
        return True
    if beta != 1.0 and numbers is not None:
        bias = constant(model, (numbers * beta).astype(numbers.dtype), str(bias.name))
    replace_node(node, product, operator("Add", [product.outputs[0], bias]))
    return True
