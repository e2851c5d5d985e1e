"""Charts of records: training curves, and accuracy against what it costs.

Every chart is one Vega-Lite specification (Satyanarayan et al. 2017) that serves both the interactive page and,
through vl-convert, SVG and PNG files. Nothing here reads the network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deploykit.chart_style import AXES, THEMES, Axis, byte_unit, network_colors, precision_shapes
from deploykit.errors import InputError, MissingDependencyError, UnknownNameError
from deploykit.files import write_bytes

if TYPE_CHECKING:
    import altair

__all__ = [
    "chart_library",
    "pareto_front",
    "save_chart",
    "tradeoff_chart",
    "training_curves",
    "training_panels",
    "unchecked",
]

_SERIES = {"train": "#6b7a90", "test": "#2f7de1"}
_CHART_HEIGHT = 260  # pixels
_LOG_FROM = 8.0  # a ratio of largest to smallest from which equal steps would squeeze the small ones together


def _altair() -> Any:
    try:
        import altair
    except ImportError as problem:
        raise MissingDependencyError("altair", "report", "drawing charts") from problem
    return altair


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ImportError as problem:
        raise MissingDependencyError("vl-convert-python", "report", "saving charts") from problem
    return vl_convert


@contextmanager
def unchecked() -> Iterator[None]:
    """Charts made inside are not held against Vega-Lite's schema part by part, which takes most of the time of many.

    Raises:
        MissingDependencyError: altair is not installed.
    """
    _altair()
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _axis(name: str) -> Axis:
    if name not in AXES:
        raise UnknownNameError("chart axis", name, AXES)
    return AXES[name]


def pareto_front(rows: Sequence[Mapping[str, Any]], x: str, y: str = "top1") -> list[int]:
    """Indices of the rows that no other row beats, by rising ``x``.

    A row is beaten when another is at least as good on both axes and better on one. Rows that lack a value are
    never on the front; of equal rows all are.

    Raises:
        UnknownNameError: An axis that is not in ``AXES``.
    """
    sign_x, sign_y = (-1.0 if _axis(name).higher_is_better else 1.0 for name in (x, y))
    points = [
        (sign_x * row[x], sign_y * row[y], index)
        for index, row in enumerate(rows)
        if _is_number(row.get(x)) and _is_number(row.get(y))
    ]
    front: list[tuple[float, float, int]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1] or point[:2] == front[-1][:2]:
            front.append(point)
    return sorted((index for _, _, index in front), key=lambda index: rows[index][x])


def _unit(axis: Axis, values: Sequence[float]) -> tuple[str, float]:
    return byte_unit(max(values)) if axis.unit == "bytes" else (axis.unit, axis.factor)


def _channel(alt: Any, which: Any, name: str, values: Sequence[float]) -> tuple[Any, str, float]:
    """The encoding of one axis, its title, and the factor that its values get."""
    axis = _axis(name)
    unit, factor = _unit(axis, values)
    spans = min(values) > 0 and max(values) / min(values) >= _LOG_FROM and not axis.higher_is_better
    scale = alt.Scale(type="log" if spans else "linear", zero=False, nice=False, padding=16)
    style: dict[str, Any] = {"tickCount": 5, "grid": which is alt.Y}
    if spans:  # labels at 1, 2 and 5 only: the nine of each decade collide on a phone
        leading = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
        style["labelExpr"] = f"indexof([1, 2, 5], {leading}) < 0 ? '' : format(datum.value, '~r')"
    title = f"{axis.title} ({unit})"
    return which(f"{name}_shown:Q", title=title, scale=scale, axis=alt.Axis(**style)), title, factor


def _kinds(alt: Any, colors: Mapping[str, str], shapes: Mapping[str, str], legend: bool) -> dict[str, Any]:
    """The encodings of network and precision."""
    style = alt.Legend(symbolLimit=20, symbolOpacity=1.0) if legend else None
    return {
        channel: kind(
            f"{field}:N",
            title=field.capitalize(),
            scale=alt.Scale(domain=list(table), range=list(table.values())),
            legend=style,
        )
        for channel, kind, field, table in (
            ("color", alt.Color, "network", colors),
            ("shape", alt.Shape, "precision", shapes),
        )
    }


def _outlines(alt: Any, colors: Mapping[str, str]) -> dict[str, Any]:
    """The encodings that draw unstable rows as outlines in their colour."""
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    return {
        "stroke": alt.Stroke("network:N", scale=scale, legend=None),
        "fillOpacity": alt.condition("datum.stable === false", alt.value(0.08), alt.value(1.0)),
    }


def tradeoff_chart(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str = "top1",
    *,
    title: str | None = None,
    tooltip: Mapping[str, str] | None = None,
    networks: Iterable[str] | None = None,
    precisions: Iterable[str] | None = None,
    legend: bool = True,
    width: int | str = 360,
    inline: bool = True,
) -> altair.LayerChart:
    """A scatter of what models are worth against what they cost, with the Pareto front drawn.

    Networks differ by colour, precisions by shape; points off the front are pale, and where an axis is the latency,
    rows whose ``stable`` is false are outlines.

    Args:
        rows: One mapping a model, with ``name``, ``network``, ``precision`` and the two axes; rows that lack a
            number on an axis are left out of the chart.
        x: Key of the horizontal axis, one of ``AXES``, in the record's unit.
        y: Key of the vertical axis.
        title: Heading, or None.
        tooltip: Keys of the rows to show on hover, with their titles; by default the name and both axes.
        networks: All networks of a group of charts, so that colours agree; by default those of ``rows``.
        precisions: The same for shapes.
        legend: Whether the chart has its own legends.
        width: Pixels, or ``"container"`` on a page.
        inline: Whether the rows travel in the specification. A page with several charts of the same rows brings
            them itself, as the datasets ``rows`` (all) and ``front`` (those of ``pareto_front``).

    Raises:
        MissingDependencyError: altair is not installed.
        UnknownNameError: An axis that is not in ``AXES``.
        InputError: No row has numbers on both axes.
    """
    front = [rows[index] for index in pareto_front(rows, x, y)]
    if not front:
        raise InputError(f"no row has numbers for both {x} and {y}; received {len(rows)} rows")
    drawn = [row for row in rows if _is_number(row.get(x)) and _is_number(row.get(y))]
    alt = _altair()
    across, title_x, factor_x = _channel(alt, alt.X, x, [row[x] for row in drawn])
    up, title_y, factor_y = _channel(alt, alt.Y, y, [row[y] for row in drawn])
    shown = {f"{x}_shown": f"datum['{x}'] * {factor_x!r}", f"{y}_shown": f"datum['{y}'] * {factor_y!r}"}
    colors = network_colors(networks or [row["network"] for row in drawn])
    shapes = precision_shapes(precisions or [row["precision"] for row in drawn])
    hover = tooltip or {"name": "Model", f"{x}_shown": title_x, f"{y}_shown": title_y}
    marks = {"x": across, "y": up, "tooltip": _tooltips(alt, hover)} | _kinds(alt, colors, shapes, legend)
    if "latency_ms" in (x, y) and any(row.get("stable") is False for row in drawn):
        marks |= _outlines(alt, colors)

    def base(name: str) -> Any:
        chart = alt.Chart(alt.NamedData(name)).transform_filter(f"isValid(datum['{x}']) && isValid(datum['{y}'])")
        return chart.transform_calculate(**shown)

    step = "step-before" if AXES[x].higher_is_better else "step-after"
    line = base("front").mark_line(interpolate=step, strokeDash=[4, 4], strokeWidth=1.5, color="#8592a3")
    layers = (
        line.encode(x=across, y=up),
        base("rows").mark_point(size=110, filled=True, opacity=0.5).encode(**marks),
        base("front").mark_point(size=130, filled=True, opacity=1.0).encode(**marks),
    )
    extra: dict[str, Any] = {"title": title} if title else {}
    if inline:
        extra["datasets"] = {"rows": [dict(row) for row in rows], "front": [dict(row) for row in front]}
    return cast("altair.LayerChart", alt.layer(*layers, width=width, height=_CHART_HEIGHT, **extra))


def _tooltips(alt: Any, fields: Mapping[str, str]) -> list[Any]:
    return [
        alt.Tooltip(f"{name}:Q", title=title, format=".4~g")
        if name.endswith("_shown")
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title in fields.items()
    ]


_FEW_EPOCHS = 10  # that each have a tick of their own


def _panel(history: Sequence[Mapping[str, Any]], quantity: str, width: int | str) -> Any | None:
    """One panel of curves, train and test, of ``loss`` or ``top1``; None when no epoch has such a number."""
    alt = _altair()
    factor, title = (100.0, "Accuracy (%)") if quantity == "top1" else (1.0, "Loss")
    values = [
        {"epoch": row.get("epoch", index + 1), "part": part, "value": row[f"{part}_{quantity}"] * factor}
        for index, row in enumerate(history)
        for part in _SERIES
        if _is_number(row.get(f"{part}_{quantity}"))
    ]
    if not values:
        return None
    parts = [part for part in _SERIES if any(value["part"] == part for value in values)]
    color = alt.Color(
        "part:N",
        title=None,
        scale=alt.Scale(domain=parts, range=[_SERIES[part] for part in parts]),
        legend=alt.Legend(orient="top", direction="horizontal", symbolType="stroke", symbolStrokeWidth=3, offset=4),
    )
    dots = {"size": 28, "filled": True} if len(history) <= 40 else False  # more than that run together
    epochs = sorted({value["epoch"] for value in values})
    # Vega puts ticks between a few whole numbers, tickMinStep or not.
    ticks = {"values": epochs, "format": "d"} if len(epochs) <= _FEW_EPOCHS else {"tickMinStep": 1}
    dash = alt.StrokeDash("part:N", legend=None, scale=alt.Scale(domain=list(_SERIES), range=[[5, 3], [1, 0]]))
    return (
        alt.Chart(alt.InlineData(values=values), width=width, height=_CHART_HEIGHT - 40)
        .mark_line(strokeWidth=2, point=dots)
        .encode(
            x=alt.X("epoch:Q", title="Epoch", scale=alt.Scale(nice=False), axis=alt.Axis(**ticks, grid=False)),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=color,
            strokeDash=dash,
            tooltip=[
                alt.Tooltip("part:N", title="Pictures"),
                alt.Tooltip("epoch:Q", title="Epoch"),
                alt.Tooltip("value:Q", title=title, format=".4~f"),
            ],
        )
    )


def training_panels(history: Sequence[Mapping[str, Any]], *, width: int | str = 320) -> list[Any]:
    """The panels of ``training_curves`` as charts of their own: loss, then accuracy, as far as there are numbers.

    Raises:
        MissingDependencyError: altair is not installed.
    """
    panels = (_panel(history, quantity, width) for quantity in ("loss", "top1"))
    return [panel for panel in panels if panel is not None]


def training_curves(history: Sequence[Mapping[str, Any]], title: str) -> altair.HConcatChart:
    """Loss and accuracy by epoch, training and test pictures apart.

    Args:
        history: One mapping an epoch with some of ``epoch``, ``train_loss``, ``train_top1``, ``test_loss``,
            ``test_top1`` (accuracies as fractions); epochs that lack a value leave a gap in that curve.
        title: Heading of the chart.

    Raises:
        MissingDependencyError: altair is not installed.
        InputError: No epoch has any of these numbers.
    """
    panels = training_panels(history)
    if not panels:
        raise InputError(f"no curve to draw in a history of {len(history)} epochs; expected train_loss, test_top1, …")
    return cast("altair.HConcatChart", _altair().hconcat(*panels, title=title, spacing=28))


def save_chart(chart: altair.TopLevelMixin, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Writes a chart as SVG or PNG (2 pixels a unit) by the ending of ``path``, on white, atomically.

    Raises:
        InputError: Another ending.
        MissingDependencyError: vl-convert is not installed.
        OutputError: ``path`` cannot be written.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise InputError(f"a chart is written as .svg or .png, received {str(path)!r}")
    convert, spec = _vl_convert(), chart.to_dict()
    spec["config"] = spec.get("config", {}) | THEMES["paper"] | {"padding": 12}
    if ending == ".svg":
        return write_bytes(path, convert.vegalite_to_svg(spec).encode(), overwrite=overwrite)
    return write_bytes(path, convert.vegalite_to_png(spec, scale=2), overwrite=overwrite)


@cache
def chart_library() -> str:
    """The JavaScript that draws the charts (Vega, Vega-Lite, Vega-Embed), safe inside a ``<script>`` element.

    Raises:
        MissingDependencyError: vl-convert is not installed.
    """
    # A script element ends at the first "</script", and "<!--" changes how it is read (HTML standard, 4.12.1.3).
    return str(_vl_convert().javascript_bundle()).replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
