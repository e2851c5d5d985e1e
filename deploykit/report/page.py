"""The report as one HTML page that works offline: the chart library, the data and the style are in it."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit import __version__, charts
from deploykit.chart_style import THEMES, network_colors, precision_shapes
from deploykit.errors import MissingDependencyError
from deploykit.figures import byte_text, count_text, millisecond_text, percent_text, plain_text
from deploykit.report.claims import claims_tables
from deploykit.report.columns import Column, present, shared_setting
from deploykit.report.reading import Collection
from deploykit.report.rows import Row, protocol_label
from deploykit.report.summary import headlines, label_of, sentences, setting_text
from deploykit.results import Accuracy, Training

__all__ = ["html_text"]

# What a page holds at most, so that a thousand records still open at once; the table has them all.
_MAX_GROUPS = 6
_MAX_CURVES = 24
_MAX_EPOCHS = 400
_MAX_GALLERIES = 24
_MAX_PICTURES = 16
_MAX_CLASSES = 20
_MAX_LEGEND = 20
_MAX_ENVIRONMENTS = 6

_COSTS = {"latency_ms": "Accuracy × latency", "file_bytes": "Accuracy × file size", "peak_bytes": "Accuracy × memory"}
_TOOLTIP = {
    "name": "Model",
    "network": "Network",
    "precision": "Precision",
    "setting": "Setting",
    "accuracy": "Top-1",
    "latency": "Latency",
    "size": "File",
    "memory": "Peak memory",
    "warning": "Warning",
}


@dataclass
class _Drawings:
    """The charts of the page: specifications, and the rows that several of them share."""

    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, chart: Any, **data: Any) -> str:
        """Takes a chart in, with the data that the page brings for it. Returns the id of its element."""
        spec = chart.to_dict(validate=False)  # its parts were checked when they were made; the whole takes seconds
        spec.pop("config", None)  # the page has its own for each scheme
        name = f"chart-{len(self.charts)}"
        self.charts.append({"id": name, "spec": spec, **data})
        return name


def html_text(collection: Collection, title: str) -> str:
    """The page. Values are escaped; there is no address in it that a browser would load.

    Raises:
        MissingDependencyError: altair, vl-convert or jinja2 is not installed.
    """
    drawings = _Drawings()
    context = {
        "title": title,
        "version": __version__,
        "facts": _facts(collection),
        "sentences": sentences(collection.rows),
        "headlines": headlines(collection.rows),
        "label_of": label_of,
        "legend": _legend(collection.rows),
        "groups": _groups(collection.rows, drawings),
        "columns": present(collection.rows),
        "rows": _table(collection.rows),
        "setting": shared_setting(collection.rows),
        "any_notes": any(row.warnings for row in collection.rows),
        "trainings": [_training(item, drawings) for item in collection.trainings[:_MAX_CURVES]],
        "claims": claims_tables(collection.claims),
        "galleries": _galleries(collection),
        "classes": _classes(collection),
        "environments": _environments(collection.environments),
        "warnings": collection.warnings,
        "left_out": _left_out(collection),
        "library": charts.chart_library() if drawings.charts else "",
        "data": _json({"themes": THEMES, "rows": drawings.rows, "charts": drawings.charts}),
    }
    return str(_template().render(context))


def _template() -> Any:
    try:
        import jinja2
    except ImportError as problem:
        raise MissingDependencyError("jinja2", "report", "writing an HTML report") from problem
    loader = jinja2.PackageLoader("deploykit", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends or opens one (HTML standard, 4.12.1.3)."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _facts(collection: Collection) -> list[str]:
    files = len({row.sha256 or row.name for row in collection.rows})
    networks = len({row.network for row in collection.rows} | {item.network for item in collection.trainings})
    datasets = sorted({row.dataset for row in collection.rows if row.dataset})
    named = ", ".join(datasets[:4]) + (f" and {len(datasets) - 4} more" if len(datasets) > 4 else "")
    counts = ((files, "model file"), (networks, "network"), (collection.records, "record"))
    facts = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
    return [*facts, named] if named else facts


def _legend(rows: Sequence[Row]) -> dict[str, Any]:
    colors = network_colors(row.network for row in rows)
    shapes = precision_shapes(row.precision for row in rows)
    shown = dict(list(colors.items())[:_MAX_LEGEND])
    return {"colors": shown, "shapes": shapes, "more": len(colors) - len(shown), "all": colors}


def _groups(rows: Sequence[Row], drawings: _Drawings) -> list[dict[str, Any]]:
    """The charts, apart by dataset and machine, since neither accuracies nor times compare across them."""
    apart: dict[tuple[str | None, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.top1 is not None or row.latency_ms is not None:
            apart[row.dataset, row.machine].append(row)
    machines = {machine for _, machine in apart}
    found = []
    for (dataset, machine), group in sorted(apart.items(), key=lambda item: (-len(item[1]), str(item[0]))):
        heading = (dataset or "without accuracy") + (f", machine {machine + 1}" if len(machines) > 1 else "")
        if drawn := _group(group, rows, drawings):
            found.append({"heading": heading, **drawn})
        if len(found) == _MAX_GROUPS:
            break
    return found


def _group(group: Sequence[Row], rows: Sequence[Row], drawings: _Drawings) -> dict[str, Any] | None:
    batches = Counter(row.batch for row in group if row.batch is not None)
    batch = batches.most_common(1)[0][0] if batches else None
    points = [_point(row) for row in group if row.batch in (batch, None)]
    drawings.rows.append(points)
    scored = any(point["top1"] is not None for point in points)
    wanted = (
        [(x, "top1", title) for x, title in _COSTS.items()]
        if scored
        else [("latency_ms", "file_bytes", "Size × latency")]
    )
    made = []
    for x, y, title in wanted:
        if any(point[x] is not None and point[y] is not None for point in points):
            chart = charts.tradeoff_chart(
                points,
                x,
                y,
                tooltip=_TOOLTIP,
                networks={row.network for row in rows},
                precisions={row.precision for row in rows},
                legend=False,
                width="container",
                inline=False,
            )
            name = drawings.add(chart, rows=len(drawings.rows) - 1, front=charts.pareto_front(points, x, y))
            made.append({"title": title, "id": name})
    note = f"Points of batch {batch}; other batch sizes are in the table." if len(batches) > 1 else ""
    return {"charts": made, "note": note} if made else None


def _point(row: Row) -> dict[str, Any]:
    """A row as the charts have it: numbers to draw, and texts to show on hover."""
    interval = f" ({row.latency_ci_low_ms:.4g}–{row.latency_ci_high_ms:.4g})" if _has_interval(row) else ""
    return {
        "name": row.name,
        "network": row.network,
        "precision": row.precision,
        "top1": row.top1,
        "latency_ms": row.latency_ms,
        "file_bytes": row.file_bytes,
        "peak_bytes": row.peak_bytes,
        "setting": setting_text(row) or "–",
        "accuracy": percent_text(row.top1),
        "latency": millisecond_text(row.latency_ms) + interval,
        "size": byte_text(row.file_bytes),
        "memory": byte_text(row.peak_bytes),
        "warning": "; ".join(warning.text for warning in row.warnings) or "none",
    }


def _has_interval(row: Row) -> bool:
    return None not in (row.latency_ms, row.latency_ci_low_ms, row.latency_ci_high_ms)


def _table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    columns = present(rows)
    return [
        {
            "row": row,
            "cells": [_cell(row, column) for column in columns],
            "notes": list(dict.fromkeys(str(warning) for warning in row.warnings)),
        }
        for row in rows
    ]


def _cell(row: Row, column: Column) -> tuple[str, str, str]:
    """The text, the number to sort by, and the warnings that concern it."""
    value = getattr(row, column.key)
    sort_by = f"{value:.6g}" if column.numeric and value is not None else ""
    return column.text(value), sort_by, "; ".join(row.caveats(column.about)) if column.about else ""


def _training(training: Training, drawings: _Drawings) -> dict[str, Any]:
    step = max(1, math.ceil(len(training.history) / _MAX_EPOCHS))
    history = list(training.history[::-1][::step][::-1])  # the last epoch stays
    facts = {
        "Test top-1": percent_text(training.test_top1),
        "Epochs": f"{training.epochs:,}",
        "Time": f"{training.seconds:,.0f} s" if training.seconds is not None else "–",
        "Pictures/s": count_text(training.images_per_s),
        "Parameters": count_text(training.parameters),
        "Device": f"{training.device}, {training.precision}",
    }
    panels = charts.training_panels(history, width="container")
    return {
        "title": f"{training.network} on {training.dataset}",
        "facts": facts,
        "charts": [drawings.add(panel) for panel in panels],
        "warnings": training.warnings,
    }


def _labels(collection: Collection) -> dict[str, str]:
    return {row.sha256: label_of(row) for row in collection.rows if row.sha256}


def _galleries(collection: Collection) -> list[dict[str, Any]]:
    labels = _labels(collection)
    with_pictures = [item for item in collection.accuracies if item.examples]
    return [_gallery(item, labels.get(item.model_sha256, item.model)) for item in with_pictures[:_MAX_GALLERIES]]


def _gallery(accuracy: Accuracy, title: str) -> dict[str, Any]:
    examples = [
        {"item": item, "right": item.label == item.predicted, "sure": f"{100.0 * (item.probability or 0.0):.1f} %"}
        for item in accuracy.examples[:_MAX_PICTURES]
    ]
    right = sum(1 for example in examples if example["right"])
    return {"title": title, "dataset": protocol_label(accuracy), "examples": examples, "right": right}


def _classes(collection: Collection) -> list[dict[str, Any]]:
    """Per-class accuracy, one table a dataset; of many classes the hardest."""
    labels = _labels(collection)
    datasets: dict[str, dict[str, Accuracy]] = defaultdict(dict)
    for item in collection.accuracies:
        if item.per_class:
            label = labels.get(item.model_sha256, item.model)
            providers = {other.provider for other in collection.accuracies if other.model_sha256 == item.model_sha256}
            datasets[protocol_label(item)][label + (f", {item.provider}" if len(providers) > 1 else "")] = item
    return [_class_table(dataset, items) for dataset, items in sorted(datasets.items())]


def _class_table(dataset: str, items: Mapping[str, Accuracy]) -> dict[str, Any]:
    shown = dict(list(items.items())[:_MAX_GALLERIES])
    names = list(dict.fromkeys(name for item in shown.values() for name in item.per_class))
    hardest = sorted(names, key=lambda name: _mean([item.per_class.get(name) for item in shown.values()]))
    kept = names if len(names) <= _MAX_CLASSES else hardest[:_MAX_CLASSES]
    values = {label: [item.per_class.get(name) for name in kept] for label, item in shown.items()}
    worst = max((1.0 - value for row in values.values() for value in row if value is not None), default=0.0) or 1.0
    rows = [
        (label, [(percent_text(value), round((1.0 - value) / worst, 2) if value is not None else 0.0) for value in row])
        for label, row in values.items()
    ]
    cut = [f"the {len(kept)} hardest of {len(names):,} classes"] if len(kept) < len(names) else []
    cut += [f"{len(shown)} of {len(items)} models"] if len(shown) < len(items) else []
    return {"dataset": dataset, "names": kept, "rows": rows, "note": ", ".join(cut)}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.inf


def _environments(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One column an environment; the keys as the records have them."""
    shown = [_flat(environment) for environment in environments[:_MAX_ENVIRONMENTS] if environment]
    keys = list(dict.fromkeys(key for environment in shown for key in environment))
    rows = [(key.replace("_", " "), [environment.get(key, "–") for environment in shown]) for key in keys]
    return {"count": len(shown), "rows": rows}


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            texts |= {str(name): plain_text(item) for name, item in value.items()}
        elif isinstance(value, (list, tuple)):
            parts = [str(part.get("name", part)) if isinstance(part, Mapping) else str(part) for part in value]
            texts[key] = ", ".join(parts) or "none"
        else:
            is_size = key.endswith("_bytes") and isinstance(value, int)
            texts[key.removesuffix("_bytes")] = byte_text(value) if is_size else plain_text(value)
    return texts


def _left_out(collection: Collection) -> list[str]:
    """What the page does not show, so that nobody takes it for all there is."""
    pictured = sum(1 for item in collection.accuracies if item.examples)
    groups = len({(row.dataset, row.machine) for row in collection.rows if row.top1 is not None})
    counts = (
        (len(collection.trainings), _MAX_CURVES, "training curves"),
        (pictured, _MAX_GALLERIES, "models with pictures"),
        (groups, _MAX_GROUPS, "groups of charts"),
        (len(collection.environments), _MAX_ENVIRONMENTS, "environments"),
    )
    return [f"{most} of {count:,} {noun} are shown" for count, most, noun in counts if count > most]
