"""``wrap``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import (
    DataDir,
    FixedSize,
    Json,
    Outputs,
    Overwrite,
    PreprocessText,
    load_for_model,
    parse_outputs,
    parse_preprocess,
)
from deploykit.figures import percent_text
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from deploykit.wrappings import Wrapping

__all__ = ["print_wrapping", "wrap"]


def wrap(
    model: Annotated[Path, typer.Argument(help="Any .onnx with one picture input in float.")],
    output: Outputs,
    fixed_size: FixedSize = False,
    data: Annotated[str | None, typer.Option(help="Real pictures to compare on; generated ones otherwise.")] = None,
    split: Annotated[str, typer.Option(help="Split of --data: train, test, all or auto.")] = "auto",
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put preprocessing into a model, so that it takes raw pixels; written only if it answers as before.

    The new input is uint8 (N, H, W, C), C as the network has it, in the order red, green, blue. Resize, crop, layout,
    order of the channels and normalisation become standard ONNX operators.

    Example: deploykit wrap resnet18.onnx -o resnet18.pixels.onnx --output topk=5
    """
    from deploykit.artifact import Artifact
    from deploykit.files import check_writable
    from deploykit.wrap import WrapOptions, wrap_onnx

    target, topk = parse_outputs(output)
    options = WrapOptions(fixed_size=fixed_size, topk=topk)
    check_writable(target, overwrite=overwrite)
    record = wrap_onnx(
        model,
        target,
        preprocess=parse_preprocess(preprocess),
        options=options,
        samples=load_for_model(Artifact.read(model), data, split, data_dir) if data else None,
        overwrite=overwrite,
    )
    for warning in record.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        print_wrapping(target, record)


def print_wrapping(output: Path, record: Wrapping) -> None:
    """What the file takes, and how near it comes to Python."""
    shape = ", ".join(str(axis or "?") for axis in record.input_shape)
    sizes = "of any size" if record.any_size else "of this size"
    layer = "; its first layer reads them" if record.reads_pixels else ""
    print_line(f"{output}: takes pixels {sizes}, uint8 ({shape}){layer}")
    kinds = ", ".join(item.pictures for item in record.parity)
    print_line(
        f"{record.samples} pictures of {record.samples_name} ({kinds}): pixels differ by {record.max_levels} of 255 at"
        f" most, answers by {record.max_abs:.2g}, same top-1 on {percent_text(record.top1_agreement)}"
    )
