"""How charts look: colours that hold on light and dark pages, symbols, axes and their units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["AXES", "PALETTE", "THEMES", "Axis", "byte_unit", "network_colors", "precision_shapes"]

# Each has a contrast of at least 3:1 against white and against the dark page (WCAG 2.2, 1.4.11); a test computes it.
PALETTE = (
    "#2f7de1",
    "#d9660d",
    "#12916a",
    "#c2419f",
    "#8a63d2",
    "#d64545",
    "#1489a3",
    "#7d8414",
    "#a0693d",
    "#6b7a90",
)
_SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_FIRST_PRECISIONS = ("fp32", "float32", "int8", "fp16", "float16", "mixed", "bf16")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def _theme(ink: str, soft: str, grid: str, background: str | None) -> dict[str, Any]:
    return {
        "background": background,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 8,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "labelOverlap": True,
        },
        "legend": {"labelColor": ink, "titleColor": soft, "labelFontSize": 12, "titleFontWeight": 500},
        "title": {"color": ink, "subtitleColor": soft, "fontSize": 14, "fontWeight": 600, "anchor": "start"},
        "text": {"color": ink},
    }


THEMES: dict[str, dict[str, Any]] = {
    "light": _theme("#1c2430", "#5a6675", "#e4e8ee", "transparent"),
    "dark": _theme("#e8edf4", "#9aa7b8", "#2a323d", "transparent"),
    "paper": _theme("#1c2430", "#5a6675", "#e4e8ee", "#ffffff"),
}


@dataclass(frozen=True)
class Axis:
    """What can stand on an axis: the title, the unit, the factor from the record's unit, and which end is better."""

    title: str
    unit: str
    factor: float = 1.0
    higher_is_better: bool = False


AXES: dict[str, Axis] = {
    "latency_ms": Axis("Latency, median", "ms"),
    "file_bytes": Axis("File size", "bytes"),
    "download_bytes": Axis("Download size", "bytes"),
    "peak_bytes": Axis("Peak memory", "bytes"),
    "macs": Axis("Multiply-accumulates", "M", 1e-6),
    "top1": Axis("Top-1 accuracy", "%", 100.0, higher_is_better=True),
    "top5": Axis("Top-5 accuracy", "%", 100.0, higher_is_better=True),
    "agreement": Axis("Agreement with the reference", "%", 100.0, higher_is_better=True),
}


def byte_unit(largest: float) -> tuple[str, float]:
    """The decimal unit that suits ``largest`` bytes, and its factor: 247,000 gives ``("KB", 1e-3)``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if largest >= size:
            return unit, 1.0 / size
    return "B", 1.0


def network_colors(networks: Iterable[str]) -> dict[str, str]:
    """One colour of the palette for each network, in alphabetical order; after ten they repeat."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(sorted(set(networks)))}


def precision_shapes(precisions: Iterable[str]) -> dict[str, str]:
    """One Vega symbol for each precision; float32 is the circle wherever it occurs."""
    rank = {name: index for index, name in enumerate(_FIRST_PRECISIONS)}
    names = sorted(set(precisions), key=lambda name: (rank.get(name, len(rank)), name))
    return {name: _SHAPES[index % len(_SHAPES)] for index, name in enumerate(names)}
