"""Made-up inputs for timing, the same for the same seed, made so that the process holds no more than they take.

numpy.random is not used, as its import brings OpenSSL: 8 MB that a process which only runs a model does not hold. Large
intermediate arrays are avoided too: once glibc has freed one, it keeps later ones of that size (mallopt(3),
M_MMAP_THRESHOLD), and a model's memory would look larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["make_feeds"]

_CHUNK = 4096  # places; 32 KB of random bits


def make_feeds(feeds: Sequence[Mapping[str, Any]], seed: int) -> dict[str, NDArray[Any]]:
    """Inputs by element type: floats normal, bytes over their full range, wider integers zero (valid indices).

    Args:
        feeds: Objects with ``name``, ``dtype`` (numpy's name) and ``shape``.
        seed: Fixes the values.
    """
    return {feed["name"]: _array(feed, seed + index) for index, feed in enumerate(feeds)}


def _array(feed: Mapping[str, Any], seed: int) -> NDArray[Any]:
    dtype, shape = np.dtype(feed["dtype"]), tuple(feed["shape"])
    made: NDArray[Any] = np.zeros(math.prod(shape), dtype)
    is_float, is_byte = dtype.kind == "f", dtype.itemsize == 1 and dtype.kind in "iu"
    for start in range(0, made.size if is_float or is_byte else 0, _CHUNK):
        part = made[start : start + _CHUNK]
        bits = _random_bits(start, part.size, seed)
        part[:] = _normal(bits) if is_float else (bits >> np.uint64(56)).astype(np.uint8).view(dtype)
    return made.reshape(shape)


def _random_bits(start: int, size: int, seed: int) -> NDArray[np.uint64]:
    """64 bits a place: SplitMix64 (Steele et al. 2014)."""
    first = np.uint64(((seed & 0xFFFFFF) << 40) + start)
    state = (np.arange(1, size + 1, dtype=np.uint64) + first) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _normal(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    """About normally distributed: the sum of four uniform values (Irwin-Hall), with mean 0 and variance 1."""
    quarters = [((bits >> np.uint64(16 * index)) & np.uint64(0xFFFF)).astype(np.float32) for index in range(4)]
    total = (quarters[0] + quarters[1] + quarters[2] + quarters[3]) / np.float32(1 << 16)  # variance 4/12
    return (total - np.float32(2.0)) * np.float32(3.0**0.5)
