"""Four ways to choose the range that an 8-bit tensor covers, from a histogram of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError, UnknownNameError
from deploykit.histogram import Histogram

__all__ = ["METHODS", "RangeOptions", "choose_range"]

Range: TypeAlias = tuple[float, float]

_MOST_LEVELS = 1 << 16
_KL_BINS = 2048  # Migacz 2017, "8-bit Inference with TensorRT"
_KL_STEP = 16  # of the thresholds, in bins
_COARSE = 8  # bins merged for the first search by squared error
_SHARES = 16  # ends tried on each side in the first search
_FINER = 4  # rounds of the second search, each with a quarter of the step
_NEAR = np.array([-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75])  # of a step
_LEAST_SHARE = 0.05  # of the values' reach; thresholds below it are never the best of 4 levels or more


@dataclass(frozen=True)
class RangeOptions:
    """How to choose a range, validated.

    Attributes:
        method: A name in ``METHODS``.
        levels: Of the quantizer: 256 for 8 bits, 16 for 4.
        percentile: For ``percentile``: share of the values inside, in percent.
        symmetric: Whether both ends are equally far from zero.
    """

    method: str = "minmax"
    levels: int = 256
    percentile: float = 99.999
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("calibration method", self.method, METHODS)
        if not 4 <= self.levels <= _MOST_LEVELS:
            raise InputError(f"{self.levels} levels; allowed: 4 to {_MOST_LEVELS}")
        if not 50.0 < self.percentile <= 100.0:
            raise InputError(f"percentile {self.percentile:g}; allowed: above 50, up to 100")


def choose_range(histogram: Histogram, options: RangeOptions) -> Range:
    """The range ``(low, high)`` with ``low <= 0 <= high``; both zero where no value differs from zero."""
    ends = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if ends == (0.0, 0.0):
        return ends
    low, high = METHODS[options.method](histogram, options)
    low, high = min(low, 0.0), max(high, 0.0)
    if options.symmetric:
        return -max(-low, high), max(-low, high)
    return low, high


def _minmax(histogram: Histogram, options: RangeOptions) -> Range:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, options: RangeOptions) -> Range:
    """Cuts off ``100 - percentile`` percent: at the far end of values of one sign, else half at each end.

    With ``symmetric`` it counts magnitudes. So does ONNX Runtime's ``PercentileCalibrator``.
    """
    share = options.percentile / 100.0
    if options.symmetric:
        _, high = _quantiles(*_magnitudes(histogram), (0.0, share))
        return -high, high
    if histogram.low >= 0.0:
        share_low, share_high = 0.0, share
    elif histogram.high <= 0.0:
        share_low, share_high = 1.0 - share, 1.0
    else:
        share_low, share_high = (1.0 - share) / 2.0, (1.0 + share) / 2.0
    return _quantiles(*histogram.bins(), (share_low, share_high))


def _quantiles(edges: NDArray[np.float64], counts: NDArray[np.int64], shares: Range) -> Range:
    """Where the cumulated counts reach two shares of all; within a bin as if its values were spread evenly."""
    reached = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    low, high = np.interp(shares, reached, edges)
    return float(low), float(high)


def _entropy(histogram: Histogram, options: RangeOptions) -> Range:
    """The threshold whose quantized distribution differs least from the true one, by Kullback and Leibler.

    Of values of both signs the magnitudes are looked at, with half the levels; the range never reaches beyond the
    values. Migacz 2017, "8-bit Inference with TensorRT"; ``EntropyCalibrator`` of ONNX Runtime.
    """
    both = histogram.low < 0.0 < histogram.high or options.symmetric
    edges, counts = _magnitudes(histogram)
    levels = options.levels // 2 if both else options.levels
    threshold = _least_divergence(edges, counts, levels)
    if options.symmetric:
        return -threshold, threshold
    return max(-threshold, histogram.low), min(threshold, histogram.high)


def _least_divergence(edges: NDArray[np.float64], counts: NDArray[np.int64], levels: int) -> float:
    bins = max(_KL_BINS, 4 * levels)
    reach = float(edges[-1])
    if len(counts) > bins:
        counts = _merged(counts, -(-len(counts) // bins))
    width = reach / len(counts)
    values = counts.astype(np.float64)
    if len(values) > 1:
        # Zeros are exact at any threshold, and a spike of them would outweigh all else (so in pytorch-quantization).
        values[0] = min(values[0], values[1])
    stops = np.arange(len(values), levels - 1, -_KL_STEP)
    if not len(stops):
        return reach
    divergence = [_divergence(values, int(stop), levels) for stop in stops]
    return float(stops[int(np.argmin(divergence))] * width)


def _divergence(values: NDArray[np.float64], stop: int, levels: int) -> float:
    """Of the first ``stop`` bins, with what lies beyond added to the last, from their quantized form."""
    inside = values[:stop]
    true = inside.copy()
    true[-1] += values[stop:].sum()
    starts = np.arange(levels) * stop // levels
    held = (inside > 0).astype(np.float64)
    lengths = np.diff(np.append(starts, stop))
    mean = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(held, starts), 1.0)
    quantized = np.repeat(mean, lengths) * held
    if not quantized.any():
        return np.inf
    return _kullback_leibler(true / true.sum(), quantized / quantized.sum())


def _kullback_leibler(true: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    seen = true > 0
    missing = seen & (other == 0)  # the last bin, where only what was cut off lies in it
    both = seen & ~missing
    tiny = 1e-9
    inside = float((true[both] * np.log(true[both] / other[both])).sum())
    return inside + float((true[missing] * np.log(true[missing] / tiny)).sum())


def _squared_error(histogram: Histogram, options: RangeOptions) -> Range:
    """The range with the least expected squared error of rounding and clipping; its ends lie on the quantizer's grid.

    A grid over both ends is searched on merged bins, then ever nearer to the best of it one end at a time, on all bins.
    """
    edges, counts = _magnitudes(histogram) if options.symmetric else histogram.bins()
    search = _Search(options, min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0))
    lows, highs = search.everywhere()
    step = (1.0 - _LEAST_SHARE) / (_SHARES - 1)
    coarse = edges[::_COARSE] if (len(edges) - 1) % _COARSE == 0 else np.append(edges[::_COARSE], edges[-1])
    best = search.best(coarse, _merged(counts, _COARSE), lows, highs)
    for _ in range(_FINER):
        best = search.best(edges, counts, *search.other_highs(best, step))
        best = search.best(edges, counts, *search.other_lows(best, step))
        step /= 4.0
    return search.ends(*best)


@dataclass(frozen=True)
class _Search:
    """Ranges of one tensor; their ends are given as shares of the reach to each side."""

    options: RangeOptions
    low: float
    high: float

    def everywhere(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shares = np.linspace(_LEAST_SHARE, 1.0, _SHARES)
        lows, highs = np.meshgrid(shares if self.low else np.ones(1), shares if self.high else np.ones(1))
        return lows.ravel(), highs.ravel()

    def other_highs(self, best: Range, step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        highs = self._near(best[1], step) if self.high else np.ones(1)
        return np.full(len(highs), best[0]), highs

    def other_lows(self, best: Range, step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        lows = self._near(best[0], step) if self.low else np.ones(1)
        return lows, np.full(len(lows), best[1])

    @staticmethod
    def _near(share: float, step: float) -> NDArray[np.float64]:
        return np.clip(share + _NEAR * step, _LEAST_SHARE / 4, 1.0)

    def best(
        self,
        edges: NDArray[np.float64],
        counts: NDArray[np.int64],
        lows: NDArray[np.float64],
        highs: NDArray[np.float64],
    ) -> Range:
        errors = [self._error(edges, counts, low, high) for low, high in zip(lows, highs, strict=True)]
        found = int(np.argmin(errors))
        return float(lows[found]), float(highs[found])

    def ends(self, low: float, high: float) -> Range:
        """Moved so that zero is a level: a quantizer has no other ranges."""
        bottom, top = self.low * low, self.high * high
        if self.options.symmetric:
            return -top, top
        step = self._step(bottom, top)
        below = round(-bottom / step)
        return -below * step, (self.options.levels - 1 - below) * step

    def _step(self, bottom: float, top: float) -> float:
        """Between two levels; symmetric ranges have one less where their number is even, so that zero is one."""
        levels = self.options.levels
        return top / ((levels - 1) // 2) if self.options.symmetric else (top - bottom) / (levels - 1)

    def _error(self, edges: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
        """Summed squared error, with the values of a bin spread evenly over it."""
        bottom, top = self.ends(low, high)
        step = self._step(bottom, top)
        inside = np.clip(edges, bottom, top)
        summed = step**3 * _rounding(inside / step) + (edges - inside) ** 3 / 3.0
        widths = np.diff(edges)
        spread = np.diff(summed) / np.where(widths > 0.0, widths, 1.0)
        return float(counts @ spread)


def _rounding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The integral of ``(x - round(x))^2`` from 0 to each value: 1/12 for each whole number, and r^3/3 for the rest."""
    whole = np.rint(values)
    return whole / 12.0 + (values - whole) ** 3 / 3.0


def _magnitudes(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges and counts of the absolute values, from zero on."""
    counts: NDArray[np.int64] = histogram.counts.sum(axis=0)
    last = int(np.flatnonzero(counts)[-1])
    edges = np.arange(last + 2, dtype=np.float64) * histogram.width
    edges[-1] = max(-histogram.low, histogram.high)
    return edges, counts[: last + 1]


def _merged(counts: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """Sums of ``group`` neighbours, the last of fewer."""
    summed: NDArray[np.int64] = np.add.reduceat(counts, np.arange(0, len(counts), group))
    return summed


METHODS: Mapping[str, Callable[[Histogram, RangeOptions], Range]] = MappingProxyType(
    {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy, "mse": _squared_error}
)
"""Ways to choose a range, by name."""
