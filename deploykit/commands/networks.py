"""``models`` and ``inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploykit import __version__
from deploykit.commands.options import (
    Channels,
    Classes,
    Json,
    NetworkOptions,
    Overwrite,
    RecordOutput,
    Shape,
    parse_network_options,
    parse_shape,
)
from deploykit.figures import byte_text
from deploykit.terminal import count, note, print_json, print_line, print_table

if TYPE_CHECKING:
    from deploykit.results import Profile

__all__ = ["inspect", "models"]


def models(as_json: Json = False) -> None:
    """List the reference networks.

    Example: deploykit models
    """
    from deploykit import environment
    from deploykit.models import names, spec

    entries = [spec(name) for name in names()]
    if as_json:
        networks = [
            {
                "name": entry.name,
                "family": entry.family,
                "year": entry.year,
                "input": list(entry.input),
                "classes": entry.classes,
                "parameters": entry.parameters,
                "macs": entry.macs,
                "options": {name: list(values) for name, values in entry.options.items()},
                "summary": entry.summary,
            }
            for entry in entries
        ]
        head = {"schema": "deploykit.networks/1", "deploykit": __version__, "environment": environment.describe()}
        print_json(head | {"networks": networks})
        return
    rows = [
        (
            entry.name,
            entry.family,
            str(entry.year),
            "×".join(str(side) for side in entry.input),
            str(entry.classes),
            count(entry.parameters),
            count(entry.macs),
        )
        for entry in entries
    ]
    print_table(("name", "family", "year", "input", "classes", "parameters", "MACs"), rows, left=2)


def inspect(
    source: Annotated[
        str, typer.Argument(help="An .onnx, a run's folder, a checkpoint, a network, or module:callable.")
    ],
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer.")] = False,
    option: NetworkOptions = None,
    classes: Classes = None,
    channels: Channels = None,
    shape: Shape = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what a network, a checkpoint or any ONNX file weighs.

    Example: deploykit inspect lenet5-1998 --layers
    """
    from deploykit.files import write_json
    from deploykit.weigh import weigh

    profile = weigh(
        source,
        options=parse_network_options(option),
        num_classes=classes,
        in_channels=channels,
        input_shape=parse_shape(shape),
    )
    if output:
        write_json(output, profile.to_document(), overwrite=overwrite)
    if as_json:
        print_json(profile.to_document())
        return
    _print_profile(profile, layers)
    for warning in profile.warnings:
        note(f"warning: {warning}")


def _print_profile(profile: Profile, layers: bool) -> None:
    if layers:
        _print_layers(profile)
    operators = ", ".join(f"{name} {number}" for name, number in sorted(profile.operators.items()))
    rows = [
        ("name", profile.name),
        ("input", "×".join(str(side) for side in profile.input_shape) if profile.input_shape else "unknown"),
        ("parameters", count(profile.parameters)),
        ("connections", count(profile.connections)),
        ("MACs", count(profile.macs)),
        ("weights", byte_text(profile.weight_bytes)),
        ("file", byte_text(profile.file_bytes)),
        ("download (deflate)", byte_text(profile.download_bytes)),
        ("peak activations", byte_text(profile.peak_activation_bytes)),
        ("precision", profile.precision),
        ("operators", operators),
        ("opset", str(profile.opset) if profile.opset else "–"),
        ("SHA-256", profile.sha256 or "–"),
        ("made from", profile.parent_sha256 or "–"),
    ]
    rows += [(key, str(value)) for key, value in profile.metadata.items()]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        print_line(f"{key:<{width}}  {value}")


def _print_layers(profile: Profile) -> None:
    rows = [
        (
            layer.name,
            layer.op,
            "×".join(str(side) for side in layer.output_shape) if layer.output_shape is not None else "–",
            count(layer.parameters),
            count(layer.connections),
            count(layer.macs),
        )
        for layer in profile.layers
    ]
    total = ("total", "", "", count(profile.parameters), count(profile.connections), count(profile.macs))
    print_table(("layer", "operator", "output", "parameters", "connections", "MACs"), [*rows, total], left=2)
