"""The claims as tables of text: what papers and lecture notes say beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploykit.figures import MISSING, byte_text, count_text, millisecond_text, ratio_text
from deploykit.results import Claims, FileCost, NetworkCost, Statement

__all__ = ["ClaimsTable", "claims_tables"]

_EXACT = 1e-9  # relative; a figure that was printed with fewer digits may differ by more
_NEAR = 0.05
_VERSIONS = ("onnxruntime", "onnxruntime-gpu", "onnx", "torch")  # that the figures depend on
_COUNTED = ("parameters", "neurons", "connections")


@dataclass(frozen=True)
class ClaimsTable:
    """A table of text cells.

    Attributes:
        title: Its heading.
        columns: Headings of the columns, and whether each is a number.
        rows: One text a column.
        notes: What a reader has to know, one sentence each.
    """

    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def claims_tables(claims: Iterable[Claims]) -> list[ClaimsTable]:
    """The tables of all claims records: what is said, and what each network costs."""
    found = []
    for record in claims:
        tables = [_statements(record.statements)] if record.statements else []
        tables += [_costs(record.networks)] if record.networks else []
        if tables and (made := _made(record)):
            tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, made))
        found += tables
    return found


def _made(record: Claims) -> str:
    """By which command, when and on what machine; as far as the record says it."""
    how = " ".join(filter(None, (record.command, record.measured_on and f"on {record.measured_on}")))
    machine = _machine(record.environment)
    return f"Measured {f'by {how}' if record.command else how}{f'; {machine}' if machine else ''}." if how else ""


def _machine(environment: Mapping[str, Any]) -> str:
    features = ", ".join(environment.get("cpu_features") or ())
    memory = environment.get("memory_bytes")
    gpus = ", ".join(str(gpu.get("name")) for gpu in environment.get("gpus") or ())
    versions = environment.get("versions") or {}
    parts = (
        f"{environment.get('cpu')} ({features})" if environment.get("cpu") else "",
        f"{environment['available_cpus']} CPUs" if environment.get("available_cpus") else "",
        f"{byte_text(memory)} of memory" if memory else "",
        gpus or "no GPU",
        str(environment.get("os") or ""),
        f"Python {environment['python']}" if environment.get("python") else "",
        *(f"{name} {versions[name]}" for name in _VERSIONS if versions.get(name)),
    )
    return ", ".join(filter(None, parts)) if environment else ""


def _statements(statements: Sequence[Statement]) -> ClaimsTable:
    columns = (*(("What is said", False), ("Source", False), ("Said", True), ("Measured", True), ("How near", False)),)
    rows = tuple(
        (
            item.says,
            item.source,
            _figure(item.said, item.unit),
            _figure(item.measured, item.unit),
            "; ".join(text for text in (_verdict(item), item.remark) if text),
        )
        for item in statements
    )
    return ClaimsTable("What is said of them", columns, rows)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return MISSING
    if unit in _COUNTED:
        return f"{round(value):,}"
    if unit == "top-5 error":
        return f"{100 * value:.2f} %"
    if unit == "×":
        return f"{value:,.2f}×" if value < 100 else f"{value:,.0f}×"
    return f"{value:.2f} G" if unit == "GMACs" else f"{100 * value:.1f} %"


def _verdict(item: Statement) -> str:
    if item.measured is None or not item.said:
        return "not measured"
    if item.unit.endswith("at least"):
        return "holds" if item.measured >= item.said else "does not hold"
    off = item.measured / item.said - 1.0
    if abs(off) < _EXACT:
        return "equal"
    return f"{100 * off:+.1f} %" if abs(off) >= 0.001 else f"{100 * off:+.2g} %"


def _costs(networks: Sequence[NetworkCost]) -> ClaimsTable:
    columns = (
        *(("Network", False), ("Said", False), ("Parameters", True), ("MACs", True), ("Activations", True)),
        *(("fp32 file", True), ("fp16 file", True), ("int8 file", True)),
        *(("fp32 latency", True), ("fp16", True), ("int8", True)),
        *(("fp32 peak memory", True), ("fp16", True), ("int8", True)),
    )
    threads = sorted({item.threads for item in networks})
    timings = [cost for item in networks for cost in item.files]
    unstable = f", {sum(not cost.stable for cost in timings)} of {len(timings)} here"
    notes = (
        f"Fresh weights, batch 1, {' or '.join(map(str, threads))} thread(s); latency is the median of a call in a"
        " fresh process, the three files of a network in turns; peak memory is what loading and running adds to it."
        " Compare times within a row: rows were measured one after the other.",
        f"⚠ marks an unstable timing{unstable}; why it is one stands in the record.",
    )
    return ClaimsTable("What they cost", columns, tuple(map(_cost_row, networks)), notes)


def _cost_row(item: NetworkCost) -> tuple[str, ...]:
    files = {cost.precision: cost for cost in item.files}
    kinds = [files.get(precision) for precision in ("fp32", "fp16", "int8")]
    base = kinds[0]
    return (
        item.network,
        item.said or MISSING,
        f"{item.parameters:,}",
        count_text(item.macs),
        byte_text(item.peak_activation_bytes),
        *(byte_text(cost.file_bytes) if cost else MISSING for cost in kinds),
        *(_latency(cost, base) for cost in kinds),
        *(byte_text(cost.peak_bytes) if cost else MISSING for cost in kinds),
    )


def _latency(cost: FileCost | None, base: FileCost | None) -> str:
    if cost is None or cost.latency_ms is None:
        return MISSING
    text = millisecond_text(cost.latency_ms) + ("" if cost.stable else " ⚠")
    if base is None or cost is base or not base.latency_ms:
        return text
    return f"{text} ({ratio_text(cost.latency_ms / base.latency_ms)})"
