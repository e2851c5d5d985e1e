"""Robust statistics of latencies: medians, percentiles, spread and bootstrap intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_median_interval", "bootstrap_percentiles", "median", "percentile", "relative_spread"]

_FEW_TURNS = 5  # fewer cannot be resampled; then single samples are
_MAX_TURNS = 256  # of a process; more are drawn as runs of neighbours
_MAX_BINS = 1024  # places of the resampled distributions; a percentile is then exact to 0.05 of a percent of the ranks


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
    _check_confidence(confidence)
    generator = np.random.default_rng(seed)
    medians = np.empty(resamples)
    for index in range(resamples):  # one resample at a time: memory stays at one copy of the samples
        medians[index] = np.median(values[generator.integers(0, values.size, values.size)])
    return _bounds(medians, confidence)


def bootstrap_percentiles(
    processes: Sequence[Sequence[ArrayLike]],
    percentiles: Sequence[float] = (50.0, 90.0, 99.0),
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Intervals of percentiles of samples that came in turns of several processes.

    A resample draws as many processes as there are, with replacement, then as many turns of each as it had; the
    samples of a turn stay together (Davison & Hinkley 1997, section 3.8: at the lowest level of nested data, drawing
    without replacement comes closest to the true variance). So what differs from process to process (the layout in
    memory) and from turn to turn (a slow spell) is in the interval, which shrinks only with more of both. Where fewer
    than five turns were taken in all, single samples are drawn in their place. The 99th percentile of a few dozen turns
    hangs on a handful of calls: there the interval is narrower than it should be.

    Args:
        processes: For every process its turns, each an array of samples.
        percentiles: Which, from 0 to 100.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Fixes the resampling, so that a record can be recomputed.

    Returns:
        Lower and upper bound of each percentile, in the samples' unit.

    Raises:
        ValueError: No samples, samples that are not finite, or a confidence outside 0 to 1.
    """
    _check_confidence(confidence)
    turns = [_merged([_values(turn) for turn in process]) for process in processes if len(process)]
    places, counts = _binned(turns)
    generator = np.random.default_rng(seed)
    drawn = _resampled_counts(counts, resamples, generator)
    ranks = np.cumsum(drawn, axis=1, dtype=np.float64)  # resamples × places
    found = []
    for q in percentiles:
        reached = ranks >= ranks[:, -1:] * (q / 100.0)
        found.append(_bounds(places[reached.argmax(axis=1)], confidence))
    return found


def _merged(turns: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The turns, neighbours joined where there are very many."""
    if len(turns) <= _MAX_TURNS:
        return turns
    ends = np.arange(_MAX_TURNS + 1) * len(turns) // _MAX_TURNS
    return [np.concatenate(turns[start:end]) for start, end in itertools.pairwise(ends)]


def _binned(turns: Sequence[Sequence[NDArray[np.float64]]]) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """The pooled samples in order, in at most _MAX_BINS places, and how often each turn has each: turns × places."""
    flat = [turn for process in turns for turn in process]
    values = _values(np.concatenate(flat) if flat else [])
    order = np.argsort(values, kind="stable")
    bins = min(values.size, _MAX_BINS)
    bin_of = np.empty(values.size, np.int64)
    bin_of[order] = np.arange(values.size) * bins // values.size
    middles = (np.arange(bins) * values.size + values.size // 2) // bins
    split = np.split(bin_of, np.cumsum([turn.size for turn in flat])[:-1])
    rows = iter([np.bincount(part, minlength=bins).astype(np.float32) for part in split])
    counts = [np.stack([next(rows) for _ in process]) for process in turns]
    return values[order][np.minimum(middles, values.size - 1)], counts


def _resampled_counts(
    counts: Sequence[NDArray[np.float32]], resamples: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """How often each place comes up in each resample: resamples × places."""
    shares = np.full(len(counts), 1.0 / len(counts))
    times = generator.multinomial(len(counts), shares, size=resamples)  # each process, in each resample
    if sum(len(process) for process in counts) < _FEW_TURNS:
        of_places = [process.sum(axis=0, dtype=np.float64) for process in counts]
        drawn = [
            generator.multinomial(times[:, index] * round(of_place.sum()), of_place / of_place.sum())
            for index, of_place in enumerate(of_places)
        ]
        return np.asarray(np.sum(drawn, axis=0), np.float32)
    weights = [
        generator.multinomial(times[:, index] * len(process), np.full(len(process), 1.0 / len(process)))
        for index, process in enumerate(counts)
    ]
    product: NDArray[np.float32] = np.concatenate(weights, axis=1).astype(np.float32) @ np.concatenate(counts)
    return product


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, received {confidence}")


def _bounds(estimates: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(estimates, [tail, 100.0 - tail])
    return float(low), float(high)
