"""Training: from a network's name and two splits to a folder with checkpoint, history, curves and record.

It can be killed at any moment and resumed to the same bits; ``training_loop`` says why.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import __version__, charts, environment
from deploykit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, MissingDependencyError, OutputError
from deploykit.extras import require
from deploykit.files import check_writable, read_json, remove_partials, sha256_file, write_json, write_text
from deploykit.lock import folder_lock
from deploykit.models import build, spec
from deploykit.preprocess import fit_pictures, for_network
from deploykit.progress import Progress, silent
from deploykit.results import Training
from deploykit.training_loop import (
    TRAINING_SCHEMA,
    Run,
    check_batches,
    check_same,
    choose_device,
    load_pixels,
    restore,
    run_epochs,
    save_state,
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
_RESULTS = (RECORD, CHECKPOINT, HISTORY, CURVES)  # the record first, since it says that the others are complete


@dataclass(frozen=True)
class _Saved:
    """What lies in the folder: a state, or a finished training's checkpoint with its record."""

    path: Path
    checkpoint: Checkpoint
    threads: int
    record: Training | None


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

    What can be refused is refused first; an earlier training in ``output`` stays until this one's first epoch is saved.

    Args:
        network: Name in the table of networks; its classes and channels follow the dataset.
        train: Training split.
        test: Test split of the same classes; only measured, never used to choose anything.
        output: Folder; ``state.safetensors`` lies there while the training runs.
        options: How to train; by default ``TrainOptions()``. ``training_recipes.recipe_for`` has each dataset's.
        network_options: Such as ``{"activation": "tanh"}``.
        resume: Go on after the last complete epoch in ``output``, to the same bits as if never interrupted (on the
            CPU, with the same threads: the state's, unless ``options`` has a number). Starts afresh where there is
            none; a finished training is returned as it is.
        overwrite: Replace a training that lies in ``output``; with ``resume`` only one that cannot be gone on with.
        progress: Called after each batch.

    Returns:
        The record, which is also ``output/train.json``; its options have the device and the threads that were used.

    Raises:
        UnknownNameError: No such network.
        InputError: Options or datasets that do not fit each other, a loss that is not finite.
        OutputError: ``output`` holds a training and neither ``resume`` nor ``overwrite`` was given, or is not writable.
        CheckpointError: What should be resumed is damaged, replaced, or of other options.
    """
    folder, options = Path(output), options or TrainOptions()
    require("torch", extra="torch", purpose="training")
    _check_splits(train, test)
    device = choose_device(options.device)
    header = _header(network, train, replace(options, device=device.type), network_options or {})
    check_writable(folder / RECORD)
    with folder_lock(folder):
        saved = _saved(folder, header, options.threads, overwrite=overwrite) if resume else None
        if saved is not None and saved.record is not None:
            return saved.record
        threads = saved.threads if saved else options.threads or environment.available_cpus()
        header, options = _with_threads(header, threads), replace(options, device=device.type, threads=threads)
        with torch_threads(threads):
            run = _begin(header, options, device, len(train))
            if saved is not None:
                restore(run, saved.checkpoint, saved.path)
            _check_folder(folder, resume=resume, overwrite=overwrite)
            train_pixels, test_pixels = (load_pixels(split, header.preprocess, device) for split in (train, test))
            run_epochs(run, train_pixels, test_pixels, partial(_save, run, header, folder), progress)
        return _finish(run, header, folder)


def _check_splits(train: Dataset, test: Dataset) -> None:
    if train.labels != test.labels or train.channels != test.channels:
        raise InputError(
            f"training and test split differ: {len(train.labels)} classes in {train.channels} channels against"
            f" {len(test.labels)} in {test.channels}; both must be the same"
        )


def _header(network: str, train: Dataset, options: TrainOptions, network_options: Mapping[str, str]) -> Checkpoint:
    """The checkpoint without tensors: what stays the same over the whole training, but for the threads."""
    entry = spec(network)
    channels = 1 if entry.reads_grey else train.channels
    shape = (channels, *entry.input[1:])
    mean, std = _statistics(train, shape, entry.content_size)
    return Checkpoint(
        network=network,
        options=dict(network_options),
        num_classes=len(train.labels),
        in_channels=channels,
        preprocess=for_network(shape, entry.content_size, mean=mean, std=std, picture_size=train.size),
        labels=train.labels,
        dataset=train.name,
        training={
            "dataset_digest": train.source_digest,
            "samples": len(train),
            "training_schema": TRAINING_SCHEMA,
            "device": options.device,
            "options": {key: value for key, value in options.to_json().items() if key not in ("device", "threads")},
        },
        tensors={},
    )


def _with_threads(header: Checkpoint, threads: int) -> Checkpoint:
    return replace(header, training=dict(header.training) | {"threads": threads})


def _statistics(
    train: Dataset, shape: tuple[int, int, int], content_size: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the scaled pixels, channel by channel, over at most 5,000 pictures.

    They are the pictures as the network gets them, without the padding.
    """
    depth, height, width = shape
    content = (depth, height, width) if content_size is None else (depth, content_size, content_size)
    plain = for_network(content, None, mean=(0.0,) * depth, std=(1.0,) * depth, picture_size=train.size)
    sums, squares, count = np.zeros(depth), np.zeros(depth), 0
    for pictures, _ in train.take(5000).batches(256):
        pixels = fit_pictures(plain, pictures).reshape(-1, depth) / 255.0  # (B·H·W, C)
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


def _saved(folder: Path, header: Checkpoint, threads: int | None, *, overwrite: bool) -> _Saved | None:
    """The training in ``folder``, checked to be that of ``header``; None where there is none, or one to overwrite.

    A state comes first: it is removed last and written before the results of an earlier training go, so that results
    beside it say nothing.
    """
    try:
        if (folder / STATE).exists():
            return _same(folder / STATE, header, threads, None)
        if (folder / RECORD).exists() and (folder / CHECKPOINT).exists():
            return _same(folder / CHECKPOINT, header, threads, _record(folder))
    except InputError:
        if not overwrite:
            raise
    return None


def _same(path: Path, header: Checkpoint, threads: int | None, record: Training | None) -> _Saved:
    found = read_checkpoint(path)
    before = found.training.get("threads")
    if not isinstance(before, int) or before < 1:
        raise CheckpointError(f"{path}: the header is damaged: threads {before!r}; expected 1 or more")
    check_same(found, _with_threads(header, threads or before), path)
    return _Saved(path, found, before, record)


def _record(folder: Path) -> Training:
    """The record of a finished training. Raises: CheckpointError when the checkpoint is not the one it describes."""
    record = Training.from_document(read_json(folder / RECORD), source=str(folder / RECORD))
    digest = sha256_file(folder / CHECKPOINT)
    if digest != record.checkpoint_sha256:
        raise CheckpointError(
            f"{folder / CHECKPOINT} was damaged or replaced: its SHA-256 is {digest}, {RECORD} has"
            f" {record.checkpoint_sha256}; put the file back, or train anew with --overwrite"
        )
    return record


def _begin(header: Checkpoint, options: TrainOptions, device: torch.device, samples: int) -> Run:
    """A run with fresh weights, which come before anything else draws from the generator."""
    import torch

    torch.manual_seed(options.seed)
    module = build(header.network, header.num_classes, header.in_channels, **header.options)
    check_batches(module, options, samples, header.network)
    return start_run(module.to(device), options, header.preprocess)


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    for name in (*_RESULTS, STATE):
        check_writable(folder / name)
    there = [name for name in (RECORD, CHECKPOINT, STATE) if (folder / name).exists()]
    if there and not resume and not overwrite:
        raise OutputError(
            f"{folder} holds a training already ({there[0]}); give another folder, --resume or --overwrite"
        )
    remove_partials(folder)


def _save(run: Run, header: Checkpoint, folder: Path) -> None:
    """Writes the state, and only then removes the results of an earlier training."""
    save_state(run, header, folder / STATE)
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)


def _finish(run: Run, header: Checkpoint, folder: Path) -> Training:
    """Writes the results; the record comes last and says that all others are complete."""
    last = run.history[-1]
    seconds, train_seconds = (sum(row[name] for row in run.history) for name in ("seconds", "train_seconds"))
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
        images_per_s=round(header.training["samples"] * run.options.epochs / train_seconds, 1),
        device=header.training["device"],
        precision="fp32",
        test_top1=last["test_top1"],
        parameters=sum(parameter.numel() for parameter in run.module.parameters()),
        checkpoint=CHECKPOINT,
        checkpoint_sha256=sha256_file(folder / CHECKPOINT),
        seed=run.options.seed,
        threads=header.training["threads"],
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
        path.unlink(missing_ok=True)  # of an earlier training
        return (f"{path.name} was not drawn: {problem}",)
    return ()
