"""What changed against a baseline, in words: a sentence, and a cell for each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deploykit.figures import MISSING, byte_text, millisecond_text, percent_text, ratio_text
from deploykit.report.comparing import Change, Delta, Diff
from deploykit.report.panels import Cell, Panel
from deploykit.report.rows import Row
from deploykit.report.summary import setting_text

__all__ = [
    "TITLES",
    "change_panels",
    "change_reasons",
    "delta_text",
    "diff_sentence",
    "in_order",
    "setting_of",
    "several_machines",
]

TITLES = {"latency_ms": "Latency", "file_bytes": "File", "peak_bytes": "Peak memory", "top1": "Top-1"}
_TEXTS: dict[str, Callable[[float | None], str]] = {
    "latency_ms": millisecond_text,
    "file_bytes": byte_text,
    "peak_bytes": byte_text,
    "top1": percent_text,
}
_WORDS = {"latency_ms": ("faster", "slower"), "file_bytes": ("smaller", "larger"), "peak_bytes": ("less", "more")}
_NOUNS = {
    "latency_ms": ("latency", "latencies"),
    "file_bytes": ("file", "files"),
    "peak_bytes": ("memory peak", "memory peaks"),
    "top1": ("accuracy", "accuracies"),
}
_MOST_ROWS = 200  # of a page; the CSV and JSON forms have all


def delta_text(delta: Delta) -> str:
    """A cell: ``0.0522 → 0.0610 ms, 1.17× slower``; alone where nothing changed, no ratio where none is due."""
    text = _TEXTS[delta.figure]
    if delta.verdict == "missing" or delta.before is None or delta.now is None:
        return text(delta.now) if delta.now is not None else MISSING
    if delta.verdict == "not comparable":
        return f"{text(delta.now)}, not comparable: {', '.join(delta.brief_keys)}"
    if delta.verdict == "same":
        return text(delta.now)
    return f"{_from_to(text(delta.before), text(delta.now))}, {_change(delta)}"


def _from_to(before: str, now: str) -> str:
    """``0.0522 → 0.0610 ms``; the unit once where both have the same."""
    number, _, unit = before.rpartition(" ")
    return f"{number if now.endswith(f' {unit}') else before} → {now}"


def _change(delta: Delta) -> str:
    if delta.verdict == "unclear":
        return "unstable" if delta.why.startswith("unstable") else "no clear change"
    if delta.figure == "top1":
        return f"{100.0 * (delta.difference or 0.0):+.2f}".replace("-", "−")
    ratio = delta.ratio or 1.0
    return f"{ratio_text(max(ratio, 1.0 / ratio))} {_WORDS[delta.figure][delta.verdict == 'worse']}"


def diff_sentence(diff: Diff) -> str:
    """All changes in one sentence: ``1 of 6 latencies slower (1.25×), 5 without a clear change; no file changed …``."""
    parts = [part for figure in _NOUNS if (part := _counted(figure, diff.changes))]
    new = {change.row.name for change in diff.changes if change.base is None}
    parts += [f"{len(new)} files new"] if new else []
    parts += [f"{len(diff.gone)} files gone"] if diff.gone else []
    return ("; ".join(parts) if parts else "nothing to compare") + "."


def _counted(figure: str, changes: Sequence[Change]) -> str:
    """What became of one figure, each file's size and accuracy once; of memory only what changed."""
    deltas = list({_identity(figure, change): change.deltas[figure] for change in changes if change.base}.values())
    deltas = [delta for delta in deltas if delta.verdict != "missing"]
    if not deltas:
        return ""
    parts = [_counted_as(verdict, figure, deltas) for verdict in ("worse", "better")]
    if figure == "latency_ms" and (unclear := sum(delta.verdict == "unclear" for delta in deltas)):
        parts.append(f"{unclear} without a clear change")
    apart = [delta for delta in deltas if delta.verdict == "not comparable"]
    if apart and figure != "peak_bytes":  # as many as latencies, for the same reasons
        parts.append(
            f"{len(apart)} not comparable ({', '.join(dict.fromkeys(k for d in apart for k in d.brief_keys))})"
        )
    said = ", ".join(filter(None, parts))
    noun = _NOUNS[figure][len(deltas) > 1]
    if not said:
        return "" if figure == "peak_bytes" else f"{len(deltas)} {noun} unchanged"
    first, *rest = said.split(" ", 1)
    return f"{first} of {len(deltas)} {noun} {' '.join(rest)}"


def _identity(figure: str, change: Change) -> tuple[object, ...]:
    """What a figure belongs to: a size to a file, an accuracy to a file and its pictures, others to a row."""
    row, base = change.row, change.base
    files = (row.sha256, row.name, base.sha256 if base else None)
    if figure == "file_bytes":
        return files
    return (*files, row.dataset_digest, row.crops, row.models) if figure == "top1" else (id(change),)


def _counted_as(verdict: str, figure: str, deltas: Sequence[Delta]) -> str:
    found = [delta for delta in deltas if delta.verdict == verdict]
    if not found:
        return ""
    if figure == "top1":
        most = max(abs(delta.difference or 0.0) for delta in found)
        text, word = f"{100.0 * most:.2f} points", "lower" if verdict == "worse" else "higher"
    else:
        text = ratio_text(max(max(delta.ratio or 1.0, 1.0 / (delta.ratio or 1.0)) for delta in found))
        word = _WORDS[figure][verdict == "worse"]
    return f"{len(found)} {word} ({text})" if len(found) == 1 else f"{len(found)} {word} (at most {text})"


def in_order(changes: Sequence[Change]) -> list[Change]:
    """What got worse first, then what else changed, then the rest, each in the order of the rows."""

    def rank(change: Change) -> tuple[bool, bool]:
        worse = any(delta.verdict == "worse" for delta in change.deltas.values())
        return not worse, not change.changed

    return sorted(changes, key=rank)


def setting_of(row: Row, machines: bool) -> str:
    """The dataset, how it was timed, and on which machine where there are several."""
    place = row.machine_name if machines and row.latency_ms is not None else ""
    return ", ".join(part for part in (row.dataset or "", setting_text(row), place) if part) or MISSING


def several_machines(changes: Sequence[Change]) -> bool:
    """Whether the rows that are compared were timed on more than one machine."""
    return len({change.row.machine for change in changes if change.row.latency_ms is not None}) > 1


def change_reasons(changes: Sequence[Change]) -> list[str]:
    """Why figures are not compared, each reason once, with the values that differ."""
    deltas = [delta for change in changes for delta in change.deltas.values()]
    return list(dict.fromkeys(delta.why for delta in deltas if delta.verdict == "not comparable"))


def change_panels(diff: Diff) -> tuple[Panel, Panel]:
    """The rows that changed, and the others, coloured by what got better and worse; reasons stand under the others."""
    changes, machines = in_order(diff.changes), several_machines(diff.changes)
    told = [change for change in changes if change.changed]
    rest = [change for change in changes if not change.changed]
    notes = [f"Not comparable: {reason}." for reason in change_reasons(changes)]
    notes += [f"Gone: {', '.join(diff.gone)}."] if diff.gone else []
    return _panel("Changes", told, machines, []), _panel("Rows without a clear change", rest, machines, notes)


def _panel(title: str, changes: Sequence[Change], machines: bool, notes: Sequence[str]) -> Panel:
    more = [f"{len(changes) - _MOST_ROWS:,} rows more."] if len(changes) > _MOST_ROWS else []
    rows = tuple(
        (Cell(change.row.name), Cell(_place(change, machines)), *(_cell(change.deltas[figure]) for figure in TITLES))
        for change in changes[:_MOST_ROWS]
    )
    columns = (("Model", False), ("Setting", False), *((title, True) for title in TITLES.values()))
    return Panel(title, f"{len(changes):,}", columns, rows, (*more, *notes))


def _place(change: Change, machines: bool) -> str:
    return setting_of(change.row, machines) + (" (new)" if change.base is None else "")


def _cell(delta: Delta) -> Cell:
    tones = {"better": "good", "worse": "bad", "not comparable": "soft", "unclear": "soft"}
    return Cell(delta_text(delta), tone=tones.get(delta.verdict, ""))
