"""The verdicts of gates: each limit with what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from deploykit.figures import byte_text, millisecond_text, percent_text, plain_text
from deploykit.report.panels import Cell, Panel, Section, section
from deploykit.results import Verdict
from deploykit.verdicts import INCONCLUSIVE, PASS, REGRESSION, Check

__all__ = ["gate_section"]

_TONES = {PASS: "good", REGRESSION: "bad", INCONCLUSIVE: "soft"}
_FIGURES = {
    "slowdown": millisecond_text,
    "latency": millisecond_text,
    "size": byte_text,
    "memory": byte_text,
    "drop": percent_text,
}


def gate_section(verdicts: Iterable[Verdict]) -> Section | None:
    """A panel for each verdict; what does not pass stands in front."""
    order = (REGRESSION, INCONCLUSIVE, PASS)
    ranked = sorted(verdicts, key=lambda verdict: order.index(verdict.verdict) if verdict.verdict in order else 0)
    return section(
        "Limits",
        "A timed limit is kept, or exceeded, only where its whole interval is; otherwise the verdict is inconclusive.",
        [("", verdict) for verdict in ranked],
        _panel,
        noun="verdicts",
    )


def _panel(verdict: Verdict) -> Panel:
    columns = (("Limit", False), ("Verdict", False), ("Measured", True), ("Allowed", True), ("Now", True))
    notes = [f"{check.name}: {check.remark}." for check in verdict.checks if check.remark]
    return Panel(
        PurePath(verdict.candidate.model).name,
        _setting(verdict),
        (*columns, ("Baseline", True)),
        tuple(_cells(check) for check in verdict.checks),
        (*notes, *verdict.warnings),
    )


def _cells(check: Check) -> tuple[Cell, ...]:
    figure = _FIGURES.get(check.name, plain_text)
    return (
        Cell(check.name),
        Cell(check.verdict, tone=_TONES.get(check.verdict, "")),
        Cell(check.measured_text),
        Cell(f"at least {check.limit_text}" if check.name == "agreement" else check.limit_text),
        Cell(figure(check.candidate)),
        Cell(figure(check.baseline)),
    )


def _setting(verdict: Verdict) -> str:
    """``regression against base.onnx, on cpu, 1 thread, batch 1; changes below 0.8 % are not seen``."""
    base = verdict.baseline
    against = {
        "itself": " against itself",
        "none": "",
    }.get(verdict.baseline_kind, f" against {PurePath(base.model).name}" if base else "")
    threads = f"{verdict.threads} thread{'' if verdict.threads == 1 else 's'}"
    floor = f"; changes below {percent_text(verdict.noise_floor)} are not seen" if verdict.noise_floor else ""
    return f"{verdict.verdict}{against}, on {verdict.provider}, {threads}, batch {verdict.batch}{floor}"
