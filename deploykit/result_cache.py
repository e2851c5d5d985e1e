"""Results of long steps, kept by the digest of everything that decides them.

Each result is a folder with its files and an ``entry.json``, which names what decided it and the files' digests. It is
made aside and moved into place, so that a process that is killed leaves either all of a result or nothing of it. A
result whose files have changed since counts as not there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, OutputError
from deploykit.files import read_json, sha256_file, sha256_json, write_json

__all__ = ["CachedResult", "ResultCache"]

_SCHEMA = "deploykit.result/1"
_ENTRY = "entry.json"
_DIGITS = 16  # of the digest in a folder's name; the whole one stands in the entry
_ASIDE = ".making-"


@dataclass(frozen=True)
class CachedResult:
    """What a step found, and the folder with the files that it wrote."""

    folder: Path
    values: Mapping[str, Any]


@dataclass
class ResultCache:
    """The results in one folder, which one process at a time may work in (``lock.folder_lock``).

    Attributes:
        folder: Is made when it is needed.
        made: Names of the results that were made since it was opened.
        reused: Names of those that were there.
    """

    folder: Path
    made: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for leftover in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def get(
        self,
        kind: str,
        settings: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        *,
        keep: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> CachedResult:
        """The result of a step, made only where it is not there.

        Args:
            kind: What it is, in a word that can stand in a file's name.
            settings: JSON values: everything that decides the result.
            make: Writes its files into the folder that it is given, and returns JSON values.
            keep: Whether values are worth keeping; those that are not are made again by the next search.

        Raises:
            OutputError: The folder cannot be written.
            DeploykitError: Whatever ``make`` raises; nothing is kept then.
        """
        key = sha256_json([kind, settings])
        name = f"{kind}-{key[:_DIGITS]}"
        place = self.folder / name
        if (found := _read(place, key)) is not None:
            if name not in (*self.made, *self.reused):
                self.reused.append(name)
            return CachedResult(place, found)
        try:
            values = self._make(place, {"kind": kind, "key": key, "settings": settings}, make, keep)
        except OSError as problem:
            raise OutputError(f"cannot write {place}: {problem.strerror or problem}") from problem
        self.made.append(name)
        return CachedResult(place, values)

    def _make(
        self,
        place: Path,
        head: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        keep: Callable[[Mapping[str, Any]], bool],
    ) -> Mapping[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=_ASIDE))
        try:
            values: Mapping[str, Any] = json.loads(json.dumps(make(aside), allow_nan=False))
            if keep(values):
                files = {path.name: sha256_file(path) for path in sorted(aside.iterdir())}
                write_json(aside / _ENTRY, {"schema": _SCHEMA, **head, "files": files, "values": values})
                shutil.rmtree(place, ignore_errors=True)  # damaged, or it would have been read
                aside.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return values


def _read(place: Path, key: str) -> Mapping[str, Any] | None:
    """The values of a whole result; None where it is missing, of other settings, or damaged."""
    if not (place / _ENTRY).is_file():
        return None
    try:
        entry = read_json(place / _ENTRY)
        files, values = entry.get("files"), entry.get("values")
        whole = entry.get("schema") == _SCHEMA and entry.get("key") == key
        if not whole or not isinstance(files, dict) or not isinstance(values, dict):
            return None
        unharmed = all(sha256_file(place / name) == digest for name, digest in files.items())
    except InputError:  # not readable, or a file is missing
        return None
    return values if unharmed else None
