"""Rows of inputs that can be read again and again, batch by batch, without all of them being in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, OutputError
from deploykit.raw_pictures import inputs_of

__all__ = ["ArrayRows", "PictureRows", "Rows", "SpooledRows", "rows_of"]


class Rows(Protocol):
    """Inputs of a model, in an order that stays the same."""

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """All rows, ``size`` at a time at most; each call begins anew.

        With ``part`` only those rows; it begins at a multiple of ``size``.
        """


@dataclass(frozen=True, eq=False)
class PictureRows:
    """Pictures of a dataset, decoded and preprocessed whenever they are read."""

    pictures: Dataset
    preprocess: Preprocess

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """``size`` pictures at a time, fewer where a model takes any size and theirs differ.

        Raises: DataError for a damaged one.
        """
        chosen = range(len(self.pictures)) if part is None else part
        for start in chosen[::size]:
            pictures = self.pictures.pictures(range(start, min(start + size, chosen.stop)))
            yield from inputs_of(self.preprocess, pictures)


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Arrays (n, …) of any lengths, out of something that can be iterated again."""

    arrays: Iterable[NDArray[Any]]

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """Their rows, ``size`` at a time; copied only where a batch takes from two arrays."""
        yield from self._all(size) if part is None else _only(self._all(size), part)

    def _all(self, size: int) -> Iterator[NDArray[Any]]:
        held: list[NDArray[Any]] = []
        for array in _alike(self.arrays):
            start = 0
            while len(array) - start >= (short := size - sum(map(len, held))):
                yield _joined([*held, array[start : start + short]])
                held, start = [], start + short
            if start < len(array):
                held.append(array[start:])
        if held:
            yield _joined(held)


@dataclass(frozen=True, eq=False)
class SpooledRows:
    """Rows in a temporary file, which goes when this object does.

    It is read, not mapped: mapped pages would count as this process's memory.
    """

    file: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, arrays: Iterator[NDArray[Any]]) -> SpooledRows:
        """Writes what a generator yields, which can be had only once. Raises: OutputError for a full disk."""
        file, dtype, shape = tempfile.TemporaryFile(prefix="deploykit-"), np.dtype(np.float32), (0,)  # noqa: SIM115
        try:
            for array in _alike(arrays):
                dtype, shape = array.dtype, (shape[0] + len(array), *array.shape[1:])
                _write(file, array)
        except BaseException:
            file.close()
            raise
        rows = cls(file, dtype, shape)
        weakref.finalize(rows, file.close)
        return rows

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """The next ``size`` rows of the file."""
        count, *axes = self.shape
        chosen = range(count) if part is None else part
        for start in chosen[::size]:
            batch = np.empty((min(size, chosen.stop - start), *axes), self.dtype)
            self.file.seek(start * (batch.nbytes // len(batch)))
            self.file.readinto(batch.data)  # type: ignore[attr-defined]  # every binary file has it
            yield batch


def _only(batches: Iterator[NDArray[Any]], part: range) -> Iterator[NDArray[Any]]:
    """Of batches that together hold all rows, the whole ones within ``part``."""
    start = 0
    for batch in batches:
        if part.start <= start < part.stop:
            yield batch
        start += len(batch)


def _write(file: IO[bytes], array: NDArray[Any]) -> None:
    try:
        file.write(np.ascontiguousarray(array).data)
    except OSError as problem:
        raise OutputError(
            f"cannot keep the samples of a generator in {tempfile.gettempdir()}: {problem.strerror}; free some space"
            " there, or let TMPDIR name another folder"
        ) from problem


def rows_of(arrays: Iterable[NDArray[Any]]) -> Rows:
    """Rows of arrays (n, …): as they are where they can be had again, else by way of a temporary file.

    Raises:
        InputError: A single number among them, or arrays whose rows are of different shapes or types.
    """
    return SpooledRows.of(arrays) if isinstance(arrays, Iterator) else ArrayRows(arrays)


def _alike(arrays: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The arrays, as long as their rows are of one shape and type."""
    first: NDArray[Any] | None = None
    for item in arrays:
        array = np.asarray(item)
        if array.ndim == 0:
            raise InputError(f"a batch of samples is a single {array.dtype}; expected an array (n, …)")
        first = array if first is None else first
        if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
            raise InputError(
                f"batches of samples differ: {array.dtype} of shape {array.shape[1:]} after {first.dtype} of shape"
                f" {first.shape[1:]}; all rows must be alike"
            )
        yield array


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
