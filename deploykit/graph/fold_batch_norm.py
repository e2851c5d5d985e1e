"""BatchNormalization folded into the layer beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import bypass, nodes_of_model, only_reader
from deploykit.graph.folding import folded_before, folded_behind, store_layer
from deploykit.graph.norm_parameters import factor_and_summand

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["fold_batch_norm"]


def fold_batch_norm(model: onnx_ir.Model) -> int:
    """Folds BatchNormalization into a neighbour, computed in float64; returns how many.

    1. Behind ``Conv``, ``ConvTranspose`` or ``Gemm`` that nothing else reads: the layer's weights take the factor, its
       bias factor and summand.
    2. Before a ``Conv`` without padding that alone reads it: the weights take the factor of their input channel, the
       bias their sum with the summand. With padding the zeros would have to be normalised too.

    A weight that several layers share is copied for the one that changes.
    """
    return sum(_fold(model, node) for node in nodes_of_model(model, "BatchNormalization"))


def _fold(model: onnx_ir.Model, norm: onnx_ir.Node) -> bool:
    numbers = factor_and_summand(norm)
    if numbers is None or norm.inputs[0] is None:
        return False
    before = norm.inputs[0].producer()
    if before is not None and only_reader(norm.inputs[0]) is norm and before.graph is norm.graph:
        behind = folded_behind(before, *numbers)
        if behind is not None and store_layer(model, before, *behind):
            return bypass(norm)
    after = only_reader(norm.outputs[0])
    if (
        after is not None
        and after.op_type == "Conv"
        and after.graph is norm.graph
        and after.inputs[0] is norm.outputs[0]
    ):
        ahead = folded_before(after, *numbers)
        if ahead is not None and store_layer(model, after, *ahead):
            return bypass(norm)
    return False
