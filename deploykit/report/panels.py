"""Titled tables with bars in their cells: the form of every view beside the main table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from deploykit.report.rows import Row

__all__ = ["Cell", "Drawn", "Panel", "Section", "bar", "file_names", "heaviest", "network_names", "section"]

T = TypeVar("T")
_MOST_PANELS = 12  # of a section


class Cell(NamedTuple):
    """A cell's text; ``share`` from 0 to 1 is drawn as a bar beside it, ``tone`` is ``good``, ``bad`` or ``soft``."""

    text: str
    share: float | None = None
    tone: str = ""


class Drawn(NamedTuple):
    """A chart of the page: its title, the id of its element, and what its colours and symbols mean."""

    title: str
    id: str
    colors: Mapping[str, str]
    shapes: Mapping[str, str]
    unstable: bool = False


@dataclass(frozen=True)
class Panel:
    """A table of its own heading.

    Attributes:
        title: What it is about, such as a file's name.
        about: What stands beside the title.
        columns: Headings, and whether each is of numbers.
        rows: One cell a column.
        notes: What a reader has to know, one sentence each.
        charts: What is drawn above the table.
    """

    title: str
    about: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    charts: tuple[Drawn, ...] = ()


@dataclass(frozen=True)
class Section:
    """Panels under one heading; ``total`` counts those that a page leaves out too, each a ``noun``."""

    heading: str
    about: str
    panels: tuple[Panel, ...]
    total: int
    noun: str


def bar(text: str, value: float | None, largest: float) -> Cell:
    """A cell whose bar is ``value`` over ``largest``; none where the value is unknown."""
    if value is None or largest <= 0.0:
        return Cell(text)
    return Cell(text, round(min(1.0, max(0.0, value / largest)), 3))


def heaviest(weights: Sequence[float], most: int) -> list[int]:
    """The places of the ``most`` largest weights, in the order in which they stand."""
    by_weight = sorted(range(len(weights)), key=lambda place: -weights[place])
    return sorted(by_weight[:most])


def section(
    heading: str, about: str, items: Sequence[tuple[str, T]], make: Callable[[T], Panel], *, noun: str
) -> Section | None:
    """A section with a panel an item, the first of every network in front; None without items.

    Args:
        heading: Of the section.
        about: One sentence on how to read it.
        items: Each with its network.
        make: Makes a panel; called for those that are shown only.
        noun: What an item is, for the page to say how many it leaves out.
    """
    seen: set[str] = set()
    first: list[T] = []
    rest: list[T] = []
    for network, item in items:
        (rest if network in seen else first).append(item)
        seen.add(network)
    shown = tuple(make(item) for item in (first + rest)[:_MOST_PANELS])
    return Section(heading, about, shown, len(items), noun) if shown else None


def file_names(rows: Sequence[Row]) -> dict[str | None, str]:
    """What the rows call each file, by its SHA-256."""
    return {row.sha256: row.name for row in rows if row.sha256}


def network_names(rows: Sequence[Row]) -> dict[str | None, str]:
    """Of which network each file is, by its SHA-256."""
    return {row.sha256: row.network for row in rows if row.sha256}
