"""``export`` and ``quantize``."""

from __future__ import annotations

from contextlib import ExitStack
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
from deploykit.figures import byte_text, percent_text
from deploykit.terminal import note, print_json, print_line, progress_bar

__all__ = ["export", "quantize"]


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


def quantize(
    model: Annotated[Path, typer.Argument(help="The float .onnx.")],
    output: Output,
    calibrate: Annotated[str, typer.Option(help="Real pictures: a dataset's name, a folder or an .npz.")],
    recipe: Annotated[str, typer.Option(help="int8.")] = "int8",
    samples: Annotated[int, typer.Option(help="Calibration samples, balanced over the classes.")] = 256,
    split: Annotated[str, typer.Option(help="Split to calibrate on: train, test or all.")] = "train",
    seed: Annotated[int, typer.Option(help="Fixes which samples are taken.")] = 0,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Quantize a model; writes the .onnx and, beside it, the record of the comparison with the float model.

    Example: deploykit quantize lenet5.onnx -o lenet5.int8.onnx --calibrate mnist
    """
    from deploykit import data as room
    from deploykit.artifact import Artifact
    from deploykit.files import check_writable, write_json
    from deploykit.quantize import QuantizeOptions, quantize_onnx

    options = QuantizeOptions(recipe=recipe, samples=samples, seed=seed)
    beside = output.with_name(output.name.removesuffix(".onnx") + ".quantization.json")
    for target in (output, beside):
        check_writable(target, overwrite=overwrite)
    artifact = Artifact.read(model)
    dataset = room.load(calibrate, split, data_dir=data_dir, classes=len(artifact.labels) or None)
    with progress_bar() as progress:
        record = quantize_onnx(
            model,
            output,
            calibration=dataset,
            preprocess=parse_preprocess(preprocess),
            options=options,
            overwrite=overwrite,
            progress=progress,
        )
    with ExitStack() as undo:  # no model without its record
        undo.callback(output.unlink, missing_ok=True)
        write_json(beside, record.to_document(), overwrite=overwrite)
        undo.pop_all()
    for warning in record.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    ratio = record.file_bytes / record.parent_bytes
    print_line(
        f"{output}: {byte_text(record.file_bytes)}, {ratio:.2f} of the float file; same"
        f" top-1 on {percent_text(record.agreement)} of {record.compared_samples} calibration samples"
    )
