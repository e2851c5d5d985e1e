"""Finds the records that a report is made from: files given by name, and folders searched for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError
from deploykit.report.rows import Environments, Row, join_records
from deploykit.results import (
    Accuracy,
    Bench,
    Claims,
    Compression,
    Profile,
    Quantization,
    Record,
    Training,
    Verification,
    read_record,
)

__all__ = ["Collection", "collect"]

_KINDS = "|".join(
    cls.kind for cls in (Profile, Accuracy, Bench, Training, Quantization, Claims, Verification, Compression)
)
_SCHEMA = re.compile(rf'"schema"\s*:\s*"deploykit\.({_KINDS})/'.encode())


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Everything that a report says.

    Attributes:
        rows: The joined figures, one row a model file and setting.
        trainings: How the networks were trained.
        accuracies: The accuracy records, with their classes and sample pictures.
        claims: What papers say of the reference networks, beside what was measured.
        environments: The distinct environments; ``Row.environment`` points into them.
        machines: How many different machines these are.
        warnings: Files that were found but could not be read, one line each.
        records: How many records were read.
    """

    rows: tuple[Row, ...]
    trainings: tuple[Training, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    claims: tuple[Claims, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()
    machines: int = 1
    warnings: tuple[str, ...] = ()
    records: int = 0


def collect(paths: Sequence[str | os.PathLike[str]]) -> Collection:
    """Reads and joins the records in ``paths``.

    A file given by name must be a record that this deploykit reads. Folders are searched with their subfolders for
    ``*.json``; other people's JSON in them is passed over, and a record that is damaged or of another version
    becomes a warning.

    Args:
        paths: Files and folders; a file reached twice counts once.

    Raises:
        InputError: A path that does not exist, a named file that is no record, or no record at all.
    """
    records: list[Record] = []
    warnings: list[str] = []
    for path, named in _files(paths):
        try:
            if named or _claims_to_be_record(path):
                records.append(read_record(path))
        except InputError as problem:
            if named:
                raise
            warnings.append(f"left out: {problem}")
    if not records:
        found = f"; {warnings[0]}" if warnings else ""
        listed = ", ".join(str(path) for path in paths) or "no path"
        raise InputError(f"no deploykit record in {listed}; expected files of inspect, evaluate, bench or train{found}")
    return _collection(records, warnings)


def _collection(records: Sequence[Record], warnings: Sequence[str]) -> Collection:
    environments = Environments()
    rows = join_records(records, environments)
    notes = list(warnings)
    timed = {row.machine for row in rows if row.latency_ms is not None}
    if len(timed) > 1:
        notes.append(f"timings come from {len(timed)} machines: compare latency and memory within one machine only")
    return Collection(
        rows=rows,
        trainings=tuple(record for record in records if isinstance(record, Training)),
        accuracies=tuple(record for record in records if isinstance(record, Accuracy)),
        claims=tuple(record for record in records if isinstance(record, Claims)),
        environments=tuple(environments.found),
        machines=environments.machines,
        warnings=tuple(notes),
        records=len(records),
    )


def _files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[Path, bool]]:
    """Each file once, and whether it was given by name."""
    seen: set[Path] = set()
    for given in sorted((Path(path) for path in paths), key=lambda path: path.is_dir()):
        if not given.exists():
            raise InputError(f"no such file or folder: {given}")
        for path in _below(given) if given.is_dir() else [given]:
            if (real := path.resolve()) not in seen:
                seen.add(real)
                yield path, not given.is_dir()


def _below(folder: Path) -> list[Path]:
    """The JSON files of a folder and its subfolders, without hidden ones: a file being written is hidden."""
    found = (path for path in folder.rglob("*.json") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _claims_to_be_record(path: Path) -> bool:
    """Whether a found file is, or was before it was damaged, a measurement record of whatever version."""
    try:
        return _SCHEMA.search(path.read_bytes()) is not None
    except OSError:
        return True  # let the reading say what is wrong with it
