"""The report as Markdown for a pull request: short, and with a baseline what changed against it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from deploykit import __version__
from deploykit.report.changed import (
    TITLES,
    change_reasons,
    delta_text,
    diff_sentence,
    in_order,
    setting_of,
    several_machines,
)
from deploykit.report.claims import ClaimsTable, claims_tables
from deploykit.report.columns import Column, present, shared_setting
from deploykit.report.comparing import Change, Diff
from deploykit.report.gated import gate_section
from deploykit.report.panels import Section
from deploykit.report.reading import Collection
from deploykit.report.rows import Row
from deploykit.report.summary import sentences
from deploykit.report.tuned import tuning_section
from deploykit.results import Tuning, Verdict

__all__ = ["markdown_text"]

# GitHub refuses a comment of more than 65,536 characters. The tables that grow with the records share this.
_MOST_CHARACTERS = 50_000
_OF_CHANGES = 12_000
_MOST_PANEL_ROWS = 12


def markdown_text(collection: Collection, title: str, *, diff: Diff | None = None) -> str:
    """A heading, what changed where there is a baseline, the summary, the short table, and warnings as footnotes."""
    parts = [f"## {_cell(title)}"]
    figures = _figures(collection, _MOST_CHARACTERS - (2 * _OF_CHANGES if diff else 0))
    parts += _section(gate_section(collection.of_kind(Verdict)))
    parts += [*_changes(diff), *_folded("All figures", figures)] if diff else figures
    parts += [f"> **Warning** {_cell(warning)}" for warning in collection.warnings]
    noun = "record" if collection.records == 1 else "records"
    parts.append(f"<sub>deploykit {__version__}, {collection.records} {noun}</sub>")
    return "\n\n".join(parts) + "\n"


def _figures(collection: Collection, most: int) -> list[str]:
    parts = []
    if said := sentences(collection.rows):
        parts.append("\n".join(f"- {_cell(sentence)}" for sentence in said))
    notes: dict[str, int] = {}
    if collection.rows:
        setting = shared_setting(collection.rows)
        parts += ([f"All rows: {_cell(setting)}"] if setting else []) + [_table(collection.rows, notes, most)]
    parts += _section(tuning_section(collection.of_kind(Tuning)))
    if collection.trainings:
        parts.append(_trainings(collection))
    for table in claims_tables(collection.claims):
        parts += [f"### {_cell(table.title)}", _claims(table), *map(_cell, table.notes)]
    if notes:
        parts.append("\n".join(f"<sup>{number}</sup> {_cell(text)}  " for text, number in notes.items()))
    return parts


def _section(section: Section | None) -> list[str]:
    """A view's panels with their first rows; a page has all."""
    parts = []
    for panel in section.panels if section else ():
        lines = ["| " + " | ".join(_cell(title) for title, _ in panel.columns) + " |"]
        lines.append("|" + "|".join("---:" if number else "---" for _, number in panel.columns) + "|")
        rows = ["| " + " | ".join(_cell(cell.text) for cell in row) + " |" for row in panel.rows]
        table = "\n".join([*lines, *rows[:_MOST_PANEL_ROWS]])
        parts += [f"**{_cell(panel.title)}**: {_cell(panel.about)}", table, *map(_cell, panel.notes)]
    return [f"### {_cell(section.heading)}", *parts] if section else []


def _folded(summary: str, parts: Sequence[str]) -> list[str]:
    """Parts that a reader opens; the empty lines around let GitHub read Markdown in between."""
    return [f"<details><summary>{_cell(summary)}</summary>", *parts, "</details>"] if parts else []


def _changes(diff: Diff) -> list[str]:
    """The sentence, the rows that changed, and folded the others."""
    changes = in_order(diff.changes)
    told = [change for change in changes if change.changed]
    rest = [change for change in changes if not change.changed]
    machines = several_machines(changes)
    parts = [f"**Against the baseline:** {_cell(diff_sentence(diff))}"]
    parts += [_change_table(told, machines)] if told else []
    reasons = [f"Not comparable: {_cell(reason)}" for reason in change_reasons(changes)]
    gone = [f"Gone: {_cell(', '.join(diff.gone))}"] if diff.gone else []
    folded = ([_change_table(rest, machines)] if rest else []) + reasons + gone
    hint = "Two runs one after the other may differ by some percent; `deploykit gate` measures both files in turns."
    return parts + _folded(f"{len(rest)} rows without a clear change", [*folded, hint])


def _change_table(changes: Sequence[Change], machines: bool) -> str:
    lines = ["| Model | Setting | " + " | ".join(TITLES.values()) + " |", "|---|---" + "|---:" * len(TITLES) + "|"]
    return "\n".join(lines + _within([_change_line(change, machines) for change in changes], _OF_CHANGES))


def _change_line(change: Change, machines: bool) -> str:
    new = " (new)" if change.base is None else ""
    cells = [_cell(change.row.name) + new, _cell(setting_of(change.row, machines))]
    for figure in TITLES:
        delta = change.deltas[figure]
        text = _cell(delta_text(delta))
        cells.append(f"**{text}**" if delta.verdict == "worse" else text)
    return f"| {' | '.join(cells)} |"


def _within(lines: Sequence[str], most: int) -> list[str]:
    """As many lines as ``most`` characters hold, and how many more there are."""
    kept: list[str] = []
    length = 0
    for line in lines:
        length += len(line) + 1
        if length > most:
            return [*kept, f"| … {len(lines) - len(kept):,} more rows are in the HTML, CSV and JSON forms |"]
        kept.append(line)
    return kept


def _table(rows: Sequence[Row], notes: dict[str, int], most: int) -> str:
    columns = present(rows, brief=True)
    lines = ["| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in columns) + "|")
    found = ["| " + " | ".join(_marked(row, column, notes) for column in columns) + " |" for row in rows]
    return "\n".join(lines + _within(found, most))


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
