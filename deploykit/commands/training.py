"""``train``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, NetworkOptions, Overwrite, Threads, parse_network_options
from deploykit.commands.shared_work import restarted_with, shared_progress, shared_work
from deploykit.errors import InputError
from deploykit.figures import percent_text
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from deploykit.results import Training

__all__ = ["parse_batch_size", "parse_bytes", "train"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def train(
    network: Annotated[str, typer.Argument(help="A reference network; `deploykit models` lists them.")],
    data: Annotated[str, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    data_dir: DataDir = None,
    option: NetworkOptions = None,
    size: Annotated[int | None, typer.Option(help="Side of the input in pixels, for networks that take any.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Begin with these: torchvision's .pth or .safetensors, or a checkpoint.")
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(help="none; features: only the classifier learns; zeros: zeros stay.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option("--batch-size", "--batch", help="Pictures a step; auto: as many as the GPU's memory holds."),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Length of the warm-up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the weights.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Probability mass spread over all classes.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, digits, photos, shapes, crops or mild-crops.")] = None,
    mixup: Annotated[float | None, typer.Option(help="Alpha of mixup; 0 for none.")] = None,
    cutmix: Annotated[float | None, typer.Option(help="Alpha of CutMix; 0 for none.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the weights' moving average, such as 0.999.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Norm that gradients are cut to; 0 for none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, tf32 or bf16; auto is bf16 on GPUs that have it.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; by default on GPUs where it pays.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a step is computed in, which takes less memory.")
    ] = None,
    sync_batchnorm: Annotated[
        bool | None,
        typer.Option(
            "--sync-batchnorm", help="With several processes of torchrun: BatchNorm sees the pictures of all."
        ),
    ] = None,
    threads: Threads = None,
    memory_cap: Annotated[
        str | None, typer.Option(help="Memory that pictures may take, such as 4GB; by default half of what is free.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read pictures beyond that.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete epoch.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a reference network; the recipe of network and dataset fills in what is not given.

    Example: deploykit train lenet5 --data mnist -o runs/lenet5
    """
    from deploykit import data as room
    from deploykit.models import spec
    from deploykit.train import RECORD, STATE, train_network
    from deploykit.training_recipes import recipe_for
    from deploykit.training_setup import common_size, plan_network

    with shared_work() as ranks:
        classes, cap = spec(network).classes, parse_bytes(memory_cap)
        train_split = room.load(data, "train", data_dir=data_dir, classes=classes)
        test_split = room.load(data, "test", data_dir=data_dir, classes=classes)
        network_options = parse_network_options(option)
        side = plan_network(network, common_size(train_split), size, network_options).side
        options = recipe_for(train_split.name, network, side).changed(
            epochs=epochs,
            batch_size=None if batch_size == "auto" else parse_batch_size(batch_size),
            optimizer=optimizer,
            learning_rate=learning_rate,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            augment=augment,
            mixup=mixup,
            cutmix=cutmix,
            ema=ema,
            clip_norm=clip_norm,
            freeze=freeze,
            seed=seed,
            device=device,
            precision=precision,
            compile=None if compile_ is None else "on" if compile_ else "off",
            accumulate=accumulate,
            sync_batchnorm=sync_batchnorm,
            threads=threads,
        )
        with shared_progress(ranks) as progress:
            record = train_network(
                network,
                train_split,
                test_split,
                output,
                options,
                network_options=network_options,
                size=size,
                weights=weights,
                memory_cap=cap,
                workers=workers,
                largest_batch=batch_size == "auto",
                resume=resume or restarted_with(output / STATE, output / RECORD),
                overwrite=overwrite,
                ranks=ranks,
                progress=progress,
            )
    if ranks.rank:
        return
    _tell(record, (*train_split.notes, *record.warnings), output, as_json=as_json)


def parse_batch_size(text: str | None) -> int | None:
    """Pictures a step. Raises: InputError when it is no number."""
    try:
        return None if text is None else int(text)
    except ValueError as problem:
        raise InputError(f"--batch-size {text!r}; allowed: a whole number from 1 on, or auto") from problem


def parse_bytes(text: str | None) -> int | None:
    """``4GB``, ``500M`` or ``1000000`` as bytes. Raises: InputError."""
    if text is None:
        return None
    plain = text.strip().lower().removesuffix("b")
    number, unit = (plain[:-1], plain[-1]) if plain and plain[-1] in _UNITS else (plain, "")
    try:
        count = float(number) * _UNITS[unit]
    except ValueError as problem:
        raise InputError(f"--memory-cap {text!r}; expected a number of bytes, such as 4GB or 500MB") from problem
    if not 0.0 <= count < float("inf"):
        raise InputError(f"--memory-cap {text!r}; allowed: 0 or more")
    return int(count)


def _tell(record: Training, notes: Iterable[str], output: Path, *, as_json: bool) -> None:
    for text in notes:
        note(f"note: {text}")
    if as_json:
        print_json(record.to_document())
        return
    side = record.options.get("size")
    chosen = ", ".join(f"{key}={value}" for key, value in record.options.get("network_options", {}).items())
    print_line(
        f"{record.network}{f' ({chosen})' if chosen else ''} on {record.dataset}"
        f"{f' at {side}×{side}' if side else ''}: test accuracy {percent_text(record.test_top1)} after"
        f" {record.epochs} epochs, {record.seconds:.0f} s, {record.images_per_s:,.0f} pictures/s on {record.device}"
        f"{f', MFU {percent_text(record.mfu)}' if record.mfu is not None else ''}"
    )
    print_line(f"{output / record.checkpoint}")
