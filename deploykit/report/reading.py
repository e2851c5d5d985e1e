"""Finds the records that a report is made from: files given by name, and folders searched for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploykit.errors import InputError
from deploykit.report.environments import Environments, difference_text, differing
from deploykit.report.joining import join_records
from deploykit.report.rows import Row
from deploykit.results import (
    Accuracy,
    Bench,
    Claims,
    Compression,
    Profile,
    Quantization,
    Record,
    Training,
    Tuning,
    Verdict,
    Verification,
    read_record,
)

__all__ = ["Collection", "collect", "is_record"]

_SHOWN = (Profile, Accuracy, Bench, Training, Quantization, Claims, Verification, Compression, Tuning, Verdict)
_SCHEMA = re.compile(rf'"schema"\s*:\s*"deploykit\.({"|".join(cls.kind for cls in _SHOWN)})/'.encode())
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Everything that a report says.

    Attributes:
        rows: The joined figures, one row a model file and setting.
        found: The records themselves, as they were read; ``of_kind`` gives those of one kind.
        environments: The distinct environments; ``Row.environment`` points into them.
        machines: How many different machines these are.
        machine_names: What they are called; ``Row.machine`` points into it.
        warnings: Files that were found but could not be read, models that could not be measured, and figures that do
            not compare, one line each.
    """

    rows: tuple[Row, ...]
    found: tuple[Record, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()
    machines: int = 1
    machine_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """How many records were read."""
        return len(self.found)

    def of_kind(self, kind: type[R]) -> tuple[R, ...]:
        """The records of one kind, in the order in which they were read."""
        return tuple(record for record in self.found if isinstance(record, kind))

    @property
    def trainings(self) -> tuple[Training, ...]:
        """How the networks were trained."""
        return self.of_kind(Training)

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """What the models get right, with their classes and sample pictures."""
        return self.of_kind(Accuracy)

    @property
    def claims(self) -> tuple[Claims, ...]:
        """What papers say of the reference networks, beside what was measured."""
        return self.of_kind(Claims)


def collect(paths: Sequence[str | os.PathLike[str]], environments: Environments | None = None) -> Collection:
    """Reads and joins the records in ``paths``.

    A file given by name must be a record that this deploykit reads. Folders are searched with their subfolders for
    ``*.json``; other people's JSON in them is passed over, and a record that is damaged or of another version
    becomes a warning.

    Args:
        paths: Files and folders; a file reached twice counts once.
        environments: Those of another collection, so that machines have the same numbers in both.

    Raises:
        InputError: A path that does not exist, a named file that is no record, or no record at all.
    """
    records: list[Record] = []
    warnings: list[str] = []
    for path, named in _files(paths):
        try:
            if named or _claims_to_be_record(path):
                records += _read(path, warnings)
        except InputError as problem:
            if named:
                raise
            warnings.append(f"left out: {problem}")
    if not records:
        found = f"; {warnings[0]}" if warnings else ""
        listed = ", ".join(str(path) for path in paths) or "no path"
        raise InputError(f"no deploykit record in {listed}; expected files of inspect, evaluate, bench or train{found}")
    return _collection(records, warnings, environments or Environments())


def _read(path: Path, warnings: list[str]) -> list[Record]:
    """The record, or a warning that reports do not show its kind."""
    record = read_record(path)
    if isinstance(record, _SHOWN):
        return [record]
    warnings.append(f"left out: {path} is a {record.kind} record, which reports do not show")
    return []


def _collection(records: Sequence[Record], warnings: Sequence[str], environments: Environments) -> Collection:
    rows = join_records(records, environments)
    return Collection(
        rows=rows,
        found=tuple(records),
        environments=tuple(environments.found),
        machines=environments.machines,
        machine_names=tuple(environments.names()),
        warnings=(*warnings, *_failures(records), *_apart(rows, environments)),
    )


def _failures(records: Sequence[Record]) -> list[str]:
    """A line for each model that could not be measured in a setting."""
    benches = [record for record in records if isinstance(record, Bench)]
    return [
        f"{failure.model} was not measured on {failure.provider}, {failure.threads} threads, batch {failure.batch}:"
        f" {failure.error}"
        for bench in benches
        for failure in bench.failures
    ]


def _apart(rows: Sequence[Row], environments: Environments) -> list[str]:
    """What keeps timings from being compared, by the keys that differ."""
    timed = [row for row in rows if row.latency_ms is not None]
    found = []
    if len(machines := sorted({row.machine for row in timed})) > 1:
        keys = difference_text(differing([environments.of_machine(machine) for machine in machines]))
        found.append(
            f"timings come from {len(machines)} machines, which differ in {keys}:"
            " compare latency and memory within one machine only"
        )
    if len(versions := sorted({row.onnxruntime or "unknown" for row in timed})) > 1:
        keys = difference_text({"onnxruntime": versions})
        found.append(f"timings were made with {len(versions)} versions of {keys}: compare them within one version only")
    return found


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


def is_record(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there and is a record that reports are made from, or was before it was damaged."""
    return Path(path).is_file() and _claims_to_be_record(Path(path))


def _claims_to_be_record(path: Path) -> bool:
    """Whether a found file is, or was before it was damaged, a measurement record of whatever version."""
    try:
        return _SCHEMA.search(path.read_bytes()) is not None
    except OSError:
        return True  # let the reading say what is wrong with it
