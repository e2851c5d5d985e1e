"""``visualize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.commands.options import (
    Channels,
    Classes,
    Json,
    NetworkOptions,
    Overwrite,
    PreprocessText,
    Shape,
    parse_network_options,
    parse_preprocess,
    parse_shape,
)
from deploykit.errors import InputError
from deploykit.figures import percent_text
from deploykit.terminal import note, print_json, print_line, progress_bar

__all__ = ["visualize"]


def visualize(
    source: Annotated[
        str, typer.Argument(help="An .onnx, a run's folder, a checkpoint, a network, or module:callable.")
    ],
    image: Annotated[Path, typer.Option("--image", help="The picture to look at.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    target: Annotated[
        str | None, typer.Option("--class", help="The class to explain, by name or number; by default the predicted.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Side of the covering square, in the network's pixels; by default a fifth.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Pixels between its positions; by default for 400 positions or fewer.")
    ] = None,
    option: NetworkOptions = None,
    classes: Classes = None,
    channels: Channels = None,
    shape: Shape = None,
    preprocess: PreprocessText = None,
    weights: Annotated[
        Path | None, typer.Option(help="A network's weights: torchvision's .pth or .safetensors, or a checkpoint.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Names of the classes of a network or module: a file with one on each line.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw a network's first kernels, its feature maps for a picture, and the regions that decide a class.

    Example: deploykit visualize runs/resnet18 --image dog.jpg -o pictures
    """
    from deploykit.data.label_file import read_labels
    from deploykit.sources import Source, open_source
    from deploykit.visualize import VisualizeOptions, visualize_network

    options = VisualizeOptions(target=target, window=window, stride=stride)
    opened: str | Source = source
    if not source.lower().endswith(".onnx"):
        opened = open_source(
            source,
            options=parse_network_options(option),
            num_classes=classes,
            in_channels=channels,
            weights=weights,
        ).described(labels=read_labels(labels) if labels else ())
    elif option or classes or channels or weights or labels:
        raise InputError(f"{source} is built already; leave out --option, --classes, --channels, --weights, --labels")
    with progress_bar() as progress:
        record = visualize_network(
            opened,
            image,
            output,
            preprocess=parse_preprocess(preprocess),
            input_shape=parse_shape(shape),
            options=options,
            overwrite=overwrite,
            progress=progress,
        )
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    print_line(f"predicted  {record.predicted}, {percent_text(record.predicted.probability)}")
    top, left, bottom, right = record.hottest
    print_line(
        f"decides    {record.asked}: covering rows {top} to {bottom - 1}, columns {left} to {right - 1} of"
        f" {record.seen_size[0]}×{record.seen_size[1]} changes {percent_text(record.asked.probability)} into"
        f" {percent_text(record.asked.probability - record.largest_drop)}"
    )
    for file in record.files:
        print_line(f"{output / file.file}  {file.shows.partition(';')[0]}")
