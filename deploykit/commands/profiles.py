"""How ``inspect`` prints a profile, the paper's table, and two profiles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploykit.figures import MISSING, byte_text, percent_text
from deploykit.terminal import count, print_line, print_table

if TYPE_CHECKING:
    from deploykit.results import Comparison, LayerProfile, Profile, StageProfile

__all__ = ["print_comparison", "print_layers", "print_profile"]

_NUMBERS = ("parameters", "connections", "MACs")
_PRUNED = 0.05  # share of zeros in some layer from which on they are told: rounding alone leaves fewer


def print_profile(profile: Profile) -> None:
    """One line for each figure."""
    operators = ", ".join(f"{name} {number}" for name, number in sorted(profile.operators.items()))
    rows = [
        ("name", profile.name),
        ("input", _shape(profile.input_shape, "unknown")),
        ("parameters", count(profile.parameters)),
        ("connections", count(profile.connections)),
        ("MACs", count(profile.macs)),
        ("weights", byte_text(profile.weight_bytes)),
        ("file", byte_text(profile.file_bytes)),
        ("download (deflate)", byte_text(profile.download_bytes)),
        ("peak activations", byte_text(profile.peak_activation_bytes)),
        ("precision", profile.precision),
        ("operators", operators),
        ("opset", str(profile.opset) if profile.opset else MISSING),
        ("SHA-256", profile.sha256 or MISSING),
        ("made from", profile.parent_sha256 or MISSING),
    ]
    if profile.float_islands is not None:
        groups = "; ".join(" → ".join(group) for group in profile.float_islands)
        rows.append(("float islands", f"{len(profile.float_islands)}{f': {groups}' if groups else ''}"))
    rows += [("published", profile.published)] if profile.published else []
    rows += [(key, str(value)) for key, value in profile.metadata.items()]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        print_line(f"{key:<{width}}  {value}")


def print_layers(profile: Profile, *, titled: bool = False) -> None:
    """The table of the network's paper, then every layer where they are not the same."""
    if titled:
        print_line(profile.name)
    if profile.stages:
        _print_stages(profile)
        print_line()
    if len(profile.stages) < len(profile.layers):
        _print_rows("layer", "operator", profile.layers, profile)
        print_line()


def _print_stages(profile: Profile) -> None:
    if not any(stage.published for stage in profile.stages):
        _print_rows("layer", "type", profile.stages, profile)
        return
    rows = [
        (
            *(stage.name, stage.op, _shape(stage.output_shape)),
            *(count(stage.parameters), count(stage.connections), count(stage.macs)),
            *((f"{stage.parameters / 1024:,.1f}K", f"{stage.macs / 1e6:,.1f}M") if stage.macs else ("", "")),
            stage.published or "",
        )
        for stage in profile.stages
    ]
    total = ("total", "", "", *_totals(profile), "", "", "")
    columns = ("layer", "type", "output", *_NUMBERS, "params", "ops", "published")
    print_table(columns, [*rows, total], left=2)


def _print_rows(name: str, op: str, rows: Sequence[LayerProfile] | Sequence[StageProfile], profile: Profile) -> None:
    """Rows of layers or stages, with their precisions where they are not all plain floats, and zeros where some are."""
    told = {row.precision for row in rows} - {None} != {"fp32"}
    precision = ("precision",) if told else ()
    pruned = any((layer.zeros or 0.0) >= _PRUNED for layer in profile.layers)
    table = [
        (
            *(row.name, row.op),
            *((row.precision or MISSING,) if told else ()),
            _shape(row.output_shape),
            *(count(row.parameters), count(row.connections), count(row.macs)),
            *((_zeros(row, profile),) if pruned else ()),
        )
        for row in rows
    ]
    total = ("total", "", *(("",) if told else ()), "", *_totals(profile), *(("",) if pruned else ()))
    columns = (name, op, *precision, "output", *_NUMBERS, *(("zeros",) if pruned else ()))
    print_table(columns, [*table, total], left=2 + told)


def _zeros(row: LayerProfile | StageProfile, profile: Profile) -> str:
    """Share of the weights that are zero, of a stage by how many weights each of its layers has."""
    names = getattr(row, "layers", (row.name,))
    layers = [layer for layer in profile.layers if layer.name in names and layer.zeros is not None]
    weights = sum(layer.parameters for layer in layers)
    return percent_text(sum((layer.zeros or 0.0) * layer.parameters for layer in layers) / weights) if weights else ""


def _totals(profile: Profile) -> tuple[str, str, str]:
    return count(profile.parameters), count(profile.connections), count(profile.macs)


def print_comparison(found: Comparison) -> None:
    """Both columns with A's figure over B's, then the rows that differ."""
    a, b = found.a, found.b
    counts, sizes = ("parameters", "connections", "macs"), [key for key in found.ratios if key.endswith("_bytes")]
    rows = [("input", _shape(a.input_shape, "unknown"), _shape(b.input_shape, "unknown"), "")]
    rows += [("precision", a.precision, b.precision, "")]
    rows += [(_LABELS[key], count(getattr(a, key)), count(getattr(b, key)), _ratio(found, key)) for key in counts]
    rows += [
        (_LABELS[key], byte_text(getattr(a, key)), byte_text(getattr(b, key)), _ratio(found, key)) for key in sizes
    ]
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (A)", f"{b.name} (B)")
    print_table(("", *names, "ratio"), rows)
    if found.same_rows:
        print_line()
        _print_differences(found)


_LABELS = {
    "parameters": "parameters",
    "connections": "connections",
    "macs": "MACs",
    "weight_bytes": "weights",
    "file_bytes": "file",
    "download_bytes": "download (deflate)",
    "peak_activation_bytes": "peak activations",
}


def _ratio(found: Comparison, key: str) -> str:
    """Three significant digits at least: 8.71×, 0.115×, 1,234×."""
    ratio = found.ratios[key]
    if ratio is None:
        return MISSING
    return f"{ratio:,.0f}×" if ratio >= 1000 else f"{ratio:.2f}×" if ratio >= 1 else f"{ratio:.3g}×"


def _print_differences(found: Comparison) -> None:
    if not found.differences:
        print_line("the same layers")
        return
    rows = [
        (
            difference.name,
            *(
                f"{_shape(row.output_shape)}{f' {row.precision}' if row.precision else ''}"
                for row in (difference.a, difference.b)
            ),
            *(count(row.parameters) for row in (difference.a, difference.b)),
            *(count(row.macs) for row in (difference.a, difference.b)),
        )
        for difference in found.differences
    ]
    columns = ("differs", "output A", "output B", "parameters A", "parameters B", "MACs A", "MACs B")
    print_table(columns, rows)


def _shape(shape: tuple[int, ...] | None, unknown: str = MISSING) -> str:
    return unknown if shape is None else "×".join(map(str, shape))
