"""How sure a ratio of timings is: a hierarchical bootstrap over processes and rounds, widened for repeated looks.

What is repeated stands at two levels: fresh processes, which differ in their layout in memory, and rounds of turns
within a process, which differ by what else the machine does (Kalibera & Jones 2013). Resampling with replacement at
both counts the noise of the rounds twice (Davison & Hinkley 1997, section 3.8), and with a handful of processes its
percentiles are too narrow. So only its standard error is taken, level by level: the variance of a mean over resampled
processes is known in closed form; that of a median over rounds is found by resampling, and bounds it from below, since
three processes may agree by luck. Student's quantile for so many processes makes it an interval (Hesterberg 2015,
section 4.1: t with bootstrap standard error).

Whoever looks several times and stops at the first clear answer errs more often than a single look would. Each look
spends a share of the error that is allowed, and all shares together do not exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "hierarchical_interval", "look_confidence", "look_sizes", "normal_quantile", "student_quantile"]

_FIRST_LOOK = 3  # processes; of two the spread says next to nothing


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds that it lies between, in the unit of what was measured."""

    middle: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of the bounds: what cannot be told apart."""
        return (self.high - self.low) / 2.0

    def widened(self, deviation: float) -> Interval:
        """With another, independent source of noise, as variances add.

        Args:
            deviation: Half the width that the other source alone would give.
        """
        below, above = self.middle - self.low, self.high - self.middle
        low, high = self.middle - math.hypot(below, deviation), self.middle + math.hypot(above, deviation)
        return Interval(self.middle, low, high)

    def minus(self, other: Interval) -> Interval:
        """The difference of two independent estimates."""
        middle = self.middle - other.middle
        low = middle - math.hypot(self.middle - self.low, other.high - other.middle)
        return Interval(middle, low, middle + math.hypot(self.high - self.middle, other.middle - other.low))


def hierarchical_interval(
    processes: Sequence[ArrayLike], *, confidence: float = 0.95, resamples: int = 400, seed: int = 0
) -> Interval:
    """The mean over processes of the median over rounds, with its interval.

    The median lets go of single rounds that were disturbed; the mean takes each process's layout as it came.

    Args:
        processes: For each process (or pair of them) the values of its rounds, any number of them.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of resamples of the rounds.
        seed: Fixes the resampling, so that a record can be recomputed.

    Raises:
        ValueError: Fewer than two processes, one without rounds, values that are not finite, or a confidence outside 0
            to 1.
    """
    rounds = [np.asarray(values, np.float64).ravel() for values in processes]
    if len(rounds) < 2 or not all(values.size and np.isfinite(values).all() for values in rounds):
        sizes = [values.size for values in rounds]
        raise ValueError(f"expected finite values of two or more processes, received {sizes} values")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, received {confidence}")
    medians = np.array([np.median(values) for values in rounds])
    generator = np.random.default_rng(seed)
    within = float(np.mean([_median_variance(values, resamples, generator) for values in rounds]))
    error = math.sqrt(max(float(medians.var(ddof=1)), within) / len(rounds))
    reach = student_quantile((1.0 + confidence) / 2.0, len(rounds) - 1) * error
    middle = float(medians.mean())
    return Interval(middle, middle - reach, middle + reach)


def _median_variance(values: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> float:
    """The variance of the median of so many values, by resampling them with replacement; 0 for a single one."""
    picks = generator.integers(0, values.size, (resamples, values.size))
    return float(np.median(values[picks], axis=1).var())


def look_sizes() -> Iterator[int]:
    """Numbers of processes at which to look: 3, 4, 6, 8, 11, 15, …, each a third more.

    A look spends some of the error that is allowed, so that it has to see clearly more than the one before.
    """
    size = _FIRST_LOOK
    while True:
        yield size
        size = math.ceil(size * 4 / 3)


def look_confidence(look: int, confidence: float = 0.95) -> float:
    """The confidence of one look, the first being 1, such that all of them together err no more than one may.

    Look k spends 1 / (k (k + 1)) of the error; these shares sum to 1 (Bonferroni's bound, for any number of looks).
    """
    return 1.0 - (1.0 - confidence) / (look * (look + 1.0))


def normal_quantile(share: float) -> float:
    """The value below which a share of the standard normal distribution lies."""
    return NormalDist().inv_cdf(share)


def student_quantile(share: float, freedom: int) -> float:
    """The value below which a share, one half or more, of Student's t distribution with ``freedom`` degrees lies.

    By bisection of the closed form for whole degrees (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while _student_share(high, freedom) < share:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _student_share(middle, freedom) < share else (low, middle)
    return high


def _student_share(value: float, freedom: int) -> float:
    """The distribution function for a value of 0 or more."""
    theta = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(2 if odd else 1, freedom - 1, 2):
        term *= cosine * cosine * step / (step + 1.0)
        total += term
    within = 2.0 / math.pi * (theta + sine * total) if odd else sine * total
    return (1.0 + within) / 2.0
