"""A histogram that depends on nothing but the values: not on their order, nor on how they were cut into batches.

Bin ``i`` holds the values x with ``trunc(x / 2^k) == i``; k is the least exponent at which all values, and zero, fall
into ``BINS`` bins. When a value falls outside, the width 2^k doubles and neighbours are merged. As dividing by two and
cutting off to a whole number commute, ``trunc(trunc(x / 2^k) / 2) == trunc(x / 2^(k + 1))``, the merged bins are those
that a second look at the values would have given: histograms of parts add up to the bits of the histogram of all.

Bin 0 reaches from -2^k to 2^k, the others lie beyond it on both sides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram"]

BINS = 1 << 13
"""Bins from the least value to the greatest, zero included; the values take at least half as many."""

_LEAST_EXPONENT = -120  # 2^120 is a float32, and no activation is told from zero by less than 2^-120
_CHUNK_VALUES = 1 << 16  # binned at once: the integers of a chunk stay in the processor's cache


class Histogram:
    """Counts of finite values, with their exact least and greatest.

    Attributes:
        low: The least value, inf where there is none.
        high: The greatest value, -inf where there is none.
        exponent: k of the bin width 2^k.
        counts: ``(2, BINS)`` int64: of bins 0, 1, 2 … and of bins 0, -1, -2 …; the second bin 0 is always empty.
    """

    __slots__ = ("counts", "exponent", "high", "low")

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.exponent = _LEAST_EXPONENT
        self.counts: NDArray[np.int64] = np.zeros((2, BINS), np.int64)

    @classmethod
    def of(cls, counts: NDArray[np.int64], exponent: int, low: float, high: float) -> Histogram:
        """One that was stored. Raises: ValueError when these cannot be its parts."""
        if counts.shape != (2, BINS) or counts.dtype != np.int64 or (counts < 0).any():
            raise ValueError(f"counts {counts.dtype} of shape {counts.shape}")
        held = cls()
        held.counts, held.exponent, held.low, held.high = counts.copy(), exponent, low, high
        return held

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def copy(self) -> Histogram:
        """Another one with the same counts."""
        return Histogram.of(self.counts, self.exponent, self.low, self.high)

    def add(self, values: NDArray[Any], low: float | None = None, high: float | None = None) -> None:
        """Counts floating-point values of any shape, all finite.

        Args:
            values: Of any shape.
            low: The least of them, where it is known.
            high: The greatest.
        """
        if not values.size:
            return
        flat = values.reshape(-1)
        low, high = (float(flat.min()) if low is None else low), (float(flat.max()) if high is None else high)
        self._reach(low, high)
        first, last = self._bin(low), self._bin(high)
        found = self._counted(flat, first, last)
        self.counts[0, max(first, 0) : max(last + 1, 0)] += found[max(-first, 0) :]
        if first < 0:
            negative = found[: min(-first, len(found))]  # bins first … -1, or up to last where all are negative
            self.counts[1, -first - len(negative) + 1 : -first + 1] += negative[::-1]

    def merge(self, other: Histogram) -> None:
        """Adds the counts of ``other``."""
        if other.low > other.high:
            return
        self._reach(other.low, other.high)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges ``(n + 1,)`` of the bins from the first that holds a value to the last, and their counts ``(n,)``.

        The outermost edges are the least and the greatest value where these lie farther in.
        """
        counts = np.concatenate([self.counts[1, :0:-1], self.counts[0]])  # bins -(BINS - 1) … BINS - 1
        held = np.flatnonzero(counts)
        if not held.size:
            return np.zeros(1), np.zeros(0, np.int64)
        first, last = int(held[0]), int(held[-1])
        index = np.arange(first, last + 2, dtype=np.float64) - (BINS - 1)
        # Bins below zero end at their number, those above begin there; bin 0 has both ends.
        edges = np.where(index <= 0, index - 1, index) * self.width
        edges[0], edges[-1] = max(edges[0], self.low), min(edges[-1], self.high)
        return edges, counts[first : last + 1]

    def _counted(self, flat: NDArray[Any], first: int, last: int) -> NDArray[np.int64]:
        """Counts of the bins ``first`` to ``last``, which hold all values."""
        kind = np.float64 if flat.dtype == np.float64 else np.float32
        size = min(len(flat), _CHUNK_VALUES)
        scaled, index = np.empty(size, kind), np.empty(size, np.int64)
        factor = kind(math.ldexp(1.0, -self.exponent))
        counts = np.zeros(last - first + 1, np.int64)
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            numbers, bins = scaled[: len(part)], index[: len(part)]
            np.multiply(part, factor, out=numbers, dtype=kind)  # exact but where it falls below 2^-126, to bin 0
            np.copyto(bins, numbers, casting="unsafe")  # cuts off towards zero
            if first:
                np.subtract(bins, first, out=bins)
            counts += np.bincount(bins, minlength=len(counts))
        return counts

    def _bin(self, value: float) -> int:
        return math.trunc(math.ldexp(value, -self.exponent))

    def _reach(self, low: float, high: float) -> None:
        """Doubles the width until ``low`` and ``high`` fall into the bins too."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = _exponent(min(self.low, 0.0), max(self.high, 0.0))
        self.counts = _coarser(self.counts, exponent - self.exponent)
        self.exponent = exponent


def _exponent(low: float, high: float) -> int:
    """The least k at which ``low`` to ``high``, around zero, take no more than ``BINS`` bins of width 2^k."""
    if low == high:  # only zeros so far: whatever comes will set the width
        return _LEAST_EXPONENT
    _, bits = math.frexp(max(-low, high))
    exponent = max(_LEAST_EXPONENT, bits - BINS.bit_length())
    while math.trunc(math.ldexp(high, -exponent)) - math.trunc(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def _coarser(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """Counts ``(2, BINS)`` after the width has doubled so often; the same array for none."""
    if not doublings:
        return counts
    taken = min(doublings, BINS.bit_length() - 1)
    merged = np.zeros_like(counts)
    merged[:, : BINS >> taken] = counts.reshape(2, BINS >> taken, 1 << taken).sum(axis=2)
    merged[0, 0] += merged[1, 0]  # what was bin -1 has become a part of bin 0
    merged[1, 0] = 0
    return merged
