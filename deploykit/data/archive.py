"""Tar archives read in place: nothing is extracted, so no name in them can lead anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from deploykit.data.paths import printable
from deploykit.errors import DataError

__all__ = ["MOST_UNPACKED_BYTES", "TAR_ENDINGS", "Archive", "Members", "archive_stem", "open_archive", "read_members"]

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz")
MOST_UNPACKED_BYTES = 512 << 20  # of a compressed archive, which has to be held in memory
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = tarfile.BLOCKSIZE
# By a file's first two bytes.
_OPENERS: Mapping[bytes, Callable[..., Any]] = MappingProxyType(
    {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open, b"BZ": bz2.open}
)


@dataclass(frozen=True, eq=False)
class Members:
    """The regular files of an archive; of two with one name the later, as when it is extracted."""

    names: tuple[str, ...]  # with /, without ./
    offsets: array[int]
    sizes: array[int]
    folders: tuple[str, ...]  # those that have an entry of their own
    strays: tuple[str, ...]  # links, devices and names that lead out


@dataclass(frozen=True)
class Archive:
    """A tar file as it was when it was opened. Small when it is sent to another process, which opens it anew."""

    path: Path
    changed_ns: int
    file_bytes: int
    compressed: bool

    @property
    def members(self) -> Members:
        """What it holds. Raises: DataError when it is damaged."""
        return _members(self)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of a member. Raises: DataError."""
        if self.compressed:
            return bytes(_unpacked(self)[offset : offset + size])
        with _named(self.path), self.path.open("rb") as handle:
            self.check_unchanged(handle)
            handle.seek(offset)
            return handle.read(size)

    def check_unchanged(self, handle: IO[bytes]) -> None:
        """Raises: DataError when the open file is not the one that was listed."""
        status = os.fstat(handle.fileno())
        if (status.st_mtime_ns, status.st_size) != (self.changed_ns, self.file_bytes):
            raise DataError(f"{printable(str(self.path))} has changed since it was opened; start again")


def archive_stem(path: Path) -> str | None:
    """The name of a tar file without its ending; None when it has none of ``TAR_ENDINGS``."""
    lower = path.name.lower()
    ending = next((ending for ending in sorted(TAR_ENDINGS, key=len, reverse=True) if lower.endswith(ending)), None)
    return path.name[: -len(ending)] if ending and len(lower) > len(ending) else None


def open_archive(path: Path) -> Archive:
    """An archive, compressed or not, whatever its ending. Raises: DataError when it cannot be read."""
    with _named(path), path.open("rb") as handle:
        status = os.fstat(handle.fileno())
        compressed = handle.read(2) in _OPENERS
    return Archive(path, status.st_mtime_ns, status.st_size, compressed)


def read_members(path: Path, wanted: set[str], most_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Last part of the name and content of each wanted file, in one pass that ends when all have come.

    Args:
        path: The archive; gzip, xz and bzip2 are understood.
        wanted: Last parts of names; the folders around them do not matter.
        most_bytes: Of one file.

    Raises:
        DataError: Not a tar archive, damaged or cut short, or a wanted file is longer.
    """
    left = set(wanted)
    with _named(path), tarfile.open(path, "r|*") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            name = member.name.rpartition("/")[2]
            if name not in left or not member.isreg():
                continue
            if member.size > most_bytes:
                raise DataError(f"{path}: {name} has {member.size} bytes; allowed: up to {most_bytes}")
            content = tar.extractfile(member)
            yield name, b"" if content is None else content.read()
            left.discard(name)
            if not left:
                return


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the standard library says of a damaged archive, as a DataError that names it."""
    shown = printable(str(path))
    try:
        yield
    except (tarfile.ReadError, EOFError) as problem:
        empty = path.stat().st_size == 0  # "empty header" also stands where a block ends early
        reason = "it is empty" if empty else "it is cut short, damaged or no tar archive"
        raise DataError(f"{shown} cannot be read: {reason} ({problem}); fetch it again") from problem
    except (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, ValueError) as problem:
        raise DataError(f"{shown} is damaged: {problem}; fetch it again") from problem
    except OSError as problem:
        raise DataError(f"cannot read {shown}: {problem.strerror or problem}") from problem


@lru_cache(maxsize=1)
def _unpacked(archive: Archive) -> bytes:
    """A compressed archive's content, held for all splits. Raises: DataError when it is too long."""
    content = io.BytesIO()
    with _named(archive.path), archive.path.open("rb") as handle:
        archive.check_unchanged(handle)
        opener = _OPENERS[handle.read(2)]
        handle.seek(0)
        with opener(handle, "rb") as unpacking:
            while chunk := unpacking.read(_CHUNK_BYTES):
                content.write(chunk)
                if content.tell() > MOST_UNPACKED_BYTES:
                    raise DataError(
                        f"{printable(str(archive.path))} unpacks to more than {MOST_UNPACKED_BYTES >> 20} MiB, which"
                        " would have to be held in memory; unpack it and name the folder, or give it uncompressed"
                    )
    return content.getvalue()


@lru_cache(maxsize=2)
def _members(archive: Archive) -> Members:
    found: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    strays: list[str] = []
    handle = io.BytesIO(_unpacked(archive)) if archive.compressed else archive.path.open("rb")
    with _named(archive.path), handle, tarfile.open(fileobj=handle, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # a million would take a gigabyte
            name = _plain_name(member.name)
            if name and member.isdir():
                folders.append(name)
            elif name and member.isreg() and not member.issparse():
                found[name] = (member.offset_data, member.size)
            elif name and member.islnk() and (target := _plain_name(member.linkname)) in found:
                found[name] = found[target]
            else:
                strays.append(member.name)
        _check_end(archive.path, handle, tar.offset)
    offsets = array("q", (offset for offset, _ in found.values()))
    sizes = array("q", (size for _, size in found.values()))
    return Members(tuple(found), offsets, sizes, tuple(folders), tuple(strays))


def _check_end(path: Path, handle: IO[bytes], offset: int) -> None:
    """Tarfile takes a damaged header, or none at all, for the end: there has to be a block of zeros."""
    handle.seek(offset)
    block = handle.read(_BLOCK_BYTES)
    if block != bytes(_BLOCK_BYTES):
        fault = "is cut short: it has no end mark" if len(block) < _BLOCK_BYTES else f"is damaged at byte {offset}"
        raise DataError(f"{printable(str(path))} {fault}; fetch it again")


def _plain_name(name: str) -> str:
    """``name`` without ``./`` and doubled ``/``; empty when it leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "" if name.startswith("/") or ".." in parts else "/".join(parts)
