"""A float model's integer twins: calibrated once, built as often as a search asks, with any layers left in float."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import environment
from deploykit.calibrate import Calibration
from deploykit.collect import collect_statistics
from deploykit.errors import ModelFileError, UnknownNameError
from deploykit.float_model import FloatModel
from deploykit.graph.block_matrices import BlockWeights, insert_block_matrices
from deploykit.graph.half import half_precision
from deploykit.graph.quantization_plan import Plan, plan_quantization
from deploykit.graph.quantize_linear import RoundedWeights, insert_quantization
from deploykit.graph.tied_ranges import tie_concats
from deploykit.graph.weight_rows import quantizable_product
from deploykit.layer_inputs import feed_of, grams_in_passes
from deploykit.layer_rounding import block_layer, learn_layers, round_layers
from deploykit.progress import Progress, silent
from deploykit.ranges import Statistics
from deploykit.ranks import ALONE, Ranks, threads_each
from deploykit.recipes import Recipe

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["EFFORTS", "RANGE_METHODS", "Effort", "IntegerModels"]

RANGE_METHODS = ("minmax", "percentile", "entropy", "mse")
"""How the range of a tensor is chosen from what calibration saw of it."""

_FEW_BATCH = 4  # pictures whose inner tensors are in memory at a time


@dataclass(frozen=True)
class Effort:
    """How much work goes into accuracy.

    Attributes:
        methods: Ways of choosing ranges; of several, the one with the least noise on the answers is kept.
        learned: Whether weights are rounded by what their layers are fed.
        equalized: Whether the model with equalised channels is tried as well.
    """

    methods: tuple[str, ...]
    learned: bool
    equalized: bool


EFFORTS: Mapping[str, Effort] = {
    "low": Effort(("mse",), learned=False, equalized=False),
    "medium": Effort(("minmax", "percentile", "mse"), learned=False, equalized=False),
    "high": Effort(("minmax", "percentile", "mse"), learned=True, equalized=True),
}


class IntegerModels:
    """What calibration found of one model, for one recipe.

    Args:
        model: The float model, open as long as this is used.
        recipe: How to round.
        samples: Real inputs.
        effort: Name in ``EFFORTS``.
        keep_float: Layers that stay in float in every form.
        ranks: Processes that share the calibration.
        progress: Called while samples are read.
    """

    def __init__(
        self,
        model: FloatModel,
        recipe: Recipe,
        samples: Calibration,
        *,
        effort: str = "medium",
        keep_float: Collection[str] = (),
        ranks: Ranks = ALONE,
        progress: Progress = silent,
    ) -> None:
        if effort not in EFFORTS:
            raise UnknownNameError("effort", effort, EFFORTS)
        self.model, self.recipe, self.samples = model, recipe, samples
        self.effort, self.keep_float, self.progress = EFFORTS[effort], frozenset(keep_float), progress
        self.ranks = ranks

    @cached_property
    def matrices(self) -> frozenset[str]:
        """The layers that get 4-bit weights."""
        if not self.recipe.four_bit_matrices:
            return frozenset()
        nodes = (node for node in self.model.graph().graph if quantizable_product(node))
        return frozenset(str(node.name) for node in nodes if node.op_type == "Gemm") - self.keep_float

    @cached_property
    def plan(self) -> Plan:
        """All that the recipe can round."""
        return self._plan(self.model.graph(), ())

    @cached_property
    def statistics(self) -> Statistics:
        """One pass over the samples, which every process of ``ranks`` has to make."""
        reads = [str(node.inputs[0].name) for node in self._layers(self.plan.products)]  # type: ignore[union-attr]
        return collect_statistics(
            self.model.path,
            self.plan.measured,
            self.samples,
            histogram=self.effort.methods != ("minmax",),
            channel_means=tuple(dict.fromkeys(reads)),
            batch_size=self._batch,
            threads=threads_each(self.ranks, environment.available_cpus()),
            ranks=self.ranks,
            progress=self.progress,
        )

    def calibrate(self) -> None:
        """Makes that pass now, and not when its statistics are asked for."""
        _ = self.statistics

    @cached_property
    def weights(self) -> dict[str, RoundedWeights]:
        """Of every layer that the plan has."""
        grid = self.recipe.grid
        if grid is None:
            return {}
        layers = self._layers(self.plan.products)
        means = {name: self.statistics.channel_means(name) for name in self.statistics.channel_sums}
        weights = round_layers(layers, grid, means)
        return weights | dict(self._learned(layers)) if self.effort.learned else weights

    @cached_property
    def blocks(self) -> dict[str, BlockWeights]:
        """Of the layers with 4-bit weights."""
        layers = self._layers(self.matrices)
        grams = {name: gram for grams in self._grams(layers) for name, gram in grams.items()} if layers else {}
        return {str(node.name): block_layer(node, grams.get(str(node.name))) for node in layers}

    def build(self, method: str, *, without: Collection[str] = ()) -> onnx.ModelProto:
        """A model with the ranges of one method and some layers in float.

        Raises:
            ModelFileError: Nothing is left that the recipe rounds.
        """
        import onnx_ir as ir

        if self.recipe.precision == "fp16":
            return half_precision(self.model.proto)
        graph = self.model.graph()
        plan = self._plan(graph, without)
        blocks = {name: weights for name, weights in self.blocks.items() if name not in without}
        if not plan.products and not blocks:
            raise ModelFileError(f"{self.samples.model} has no operator that {self.recipe.name} can quantize")
        ranges, weights = self._ranges(method), {name: self.weights[name] for name in plan.products}
        insert_quantization(
            graph, plan, ranges, weights, self.recipe.activations, integer_bias=self.recipe.integer_bias
        )
        insert_block_matrices(graph, blocks)
        return ir.to_proto(graph)

    def _plan(self, graph: onnx_ir.Model, without: Collection[str]) -> Plan:
        kept = {*without, *self.matrices, *self.keep_float}
        tables = not self.recipe.activations.symmetric
        return plan_quantization(graph, without=kept, inputs_only=self.recipe.inputs_only, tables=tables)

    def _ranges(self, method: str) -> dict[str, tuple[float, float]]:
        scheme = self.recipe.activations
        found = self.statistics.ranges(method, symmetric=scheme.symmetric)
        if scheme.by_sign:
            both = self.statistics.ranges(method, symmetric=True)
            found = {
                name: both[name] if scheme.is_symmetric(low) else (low, high) for name, (low, high) in found.items()
            }
        # A tensor that only moves values reaches as far as what it reads, also where that is left in float.
        for name in self.plan.points:
            root = name
            while root not in found and root in self.plan.tied:
                root = self.plan.tied[root]
            if root in found:  # pixels have a step of their own, and no range
                found[name] = found[root]
        return tie_concats(self.model.graph(), self.plan, found)

    @property
    def _batch(self) -> int:
        return self.model.size if self.model.size < _FEW_BATCH else min(self.model.size, _FEW_BATCH)

    def _layers(self, names: Collection[str]) -> list[onnx_ir.Node]:
        wanted = set(names)
        return [node for node in self.model.graph().graph if node.name in wanted]

    def _learned(self, layers: list[onnx_ir.Node]) -> Iterator[tuple[str, RoundedWeights]]:
        if self.recipe.grid is not None:
            yield from learn_layers(layers, self.recipe.grid, self._grams(layers))

    def _grams(self, layers: list[onnx_ir.Node]) -> Iterator[Any]:
        feeds = [feed for node in layers if (feed := feed_of(node)) is not None]
        return grams_in_passes(feeds, self.model.tapped, self._batches)

    def _batches(self) -> Iterator[np.ndarray[Any, Any]]:
        done = 0
        for batch in self.samples.batches(self._batch):
            done += len(batch)
            self.progress("learn rounding", done, len(self.samples))
            yield batch
