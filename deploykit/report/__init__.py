"""Reports: any set of measurement records as a page, as Markdown for a pull request, as CSV or as JSON.

``reading`` finds the records, ``rows`` joins them by model file, ``summary`` says what they show, and ``page`` and
``tables`` write it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploykit.errors import InputError
from deploykit.files import check_writable, write_text
from deploykit.report.page import html_text
from deploykit.report.reading import Collection, collect
from deploykit.report.rows import Caveat, Row
from deploykit.report.tables import csv_text, json_text, markdown_text, report_document

__all__ = ["Caveat", "Collection", "Row", "check_report", "collect", "report_document", "write_report"]

_ENDINGS = (".html", ".md", ".csv", ".json")


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    title: str = "deploykit report",
    overwrite: bool = False,
) -> Path:
    """Writes what the records in ``paths`` say, as HTML, Markdown, CSV or JSON by the ending of ``output``.

    Args:
        paths: Record files, and folders to search for them.
        output: The file to write: ``.html`` (one page that works offline), ``.md``, ``.csv`` or ``.json``.
        title: Heading of the page and of the Markdown.
        overwrite: Whether an existing ``output`` may be replaced.

    Returns:
        The path written.

    Raises:
        InputError: Another ending, a path that does not exist, a named file that is no record, or no record at all.
        OutputError: ``output`` exists, or cannot be written.
        MissingDependencyError: The report extra is not installed, and the ending is ``.html``.
    """
    target = Path(output)
    check_report(target, overwrite=overwrite)
    ending = target.suffix.lower()
    collection = collect(paths)
    if ending == ".html":
        text = html_text(collection, title)
    elif ending == ".md":
        text = markdown_text(collection, title)
    else:
        text = csv_text(collection) if ending == ".csv" else json_text(collection, title)
    return write_text(target, text, overwrite=overwrite)


def check_report(output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raises what ``write_report`` would of ``output``, before anything is measured for it."""
    if Path(output).suffix.lower() not in _ENDINGS:
        raise InputError(f"a report ends in {', '.join(_ENDINGS)}; received {Path(output).name!r}")
    check_writable(output, overwrite=overwrite)
