"""The per-operator view: where the time of a run goes, as the runtime's profiler counts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploykit.figures import millisecond_text, percent_text
from deploykit.report.joining import session_text
from deploykit.report.panels import Cell, Panel, Section, bar, file_names, network_names, section
from deploykit.report.rows import Row
from deploykit.results import Bench, OperatorTime, Timing

__all__ = ["operator_section"]

_MOST_OPERATORS = 12
_MOST_NODES = 5


def operator_section(benches: Iterable[Bench], rows: Sequence[Row]) -> Section | None:
    """A panel for each timing that was profiled."""
    networks, names = network_names(rows), file_names(rows)
    timings = [timing for bench in benches for timing in bench.results if timing.operators]
    return section(
        "Where the time goes",
        "Operators of one inference by the runtime's own profiler, which makes it slower than the latencies above.",
        [(networks.get(timing.model_sha256, timing.model), timing) for timing in timings],
        lambda timing: _panel(names.get(timing.model_sha256, timing.model), timing),
        noun="models by operator",
    )


def _panel(title: str, timing: Timing) -> Panel:
    operators = sorted(timing.operators, key=lambda item: -item.ms)
    rest = operators[_MOST_OPERATORS:]
    columns = (("Operator", False), ("Provider", False), ("Time", True), ("Share", True), ("Nodes", True))
    rows = tuple(_cells(item, operators[0].ms) for item in operators[:_MOST_OPERATORS])
    nodes = ", ".join(f"{node.name} ({percent_text(node.share)})" for node in timing.nodes[:_MOST_NODES])
    notes = (
        f"{len(rest)} more operators take {percent_text(sum(item.share for item in rest))}." if rest else "",
        f"The nodes that take the most: {nodes}." if nodes else "",
    )
    return Panel(title, _setting(timing), columns, rows, tuple(note for note in notes if note))


def _cells(item: OperatorTime, slowest: float) -> tuple[Cell, ...]:
    return (
        Cell(item.op_type),
        Cell(item.provider),
        bar(millisecond_text(item.ms), item.ms, slowest),
        Cell(percent_text(item.share)),
        Cell(f"{item.count:,}"),
    )


def _setting(timing: Timing) -> str:
    threads = f"{timing.threads} thread{'' if timing.threads == 1 else 's'}"
    session = session_text(timing)
    profiled = f", {millisecond_text(timing.profiled_ms)} under the profiler" if timing.profiled_ms is not None else ""
    return f"{timing.provider}, {threads}, batch {timing.batch}{f', {session}' if session else ''}{profiled}"
