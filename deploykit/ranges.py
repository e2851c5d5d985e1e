"""What a calibration has seen of each tensor: the least and greatest value, a histogram, the means of channels.

Statistics of parts of the samples add up: ranges chosen from the sum are those of one pass over all of them, to the
last bit, as long as the runtime gives a sample the same activations in either.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError
from deploykit.files import atomic_path
from deploykit.histogram import BINS, Histogram
from deploykit.range_methods import RangeOptions, choose_range

__all__ = ["ChannelSums", "Statistics"]

_SCHEMA = "deploykit.statistics/2"


@dataclass(frozen=True, eq=False)
class ChannelSums:
    """Sums of the samples' means of each channel, ``(C,)`` float64, and the number of samples.

    ``rest`` is what rounding took from the sums (Knuth's two-sum), so that parts add up alike in any order.
    """

    sums: NDArray[np.float64]
    samples: int
    rest: NDArray[np.float64] | float = 0.0

    def __add__(self, other: ChannelSums) -> ChannelSums:
        sums = self.sums + other.sums
        theirs = sums - self.sums
        lost = (self.sums - (sums - theirs)) + (other.sums - theirs)
        return ChannelSums(sums, self.samples + other.samples, lost + self.rest + other.rest)

    @property
    def means(self) -> NDArray[np.float64]:
        """``(C,)``."""
        return np.asarray((self.sums + self.rest) / self.samples)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the tensors of one model over some samples.

    Attributes:
        samples: Number of samples.
        extremes: Exact least and greatest value by tensor.
        histograms: Histogram by tensor; empty where none was asked for.
        channel_sums: For the tensors whose channels' means were asked for.
    """

    samples: int
    extremes: Mapping[str, tuple[float, float]]
    histograms: Mapping[str, Histogram]
    channel_sums: Mapping[str, ChannelSums]

    def ranges(
        self, method: str = "minmax", *, levels: int = 256, percentile: float = 99.999, symmetric: bool = False
    ) -> dict[str, tuple[float, float]]:
        """The range that each tensor should cover, ``low <= 0 <= high``; both zero where all values are.

        Args:
            method: ``minmax``, ``percentile``, ``entropy`` or ``mse``; all but the first need histograms.
            levels: Of the quantizer; ``entropy`` and ``mse`` look at it.
            percentile: Share of the values inside, in percent, for ``percentile``.
            symmetric: Whether both ends are to be equally far from zero.

        Raises:
            UnknownNameError: No such method.
            InputError: A value out of bounds, or a method that needs histograms where none were collected.
        """
        options = RangeOptions(method, levels, percentile, symmetric)
        if method != "minmax" and len(self.histograms) < len(self.extremes):
            raise InputError(f"ranges by {method} need histograms, which were not collected; allowed here: minmax")
        return {name: choose_range(self.histograms.get(name) or _ends(*self.extremes[name]), options) for name in self}

    def channel_means(self, name: str) -> NDArray[np.float64]:
        """``(C,)``: mean over samples and space of each channel. Raises: InputError when it was not asked for."""
        if name not in self.channel_sums:
            raise InputError(f"the means of {name!r} were not collected; collected: {', '.join(self.channel_sums)}")
        return self.channel_sums[name].means

    def __iter__(self) -> Iterator[str]:
        return iter(self.extremes)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the samples of both. Raises: InputError when they are of different tensors."""
        for mine, others in (
            (self.extremes, other.extremes),
            (self.histograms, other.histograms),
            (self.channel_sums, other.channel_sums),
        ):
            if differing := sorted(set(mine) ^ set(others)):
                raise InputError(f"statistics of different tensors cannot be merged; {differing[0]!r} is in one only")
        return Statistics(
            self.samples + other.samples,
            {name: _outer(ends, other.extremes[name]) for name, ends in self.extremes.items()},
            {name: _sum(held, other.histograms[name]) for name, held in self.histograms.items()},
            {name: held + other.channel_sums[name] for name, held in self.channel_sums.items()},
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Writes an ``.npz`` of plain arrays. Raises: OutputError."""
        with atomic_path(path, overwrite=overwrite) as aside, aside.open("wb") as handle:
            self._write(handle)
        return Path(path)

    def to_bytes(self) -> bytes:
        """What ``save`` would write."""
        self._write(packed := io.BytesIO())
        return packed.getvalue()

    def _write(self, handle: IO[bytes]) -> None:
        header = {
            "schema": _SCHEMA,
            "samples": self.samples,
            "tensors": list(self.extremes),
            "histograms": list(self.histograms),
            "channels": {name: held.samples for name, held in self.channel_sums.items()},
            "exponents": [held.exponent for held in self.histograms.values()],
        }
        arrays: dict[str, NDArray[Any]] = {
            "header": np.array(json.dumps(header)),
            "extremes": np.array(list(self.extremes.values()), np.float64).reshape(-1, 2),
            "counts": np.array([held.counts for held in self.histograms.values()], np.int64).reshape(-1, 2, BINS),
        }
        for index, held in enumerate(self.channel_sums.values()):
            arrays[f"channels{index}"] = held.sums
            arrays[f"channels{index}.rest"] = np.broadcast_to(held.rest, held.sums.shape)
        np.savez_compressed(handle, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Reads what ``save`` has written. Raises: InputError for another file or another version."""
        try:
            with Path(path).open("rb") as handle:
                return cls._read(handle)
        except FileNotFoundError as problem:
            raise InputError(f"no such file: {path}") from problem
        except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
            raise InputError(f"{path} holds no statistics of a calibration; expected {_SCHEMA}") from problem

    @classmethod
    def from_bytes(cls, packed: bytes) -> Statistics:
        """What ``to_bytes`` gave."""
        return cls._read(io.BytesIO(packed))

    @classmethod
    def _read(cls, handle: IO[bytes]) -> Statistics:
        with np.load(handle, allow_pickle=False) as arrays:
            return cls._of(json.loads(str(arrays["header"])), arrays)

    @classmethod
    def _of(cls, header: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Statistics:
        if header["schema"] != _SCHEMA:
            raise InputError(f"statistics of schema {header['schema']!r}; this version reads {_SCHEMA}")
        extremes, counts = arrays["extremes"].tolist(), arrays["counts"]
        ends = {name: (low, high) for name, (low, high) in zip(header["tensors"], extremes, strict=True)}
        rows = zip(header["histograms"], counts, header["exponents"], strict=True)
        return cls(
            header["samples"],
            ends,
            {name: Histogram.of(held, exponent, *ends[name]) for name, held, exponent in rows},
            {
                name: ChannelSums(arrays[f"channels{index}"], samples, arrays[f"channels{index}.rest"])
                for index, (name, samples) in enumerate(header["channels"].items())
            },
        )


def _ends(low: float, high: float) -> Histogram:
    """A histogram that knows the two ends alone, which is all that ``minmax`` looks at."""
    ends = Histogram()
    ends.low, ends.high = low, high
    return ends


def _outer(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


def _sum(one: Histogram, other: Histogram) -> Histogram:
    both = one.copy()
    both.merge(other)
    return both
