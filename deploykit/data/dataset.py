"""What every source of pictures becomes: labelled uint8 pictures that are read batch by batch and have a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.data.paths import printable
from deploykit.errors import DataError, InputError

__all__ = ["ArrayReader", "Dataset", "Pictures", "Reader", "check_label_numbers", "split_rows"]

Pictures: TypeAlias = NDArray[np.uint8] | list[NDArray[np.uint8]]
"""``(N, H, W, C)``, or a list of ``(H, W, C)`` of different sizes; C is 1 or 3; pixels 0 to 255; colour is RGB."""

_TEST_SHARE = 0.2
_SPLIT_SEED = 0
_MOST_CLASSES = 100_000  # a larger number is a mistake, and naming all below it takes time and memory


class Reader(Protocol):
    """Where a dataset's pictures lie: all of a source's part, addressed by row. Goes to other processes by pickle."""

    def read(self, rows: NDArray[np.int64], shortest: int | None = None) -> Pictures:
        """The pictures at ``rows``, in that order; see ``Dataset.pictures``."""

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """Hexadecimal SHA-256 of the pictures at ``rows``, in that order."""


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Pictures held in memory, ``(N, H, W, C)`` uint8."""

    images: NDArray[np.uint8]

    def read(self, rows: NDArray[np.int64], shortest: int | None = None) -> NDArray[np.uint8]:
        """``(len(rows), H, W, C)``, always a copy."""
        return self.images[rows]

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """SHA-256 over the shape of one picture and the pixels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape[1:])).encode())
        for start in range(0, len(rows), 4096):
            digest.update(np.ascontiguousarray(self.images[rows[start : start + 4096]]).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled pictures, read when they are needed.

    Attributes:
        name: ``"mnist"``, ``"shapes-color"``, or the folder's or file's name.
        split: ``"train"``, ``"test"`` or ``"all"``.
        labels: Names of the classes.
        targets: Class of each picture, ``(N,)``.
        channels: 1 (grey) or 3 (RGB).
        size: ``(H, W)`` common to all pictures; None when they differ or are too many to look at.
        has_splits: The source itself tells train from test; otherwise deploykit has split it.
        notes: What the user should know, such as files that were passed over.
        reader: Gives the pictures by row.
        rows: The reader's row of each picture, ``(N,)``.
        whole: Gives all splits of the source; None when this dataset is the whole source.
    """

    name: str
    split: str
    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    channels: int
    size: tuple[int, int] | None
    has_splits: bool
    reader: Reader
    rows: NDArray[np.int64]
    whole: Callable[[], Dataset] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise DataError(f"{self.name}: pictures of {self.channels} channels; allowed: 1 (grey) or 3 (RGB)")
        if len(self.rows) != len(self.targets):
            raise DataError(
                f"{self.name}: {len(self.rows)} pictures but {len(self.targets)} labels; one each is needed"
            )
        if not len(self.targets):
            raise DataError(f"{self.name}: the {self.split} split holds no pictures; at least one is needed")
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= len(self.labels):
            wrong = low if low < 0 else high
            raise DataError(f"{self.name}: label {wrong} is out of range; allowed: 0 to {len(self.labels) - 1}")
        if wrong_names := [label for label in self.labels if label != printable(label)]:
            raise DataError(f"{self.name}: class name '{printable(wrong_names[0])}' is not UTF-8; rename it")

    @classmethod
    def from_arrays(
        cls,
        name: str,
        images: NDArray[np.uint8],
        targets: NDArray[Any],
        labels: tuple[str, ...] | None = None,
        *,
        split: str = "all",
        has_splits: bool = False,
        whole: Callable[[], Dataset] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Dataset:
        """A dataset of pictures in memory.

        Args:
            name: What to call it.
            images: ``(N, H, W, C)`` or ``(N, H, W)``, uint8.
            targets: ``(N,)`` integers.
            labels: Names of the classes; their numbers when None.
            split: ``"train"``, ``"test"`` or ``"all"``.
            has_splits: See the class.
            whole: See the class.
            notes: See the class.

        Raises:
            DataError: Shapes, types or label numbers do not fit.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
            received = f"{images.dtype} of shape {images.shape}"
            raise DataError(f"{name}: images are {received}; allowed: uint8 of shape (N, H, W), (N, H, W, 1 or 3)")
        if targets.ndim != 1 or targets.dtype.kind not in "iu":
            raise DataError(
                f"{name}: labels are {targets.dtype} of shape {targets.shape}; allowed: integers of shape (N,)"
            )
        pictures = images[..., None] if images.ndim == 3 else images  # (N, H, W, C)
        check_label_numbers(name, targets)
        numbers = targets.astype(np.int64)
        if labels is None:
            labels = tuple(str(number) for number in range(int(numbers.max(initial=0)) + 1))
        _, height, width, channels = pictures.shape
        return cls(
            name=name,
            split=split,
            labels=labels,
            targets=numbers,
            channels=channels,
            size=(height, width),
            has_splits=has_splits,
            reader=ArrayReader(pictures),
            rows=np.arange(len(pictures), dtype=np.int64),
            whole=whole,
            notes=notes,
        )

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of this dataset's pictures and labels. Reads every picture at the first call."""
        parts = [list(self.labels), self.targets.tolist(), self.reader.fingerprint(self.rows)]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    @cached_property
    def source_digest(self) -> str:
        """The digest of the whole source: equal for the train and the test split and for parts of them."""
        return self.digest if self.whole is None else self.whole().digest

    @property
    def in_memory(self) -> bool:
        """The pictures are decoded and held; reading them costs a copy, sending them to a process costs all."""
        return isinstance(self.reader, ArrayReader)

    def pictures(
        self, indices: NDArray[np.int64] | list[int] | slice | range, *, shortest: int | None = None
    ) -> Pictures:
        """The pictures at ``indices``, in that order.

        Args:
            indices: Places in this dataset; a slice or integers.
            shortest: Pixels that the shorter sides need. Larger JPEGs may then come reduced by 2, 4 or 8, which
                decodes up to three times faster and gives other pixels: for training, never for evaluation.

        Raises:
            DataError: Names a file that cannot be read.
        """
        chosen = indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)
        return self.reader.read(self.rows[chosen], shortest)

    def batches(self, batch_size: int = 256) -> Iterator[tuple[Pictures, NDArray[np.int64]]]:
        """Pictures and targets in order, every sample exactly once; the last batch may be smaller."""
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}; allowed: 1 and more")
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self.pictures(part), self.targets[part]

    def take(self, count: int, *, seed: int = 0) -> Dataset:
        """A class-balanced subset of ``count`` pictures, or all when fewer exist; the same for the same ``seed``.

        Classes take turns, so that a smaller subset is the beginning of a larger one and each batch is mixed.
        """
        if count < 1:
            raise InputError(f"{count} samples asked of {self.name}; allowed: 1 and more")
        random = np.random.RandomState(seed)  # its stream is frozen by NumPy's policy (NEP 19)
        shuffled = random.permutation(len(self))
        order = shuffled[np.lexsort((shuffled, _turns(self.targets[shuffled])))]
        turns = _turns(self.targets[order])
        of_class = random.permutation(len(self.labels))[self.targets[order]]
        chosen = order[np.lexsort((of_class, turns))][:count]
        return replace(
            self,
            targets=self.targets[chosen],
            rows=self.rows[chosen],
            whole=self.whole or partial(_itself, self),
        )


def _itself(dataset: Dataset) -> Dataset:
    return dataset


def _turns(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many samples of the same class stand before each one, ``(N,)``."""
    by_class = np.argsort(targets, kind="stable")
    ordered = targets[by_class]
    starts = np.searchsorted(ordered, ordered, side="left")
    turns = np.empty(len(targets), dtype=np.int64)
    turns[by_class] = np.arange(len(targets)) - starts
    return turns


def check_label_numbers(name: str, targets: NDArray[Any]) -> None:
    """Raises: DataError when a label of ``(N,)`` integers, of whatever width, is beyond any sensible class."""
    if (high := int(targets.max(initial=0))) >= _MOST_CLASSES:
        raise DataError(f"{name}: label {high} is out of range; allowed: class numbers from 0 to {_MOST_CLASSES - 1}")


def split_rows(targets: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Rows of a source without splits: 80 % of each class for ``"train"``, the rest for ``"test"``, in order.

    The same on every machine. A class of one picture goes to train.
    """
    if split == "all":
        return np.arange(len(targets), dtype=np.int64)
    random = np.random.RandomState(_SPLIT_SEED)
    for_test = np.zeros(len(targets), dtype=bool)
    for number in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == number))
        count = max(1, round(_TEST_SHARE * len(rows))) if len(rows) > 1 else 0
        for_test[rows[:count]] = True
    return np.flatnonzero(for_test == (split == "test")).astype(np.int64)
