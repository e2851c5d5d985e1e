"""Which layers integers hurt, and which few have to stay in float to keep within a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.answers import difference_of, first_answers
from deploykit.integer_model import IntegerModels
from deploykit.progress import Progress, silent
from deploykit.runtime import create_session

__all__ = ["LayerHarm", "cheapest_within", "measure_harm"]


@dataclass(frozen=True)
class LayerHarm:
    """What rounding one layer alone, all others being in float, does to the model's answers.

    Attributes:
        layer: Its name in the graph.
        op: Operator.
        noise: Power of the difference over the power of the answers; 0 where they are equal.
        agreement: Fraction of the samples with the same top-1.
        cost: Share of the model's multiply-accumulates, which is about what float costs in time.
    """

    layer: str
    op: str
    noise: float
    agreement: float
    cost: float


def measure_harm(
    models: IntegerModels,
    method: str,
    samples: Sequence[NDArray[Any]],
    costs: dict[str, float],
    *,
    progress: Progress = silent,
) -> tuple[LayerHarm, ...]:
    """Every layer's harm, the worst first.

    Args:
        models: Of the float model.
        method: How ranges are chosen.
        samples: Preprocessed batches, read once and shown to every variant.
        costs: Share of multiply-accumulates by layer.
        progress: Called after each layer.
    """
    wanted = _answers(models.model.session(), samples, "the float model")
    layers = [*models.plan.products, *models.matrices]
    kinds = {node.name: node.op_type for node in models.model.proto.graph.node}
    found = []
    for done, layer in enumerate(layers):
        alone = models.build(method, without=[name for name in layers if name != layer])
        got = _answers(create_session(alone.SerializeToString()), samples, f"the model with {layer} rounded")
        difference = difference_of(wanted, got)
        noise = 0.0 if difference.snr_db is None else 10 ** (-difference.snr_db / 10)
        found.append(LayerHarm(layer, kinds[layer], noise, difference.agreement, costs.get(layer, 0.0)))
        progress("sensitivity", done + 1, len(layers))
    return tuple(sorted(found, key=lambda harm: (-harm.noise, harm.layer)))


def _answers(session: Any, samples: Iterable[NDArray[Any]], name: str) -> NDArray[np.float64]:
    rows = [first_answers(session, batch, name, what="calibration samples") for batch in samples]
    return np.concatenate(rows).reshape(sum(map(len, rows)), -1)


def cheapest_within(
    ranking: Sequence[LayerHarm], holds: Callable[[Collection[str]], bool], *, most: int | None = None
) -> tuple[str, ...] | None:
    """The layers to leave in float: as few as do, and of those no one that is not needed.

    The layers are taken in the order of noise per cost, as many as the budget takes (found by bisection); then each
    is given back, the dearest first, if the budget holds without it.

    Args:
        ranking: Of all layers.
        holds: Whether the budget holds with these layers in float; measured, so asked rarely.
        most: How many may stay in float at most; all when None.

    Returns:
        The layers, none where none is needed; None where the budget does not hold even with the most in float.
    """
    if holds(()):
        return ()
    floor = 1.0 / max(1, len(ranking)) / 10  # a layer without a cost is not free: it breaks a chain of integers
    order = [harm.layer for harm in sorted(ranking, key=lambda harm: -harm.noise / (harm.cost + floor))]
    order = order[: most or len(order)]
    if not holds(order):
        return None
    fewest = _bisect(order, holds)
    costs = {harm.layer: harm.cost for harm in ranking}
    kept = order[:fewest]
    for layer in sorted(kept, key=lambda name: -costs[name]):
        rest = [name for name in kept if name != layer]
        if len(kept) > 1 and holds(rest):
            kept = rest
    return tuple(kept)


def _bisect(order: Sequence[str], holds: Callable[[Collection[str]], bool]) -> int:
    """The smallest count, from 1, whose layers in float are enough; all of them are."""
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if holds(order[:middle]):
            high = middle
        else:
            low = middle + 1
    return high
