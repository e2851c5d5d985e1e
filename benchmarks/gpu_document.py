"""The document that ``gpu.py`` writes: what counts as a figure in it, and how a part has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = "deploykit.gpu-benchmark/1"

MEASURED = frozenset({"images_per_s", "median_ms", "test_top1", "top1"})
"""Keys of what is measured; what stands beside it are settings, counts and further figures of the same run."""


def is_document(found: dict[str, Any]) -> bool:
    """Whether all is there that adding to it needs."""
    runs, parts = found.get("runs"), found.get("parts")
    if found.get("schema") != SCHEMA or not isinstance(runs, list) or not isinstance(parts, dict):
        return False
    return all(isinstance(run, dict) and is_number(run.get("seconds")) for run in runs) and all(
        isinstance(part, dict)
        and isinstance(part.get("figures"), dict)
        and is_number(part.get("seconds"))
        and {"status", "reason"} <= part.keys()
        for part in parts.values()
    )


def outcome(name: str, document: dict[str, Any], status: str, reason: str | None) -> dict[str, Any]:
    """A part's entry without figures."""
    where = {"part": name, "device": document["device"]["name"], "rehearsal": document["rehearsal"]}
    return {"status": status, "reason": reason, "seconds": 0.0, **where, "figures": {}}


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A part's new entry, or the old one where that has figures and the new one has none."""
    if old is None or holds_figure(new["figures"]) or not holds_figure(old["figures"]):
        return new
    return old | {"last_try": f"{new['status']}: {new['reason']}"}


def holds_figure(value: Any) -> bool:
    """Whether anything measured is within: neither a setting nor a count is."""
    if isinstance(value, dict):
        return any((key in MEASURED and is_number(item)) or holds_figure(item) for key, item in value.items())
    return isinstance(value, list) and any(map(holds_figure, value))


def is_number(value: Any) -> bool:
    """JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def ending(figures: Mapping[str, Any]) -> tuple[str, str | None]:
    """``done``, or ``partial`` where some networks could not be measured, ``failed`` where none could; and why."""
    rows = [row for row in figures.values() if isinstance(row, dict)]
    faulty = [error for row in rows if (error := fault(row))]
    if not faulty:
        return "done", None
    status = "partial" if any(map(holds_figure, rows)) else "failed"
    return status, f"{len(faulty)} of {len(rows)}: {faulty[0]}"


def fault(row: Mapping[str, Any]) -> str | None:
    """What went wrong in a network's row or is missing from it, wherever it is noted."""
    noted = [row.get("error"), row.get("latency_error"), *row.get("errors", ()), row.get("real", {}).get("skipped")]
    noted += [timed.get("error") for kind in ("torch", "onnxruntime") for timed in row.get(kind, ())]
    return next((text for text in noted if text), None)
