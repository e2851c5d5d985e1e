"""Made-up inputs for timing, the same for the same seed.

They are made without numpy.random, whose import brings OpenSSL: 8 MB that a process which only runs a model does not
hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["make_feeds"]

_BITS = 24  # as many as float32 holds


def make_feeds(feeds: Sequence[Mapping[str, Any]], seed: int) -> dict[str, NDArray[Any]]:
    """Inputs by element type: floats normal, bytes over their full range, wider integers zero (valid indices).

    Args:
        feeds: Objects with ``name``, ``dtype`` (numpy's name) and ``shape``.
        seed: Fixes the values.
    """
    return {feed["name"]: _array(feed, seed + index) for index, feed in enumerate(feeds)}


def _array(feed: Mapping[str, Any], seed: int) -> NDArray[Any]:
    dtype, shape = np.dtype(feed["dtype"]), tuple(feed["shape"])
    size = math.prod(shape)
    if dtype.kind == "f":
        values: NDArray[Any] = _normal(size, seed).astype(dtype)
        return values.reshape(shape)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        values = (_random_bits(size, seed) >> np.uint64(56)).astype(np.uint8).view(dtype)
        return values.reshape(shape)
    return np.zeros(shape, dtype)


def _random_bits(size: int, seed: int) -> NDArray[np.uint64]:
    """64 bits a place: SplitMix64 (Steele et al. 2014)."""
    start = np.uint64((seed & 0xFFFFFF) << 40)
    state = (np.arange(1, size + 1, dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _normal(size: int, seed: int) -> NDArray[np.float32]:
    """Normally distributed values (Box & Muller 1958), two for each place of random bits."""
    bits = _random_bits((size + 1) // 2, seed)
    parts = (bits >> np.uint64(64 - _BITS), bits & np.uint64((1 << _BITS) - 1))
    first, second = ((part.astype(np.float32) + 0.5) / (1 << _BITS) for part in parts)  # in (0, 1]
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)[:size]
