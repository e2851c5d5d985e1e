"""The terminal: the only room that prints. Results go to stdout; notes and progress to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import OutputError
from deploykit.files import dump_json
from deploykit.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["count", "note", "prepared_streams", "print_json", "print_line", "print_table", "progress_bar"]


@contextmanager
def prepared_streams() -> Iterator[None]:
    """Standard streams that take any letter (``?`` where the terminal has no other) and exist even if closed."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (stream if stream is not None else nowhere for stream in before)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def print_line(text: str = "") -> None:
    """One line on stdout, as it is. Raises: OutputError when stdout cannot be written, BrokenPipeError."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise OutputError(f"cannot write to standard output: {problem.strerror}") from problem


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of ``--json``; letters beyond ASCII are escaped where stdout is not UTF-8."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print_line(json.dumps(document, indent=2, allow_nan=False) if plain else dump_json(document))


def note(text: str) -> None:
    """One line on stderr. A stderr that cannot be written must not change the outcome."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """A table on stdout: the first ``left`` columns flush left, numbers flush right; nothing is folded or cut."""
    table = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    table.insert(1, tuple("─" * width for width in widths))
    for row in table:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress callback that draws bars on a terminal's stderr, and stays quiet in a pipe."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        yield _Bar(bars)


class _Bar:
    """One bar at a time: a new stage replaces the bar of the one before."""

    def __init__(self, bars: Any) -> None:
        self._bars, self._stage = bars, ""
        self._task: TaskID | None = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage != self._stage or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._stage = self._bars.add_task(stage, total=total or None, note=""), stage
        self._bars.update(self._task, completed=done, total=total or None, note=note)


def count(value: int | None) -> str:
    """A whole number with separators."""
    return "–" if value is None else f"{value:,}"
