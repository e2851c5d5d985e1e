"""Reports: any set of measurement records as a page, as Markdown for a pull request, as CSV or as JSON.

``reading`` finds the records, ``joining`` makes rows of them by model file, ``environments`` tells machines apart,
``summary`` says what the rows show, ``comparing`` holds them against a baseline, ``views`` lists what stands beside the
main table; ``page``, ``markdown`` and ``tables`` write it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from deploykit import charts
from deploykit.errors import InputError, OutputError
from deploykit.files import check_writable, write_text
from deploykit.report.comparing import Diff, compare
from deploykit.report.environments import Environments
from deploykit.report.markdown import markdown_text
from deploykit.report.page import html_text
from deploykit.report.reading import Collection, collect, is_record
from deploykit.report.rows import Caveat, Row
from deploykit.report.tables import csv_text, json_text, report_document

__all__ = [
    "Caveat",
    "Collection",
    "Diff",
    "Row",
    "check_report",
    "collect",
    "collect_both",
    "report_document",
    "write_report",
]

_ENDINGS = (".html", ".md", ".csv", ".json")


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    baseline: Sequence[str | os.PathLike[str]] = (),
    title: str = "deploykit report",
    overwrite: bool = False,
) -> Path:
    """Writes what the records in ``paths`` say, as HTML, Markdown, CSV or JSON by the ending of ``output``.

    Args:
        paths: Record files, and folders to search for them.
        output: The file to write: ``.html`` (one page that works offline), ``.md``, ``.csv`` or ``.json``.
        baseline: Records of an earlier state, to say what changed since; none for no comparison.
        title: Heading of the page and of the Markdown.
        overwrite: Whether an existing ``output`` may be replaced.

    Returns:
        The path written.

    Raises:
        InputError: Another ending, a path that does not exist, a named file that is no record, or no record at all.
        OutputError: ``output`` exists, is itself a record, or cannot be written.
        MissingDependencyError: The report extra is not installed, and the ending is ``.html``.
    """
    target = Path(output)
    check_report(target, overwrite=overwrite)
    ending = target.suffix.lower()
    collection, diff = collect_both(paths, baseline)
    if ending == ".html":
        text = _page(collection, title, diff)
    elif ending == ".md":
        text = markdown_text(collection, title, diff=diff)
    else:
        text = csv_text(collection, diff=diff) if ending == ".csv" else json_text(collection, title, diff=diff)
    return write_text(target, text, overwrite=overwrite)


def collect_both(
    paths: Sequence[str | os.PathLike[str]], baseline: Sequence[str | os.PathLike[str]] = ()
) -> tuple[Collection, Diff | None]:
    """The records in ``paths``, and what changed against those in ``baseline``; None without a baseline.

    Raises:
        InputError: As ``collect``, of either.
    """
    environments = Environments()
    collection = collect(paths, environments)
    if not baseline:
        return collection, None
    before = collect(baseline, environments)
    warnings = (*collection.warnings, *(f"baseline: {warning}" for warning in before.warnings))
    return replace(collection, warnings=warnings), compare(collection.rows, before.rows, environments.found)


def _page(collection: Collection, title: str, diff: Diff | None) -> str:
    """The page; the chart library takes seconds to be put together and leaves the interpreter free meanwhile."""
    with ThreadPoolExecutor(1) as beside:
        library = beside.submit(charts.chart_library)
        return html_text(collection, title, diff=diff, library=library.result)


def check_report(output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raises what ``write_report`` would of ``output``, before anything is measured for it."""
    if Path(output).suffix.lower() not in _ENDINGS:
        raise InputError(f"a report ends in {', '.join(_ENDINGS)}; received {Path(output).name!r}")
    if is_record(output):
        raise OutputError(f"{output} is a record of measurements, which a report never replaces; give another path")
    check_writable(output, overwrite=overwrite)
