"""Training: from a network's name and two splits to a folder with checkpoint, history, curves and record.

It can be killed at any moment and resumed to the same bits; ``training_loop`` says why.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import __version__, charts, environment
from deploykit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, MissingDependencyError, OutputError
from deploykit.files import check_writable, read_json, remove_partials, sha256_file, write_json, write_text
from deploykit.models import build, spec
from deploykit.preprocess import for_network
from deploykit.progress import Progress, silent
from deploykit.results import Training
from deploykit.training_loop import (
    Run,
    check_same,
    choose_device,
    load_pixels,
    restore,
    run_epochs,
    start_run,
    torch_threads,
)
from deploykit.training_recipes import TrainOptions

if TYPE_CHECKING:
    import torch

__all__ = ["CHECKPOINT", "HISTORY", "RECORD", "TrainOptions", "train_network"]

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.csv"
CURVES = "curves.svg"
RECORD = "train.json"
STATE = "state.safetensors"
_LUMA = np.array([[0.299], [0.587], [0.114]])  # ITU-R 601: (3, 1)


def train_network(
    network: str,
    train: Dataset,
    test: Dataset,
    output: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    network_options: Mapping[str, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Training:
    """Trains a reference network and writes checkpoint, history, curves and record into the folder ``output``.

    Args:
        network: Name in the table of networks; its classes and channels follow the dataset.
        train: Training split.
        test: Test split of the same classes; only measured, never used to choose anything.
        output: Folder; ``state.safetensors`` lies there while the training runs.
        options: How to train; by default ``TrainOptions()``. ``training_recipes.recipe_for`` has each dataset's.
        network_options: Such as ``{"activation": "tanh"}``.
        resume: Go on after the last complete epoch in ``output``, to the same bits as if never interrupted (on the
            CPU, with the same threads). Starts afresh where there is none; a finished training is returned as it is.
        overwrite: Replace a training that lies in ``output``.
        progress: Called after each batch.

    Returns:
        The record, which is also ``output/train.json``.

    Raises:
        InputError: Options or datasets that do not fit each other, a loss that is not finite.
        OutputError: ``output`` holds a training and neither ``resume`` nor ``overwrite`` was given, or is not writable.
        CheckpointError: The state to resume from is damaged.
    """
    torch = _torch()
    folder, options = Path(output), options or TrainOptions()
    threads = options.threads or environment.available_cpus()
    _check_splits(train, test)
    header = _header(network, train, options, network_options or {}, threads)
    _check_folder(folder, resume=resume, overwrite=overwrite)
    if resume and (finished := _finished(folder, header)) is not None:
        return finished
    device = choose_device(options.device)
    with torch_threads(threads):
        # Fresh weights come before anything else draws from the generator.
        torch.manual_seed(options.seed)
        module = build(network, num_classes=header.num_classes, in_channels=header.in_channels, **header.options)
        run = start_run(module.to(device), options, header.preprocess)
        if resume and (folder / STATE).exists():
            restore(run, header, folder / STATE)
        run_epochs(
            run,
            load_pixels(train, header.preprocess, device),
            load_pixels(test, header.preprocess, device),
            header,
            folder / STATE,
            progress,
        )
    return _finish(run, header, folder, device, threads)


def _torch() -> Any:
    try:
        import torch
    except ImportError as problem:
        raise MissingDependencyError("torch", "torch", "training") from problem
    return torch


def _check_splits(train: Dataset, test: Dataset) -> None:
    if train.labels != test.labels or train.channels != test.channels:
        raise InputError(
            f"training and test split differ: {len(train.labels)} classes in {train.channels} channels against"
            f" {len(test.labels)} in {test.channels}; both must be the same"
        )


def _header(
    network: str, train: Dataset, options: TrainOptions, network_options: Mapping[str, str], threads: int
) -> Checkpoint:
    """The checkpoint without tensors: what stays the same over the whole training."""
    entry = spec(network)
    channels = 1 if entry.reads_grey else train.channels
    mean, std = _statistics(train, channels)
    return Checkpoint(
        network=network,
        options=dict(network_options),
        num_classes=len(train.labels),
        in_channels=channels,
        preprocess=for_network(
            (channels, *entry.input[1:]), entry.content_size, mean=mean, std=std, picture_size=train.size
        ),
        labels=train.labels,
        dataset=train.name,
        training={
            "dataset_digest": train.source_digest,
            "samples": len(train),
            "threads": threads,
            "options": options.changed(device=None).to_json() | {"threads": None},
        },
        tensors={},
    )


def _statistics(train: Dataset, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the scaled pixels, channel by channel, over at most 5,000 pictures."""
    sums, squares, count = np.zeros(channels), np.zeros(channels), 0
    for pictures, _ in train.take(5000).batches(256):
        for picture in pictures:
            pixels = picture.reshape(-1, picture.shape[2]).astype(np.float64) / 255.0
            pixels = pixels if pixels.shape[1] == channels else pixels @ _LUMA  # what preprocess.fit_pictures does
            sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    there = [name for name in (RECORD, CHECKPOINT, STATE) if (folder / name).exists()]
    if there and not resume and not overwrite:
        raise OutputError(
            f"{folder} holds a training already ({there[0]}); give another folder, --resume or --overwrite"
        )
    check_writable(folder / RECORD)
    remove_partials(folder)
    if not resume:
        for name in there:
            (folder / name).unlink()


def _finished(folder: Path, header: Checkpoint) -> Training | None:
    if not (folder / RECORD).exists() or not (folder / CHECKPOINT).exists():
        return None
    check_same(read_checkpoint(folder / CHECKPOINT), header, folder / CHECKPOINT)
    return Training.from_document(read_json(folder / RECORD), source=str(folder / RECORD))


def _finish(run: Run, header: Checkpoint, folder: Path, device: torch.device, threads: int) -> Training:
    """Writes the results; the record comes last and says that all others are complete."""
    last, seconds = run.history[-1], sum(row["seconds"] for row in run.history)
    training = dict(header.training) | {"test_top1": last["test_top1"]}
    tensors = dict(run.module.state_dict())
    write_checkpoint(replace(header, tensors=tensors, training=training), folder / CHECKPOINT)
    write_text(folder / HISTORY, _history_csv(run.history))
    warnings = _write_curves(run.history, header, folder / CURVES)
    record = Training(
        deploykit=__version__,
        environment=environment.describe(),
        network=header.network,
        dataset=str(header.dataset),
        dataset_digest=header.training["dataset_digest"],
        epochs=run.options.epochs,
        seconds=round(seconds, 3),
        images_per_s=round(header.training["samples"] * run.options.epochs / seconds, 1),
        device=device.type,
        precision="fp32",
        test_top1=last["test_top1"],
        parameters=sum(parameter.numel() for parameter in run.module.parameters()),
        checkpoint=CHECKPOINT,
        checkpoint_sha256=sha256_file(folder / CHECKPOINT),
        seed=run.options.seed,
        threads=threads,
        options=run.options.to_json() | {"network_options": dict(header.options)},
        history=tuple(run.history),
        warnings=warnings,
    )
    write_json(folder / RECORD, record.to_document())
    (folder / STATE).unlink(missing_ok=True)
    return record


def _history_csv(history: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _write_curves(history: Sequence[Mapping[str, Any]], header: Checkpoint, path: Path) -> tuple[str, ...]:
    try:
        charts.save_chart(charts.training_curves(history, f"{header.network} on {header.dataset}"), path)
    except MissingDependencyError as problem:
        return (f"{path.name} was not drawn: {problem}",)
    return ()
