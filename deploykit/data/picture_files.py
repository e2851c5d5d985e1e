"""Pictures that stay files until they are read: what a folder's and an archive's readers share."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Pictures
from deploykit.data.path_table import PathTable
from deploykit.data.picture import decode_picture, look_at
from deploykit.errors import DataError

__all__ = ["FileReader", "Form", "PictureFiles", "common_form"]

Form: TypeAlias = tuple[int, tuple[int, int] | None]
"""Channels, and the height and width common to all pictures, None when they differ."""

_LOOK_AT = 1_000  # heads of pictures that are read in any case (about 0.1 ms each)
_HASH_ALL = 100_000
_LOOK_AT_ALL = 20_000  # up to so many are all looked at when the first 1,000 agree


class PictureFiles(Protocol):
    """Files of pictures, by row."""

    @property
    def paths(self) -> PathTable:
        """Relative to the root of the pictures."""

    def name(self, row: int) -> str:
        """What to call a file in a message."""

    def content(self, row: int) -> bytes:
        """The file's bytes. Raises: DataError naming it."""

    def head(self, row: int) -> Path | bytes:
        """The file, to look at its head."""

    def digest(self, row: int) -> str:
        """Hexadecimal SHA-256 of the file's bytes."""

    def file_bytes(self, row: int) -> int:
        """The file's length."""


@dataclass(frozen=True, eq=False)
class FileReader:
    """Decodes pictures when they are asked for; ``size`` is theirs when all have the same, else None.

    Small when it is sent to another process: names, not pictures.
    """

    files: PictureFiles
    channels: int
    size: tuple[int, int] | None

    def read(self, rows: NDArray[np.int64], shortest: int | None = None) -> Pictures:
        """An array when all pictures have one size, a list otherwise, and when they may come reduced."""
        return _read_pictures(self.files, rows.tolist(), self.channels, self.size, shortest)

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """SHA-256 over relative names and file bytes; the same on systems that store accents differently.

        Of more than 100,000 pictures the lengths of the files stand for their bytes: ImageNet's 140 GB take minutes to
        read.
        """
        digest = hashlib.sha256()
        for row in rows.tolist():
            of_file = self.files.digest(row) if len(rows) <= _HASH_ALL else str(self.files.file_bytes(row))
            name = unicodedata.normalize("NFC", self.files.paths[row])
            digest.update(f"{name}\0{of_file}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _read_pictures(
    files: PictureFiles, rows: list[int], channels: int, size: tuple[int, int] | None, shortest: int | None
) -> Pictures:
    """The pictures at ``rows``: an array when all have ``size``, a list when ``size`` is None or they come reduced.

    Raises:
        DataError: A picture cannot be read, or has another size than the rest.
    """
    pictures = [decode_picture(files.content(row), files.name(row), channels, shortest=shortest) for row in rows]
    if size is None or shortest is not None:
        return pictures
    for row, picture in zip(rows, pictures, strict=True):
        if picture.shape[:2] != size:
            height, width = picture.shape[:2]
            raise DataError(
                f"{files.name(row)} is {width}×{height} pixels, unlike the others' {size[1]}×{size[0]};"
                " it has changed since the pictures were listed, or is turned; replace it"
            )
    return np.stack(pictures) if pictures else np.zeros((0, *size, channels), np.uint8)


def common_form(files: PictureFiles) -> Form:
    """Channels (1 when every picture looked at is grey) and the size common to all, None when they differ.

    From the files' heads; of more than 20,000 only a thousand are looked at, and no common size is claimed.
    """
    first = range(0, len(files.paths), max(1, -(-len(files.paths) // _LOOK_AT)))
    sizes, grey = _seen(files, first)
    if first.step > 1 and (len(sizes) == 1 or grey) and len(files.paths) <= _LOOK_AT_ALL:
        sizes, grey = _seen(files, range(len(files.paths)))
        first = range(len(files.paths))
    return (1 if grey else 3), (sizes.pop() if len(sizes) == 1 and first.step == 1 else None)


def _seen(files: PictureFiles, rows: range) -> tuple[set[tuple[int, int]], bool]:
    sizes: set[tuple[int, int]] = set()
    grey = True
    for row in rows:
        size, is_grey = look_at(files.head(row), files.name(row))
        sizes.add(size)
        grey = grey and is_grey
        if not grey and len(sizes) > 1:
            break
    return sizes, grey
