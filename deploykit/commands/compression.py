"""``compress``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.commands.options import (
    DataDir,
    Json,
    Overwrite,
    PreprocessText,
    Threads,
    load_for_model,
    parse_preprocess,
)
from deploykit.errors import InputError
from deploykit.figures import byte_text, percent_text
from deploykit.terminal import count, note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.results import Compression

__all__ = ["compress", "parse_rank", "parse_shares"]


def compress(
    source: Annotated[str, typer.Argument(help="A run's folder or a checkpoint to prune; an .onnx for --rank.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder, or with --rank the .onnx, to write.")],
    prune: Annotated[
        float | None, typer.Option(help="Share of the weights of every fully connected layer that become zero.")
    ] = None,
    prune_layer: Annotated[
        list[str] | None, typer.Option(help="Another share for one layer, such as conv2=0.8; may be repeated.")
    ] = None,
    finetune: Annotated[int | None, typer.Option(help="Epochs of training in which the zeros stay zero.")] = None,
    rank: Annotated[
        str | None, typer.Option(help="Low rank: 256, or the share of the squared singular values to keep, as 0.95.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Pictures to fine-tune on; with --rank, to measure both files on.")
    ] = None,
    data_dir: DataDir = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the fine-tuning.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes the order and the augmentation.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Threads = None,
    preprocess: PreprocessText = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete epoch.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a model smaller: zeros that shrink the download, or thin matrices that also run faster.

    Example: deploykit compress runs/lenet5 -o runs/pruned --prune 0.9 --finetune 5 --data mnist

    Example: deploykit compress vgg16.onnx -o thin.onnx --rank 0.95
    """
    pruning = prune is not None or bool(prune_layer)
    _check_asked(source, pruning, finetune, rank, data)
    if pruning:
        how: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
        how |= {"device": device, "threads": threads}
        shares = parse_shares(prune_layer)
        record = _prune(
            source, output, prune, shares, finetune, data, data_dir, how, resume=resume, overwrite=overwrite
        )
        written = output / record.model
    else:
        record = _factorize(source, output, parse_rank(str(rank)), data, data_dir, preprocess, threads, overwrite)
        written = output
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    _print_layers(record)
    _print_sizes(record, written)


def _check_asked(source: str, pruning: bool, finetune: int | None, rank: str | None, data: str | None) -> None:
    is_onnx = source.lower().endswith(".onnx")
    if not pruning and rank is None:
        raise InputError("nothing to do; give --prune 0.9 for a run or checkpoint, or --rank 0.95 for an .onnx")
    if pruning and rank is not None:
        raise InputError("--prune and --rank together; prune the checkpoint, export it, then give the .onnx to --rank")
    if pruning and is_onnx:
        raise InputError(f"--prune with {source}; allowed: a run's folder or a checkpoint, which can be fine-tuned")
    if rank is not None and not is_onnx:
        raise InputError(f"--rank with {source}; allowed: an .onnx; export it first")
    if finetune is not None and rank is not None:
        raise InputError("--finetune with --rank; it is for --prune")
    if finetune is not None and finetune < 1:
        raise InputError(f"--finetune {finetune}; allowed: 1 epoch or more")
    if finetune is not None and data is None:
        raise InputError("--finetune without --data; give the pictures that the network was trained on")
    if pruning and finetune is None and data is not None:
        raise InputError("--data without --finetune; give the number of epochs, such as --finetune 5")


def parse_shares(texts: list[str] | None) -> dict[str, float]:
    """``["conv2=0.8"]`` as a dict. Raises: InputError."""
    shares: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            shares[name] = float(value)
        except ValueError as problem:
            raise InputError(f"--prune-layer {text!r}; expected NAME=SHARE, such as conv2=0.8") from problem
    return shares


def parse_rank(text: str) -> float:
    """``256`` as a rank, ``0.95`` as a share. Raises: InputError."""
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as problem:
        raise InputError(
            f"--rank {text!r}; allowed: a whole number, or a share of the energy such as 0.95"
        ) from problem


def _prune(
    source: str,
    output: Path,
    share: float | None,
    layers: dict[str, float],
    epochs: int | None,
    data: str | None,
    data_dir: Path | None,
    how: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> Compression:
    from deploykit import data as room
    from deploykit.checkpoint import read_checkpoint
    from deploykit.prune import PruneOptions, prune_checkpoint, tuning_options
    from deploykit.sources import checkpoint_path

    options = PruneOptions(share, layers)
    train, test, tuning = None, None, None
    if epochs is not None and data is not None:
        path = checkpoint_path(source)
        classes = read_checkpoint(path).num_classes if path else None
        train, test = (room.load(data, split, data_dir=data_dir, classes=classes) for split in ("train", "test"))
        tuning = tuning_options(source, train.name, epochs, **how)
    with progress_bar() as progress:
        return prune_checkpoint(
            source,
            output,
            options,
            tuning=tuning,
            train=train,
            test=test,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )


def _factorize(
    source: str,
    output: Path,
    rank: float,
    data: str | None,
    data_dir: Path | None,
    preprocess: str | None,
    threads: int | None,
    overwrite: bool,
) -> Compression:
    from deploykit.artifact import Artifact
    from deploykit.factorize import FactorizeOptions, factorize_onnx
    from deploykit.files import check_writable, write_json

    options = FactorizeOptions(rank, threads)
    check_writable(output, overwrite=overwrite)
    beside = output.with_name(output.name.removesuffix(".onnx") + ".compression.json")
    check_writable(beside, overwrite=overwrite)
    pictures = load_for_model(Artifact.read(source), data, "auto", data_dir) if data else None
    given = parse_preprocess(preprocess)
    with progress_bar() as progress:
        record = factorize_onnx(
            source, output, options=options, data=pictures, preprocess=given, overwrite=overwrite, progress=progress
        )
    with ExitStack() as undo:  # no model without its record
        undo.callback(output.unlink, missing_ok=True)
        write_json(beside, record.to_document(), overwrite=overwrite)
        undo.pop_all()
    return record


def _print_layers(record: Compression) -> None:
    pruned = [
        (layer.name, layer.op, count(layer.weights), count(layer.zeros), percent_text(layer.zeros / layer.weights))
        for layer in record.pruned
    ]
    if pruned:
        print_table(("layer", "operator", "weights", "zeros", "share"), pruned, left=2)
    factored = [
        (
            layer.name,
            f"{layer.inputs}×{layer.outputs}",
            str(layer.rank),
            percent_text(layer.energy),
            f"{layer.relative_error:.3g}",
            *(count(layer.macs_before), count(layer.macs_after)),
        )
        for layer in record.factored
    ]
    if factored:
        columns = ("layer", "matrix", "rank", "energy", "relative error", "MACs before", "after")
        print_table(columns, factored, left=2)
    print_line()


def _print_sizes(record: Compression, written: Path) -> None:
    print_line(
        f"{written}: {byte_text(record.file_bytes)} of {byte_text(record.parent_bytes)}; download"
        f" {byte_text(record.download_bytes)} of {byte_text(record.parent_download_bytes)} (deflate)"
    )
    if record.top1 is not None:
        before = f", {percent_text(record.top1_before)} before" if record.top1_before is not None else ""
        same = f"; same top-1 on {percent_text(record.agreement)}" if record.agreement is not None else ""
        print_line(f"test accuracy {percent_text(record.top1)}{before}{same}")
