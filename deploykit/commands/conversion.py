"""``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.commands.options import (
    Channels,
    Classes,
    DataDir,
    Json,
    NetworkOptions,
    Output,
    Overwrite,
    PreprocessText,
    Shape,
    parse_network_options,
    parse_preprocess,
    parse_shape,
)
from deploykit.figures import byte_text
from deploykit.terminal import note, print_json, print_line

__all__ = ["export"]


def export(
    source: Annotated[str, typer.Argument(help="A run's folder, a checkpoint, a network, or package.module:callable.")],
    output: Output,
    data: Annotated[str | None, typer.Option(help="Real pictures for the parity check.")] = None,
    data_dir: DataDir = None,
    option: NetworkOptions = None,
    weights: Annotated[
        Path | None, typer.Option(help="A network's weights: torchvision's .pth or .safetensors, or a checkpoint.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line or a JSON list, where they are not known.")
    ] = None,
    classes: Classes = None,
    channels: Channels = None,
    shape: Shape = None,
    preprocess: PreprocessText = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    atol: Annotated[float, typer.Option(help="Absolute tolerance of the parity check.")] = 1e-4,
    rtol: Annotated[float, typer.Option(help="Relative tolerance of the parity check.")] = 1e-4,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export to ONNX; the file is written only if ONNX Runtime computes what PyTorch computes.

    Example: deploykit export runs/lenet5 -o lenet5.onnx

    Pretrained: deploykit export resnet18 --weights resnet18-f37072fd.pth -o resnet18.onnx
    """
    from deploykit.data.label_file import read_labels
    from deploykit.export import ExportOptions, export_onnx
    from deploykit.files import check_writable
    from deploykit.sources import example_inputs, open_source
    from deploykit.weigh import weigh

    options = ExportOptions(opset=opset, atol=atol, rtol=rtol)
    check_writable(output, overwrite=overwrite)
    names = read_labels(labels) if labels else ()
    opened = open_source(
        source, options=parse_network_options(option), num_classes=classes, in_channels=channels, weights=weights
    ).described(input_shape=parse_shape(shape), preprocess=parse_preprocess(preprocess), labels=names)
    for remark in opened.notes:
        note(remark)
    example, pictures = example_inputs(opened, data, data_dir=data_dir)
    artifact = export_onnx(
        opened.module,
        output,
        example=example,
        card=opened.card,
        options=options,
        pictures=pictures,
        overwrite=overwrite,
    )
    if as_json:
        print_json(weigh(output).to_document())
        return
    parity = artifact.parity or {}
    print_line(
        f"{output}: {byte_text(artifact.file_bytes)}, opset {artifact.opset}; equals PyTorch within"
        f" {parity['max_abs']:.2g} on {parity['samples']} pictures of {parity['pictures']}"
    )
