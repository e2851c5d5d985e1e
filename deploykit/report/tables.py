"""The report as CSV for a spreadsheet, and as JSON for a program."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploykit import __version__
from deploykit.files import dump_json
from deploykit.report.comparing import Change, Diff
from deploykit.report.reading import Collection
from deploykit.report.rows import Row
from deploykit.report.summary import sentences
from deploykit.results import Bench, Compression, Profile, Quantization, Record, Tuning, Verdict, Verification

__all__ = ["csv_text", "json_text", "report_document"]

SCHEMA = "deploykit.report/1"
_COMPARED = ("latency_ms", "file_bytes", "peak_bytes", "top1")


def csv_text(collection: Collection, *, diff: Diff | None = None) -> str:
    """One line a row, all fields, plain numbers in the record's units; warnings joined by ``; ``.

    With a baseline, four columns for each figure that is compared: ``baseline_``, ``ratio_``, ``difference_`` (both
    empty where that would say nothing) and ``verdict_``; and ``not_comparable`` with the keys that differ.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [item.name for item in dataclasses.fields(Row)]
    changes = diff.changes if diff else ()
    head = ["baseline_name", *(f"{part}_{key}" for key in _COMPARED for part in _PARTS), "not_comparable"]
    writer.writerow(names + (head if diff else []))
    for place, row in enumerate(collection.rows):
        values = row.to_json()
        values["warnings"] = "; ".join(values["warnings"])
        values["stable"] = "" if row.stable is None else str(row.stable).lower()
        cells = [values[name] for name in names] + (_compared(changes[place]) if diff else [])
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


_PARTS = ("baseline", "ratio", "difference", "verdict")


def _compared(change: Change) -> list[Any]:
    cells: list[Any] = [change.base.name if change.base else None]
    for key in _COMPARED:
        delta = change.deltas[key]
        cells += [delta.before, delta.ratio, delta.difference, delta.verdict]
    reasons = dict.fromkeys(delta.why for delta in change.deltas.values() if delta.verdict == "not comparable")
    return [*cells, "; ".join(reasons)]


def report_document(collection: Collection, title: str, *, diff: Diff | None = None) -> dict[str, Any]:
    """The report's own document, ``deploykit.report/1``; ``environment`` has what all environments agree on."""
    document = {
        "schema": SCHEMA,
        "deploykit": __version__,
        "environment": _common(collection.environments),
        "title": title,
        "summary": sentences(collection.rows),
        "rows": [row.to_json() for row in collection.rows],
        "operators": _operators(collection.of_kind(Bench)),
        "layers": _layers(collection.of_kind(Profile)),
        "quantizations": _bodies(collection.of_kind(Quantization)),
        "compressions": _bodies(collection.of_kind(Compression)),
        "tunings": _bodies(collection.of_kind(Tuning)),
        "verdicts": _bodies(collection.of_kind(Verdict)),
        "verifications": _bodies(collection.of_kind(Verification)),
        "classes": _classes(collection),
        "trainings": _bodies(collection.trainings),
        "claims": _bodies(collection.claims),
        "environments": [dict(environment) for environment in collection.environments],
        "machines": list(collection.machine_names),
        "warnings": list(collection.warnings),
    }
    if diff is not None:
        document["baseline"] = {
            "changes": [change.to_json() for change in diff.changes],
            "gone": list(diff.gone),
        }
    return document


def json_text(collection: Collection, title: str, *, diff: Diff | None = None) -> str:
    """``report_document`` as a file's text."""
    return dump_json(report_document(collection, title, diff=diff)) + "\n"


def _bodies(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The records without what the report says once for all."""
    left_out = ("schema", "deploykit", "environment")
    return [{key: value for key, value in record.to_document().items() if key not in left_out} for record in records]


def _operators(benches: Iterable[Bench]) -> list[dict[str, Any]]:
    """The operators of the timings that list them, with the setting."""
    keys = ("model", "model_sha256", "provider", "threads", "batch", "profiled_ms", "operators", "nodes")
    timings = (timing for bench in benches for timing in _bodies([bench])[0]["results"])
    return [{key: timing[key] for key in keys} for timing in timings if timing["operators"]]


def _layers(profiles: Iterable[Profile]) -> list[dict[str, Any]]:
    """The layers of the profiles that list them."""
    bodies = _bodies(profile for profile in profiles if profile.layers)
    return [{key: body[key] for key in ("name", "sha256", "precision", "operators", "layers")} for body in bodies]


def _classes(collection: Collection) -> list[dict[str, Any]]:
    """The accuracy of each class, by model and dataset."""
    keys = ("model", "model_sha256", "dataset", "split", "dataset_digest", "provider", "crops", "per_class")
    return [
        {key: getattr(item, key) for key in keys} | {"per_class": dict(item.per_class)}
        for item in collection.accuracies
        if item.per_class
    ]


def _common(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not environments:
        return {}
    first, *others = environments
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
