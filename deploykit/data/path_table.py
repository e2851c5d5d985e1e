"""Many file paths in little memory: folders once, names in one block of bytes."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["PathTable", "PathTableBuilder"]


@dataclass(frozen=True, eq=False)
class PathTable:
    """Paths with ``/``, by row. A million of them take about 35 MB, and as much when they are sent to a process.

    Attributes:
        folders: Each folder, relative to the root.
        starts: First row of each folder.
        names: The names of the files, one after the other.
        ends: Where each name ends in ``names``.
    """

    folders: tuple[str, ...]
    starts: array[int]
    names: bytes
    ends: array[int]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        begin = self.ends[row - 1] if row else 0
        name = os.fsdecode(self.names[begin : self.ends[row]])
        folder = self.folders[bisect_right(self.starts, row) - 1]
        return f"{folder}/{name}" if folder else name

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def joined(self, other: PathTable) -> PathTable:
        """These paths, then the other's."""
        rows, length = len(self), len(self.names)
        return PathTable(
            self.folders + other.folders,
            self.starts + array("q", (start + rows for start in other.starts)),
            self.names + other.names,
            self.ends + array("q", (end + length for end in other.ends)),
        )


@dataclass
class PathTableBuilder:
    """Collects paths, folder by folder."""

    folders: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))
    names: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))

    def add(self, folder: str, names: Iterable[str]) -> None:
        """Adds the files ``names`` of ``folder``."""
        self.folders.append(folder)
        self.starts.append(len(self.ends))
        for name in names:
            self.names += os.fsencode(name)
            self.ends.append(len(self.names))

    def __len__(self) -> int:
        return len(self.ends)

    def table(self) -> PathTable:
        """What was collected."""
        return PathTable(tuple(self.folders), self.starts, bytes(self.names), self.ends)
