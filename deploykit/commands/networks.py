"""``models`` and ``inspect``."""

from __future__ import annotations

from typing import Annotated

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
from deploykit.commands.profiles import print_comparison, print_layers, print_profile
from deploykit.errors import InputError
from deploykit.results import Comparison
from deploykit.terminal import count, note, print_json, print_table

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
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE [OTHER]",
            help="An .onnx, a run's folder, a checkpoint, a network, or module:callable; a second one to compare with.",
        ),
    ],
    layers: Annotated[bool, typer.Option("--layers", help="Print the paper's table, and every layer.")] = False,
    option: NetworkOptions = None,
    classes: Classes = None,
    channels: Channels = None,
    shape: Shape = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what a network, a checkpoint or any ONNX file weighs, or compare two.

    Example: deploykit inspect lenet5-1998 --layers

    Example: deploykit inspect alexnet googlenet
    """
    from deploykit.files import write_json
    from deploykit.weigh import compare, weigh

    if len(sources) > 2:
        raise InputError(f"{len(sources)} sources; allowed: one, or two to compare")
    profiles = [
        weigh(
            source,
            options=parse_network_options(option),
            num_classes=classes,
            in_channels=channels,
            input_shape=parse_shape(shape),
        )
        for source in sources
    ]
    found = compare(*profiles) if len(profiles) == 2 else profiles[0]
    if output:
        write_json(output, found.to_document(), overwrite=overwrite)
    if as_json:
        print_json(found.to_document())
        return
    if layers:
        for profile in profiles:
            print_layers(profile, titled=len(profiles) > 1)
    if isinstance(found, Comparison):
        print_comparison(found)
    else:
        print_profile(found)
    for profile in profiles:
        for warning in profile.warnings:
            note(f"warning: {profile.name}: {warning}" if len(profiles) > 1 else f"warning: {warning}")
