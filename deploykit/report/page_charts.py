"""The charts of the page: accuracy against its costs with the Pareto front, and training curves."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit import charts
from deploykit.chart_style import network_colors, precision_shapes
from deploykit.figures import byte_text, count_text, millisecond_text, percent_text
from deploykit.report.rows import Row
from deploykit.report.summary import setting_text
from deploykit.results import Training

__all__ = ["MOST_GROUPS", "Drawings", "group_key", "legend", "tradeoff_groups", "training_run"]

MOST_GROUPS = 6
_MAX_EPOCHS = 400
_MAX_LEGEND = 20
_COSTS = {"latency_ms": "Accuracy × latency", "file_bytes": "Accuracy × file size", "peak_bytes": "Accuracy × memory"}
_TOOLTIP = {
    "name": "Model",
    "network": "Network",
    "precision": "Precision",
    "setting": "Setting",
    "accuracy": "Top-1",
    "latency": "Latency",
    "stability": "Timing",
    "memory": "Peak memory",
    "size": "File",
    "warning": "Warning",
}


@dataclass
class Drawings:
    """The charts of the page: specifications, and the rows that several of them share."""

    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def tradeoff(
        self,
        points: list[dict[str, Any]],
        axes: tuple[str, str],
        tooltip: Mapping[str, str],
        networks: Iterable[str],
        precisions: Iterable[str],
    ) -> str:
        """Draws points against two axes, with their Pareto front. Returns the id of the chart's element."""
        if not any(shared is points for shared in self.rows):
            self.rows.append(points)
        place = next(place for place, shared in enumerate(self.rows) if shared is points)
        with charts.unchecked():
            chart = charts.tradeoff_chart(
                points,
                *axes,
                tooltip=tooltip,
                networks=networks,
                precisions=precisions,
                legend=False,
                width="container",
                inline=False,
            )
        return self.add(chart, rows=place, front=charts.pareto_front(points, *axes))

    def add(self, chart: Any, **data: Any) -> str:
        """Takes a chart in, with the data that the page brings for it. Returns the id of its element."""
        spec = chart.to_dict(validate=False)
        spec.pop("config", None)  # the page has its own for each scheme
        name = f"chart-{len(self.charts)}"
        self.charts.append({"id": name, "spec": spec, **data})
        return name


def legend(rows: Sequence[Row]) -> dict[str, Any]:
    """The colours of the networks and the symbols of the precisions, and whether a timing is unstable."""
    colors = network_colors(row.network for row in rows)
    shapes = precision_shapes(row.precision for row in rows)
    shown = dict(list(colors.items())[:_MAX_LEGEND])
    unstable = any(row.stable is False for row in rows)
    return {"colors": shown, "shapes": shapes, "more": len(colors) - len(shown), "all": colors, "unstable": unstable}


def group_key(row: Row) -> tuple[str | None, str | None, int, str | None]:
    """What a chart's points have in common: neither accuracies nor times compare across it."""
    return row.dataset, row.dataset_digest, row.machine, row.onnxruntime


def tradeoff_groups(rows: Sequence[Row], drawings: Drawings) -> list[dict[str, Any]]:
    """The charts of each dataset, machine and version of the runtime; the groups with most points first."""
    apart: dict[tuple[str | None, str | None, int, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row.top1 is not None or row.latency_ms is not None:
            apart[group_key(row)].append(row)
    machines, versions = {key[2] for key in apart}, {key[3] for key in apart}
    found = []
    for key, group in sorted(apart.items(), key=lambda item: (-len(item[1]), str(item[0]))):
        heading = key[0] or "without accuracy"
        heading += f", machine {key[2] + 1}: {group[0].machine_name}" if len(machines) > 1 else ""
        heading += f", ONNX Runtime {key[3] or 'of unknown version'}" if len(versions) > 1 else ""
        if drawn := _group(group, rows, drawings):
            found.append({"heading": heading, **drawn})
        if len(found) == MOST_GROUPS:
            break
    return found


def _group(group: Sequence[Row], rows: Sequence[Row], drawings: Drawings) -> dict[str, Any] | None:
    batches = Counter(row.batch for row in group if row.batch is not None)
    batch = batches.most_common(1)[0][0] if batches else None
    points = [_point(row) for row in group if row.batch in (batch, None)]
    networks, precisions = {row.network for row in rows}, {row.precision for row in rows}
    if any(point["top1"] is not None for point in points):
        wanted = [(x, "top1", title) for x, title in _COSTS.items()]
    else:
        wanted = [("latency_ms", "file_bytes", "Size × latency"), ("latency_ms", "peak_bytes", "Memory × latency")]
    made = []
    for x, y, title in wanted:
        if any(point[x] is not None and point[y] is not None for point in points):
            name = drawings.tradeoff(points, (x, y), _TOOLTIP, networks, precisions)
            made.append({"title": title, "id": name})
    note = f"Points of batch {batch}; other batch sizes are in the table." if len(batches) > 1 else ""
    return {"charts": made, "note": note} if made else None


def _point(row: Row) -> dict[str, Any]:
    """A row as the charts have it: numbers to draw, and texts to show on hover."""
    setting = [setting_text(row)] + (["batch 1"] if row.batch == 1 else [])
    return {
        "name": row.name,
        "network": row.network,
        "precision": row.precision,
        "stable": row.stable,
        "top1": row.top1,
        "latency_ms": row.latency_ms,
        "file_bytes": row.file_bytes,
        "peak_bytes": row.peak_bytes,
        "setting": ", ".join(filter(None, setting)) or "–",
        "accuracy": percent_text(row.top1),
        "latency": millisecond_text(row.latency_ms) + _interval(row),
        "stability": {True: "stable", False: "unstable", None: "–"}[row.stable],
        "size": byte_text(row.file_bytes),
        "memory": byte_text(row.peak_bytes),
        "warning": "; ".join(warning.text for warning in row.warnings) or "none",
    }


def _interval(row: Row) -> str:
    if row.latency_ms is None or row.latency_ci_low_ms is None or row.latency_ci_high_ms is None:
        return ""
    return f" ({row.latency_ci_low_ms:.4g}–{row.latency_ci_high_ms:.4g})"


def training_run(training: Training, drawings: Drawings) -> dict[str, Any]:
    """A training: its figures and its curves."""
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
    with charts.unchecked():
        panels = charts.training_panels(history, width="container")
    return {
        "title": f"{training.network} on {training.dataset}",
        "facts": facts,
        "charts": [drawings.add(panel) for panel in panels],
        "warnings": training.warnings,
    }
