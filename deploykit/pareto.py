"""The Pareto front: what is beaten by nothing else in everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["beats", "on_front", "step_of"]


def step_of(value: float, tolerance: float) -> int:
    """The step of a logarithmic scale that a positive value falls on; values on one step count as equal.

    Dominance by steps is transitive, which "smaller by more than the tolerance" is not.

    Args:
        value: Above 0.
        tolerance: Width of a step, as a fraction of the value.
    """
    return round(math.log(value) / math.log1p(tolerance))


def beats(other: Sequence[float], point: Sequence[float]) -> bool:
    """Whether ``other`` dominates ``point``: is nowhere greater, and equal or somewhere less; less is better."""
    return all(a <= b for a, b in zip(other, point, strict=True))


def on_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point whether no other beats it; of equal points the first stays.

    Args:
        points: Of one length each; less is better in all coordinates.
    """
    return [
        not any(
            beats(other, point) and (place < index or list(other) != list(point))
            for place, other in enumerate(points)
            if place != index
        )
        for index, point in enumerate(points)
    ]
