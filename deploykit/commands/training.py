"""``train``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, NetworkOptions, Overwrite, Threads, parse_network_options
from deploykit.figures import percent_text
from deploykit.terminal import note, print_json, print_line, progress_bar

if TYPE_CHECKING:
    from deploykit.results import Training

__all__ = ["train"]


def train(
    network: Annotated[str, typer.Argument(help="A reference network; `deploykit models` lists them.")],
    data: Annotated[str, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    data_dir: DataDir = None,
    option: NetworkOptions = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Length of the warm-up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the weights.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Probability mass spread over all classes.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, digits, photos or shapes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete epoch.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a reference network; the dataset's recipe fills in what is not given.

    Example: deploykit train lenet5 --data mnist -o runs/lenet5
    """
    from deploykit import data as room
    from deploykit.models import spec
    from deploykit.train import train_network
    from deploykit.training_recipes import recipe_for

    classes = spec(network).classes
    train_split = room.load(data, "train", data_dir=data_dir, classes=classes)
    test_split = room.load(data, "test", data_dir=data_dir, classes=classes)
    options = recipe_for(train_split.name).changed(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        warmup_epochs=warmup_epochs,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        augment=augment,
        seed=seed,
        device=device,
        threads=threads,
    )
    with progress_bar() as progress:
        record = train_network(
            network,
            train_split,
            test_split,
            output,
            options,
            network_options=parse_network_options(option),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    _tell(record, (*train_split.notes, *record.warnings), output, as_json=as_json)


def _tell(record: Training, notes: Iterable[str], output: Path, *, as_json: bool) -> None:
    for text in notes:
        note(f"note: {text}")
    if as_json:
        print_json(record.to_document())
        return
    print_line(
        f"{record.network} on {record.dataset}: test accuracy {percent_text(record.test_top1)} after {record.epochs}"
        f" epochs, {record.seconds:.0f} s, {record.images_per_s:,.0f} pictures/s on {record.device}"
    )
    print_line(f"{output / record.checkpoint}")
