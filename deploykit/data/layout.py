"""Classes and splits from how pictures lie in folders, on the disk or in an archive.

Understood: ``class/picture``; ``split/class/picture``, where ``val`` stands in for a missing ``test``; and pictures
that carry their class in their name, ``cat.0.jpg``, directly in the root or in split folders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit.data.path_table import PathTable, PathTableBuilder
from deploykit.data.paths import printable
from deploykit.data.picture import PICTURE_ENDINGS
from deploykit.errors import DataError

__all__ = [
    "Layout",
    "Listing",
    "Part",
    "classes_in_names",
    "find_layout",
    "is_picture_name",
    "is_visible",
    "sorted_names",
    "split_of",
]

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_CLASS_IN_NAME = re.compile(r"(?P<label>[^.]*[^.\d][^.]*)\.\d+\.[^.]+")  # cat.0.jpg, as Kaggle's Dogs vs. Cats has it
_MOST_STRAYS = 1000  # names of passed over files that are kept; the rest is counted


class Listing(Protocol):
    """What lies where; places are relative to the root, with ``/``, and the root itself is ``""``."""

    @property
    def name(self) -> str:
        """Of the root, for messages."""

    def folders(self, place: str) -> list[str]:
        """Names of the visible folders directly in ``place``, sorted."""

    def files(self, place: str) -> tuple[list[str], list[str]]:
        """Names of the pictures and of the other files directly in ``place``, sorted."""

    def walk(self, place: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """``place`` and all visible folders below it, each with its pictures and its other files."""


@dataclass
class Part:
    """The pictures of one split, or of a source without splits."""

    paths: PathTable
    labels: list[str]  # in the order found
    targets: NDArray[np.int64]  # places in ``labels``
    strays: int = 0  # files that are not pictures
    stray_names: set[str] = field(default_factory=set)
    loose: list[str] = field(default_factory=list)  # pictures beside the class folders


@dataclass(frozen=True)
class Layout:
    """``parts`` is ``{"all": ...}`` when nothing tells train from test."""

    parts: dict[str, Part]
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_splits(self) -> bool:
        """The source itself tells train from test."""
        return "all" not in self.parts


def sorted_names(names: Iterable[str]) -> list[str]:
    """In the same order on systems that store accents differently."""
    return sorted(names, key=lambda name: unicodedata.normalize("NFC", name))


def is_picture_name(name: str) -> bool:
    """Whether a file's visible name ends as a picture's."""
    dot = name.rfind(".")
    return dot > 0 and name[0] != "." and name[dot:].lower() in PICTURE_ENDINGS


def is_visible(folder: str) -> bool:
    """Whether a folder may hold pictures; ``__MACOSX`` is what macOS adds to archives."""
    return folder[0] != "." and folder != "__MACOSX"


def split_of(folder: str) -> str | None:
    """The split that a folder's name stands for; ``"test"`` for ``val`` too, None for any other name."""
    return {"val": "test"}.get(found := _SPLIT_NAMES.get(folder.lower(), ""), found) or None


def find_layout(listing: Listing, ignored: frozenset[str] = frozenset()) -> Layout:
    """Finds the splits, the classes and their pictures.

    Args:
        listing: What lies where.
        ignored: Files in the root that are known and no pictures.

    Raises:
        DataError: No pictures, fewer than two classes, a class without pictures, or pictures without a class.
    """
    places = _places(listing)
    parts = {part: _part(listing, place) for part, place in places.items()}
    labels = _labels(listing, places, parts)
    return Layout(parts, labels, _notes(listing, places, parts, labels, ignored))


def _joined(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _places(listing: Listing) -> dict[str, str]:
    """Where each split lies, or where all lies. ``val`` stands in for ``test``."""
    named: dict[str, str] = {}
    for folder in listing.folders(""):
        part = _SPLIT_NAMES.get(folder.lower())
        # A class may be called "train": a split has classes inside.
        if part and part not in named and (listing.folders(folder) or classes_in_names(listing, folder)):
            named[part] = folder
    if "test" not in named and "val" in named:
        named["test"] = named["val"]
    splits: dict[str, str] = {part: named[part] for part in ("train", "test") if part in named}
    if list(splits) == ["train"] and not listing.folders(splits["train"]):
        return {"all": splits["train"]}  # Kaggle's archive: its test pictures have no classes
    return splits or {"all": ""}


def classes_in_names(listing: Listing, place: str) -> bool:
    """Whether the pictures directly in ``place`` carry at least two classes in their names."""
    labels: set[str] = set()
    for name in listing.files(place)[0]:
        found = _CLASS_IN_NAME.fullmatch(name)
        if found is None:
            return False
        labels.add(found["label"])
    return len(labels) > 1


def _part(listing: Listing, place: str) -> Part:
    if not listing.folders(place) and classes_in_names(listing, place):
        return _part_of_names(listing, place)
    builder = PathTableBuilder()
    labels: list[str] = []
    counts: list[int] = []
    loose, strays = listing.files(place)
    part = Part(builder.table(), [], np.zeros(0, np.int64), len(strays), set(strays[:_MOST_STRAYS]), loose)
    for folder in listing.folders(place):
        if folder != printable(folder):
            shown = printable(f"{listing.name}/{_joined(place, folder)}")
            raise DataError(f"{shown}: the name of a class folder is not UTF-8; rename it")
        before = len(builder)
        for inside, pictures, others in listing.walk(_joined(place, folder)):
            builder.add(inside, pictures)
            part.strays += len(others)
            if len(part.stray_names) < _MOST_STRAYS:
                part.stray_names.update(others)
        labels.append(unicodedata.normalize("NFC", folder))
        counts.append(len(builder) - before)
    part.paths, part.labels = builder.table(), labels
    part.targets = np.repeat(np.arange(len(labels), dtype=np.int64), counts)
    return part


def _part_of_names(listing: Listing, place: str) -> Part:
    names, strays = listing.files(place)
    found = [unicodedata.normalize("NFC", name[: name.index(".")]) for name in names]
    labels = sorted(set(found))
    numbers = {label: number for number, label in enumerate(labels)}
    builder = PathTableBuilder()
    builder.add(place, names)
    targets = np.array([numbers[label] for label in found], dtype=np.int64)
    return Part(builder.table(), labels, targets, len(strays), set(strays[:_MOST_STRAYS]))


def _labels(listing: Listing, places: dict[str, str], parts: dict[str, Part]) -> tuple[str, ...]:
    """Names of the classes of all splits. Raises: DataError."""
    filled = {part.labels[number] for part in parts.values() for number in np.unique(part.targets)}
    endings = " ".join(sorted(PICTURE_ENDINGS))
    if not filled:
        raise DataError(
            f"{listing.name} holds no pictures in class/picture or split/class/picture layout; endings: {endings}"
        )
    for part, place in places.items():
        for label in parts[part].labels:
            if label not in filled:
                shown = printable(_joined(place, label))
                raise DataError(
                    f"{listing.name}: class folder {shown!r} holds no pictures; add some or remove it;"
                    f" endings: {endings}"
                )
    if len(filled) < 2:
        raise DataError(_one_class(listing, places, next(iter(filled))))
    return tuple(sorted(filled))


def _one_class(listing: Listing, places: dict[str, str], label: str) -> str:
    inside = listing.folders(label) if places == {"all": ""} and label in listing.folders("") else []
    hint = f"; is {listing.name}/{label} the folder of the classes {', '.join(inside[:5])}?" if inside else ""
    return f"{listing.name} holds one class, {label!r}; at least two folders of pictures are needed{hint}"


def _notes(
    listing: Listing,
    places: dict[str, str],
    parts: dict[str, Part],
    labels: tuple[str, ...],
    ignored: frozenset[str],
) -> tuple[str, ...]:
    known = ignored if "" in places.values() else frozenset()
    names = {name for part in parts.values() for name in part.stray_names}
    count = sum(part.strays for part in parts.values()) - len(known & names)
    notes = []
    if count:
        files = "1 file that is not a picture" if count == 1 else f"{count} files that are not pictures"
        notes.append(f"passed over {files}: {_some(names - known)}")
    if loose := [name for part in parts.values() for name in part.loose]:
        files = "1 picture that lies" if len(loose) == 1 else f"{len(loose)} pictures that lie"
        notes.append(f"passed over {files} in no class folder: {_some(loose)}")
    for split, part in parts.items() if "all" not in parts else ():
        there = {part.labels[number] for number in np.unique(part.targets)}
        if missing := sorted(set(labels) - there):
            notes.append(f"the {split} split has no pictures of {_some(missing)}")
    unused = [folder for folder in listing.folders("") if folder not in places.values()]
    if unused and "" not in places.values():
        notes.append(f"not used beside {'the splits' if 'all' not in parts else places['all']}: {_some(unused)}")
    return tuple(notes)


def _some(names: Iterable[str]) -> str:
    """Up to five of ``names``."""
    shown = sorted(printable(name) for name in names)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
