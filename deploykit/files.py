"""Atomic writes, SHA-256 digests and versioned JSON: nothing half-written, nothing overwritten by accident."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, OutputError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_writable",
    "deflated_size",
    "destination",
    "read_json",
    "remove_partials",
    "remove_unfinished",
    "removed_if_empty",
    "sha256_file",
    "sha256_json",
    "write_bytes",
    "write_json",
    "write_text",
]

_CHUNK_BYTES = 1 << 20
_UNFINISHED: set[Path] = set()  # that this process is writing
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.partial(\.[^.]*)?")


def _output_error(path: Path, problem: OSError) -> OutputError:
    with suppress(OSError):  # a parent that may not be looked into
        in_the_way = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if in_the_way is not None:
            return OutputError(f"cannot write {path}: {in_the_way} is no folder; choose a path below folders")
    reason = problem.strerror or str(problem)
    return OutputError(f"cannot write {path}: {reason}; choose a folder with free space that you may write to")


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Finds out before the work starts whether ``path`` can be written.

    Makes the missing parent folders, writes one small file beside ``path``, and removes all of that again.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false, is a folder, or its folder is read-only or full.
    """
    target = destination(path)
    _check_target(target, overwrite)
    probe, missing = _beside(target), [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"deploykit")
    except OSError as problem:
        raise _output_error(target, problem) from problem
    finally:
        with suppress(OSError):
            probe.unlink()
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def destination(path: str | os.PathLike[str]) -> Path:
    """What is written when ``path`` is named: a link's target, so that the link stays one."""
    target = Path(path)
    return target.resolve() if target.is_symlink() else target


def _check_target(target: Path, overwrite: bool) -> None:
    try:
        exists, folder, regular = target.exists(), target.is_dir(), target.is_file()
    except OSError as problem:
        raise _output_error(target, problem) from problem
    if folder:
        raise OutputError(f"cannot write {target}: it is a folder; give the path of a file")
    if exists and not regular:  # the move into place would replace /dev/null itself
        raise OutputError(f"cannot write {target}: it is a device, a pipe or a socket; give the path of a file")
    if exists and not overwrite:
        raise OutputError(f"{target} exists already; give another path or --overwrite")


def _beside(target: Path) -> Path:
    # The name keeps the ending, since some writers choose their format by it.
    return target.with_name(f".{target.stem[:80]}.{os.urandom(4).hex()}.partial{target.suffix}")


def remove_partials(folder: str | os.PathLike[str]) -> None:
    """Removes what killed writers left in ``folder``; nobody else may be writing there."""
    for leftover in Path(folder).glob(".*.partial*"):
        if _PARTIAL.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def remove_unfinished() -> None:
    """Removes what this process has begun to write; only for when it ends without leaving its blocks."""
    import shutil

    for path in list(_UNFINISHED):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def removed_if_empty(folder: str | os.PathLike[str]) -> Iterator[None]:
    """For the work in a folder that is made for it: a new one that stays empty (refused, interrupted) goes again."""
    made = not os.path.lexists(folder)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):
                Path(folder).rmdir()


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; moves it into place when the block ends without an exception.

    Parent folders are made. Whatever ends the block early (an error, Ctrl-C) leaves ``path`` as it was.

    Raises:
        OutputError: The target exists and ``overwrite`` is false, or the system refuses to write.
    """
    target = destination(path)
    _check_target(target, overwrite)
    aside = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _UNFINISHED.add(aside)
        yield aside
        with aside.open("rb+") as handle:
            os.fsync(handle.fileno())
        aside.replace(target)
    except OSError as problem:
        raise _output_error(target, problem) from problem
    finally:
        _UNFINISHED.discard(aside)
        with suppress(OSError):
            aside.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` for the file of that name and those that go with it.

    When the block ends without an exception they are moved beside ``path``, the file of that name last; otherwise
    everything stays as it was.

    Raises:
        OutputError: A target exists and ``overwrite`` is false, or the system refuses to write.
    """
    import tempfile

    target = destination(path)
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem[:80]}.") as folder:
            _UNFINISHED.add(aside := Path(folder))
            yield aside
            _UNFINISHED.discard(aside)
            made = sorted(Path(folder).iterdir(), key=lambda item: item.name == target.name)
            for item in made:
                _check_target(target.with_name(item.name), overwrite)
            for item in made:
                item.replace(target.with_name(item.name))
    except OSError as problem:
        raise _output_error(target, problem) from problem


def write_bytes(path: str | os.PathLike[str], content: bytes, *, overwrite: bool = True) -> Path:
    """Writes ``content`` atomically and returns the path. Raises: OutputError."""
    with atomic_path(path, overwrite=overwrite) as aside:
        aside.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], content: str, *, overwrite: bool = True) -> Path:
    """Writes ``content`` as UTF-8 atomically and returns the path. Raises: OutputError."""
    return write_bytes(path, content.encode(), overwrite=overwrite)


def write_json(path: str | os.PathLike[str], document: dict[str, Any], *, overwrite: bool = True) -> Path:
    """Writes one JSON document atomically and returns the path. Raises: OutputError; ValueError for NaN."""
    return write_text(path, dump_json(document) + "\n", overwrite=overwrite)


def dump_json(document: dict[str, Any]) -> str:
    """JSON text as deploykit writes it everywhere: two spaces, letters of any language, no NaN."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which JSON lacks")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in ``path``. Raises: InputError when it is missing, unreadable or not a JSON object."""
    source = Path(path)
    try:
        document = json.loads(source.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as problem:
        raise InputError(f"no such file: {source}") from problem
    except OSError as problem:
        raise InputError(f"cannot read {source}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:  # also of the decoder, and of text that is not UTF-8
        raise InputError(f"{source} is not JSON: {problem}") from problem
    if not isinstance(document, dict):
        raise InputError(f"{source} holds a JSON {type(document).__name__}; expected an object with a 'schema' key")
    return document


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in chunks of 1 MiB. Raises: InputError."""
    import hashlib  # OpenSSL takes 4 MB, which a bench worker would be charged with

    digest = hashlib.sha256()
    for chunk in _chunks(Path(path)):
        digest.update(chunk)
    return digest.hexdigest()


def deflated_size(path: str | os.PathLike[str]) -> int:
    """Bytes of the file after deflate at level 6, as in an app store's zip or HTTP gzip. Raises: InputError."""
    import zlib

    packer, total = zlib.compressobj(6), 0
    for chunk in _chunks(Path(path)):
        total += len(packer.compress(chunk))
    return total + len(packer.flush())


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                yield chunk
    except FileNotFoundError as problem:
        raise InputError(f"no such file: {path}") from problem
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from problem


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of key order: the identity of a set of options."""
    import hashlib

    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
