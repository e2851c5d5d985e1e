"""The terminal: the only room that prints. Results go to stdout; notes and progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploykit.files import dump_json
from deploykit.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["count", "note", "print_json", "print_line", "print_table", "progress_bar"]


def print_line(text: str = "") -> None:
    """One line on stdout, as it is."""
    sys.stdout.write(text + "\n")


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of ``--json``."""
    print_line(dump_json(document))


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """A table on stdout: the first ``left`` columns flush left, numbers flush right; wide enough in a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold", no_wrap=index >= left)
    for row in rows:
        table.add_row(*row)
    # In a pipe nothing is folded: a script may read the lines.
    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, markup=False, highlight=False).print(table)


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
