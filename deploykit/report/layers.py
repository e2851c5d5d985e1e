"""The per-layer views: what each layer weighs, how much integers in it harm, and what a compression took away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deploykit.figures import MISSING, byte_text, count_text, percent_text, plain_text
from deploykit.report.panels import Cell, Panel, Section, bar, file_names, heaviest, network_names, section
from deploykit.report.rows import Row
from deploykit.results import Compression, LayerProfile, Profile, Quantization

__all__ = ["compression_section", "harm_section", "layer_section"]

_MOST_LAYERS = 160  # of one network on a page; DenseNet-264 has more
_MOST_HARMS = 40
_MOST_OPERATORS = 8
_MANY_ZEROS = 0.1  # of weights: what rounding to integers gives by itself is less


def layer_section(profiles: Iterable[Profile], rows: Sequence[Row]) -> Section | None:
    """A panel for each profile that lists layers."""
    networks, names = network_names(rows), file_names(rows)
    order = {sha256: place for place, sha256 in enumerate(names)}
    found = {profile.sha256 or profile.name: profile for profile in profiles if profile.layers}
    ranked = sorted(found.values(), key=lambda profile: order.get(profile.sha256, len(order)))
    return section(
        "Layer by layer",
        "Parameters and multiply-accumulates of each layer, for one picture; bars compare within a model.",
        [(networks.get(profile.sha256, profile.name), profile) for profile in ranked],
        lambda profile: _layer_panel(profile, names.get(profile.sha256, profile.name)),
        noun="models by layer",
    )


def _layer_panel(profile: Profile, title: str) -> Panel:
    layers = profile.layers
    shown = [layers[place] for place in heaviest([layer.macs + layer.parameters for layer in layers], _MOST_LAYERS)]
    zeros = any((layer.zeros or 0.0) >= _MANY_ZEROS for layer in layers)
    columns = (("Layer", False), ("Operator", False), ("Output", True), ("Parameters", True), ("MACs", True))
    largest = max(layer.parameters for layer in layers), max(layer.macs for layer in layers)
    return Panel(
        title,
        f"{len(layers):,} layers, {count_text(profile.parameters)} parameters, {count_text(profile.macs)} MACs",
        (*columns, ("Precision", False), *([("Zeros", True)] if zeros else [])),
        tuple(_layer_cells(layer, *largest, zeros=zeros) for layer in shown),
        _layer_notes(profile, len(layers) - len(shown)),
    )


def _layer_cells(layer: LayerProfile, parameters: int, macs: int, *, zeros: bool) -> tuple[Cell, ...]:
    shape = " × ".join(map(str, layer.output_shape)) if layer.output_shape else MISSING
    cells = (
        Cell(layer.name),
        Cell(layer.op),
        Cell(shape),
        bar(count_text(layer.parameters), layer.parameters, parameters) if layer.parameters else Cell(MISSING),
        bar(count_text(layer.macs), layer.macs, macs) if layer.macs else Cell(MISSING),
        Cell(plain_text(layer.precision)),
    )
    return (*cells, bar(percent_text(layer.zeros), layer.zeros, 1.0)) if zeros else cells


def _layer_notes(profile: Profile, left_out: int) -> tuple[str, ...]:
    kinds = sorted(profile.operators.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {count:,}" for name, count in kinds[:_MOST_OPERATORS])
    more = f" and {len(kinds) - _MOST_OPERATORS} more kinds" if len(kinds) > _MOST_OPERATORS else ""
    islands = "; ".join(", ".join(island) for island in profile.float_islands or ())
    notes = (
        f"Operators: {named}{more}." if kinds else "",
        f"Computed in float between integers: {islands}." if islands else "",
        f"{left_out:,} layers with the fewest parameters and MACs are left out." if left_out else "",
    )
    return tuple(note for note in notes if note)


def harm_section(quantizations: Iterable[Quantization], rows: Sequence[Row]) -> Section | None:
    """A panel for each quantization that ranked the layers, the worst layer first."""
    networks, names = network_names(rows), file_names(rows)
    ranked = {record.model_sha256: record for record in quantizations if record.sensitivity}
    return section(
        "Which layers integers hurt",
        "Each layer rounded alone, all others in float: the power of the difference over that of the answers.",
        [(networks.get(record.model_sha256, record.model), record) for record in ranked.values()],
        lambda record: _harm_panel(record, names.get(record.model_sha256, record.model)),
        noun="rankings of layers",
    )


def _harm_panel(record: Quantization, title: str) -> Panel:
    harms = sorted(record.sensitivity, key=lambda harm: -_number(harm, "noise"))
    worst = _number(harms[0], "noise")
    kept = set(record.float_layers)
    columns = (("Layer", False), ("Operator", False), ("Noise", True), ("Agreement", True), ("MACs", True))
    rows = tuple(
        (
            Cell(plain_text(harm.get("layer"))),
            Cell(plain_text(harm.get("op"))),
            bar(f"{_number(harm, 'noise'):.2g}", _number(harm, "noise"), worst),
            Cell(percent_text(harm.get("agreement"))),
            Cell(f"{100.0 * _number(harm, 'cost'):.1f} %"),
            Cell("float", tone="good")
            if record.kept_float or harm.get("layer") in kept
            else Cell("integers", tone="soft"),
        )
        for harm in harms[:_MOST_HARMS]
    )
    more = len(harms) - _MOST_HARMS
    notes = (f"{more:,} layers with less noise are left out.",) if more > 0 else ()
    return Panel(title, _budget(record), (*columns, ("Kept in", False)), rows, notes)


def _budget(record: Quantization) -> str:
    """What the recipe came to: ``recipe mixed, 2 layers in float, 0.39 points of top-1 lost on 512 held-out …``."""
    count = len(record.float_layers)
    left = "all" if record.kept_float else f"{count:,}"
    parts = [f"recipe {record.recipe}", f"{left} layer{'' if count == 1 and not record.kept_float else 's'} in float"]
    if record.held_out_drop is not None:
        points = 100.0 * record.held_out_drop
        change = f"{points:.2f} points of top-1 lost" if points >= 0 else f"{-points:.2f} points of top-1 gained"
        parts.append(f"{change} on {record.held_out_samples:,} held-out samples")
    return ", ".join(parts + (["as no integer form met what was asked"] if record.kept_float else []))


def _number(harm: Mapping[str, object], key: str) -> float:
    value = harm.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def compression_section(compressions: Iterable[Compression]) -> Section | None:
    """A panel for each compression: the zeros of each pruned layer, or what the rank of each matrix saves."""
    return section(
        "What compression took away",
        "Zeros of the weights, or multiply-accumulates that are left of a matrix.",
        [(record.model, record) for record in compressions if record.pruned or record.factored],
        lambda record: _pruned(record) if record.pruned else _factored(record),
        noun="compressions",
    )


def _size(record: Compression) -> str:
    size = f"download {byte_text(record.parent_download_bytes)} → {byte_text(record.download_bytes)}"
    if record.top1 is None or record.top1_before is None:
        return size
    return f"{size}, top-1 {percent_text(record.top1_before)} → {percent_text(record.top1)}"


def _pruned(record: Compression) -> Panel:
    columns = (("Layer", False), ("Operator", False), ("Weights", True), ("Zeros", True))
    rows = tuple(
        (
            Cell(layer.name),
            Cell(layer.op),
            Cell(count_text(layer.weights)),
            bar(percent_text(layer.zeros / max(1, layer.weights)), layer.zeros, layer.weights),
        )
        for layer in record.pruned[:_MOST_LAYERS]
    )
    return Panel(record.model, f"pruned, {_size(record)}", columns, rows)


def _factored(record: Compression) -> Panel:
    columns = (("Layer", False), ("Matrix", True), ("Rank", True), ("Energy kept", True), ("MACs left", True))
    rows = tuple(
        (
            Cell(layer.name),
            Cell(f"{layer.outputs:,} × {layer.inputs:,}"),
            Cell(f"{layer.rank:,}"),
            Cell(percent_text(layer.energy)),
            bar(percent_text(layer.macs_after / max(1, layer.macs_before)), layer.macs_after, layer.macs_before),
        )
        for layer in record.factored[:_MOST_LAYERS]
    )
    return Panel(record.model, f"low rank, {_size(record)}", columns, rows)
