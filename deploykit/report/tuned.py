"""What a search tried and chose: each candidate as a row, the named one first, and its trade-offs as a chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from deploykit.chart_style import network_colors, precision_shapes
from deploykit.figures import byte_text, millisecond_text, percent_text, ratio_text
from deploykit.report.page_charts import Drawings
from deploykit.report.panels import Cell, Drawn, Panel, Section, bar, section
from deploykit.results import Candidate, Tuning

__all__ = ["tuning_section"]

_MOST_CANDIDATES = 60
_MOST_NAMES = 3  # of those that one reason keeps from being timed
_TOOLTIP = {
    "name": "Candidate",
    "accuracy": "Accuracy",
    "latency": "Latency",
    "stability": "Timing",
    "size": "File",
    "memory": "Peak memory",
    "fate": "Outcome",
}


def tuning_section(tunings: Iterable[Tuning], drawings: Drawings | None = None) -> Section | None:
    """A panel for each search; its chart is taken into ``drawings``, where there are such."""
    return section(
        "What tuning tried",
        "Candidates of one search, measured in turns on this machine; on the front is what none of the others beats.",
        [(tuning.model, tuning) for tuning in tunings],
        lambda tuning: _panel(tuning, drawings),
        noun="searches",
    )


def _panel(tuning: Tuning, drawings: Drawings | None) -> Panel:
    tried = [candidate for candidate in tuning.candidates if candidate.latency_ms is not None]
    ordered = sorted(tried, key=lambda candidate: _rank(candidate, tuning))
    slowest = max((candidate.latency_ms or 0.0 for candidate in ordered), default=0.0)
    accuracy = "Top-1" if tuning.accuracy_by == "top1" else "Agreement"
    columns = (("Candidate", False), ("Latency", True), ("File", True), ("Peak memory", True), (accuracy, True))
    more = len(ordered) - _MOST_CANDIDATES
    notes = (tuning.why, *tuning.warnings, *([f"{more:,} more candidates are left out."] if more > 0 else []))
    notes += tuple(_refusals(tuning))
    return Panel(
        PurePath(tuning.model).name,
        _found(tuning),
        (*columns, ("Outcome", False)),
        tuple(_cells(candidate, tuning, slowest) for candidate in ordered[:_MOST_CANDIDATES]),
        notes,
        _chart(tuning, ordered, accuracy, drawings) if drawings else (),
    )


def _refusals(tuning: Tuning) -> list[str]:
    """Why candidates were not timed, each reason once with theirs."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for candidate in tuning.candidates:
        if candidate.latency_ms is None:
            reasons[candidate.rejected_because or "no reason is recorded"].append(candidate.name)
    texts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        texts.append(f"Not timed: {', '.join(names[:_MOST_NAMES])}{more}: {reason}.")
    return texts


def _rank(candidate: Candidate, tuning: Tuning) -> tuple[bool, bool, bool, float]:
    """The named one, the front, what else was kept, what was rejected; within each the fastest first."""
    return (
        not _is_best(candidate, tuning),
        not candidate.on_front,
        candidate.rejected_because is not None,
        candidate.latency_ms if candidate.latency_ms is not None else float("inf"),
    )


def _is_best(candidate: Candidate, tuning: Tuning) -> bool:
    return candidate.name == tuning.best.name


def _found(tuning: Tuning) -> str:
    """``best int8 on cpu with 1 thread, 1.74× faster (1.70–1.78), for latency within 0.5 points on 512 …``."""
    parts = [f"best {tuning.best.name}"]
    if tuning.speedup is not None:
        interval = f" ({tuning.speedup_low:.3g}–{tuning.speedup_high:.3g})" if _bounded(tuning) else ""
        word = "faster" if tuning.speedup >= 1.0 else "slower"
        parts.append(f"{ratio_text(max(tuning.speedup, 1.0 / tuning.speedup))} {word}{interval}")
    accuracy = "top-1" if tuning.accuracy_by == "top1" else tuning.accuracy_by
    limit = f"for {tuning.objective} within {100.0 * tuning.max_drop:g} points of {accuracy}"
    return ", ".join([*parts, f"{limit} on {tuning.held_out_samples:,} samples of {tuning.dataset}"])


def _bounded(tuning: Tuning) -> bool:
    return tuning.speedup_low is not None and tuning.speedup_high is not None


def _accuracy(candidate: Candidate, tuning: Tuning) -> float | None:
    return candidate.top1 if tuning.accuracy_by == "top1" else candidate.agreement


def _fate(candidate: Candidate, tuning: Tuning) -> Cell:
    if _is_best(candidate, tuning):
        return Cell("best", tone="good")
    return Cell("on the front") if candidate.on_front else Cell(candidate.rejected_because or "measured", tone="soft")


def _cells(candidate: Candidate, tuning: Tuning, slowest: float) -> tuple[Cell, ...]:
    doubt = "" if candidate.stable or candidate.latency_ms is None else " ⚠"
    return (
        Cell(candidate.name),
        bar(millisecond_text(candidate.latency_ms) + doubt, candidate.latency_ms, slowest),
        Cell(byte_text(candidate.file_bytes)),
        Cell(byte_text(candidate.peak_bytes)),
        Cell(percent_text(_accuracy(candidate, tuning))),
        _fate(candidate, tuning),
    )


def _chart(tuning: Tuning, candidates: Sequence[Candidate], accuracy: str, drawings: Drawings) -> tuple[Drawn, ...]:
    """Accuracy against latency, or size where all are as accurate: colours by recipe, shapes by provider."""
    points = [
        _point(candidate, tuning)
        for candidate in candidates
        if candidate.latency_ms is not None and _accuracy(candidate, tuning) is not None
    ]
    if len(points) < 2:
        return ()
    colors = network_colors(point["network"] for point in points)
    shapes = precision_shapes(point["precision"] for point in points)
    varied = len({point[tuning.accuracy_by] for point in points}) > 1
    sized = all(point["file_bytes"] for point in points)
    up, title = ("file_bytes", "File") if sized and not varied else (tuning.accuracy_by, accuracy)
    name = drawings.tradeoff(points, ("latency_ms", up), _TOOLTIP, colors, shapes)
    unstable = any(point["stable"] is False for point in points)
    alike = f", all of {points[0]['accuracy']} {accuracy.lower()}" if not varied else ""
    return (Drawn(f"{title} × latency of the candidates{alike}", name, colors, shapes, unstable),)


def _point(candidate: Candidate, tuning: Tuning) -> dict[str, Any]:
    """A candidate as the chart has it: its recipe stands in for the network, its provider for the precision."""
    return {
        "name": candidate.name,
        "network": candidate.recipe,
        "precision": candidate.provider,
        "stable": candidate.stable,
        "latency_ms": candidate.latency_ms,
        "file_bytes": candidate.file_bytes,
        tuning.accuracy_by: _accuracy(candidate, tuning),
        "accuracy": percent_text(_accuracy(candidate, tuning)),
        "latency": millisecond_text(candidate.latency_ms),
        "stability": "stable" if candidate.stable else "unstable",
        "size": byte_text(candidate.file_bytes),
        "memory": byte_text(candidate.peak_bytes),
        "fate": _fate(candidate, tuning).text,
    }
