"""``quantize``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.commands.options import DataDir, Json, Output, Overwrite, PreprocessText, parse_preprocess
from deploykit.commands.shared_work import shared_progress, shared_work
from deploykit.figures import amount_text, byte_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table

if TYPE_CHECKING:
    from deploykit.results import Quantization

__all__ = ["quantize"]

_BAR = 24  # characters of the longest bar of the ranking
_SHOWN = 20  # layers of the ranking


def quantize(
    model: Annotated[Path, typer.Argument(help="The float .onnx.")],
    output: Output,
    calibrate: Annotated[str, typer.Option(help="Real pictures: a dataset's name, a folder or an .npz.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="int8, int8-vnni, int8-arm, int8-tensorrt, int8-openvino, int8-int4fc, fp16 or mixed; by"
            " default the target's, or int8."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Where it will run: x86, x86-vnni, arm64, web, cuda, tensorrt or openvino.")
    ] = None,
    effort: Annotated[str, typer.Option(help="Work that goes into accuracy: low, medium or high.")] = "medium",
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points of top-1 that may be lost on held-out samples; layers stay in float until it holds."),
    ] = None,
    any_speed: Annotated[
        bool,
        typer.Option("--any-speed", help="Keep the recipe's form without timing it against the float model here."),
    ] = False,
    samples: Annotated[int, typer.Option(help="Calibration samples, balanced over the classes.")] = 256,
    held_out: Annotated[int, typer.Option(help="Samples beside those, on which --max-drop is measured.")] = 512,
    split: Annotated[str, typer.Option(help="Split to calibrate on: train, test or all.")] = "train",
    seed: Annotated[int, typer.Option(help="Fixes which samples are taken.")] = 0,
    keep_float: Annotated[list[str] | None, typer.Option(help="A layer that stays in float; may be repeated.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A rewrite of the float graph to leave out; may be repeated.")
    ] = None,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Quantize a model; writes the .onnx and, beside it, the record of the comparison with the float model.

    Where the recipe's form is slower than the float model on this machine, a form that is not is taken instead, if need
    be the float model itself; a target that is not this machine is not timed.

    Example: deploykit quantize lenet5.onnx -o lenet5.int8.onnx --calibrate mnist
    """
    from deploykit import data as room
    from deploykit.artifact import Artifact
    from deploykit.files import check_writable, write_json
    from deploykit.quantize import QuantizeOptions, help_quantize, quantize_onnx

    options = QuantizeOptions(
        recipe=recipe,
        target=target,
        effort=effort,
        max_drop=None if max_drop is None else max_drop / 100,
        never_slower=not any_speed,
        samples=samples,
        held_out=held_out,
        seed=seed,
        keep_float=tuple(keep_float or ()),
        without=tuple(without or ()),
    )
    with shared_work() as ranks:
        if ranks.rank == 0:
            check_writable(output, overwrite=overwrite)
            beside = output.with_name(output.name.removesuffix(".onnx") + ".quantization.json")
            check_writable(beside, overwrite=overwrite)
        artifact = Artifact.read(model)
        dataset = room.load(calibrate, split, data_dir=data_dir, classes=len(artifact.labels) or None)
        given: dict[str, Any] = {"preprocess": parse_preprocess(preprocess), "options": options, "ranks": ranks}
        with shared_progress(ranks) as progress:
            if ranks.rank:
                help_quantize(model, calibration=dataset, progress=progress, **given)
                return
            record = quantize_onnx(model, output, calibration=dataset, overwrite=overwrite, progress=progress, **given)
        with ExitStack() as undo:  # no model without its record
            undo.callback(output.unlink, missing_ok=True)
            write_json(beside, record.to_document(), overwrite=overwrite)
            undo.pop_all()
    for warning in record.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print(output, record)


def _print(output: Path, record: Quantization) -> None:
    if record.sensitivity:
        _print_ranking(record)
    ratio = record.file_bytes / record.parent_bytes
    print_line(
        f"{output}: {byte_text(record.file_bytes)}, {ratio:.2f} of the float file; same"
        f" top-1 on {percent_text(record.agreement)} of {amount_text(record.compared_samples, 'calibration sample')}"
    )
    if record.held_out_drop is not None:
        print_line(f"top-1 lost on {record.held_out_samples} held-out samples: {percent_text(record.held_out_drop)}")
    if record.speedup is not None and not record.kept_float:
        print_line(f"latency here: {1 / record.speedup:.2f} of the float model's, one thread")


def _print_ranking(record: Quantization) -> None:
    """Each layer's harm with a bar: decibels of noise below the answers, when only that layer is rounded."""
    most = max((harm["noise"] for harm in record.sensitivity), default=0.0) or 1.0
    rows = []
    for harm in record.sensitivity[:_SHOWN]:
        bar = "█" * max(1, round(_BAR * harm["noise"] / most)) if harm["noise"] else ""
        kept = "float" if harm["layer"] in record.float_layers or record.kept_float else "int8"
        row = (harm["layer"], harm["op"], bar, kept, _decibels(harm["noise"]), percent_text(harm["agreement"]))
        rows.append((*row, percent_text(harm["cost"])))
    print_table(("layer", "op", "harm", "kept as", "SNR", "agreement", "MACs"), rows, left=4)
    if len(record.sensitivity) > _SHOWN:
        print_line(f"… and {len(record.sensitivity) - _SHOWN} layers that harm less")
    print_line()


def _decibels(noise: float) -> str:
    import math

    return f"{-10 * math.log10(noise):.1f} dB" if noise else "–"
