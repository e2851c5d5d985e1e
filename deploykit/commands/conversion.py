"""``export``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import (
    Channels,
    Classes,
    DataDir,
    FixedSize,
    Json,
    NetworkOptions,
    Outputs,
    Overwrite,
    PreprocessText,
    Shape,
    parse_network_options,
    parse_outputs,
    parse_preprocess,
    parse_shape,
)
from deploykit.commands.wrap import print_wrapping
from deploykit.errors import InputError
from deploykit.figures import byte_text
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from deploykit.wrap import WrapOptions

__all__ = ["export"]


def export(
    source: Annotated[str, typer.Argument(help="A run's folder, a checkpoint, a network, or package.module:callable.")],
    output: Outputs,
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
    input_type: Annotated[
        str, typer.Option("--input", help="float32, or uint8: raw pixels, with preprocessing in the graph.")
    ] = "float32",
    fixed_size: FixedSize = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export to ONNX; the file is written only if ONNX Runtime computes what PyTorch computes.

    Example: deploykit export runs/lenet5 -o lenet5.onnx

    Pretrained: deploykit export resnet18 --weights resnet18-f37072fd.pth -o resnet18.onnx

    Takes pixels: deploykit export runs/lenet5 -o lenet5.onnx --input uint8 --output topk=5
    """
    from deploykit.data.label_file import read_labels
    from deploykit.export import ExportOptions, export_onnx
    from deploykit.files import check_writable
    from deploykit.sources import example_inputs, example_pictures, open_source
    from deploykit.weigh import weigh
    from deploykit.wrap import wrap_onnx

    options, (target, topk) = ExportOptions(opset=opset, atol=atol, rtol=rtol), parse_outputs(output)
    pixels = _pixel_options(input_type, fixed_size, topk)
    check_writable(target, overwrite=overwrite)
    names = read_labels(labels) if labels else ()
    opened = open_source(
        source, options=parse_network_options(option), num_classes=classes, in_channels=channels, weights=weights
    ).described(input_shape=parse_shape(shape), preprocess=parse_preprocess(preprocess), labels=names)
    for remark in opened.notes:
        note(remark)
    example, pictures = example_inputs(opened, data, data_dir=data_dir)
    wrapping = None
    with TemporaryDirectory(prefix="deploykit-") as folder:
        bare = target if pixels is None else Path(folder) / "model.onnx"
        artifact = export_onnx(
            opened.module,
            bare,
            example=example,
            card=opened.card,
            options=options,
            pictures=pictures,
            overwrite=overwrite,
        )
        if pixels is not None:
            shown = example_pictures(opened, data, data_dir=data_dir)
            wrapping = wrap_onnx(bare, target, options=pixels, samples=shown, passing=True, overwrite=overwrite)
    if as_json:
        print_json(weigh(target).to_document())
        return
    parity, size = artifact.parity or {}, artifact.file_bytes if wrapping is None else wrapping.file_bytes
    print_line(
        f"{target}: {byte_text(size)}, opset {artifact.opset}; equals PyTorch within"
        f" {parity['max_abs']:.2g} on {parity['samples']} pictures of {parity['pictures']}"
    )
    if wrapping is not None:
        print_wrapping(target, wrapping)


def _pixel_options(input_type: str, fixed_size: bool, topk: int | None) -> WrapOptions | None:
    """How the graph prepares pictures; None where it takes what Python has prepared. Raises: InputError."""
    from deploykit.wrap import WrapOptions

    if input_type not in ("float32", "uint8"):
        raise InputError(f"--input {input_type}; allowed: float32, uint8")
    if input_type == "uint8":
        return WrapOptions(fixed_size=fixed_size, topk=topk)
    if fixed_size or topk is not None:
        given = "--fixed-size" if fixed_size else f"--output topk={topk}"
        raise InputError(f"{given} with --input float32; allowed: with --input uint8")
    return None
