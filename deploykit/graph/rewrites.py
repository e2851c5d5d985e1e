"""The rewrites of a graph, in the order in which they are tried, until none finds anything more to change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from deploykit.errors import UnknownNameError
from deploykit.graph.batch_norm_to_depthwise import batch_norm_to_depthwise
from deploykit.graph.chain_concat import chain_concat
from deploykit.graph.drop_identity import drop_identity
from deploykit.graph.dynamic_batch import dynamic_batch
from deploykit.graph.editing import remove
from deploykit.graph.fold_batch_norm import fold_batch_norm
from deploykit.graph.fold_constants import fold_constants
from deploykit.graph.fold_scale import fold_scale
from deploykit.graph.free_batch import free_batch
from deploykit.graph.gemm_to_matmul import gemm_to_matmul
from deploykit.graph.global_pool import global_pool
from deploykit.graph.inferred import forget_shapes, infer_values
from deploykit.graph.lrn_chain import lrn_chain
from deploykit.graph.matmul_to_gemm import matmul_to_gemm
from deploykit.graph.plain_weights import dense_weights, freeze_weights
from deploykit.graph.pool_before_pointwise import pool_before_pointwise
from deploykit.graph.split_hard_swish import split_hard_swish
from deploykit.graph.split_lrn import split_lrn

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["REWRITES", "Rewrite", "rewrite_model"]

_MOST_ROUNDS = 10


@dataclass(frozen=True)
class Rewrite:
    """One rewrite.

    Attributes:
        name: What ``without`` and ``only`` call it.
        rule: What it does, in a sentence.
        function: Changes an ``onnx_ir.Model`` and returns how many places; computes the same afterwards.
        default: Whether it is done when nothing is asked for by name.
    """

    name: str
    rule: str
    function: Callable[[onnx_ir.Model], int]
    default: bool = True


_TABLE = (
    Rewrite("fold_constants", "computes once what depends on constants alone", fold_constants),
    Rewrite("drop_identity", "takes out Identity, idle Dropout and Cast to the type at hand", drop_identity),
    Rewrite("fold_batch_norm", "folds BatchNormalization into the layer beside it", fold_batch_norm),
    Rewrite("fold_scale", "folds arithmetic with one stored number a channel into the layer before it", fold_scale),
    Rewrite(
        "batch_norm_to_depthwise",
        "turns the BatchNormalization of pictures that is left into a 1×1 depthwise convolution",
        batch_norm_to_depthwise,
    ),
    Rewrite("global_pool", "turns ReduceMean over all positions into GlobalAveragePool", global_pool),
    Rewrite("lrn_chain", "turns PyTorch's chain for local response normalisation into LRN", lrn_chain),
    Rewrite(
        "pool_before_pointwise",
        "averages before the 1×1 convolution that averaging follows, and not behind it",
        pool_before_pointwise,
    ),
    Rewrite("dynamic_batch", "keeps the batch free where a Reshape fixes it to the traced one", dynamic_batch),
    Rewrite("free_batch", "frees the batch that the file fixes", free_batch, default=False),
    Rewrite("gemm_to_matmul", "turns Gemm into MatMul and Add", gemm_to_matmul, default=False),
    Rewrite("matmul_to_gemm", "turns MatMul and Add into Gemm", matmul_to_gemm, default=False),
    Rewrite("chain_concat", "lets a Concat read what another one has joined already", chain_concat, default=False),
    Rewrite("split_lrn", "turns LRN into a banded 1×1 convolution and square roots", split_lrn, default=False),
    Rewrite("split_hard_swish", "turns HardSwish into HardSigmoid and Mul", split_hard_swish, default=False),
)
REWRITES: Mapping[str, Rewrite] = MappingProxyType({rewrite.name: rewrite for rewrite in _TABLE})
"""The rewrites by name, in order."""


def rewrite_model(
    model: onnx.ModelProto, *, without: Collection[str] = (), only: Collection[str] | None = None
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A copy of a model that computes the same with fewer or better operators.

    Args:
        model: Left as it is. Weights in files beside it must have been loaded.
        without: Names of ``REWRITES`` that are left out.
        only: Names that are done, those not on by default included; by default all that are.

    Returns:
        The copy, with the names, types and shapes of its inputs and outputs and its metadata as they were, except that
        weights are no inputs; and the number of places that each rewrite changed.

    Raises:
        UnknownNameError: A name that is not in ``REWRITES``.
    """
    import onnx_ir as ir

    chosen = _chosen(without, only)
    graph = ir.from_proto(model)  # tensors are views of the model's; whoever changes one stores a new one
    dense_weights(graph, list(model.graph.sparse_initializer))
    freeze_weights(graph)
    counts = dict.fromkeys((rewrite.name for rewrite in chosen), 0)
    for _ in range(_MOST_ROUNDS):
        infer_values(graph)
        changed = {rewrite.name: rewrite.function(graph) for rewrite in chosen}
        _drop_unread(graph)
        if not any(changed.values()):
            break
        counts = {name: count + changed[name] for name, count in counts.items()}
    forget_shapes(graph)
    return ir.to_proto(graph), counts


def _chosen(without: Collection[str], only: Collection[str] | None) -> list[Rewrite]:
    for name in (*without, *(only or ())):
        if name not in REWRITES:
            raise UnknownNameError("rewrite", name, REWRITES)
    wanted = [rewrite.name for rewrite in _TABLE if rewrite.default] if only is None else only
    return [rewrite for rewrite in _TABLE if rewrite.name in wanted and rewrite.name not in without]


def _drop_unread(model: onnx_ir.Model) -> None:
    """Takes out nodes and stored tensors that nothing reads any more."""
    for node in reversed(list(model.graph)):
        if node.outputs and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            remove(node)
    stored = model.graph.initializers
    for name, value in list(stored.items()):
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            del stored[name]
