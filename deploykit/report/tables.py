"""The report as Markdown for a pull request, as CSV for a spreadsheet, and as JSON for a program."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from deploykit import __version__
from deploykit.files import dump_json
from deploykit.report.claims import ClaimsTable, claims_tables
from deploykit.report.columns import Column, present, shared_setting
from deploykit.report.reading import Collection
from deploykit.report.rows import Row
from deploykit.report.summary import sentences
from deploykit.results import Record

__all__ = ["csv_text", "json_text", "markdown_text", "report_document"]

SCHEMA = "deploykit.report/1"


def markdown_text(collection: Collection, title: str) -> str:
    """A heading, the summary, the short table, and the warnings as footnotes of the figures that they spoil."""
    parts = [f"## {_cell(title)}"]
    if said := sentences(collection.rows):
        parts.append("\n".join(f"- {_cell(sentence)}" for sentence in said))
    notes: dict[str, int] = {}
    if collection.rows:
        setting = shared_setting(collection.rows)
        parts += ([f"All rows: {_cell(setting)}"] if setting else []) + [_table(collection.rows, notes)]
    if collection.trainings:
        parts.append(_trainings(collection))
    for table in claims_tables(collection.claims):
        parts += [f"### {_cell(table.title)}", _claims(table), *map(_cell, table.notes)]
    if notes:
        parts.append("\n".join(f"<sup>{number}</sup> {_cell(text)}  " for text, number in notes.items()))
    parts += [f"> **Warning** {_cell(warning)}" for warning in collection.warnings]
    noun = "record" if collection.records == 1 else "records"
    parts.append(f"<sub>deploykit {__version__}, {collection.records} {noun}</sub>")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row], notes: dict[str, int]) -> str:
    columns = present(rows, brief=True)
    lines = ["| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in columns) + "|")
    lines += ["| " + " | ".join(_marked(row, column, notes) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _marked(row: Row, column: Column, notes: dict[str, int]) -> str:
    """The cell, with the numbers of the footnotes that concern it."""
    texts = row.caveats(column.about) if column.about else []
    marks = ",".join(str(notes.setdefault(text, len(notes) + 1)) for text in texts)
    return _cell(column.text(getattr(row, column.key))) + (f" ⚠<sup>{marks}</sup>" if marks else "")


def _cell(text: str) -> str:
    """Text that stays in its cell and is text: no markup, no line break, no column of its own."""
    safe = html.escape(" ".join(text.split()), quote=False)
    for mark in "\\`*_[]|":
        safe = safe.replace(mark, "\\" + mark)
    return safe


def _trainings(collection: Collection) -> str:
    lines = ["| Trained network | Dataset | Epochs | Test top-1 | Seconds | Device |", "|---|---|---:|---:|---:|---|"]
    for training in collection.trainings:
        top1 = "–" if training.test_top1 is None else f"{100 * training.test_top1:.2f} %"
        cells = (_cell(training.network), _cell(training.dataset), str(training.epochs), top1)
        lines.append(f"| {' | '.join(cells)} | {training.seconds or 0:,.0f} | {_cell(training.device)} |")
    return "\n".join(lines)


def _claims(table: ClaimsTable) -> str:
    lines = ["| " + " | ".join(_cell(title) for title, _ in table.columns) + " |"]
    lines.append("|" + "|".join("---:" if number else "---" for _, number in table.columns) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join(lines)


def csv_text(collection: Collection) -> str:
    """One line a row, all fields, plain numbers in the record's units; warnings joined by ``; ``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [item.name for item in dataclasses.fields(Row)]
    writer.writerow(names)
    for row in collection.rows:
        values = row.to_json()
        values["warnings"] = "; ".join(values["warnings"])
        values["stable"] = "" if row.stable is None else str(row.stable).lower()
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return text.getvalue()


def report_document(collection: Collection, title: str) -> dict[str, Any]:
    """The report's own document, ``deploykit.report/1``; ``environment`` has what all environments agree on."""
    return {
        "schema": SCHEMA,
        "deploykit": __version__,
        "environment": _common(collection.environments),
        "title": title,
        "summary": sentences(collection.rows),
        "rows": [row.to_json() for row in collection.rows],
        "trainings": [_training(collection, index) for index in range(len(collection.trainings))],
        "claims": [_body(item) for item in collection.claims],
        "environments": [dict(environment) for environment in collection.environments],
        "warnings": list(collection.warnings),
    }


def json_text(collection: Collection, title: str) -> str:
    """``report_document`` as a file's text."""
    return dump_json(report_document(collection, title)) + "\n"


def _training(collection: Collection, index: int) -> dict[str, Any]:
    return _body(collection.trainings[index])


def _body(record: Record) -> dict[str, Any]:
    document = record.to_document()
    return {key: value for key, value in document.items() if key not in ("schema", "deploykit", "environment")}


def _common(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not environments:
        return {}
    first, *others = environments
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
