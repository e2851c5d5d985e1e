"""Robust statistics of latencies: medians, spread and bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_median_interval", "median", "percentile", "relative_spread"]


def _values(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected one or more finite numbers, received {values.size} values")
    return values


def median(samples: ArrayLike) -> float:
    """The median. Raises: ValueError for no samples or NaN."""
    return float(np.median(_values(samples)))


def percentile(samples: ArrayLike, q: float) -> float:
    """The q-th percentile (0–100), by linear interpolation between order statistics (numpy's default)."""
    return float(np.percentile(_values(samples), q))


def relative_spread(samples: ArrayLike) -> float:
    """Median absolute deviation over the median, scaled by 1.4826 to estimate sigma of a normal distribution."""
    values = _values(samples)
    middle = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - middle)))
    return deviation / abs(middle) if middle else (0.0 if deviation == 0.0 else float("inf"))


def bootstrap_median_interval(
    samples: ArrayLike, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the median (Efron & Tibshirani 1993, chapter 13).

    Args:
        samples: Measured values, any shape.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Fixes the resampling, so that a record can be recomputed.

    Returns:
        Lower and upper bound, in the samples' unit.
    """
    values = _values(samples)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, received {confidence}")
    generator = np.random.default_rng(seed)
    medians = np.empty(resamples)
    for index in range(resamples):  # one resample at a time: memory stays at one copy of the samples
        medians[index] = np.median(values[generator.integers(0, values.size, values.size)])
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return float(low), float(high)
