"""The folder of pictures that ``visualize`` writes: its index, and how it appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from deploykit.errors import InputError, OutputError
from deploykit.files import atomic_folder, check_writable, dump_json, read_json, removed_if_empty
from deploykit.record import Record

__all__ = ["ClassAnswer", "PictureFile", "Pictures", "writable_folder", "write_folder"]

_INDEX = "index.json"


@dataclass(frozen=True)
class ClassAnswer:
    """A class and its probability: its number, and its name where the network knows it."""

    index: int
    name: str | None
    probability: float

    def __str__(self) -> str:
        """``class 3 (cat)``."""
        return f"class {self.index}" + (f" ({self.name})" if self.name not in (None, str(self.index)) else "")


@dataclass(frozen=True)
class PictureFile:
    """One PNG, and what it shows.

    Attributes:
        kind: ``"kernels"``, ``"stage"`` or ``"occlusion"``.
        shows: In words, with how the colours are to be read.
        stage: Its name.
        layer: Its path in the network, or the node's name.
        shape: Of the weights, or of the maps (channels, height, width).
        channels: Which kernels or maps the tiles show, row by row.
    """

    file: str
    kind: str
    file_bytes: int
    sha256: str
    width: int
    height: int
    shows: str
    stage: str | None = None
    layer: str | None = None
    shape: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Pictures(Record):
    """The index of a folder that ``visualize`` wrote.

    Sizes are pixels, (height, width); ``seen_size`` is the picture as the network gets it, in whose pixels window,
    stride and ``hottest`` (top, left, bottom, right) are. ``largest_drop`` is the probability that the square there
    takes away. ``grey`` is the square's colour, in the order of the network's channels.
    """

    kind: ClassVar[str] = "pictures"

    source: str
    source_sha256: str | None
    network: str | None
    picture: str
    picture_sha256: str
    picture_size: tuple[int, ...]
    seen_size: tuple[int, ...]
    predicted: ClassAnswer
    asked: ClassAnswer
    window: int
    stride: int
    positions: int
    hottest: tuple[int, ...]
    largest_drop: float
    grey: tuple[int, ...] = ()
    files: tuple[PictureFile, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@contextmanager
def writable_folder(folder: Path, overwrite: bool) -> Iterator[None]:
    """For the work: finds out before it whether the folder can be written; a new one that stays empty goes again.

    Raises: OutputError when it holds pictures of an earlier call and ``overwrite`` is false, or cannot be written.
    """
    with removed_if_empty(folder):
        check_writable(folder / _INDEX, overwrite=overwrite)
        for known in _ours(folder):
            if not overwrite:
                raise OutputError(f"{known} exists already; give another folder or --overwrite")
        yield


def _ours(folder: Path) -> list[Path]:
    """What a call would write or has written: its names are taken."""
    return sorted([*folder.glob("stage-[0-9][0-9]-*.png"), *folder.glob("kernels.png"), *folder.glob("occlusion.png")])


def write_folder(folder: Path, record: Pictures, pngs: Mapping[str, bytes], overwrite: bool) -> None:
    """Writes all files at once, the index last; then those that only an earlier call wrote go.

    Args:
        folder: Is made where it is missing.
        record: The index.
        pngs: Contents by name.
        overwrite: Replace what is there.

    Raises: OutputError.
    """
    index = folder / _INDEX
    before = _listed(index) if overwrite and index.exists() else set()
    with atomic_folder(index, overwrite=overwrite) as aside:
        for name, content in pngs.items():
            (aside / name).write_bytes(content)
        (aside / _INDEX).write_text(dump_json(record.to_document()) + "\n", encoding="utf-8")
    for stale in before - set(pngs):
        (folder / stale).unlink(missing_ok=True)


def _listed(index: Path) -> set[str]:
    """The pictures of an index that deploykit wrote; none of another file's."""
    try:
        document = read_json(index)
    except InputError:
        return set()
    if document.get("schema") != f"deploykit.{Pictures.kind}/{Pictures.schema_version}":
        return set()
    names = {str(item.get("file", "")) for item in document.get("files", []) if isinstance(item, dict)}
    return {name for name in names if name in {path.name for path in _ours(index.parent)}}
