"""The datasets that have a name and lie in files: what they are, where they are found and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from deploykit.data.cifar import (
    CIFAR10_ARCHIVE,
    CIFAR10_FOLDER,
    CIFAR10_LABELS,
    find_cifar10,
    find_cifar10_jpeg,
    load_cifar10,
    load_cifar10_at,
    load_cifar10_jpeg,
)
from deploykit.data.dataset import Dataset
from deploykit.data.flowers import FLOWERS_FOLDER, FLOWERS_LABELS, find_flowers, load_flowers
from deploykit.data.idx import IDX_SETS, find_idx, load_idx
from deploykit.errors import DataError

__all__ = ["NAMED_SETS", "NamedSet"]


@dataclass(frozen=True)
class NamedSet:
    """A dataset with a name.

    Attributes:
        name: As users write it.
        classes: How many.
        input: Channels, height and width; None where they differ from picture to picture.
        samples: Of ``"train"`` and ``"test"``.
        find: Where it lies below or in a data folder; None when it does not.
        load: A split of it, from a data folder.
        get: How to get it, when it is not there.
        place: The folder that its download is written to, given the data folder.
        complete: Whether what lies at a place needs no download, though it is no published file.
    """

    name: str
    classes: int
    input: tuple[int, int | None, int | None]
    samples: Mapping[str, int]
    find: Callable[[Path], Path | None]
    load: Callable[[str, Path], Dataset]
    get: str
    place: Callable[[Path], Path]
    complete: Callable[[Path], bool] = lambda place: False


def _idx_place(name: str, data_dir: Path) -> Path:
    return find_idx(IDX_SETS[name], data_dir) or data_dir / IDX_SETS[name].folders[0]


def _idx(name: str) -> NamedSet:
    return NamedSet(
        name,
        len(IDX_SETS[name].labels),
        (1, 28, 28),
        MappingProxyType({"train": 60_000, "test": 10_000}),
        partial(find_idx, IDX_SETS[name]),
        partial(load_idx, name),
        f"deploykit data prepare {name}",
        partial(_idx_place, name),
    )


def _cifar10_place(data_dir: Path) -> Path:
    found = find_cifar10(data_dir)
    return found.parent if found is not None and found.name == CIFAR10_ARCHIVE else data_dir / CIFAR10_FOLDER


def _is_all_of_cifar10(place: Path) -> bool:
    """Whether batches that were unpacked, or the Python version's archive, hold 6,000 pictures of each class."""
    if place.name == CIFAR10_ARCHIVE:
        return False  # the published file, whose checksum says more
    try:
        counts = np.bincount(load_cifar10_at(place, "all").targets, minlength=len(CIFAR10_LABELS))
    except DataError:
        return False
    return bool((counts == 6_000).all())


_CIFAR_SAMPLES = MappingProxyType({"train": 50_000, "test": 10_000})

NAMED_SETS: Mapping[str, NamedSet] = MappingProxyType(
    {
        named.name: named
        for named in (
            *(_idx(name) for name in IDX_SETS),
            NamedSet(
                "cifar10",
                len(CIFAR10_LABELS),
                (3, 32, 32),
                _CIFAR_SAMPLES,
                find_cifar10,
                load_cifar10,
                "deploykit data prepare cifar10",
                _cifar10_place,
                _is_all_of_cifar10,
            ),
            NamedSet(
                "cifar10-jpeg",
                len(CIFAR10_LABELS),
                (3, 32, 32),
                _CIFAR_SAMPLES,
                find_cifar10_jpeg,
                load_cifar10_jpeg,
                "CIFAR-10 (JPEG): put cifar10_jpeg/train/CLASS/*.jpg and test, or a .tar of them, there",
                lambda data_dir: data_dir / "cifar10_jpeg",
            ),
            NamedSet(
                "flower-photos",
                len(FLOWERS_LABELS),
                (3, None, None),
                MappingProxyType({"train": 2_935, "test": 735}),  # 80 % of each of the 3,670 photos' classes
                find_flowers,
                load_flowers,
                "deploykit data prepare flower-photos",
                lambda data_dir: data_dir / FLOWERS_FOLDER,
            ),
        )
    }
)
