"""Pruning as a stage: a run or checkpoint in, a run's folder out, with the zeros kept while it is fine-tuned.

The folder holds what ``train`` writes, ``pruned.safetensors`` (the weights that the fine-tuning began with, whose zeros
are its mask) and the record. The pruned weights follow from the source and the shares alone, so that an interrupted
call finds the same mask again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, environment
from deploykit.checkpoint import Checkpoint, load_module, read_checkpoint, write_checkpoint
from deploykit.compressions import Compression
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError
from deploykit.extras import require
from deploykit.files import check_writable, deflated_size, sha256_file, write_json
from deploykit.progress import Progress, silent
from deploykit.pruning import PruneOptions, count_zeros, prune_module, shares_of
from deploykit.sources import checkpoint_path
from deploykit.train import CHECKPOINT, CURVES, HISTORY, RECORD, STATE, TrainOptions, train_network
from deploykit.training_recipes import recipe_for

if TYPE_CHECKING:
    from deploykit.results import Training

__all__ = ["COMPRESSION", "PRUNED", "PruneOptions", "prune_checkpoint", "tuning_options"]

COMPRESSION = "compression.json"
PRUNED = "pruned.safetensors"
_GENTLER = 0.3  # of the recipe's rate: the weights that stay are near where they have to be
_WARMUP_EPOCHS = 0.5


def tuning_options(source: str | os.PathLike[str], dataset: str, epochs: int, **given: Any) -> TrainOptions:
    """The recipe of the source's network and a dataset as it fine-tunes: a lower rate, a shorter warm-up.

    Args:
        source: A run's folder or a checkpoint.
        dataset: Its name.
        epochs: Passes over the training pictures.
        given: Options of ``TrainOptions`` to replace; None leaves the recipe's.
    """
    checkpoint = read_checkpoint(_checkpoint_of(source))
    recipe = recipe_for(dataset, checkpoint.network, checkpoint.preprocess.size[0])
    gentle = replace(recipe, learning_rate=_GENTLER * recipe.learning_rate, warmup_epochs=_WARMUP_EPOCHS, ema=0.0)
    return replace(gentle.changed(**given), epochs=epochs, freeze="zeros")


def prune_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: PruneOptions,
    *,
    tuning: TrainOptions | None = None,
    train: Dataset | None = None,
    test: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Compression:
    """Prunes a trained network, and fine-tunes what stays; pruned weights are exactly zero after every step.

    Args:
        source: A run's folder or a checkpoint; left as it is.
        output: The folder to write; ``export`` takes it as it takes a run's.
        options: What goes.
        tuning: How to fine-tune; None for not at all.
        train: Training pictures, for the fine-tuning.
        test: Test pictures of the same classes; only measured.
        resume: Go on after the last complete epoch in ``output``.
        overwrite: Replace what lies in ``output``.
        progress: Called after each batch.

    Returns:
        The record, which is also ``output/compression.json``.

    Raises:
        UnknownNameError: A layer that the network has not.
        InputError: No checkpoint, no fully connected layers, or pictures of other classes.
        CheckpointError: The checkpoint is damaged, or what should be resumed is of another call.
        OutputError: ``output`` holds a run already, or cannot be written.
    """
    require("torch", extra="torch", purpose="pruning a checkpoint")
    start, folder, path = time.perf_counter(), Path(output), _checkpoint_of(source)
    if folder.resolve() == path.resolve().parent:
        raise InputError(f"{folder} is the run itself, which is never changed; give another folder")
    before = read_checkpoint(path)
    module = load_module(before, source=str(path))
    shares = shares_of(module, before.network, options)
    splits = _splits(before, path, tuning, train, test)
    _check_folder(folder, resume=resume, overwrite=overwrite)
    prune_module(module, shares)
    pruned = _pruned(before, module.state_dict(), shares, sha256_file(path))
    run = None
    if tuning is None or splits is None:
        for name in (RECORD, HISTORY, CURVES, STATE, PRUNED, COMPRESSION):  # of what is overwritten
            (folder / name).unlink(missing_ok=True)
        write_checkpoint(pruned, folder / CHECKPOINT)
    else:
        _begin(pruned, folder, resume=resume, overwrite=overwrite)
        run = _tuned(pruned, folder, tuning, splits, resume, overwrite, progress)
    record = _record(before, path, folder, run, start)
    write_json(folder / COMPRESSION, record.to_document())
    return record


def _checkpoint_of(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    path = None if text.lower().endswith(".onnx") else checkpoint_path(text)
    if path is None:
        raise InputError(f"{text[:200]} cannot be pruned; expected a run's folder or a .safetensors checkpoint")
    return path


def _splits(
    before: Checkpoint, path: Path, tuning: TrainOptions | None, train: Dataset | None, test: Dataset | None
) -> tuple[Dataset, Dataset] | None:
    if tuning is None:
        return None
    if train is None or test is None:
        raise InputError("fine-tuning takes training and test pictures, received none; give both")
    if train.labels != before.labels:
        raise InputError(
            f"{path} knows {len(before.labels)} classes ({', '.join(before.labels[:3])}, …), {train.name} has"
            f" {len(train.labels)} ({', '.join(train.labels[:3])}, …); fine-tuning takes the same classes"
        )
    return train, test


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    for name in (CHECKPOINT, PRUNED, COMPRESSION):
        check_writable(folder / name)
    there = [name for name in (COMPRESSION, RECORD, CHECKPOINT, STATE) if (folder / name).exists()]
    if there and not resume and not overwrite:
        raise OutputError(f"{folder} holds a run already ({there[0]}); give another folder, --resume or --overwrite")


def _pruned(before: Checkpoint, tensors: Mapping[str, Any], shares: Mapping[str, float], parent: str) -> Checkpoint:
    """The checkpoint with its zeros; what was measured before is of other weights."""
    training = {key: value for key, value in before.training.items() if key != "test_top1"}
    training["pruned"] = {"parent_sha256": parent, "shares": dict(shares)}
    return replace(before, tensors=dict(tensors), training=training)


def _begin(pruned: Checkpoint, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Writes what the fine-tuning starts from. Raises: CheckpointError when another call's would be gone on with."""
    path = folder / PRUNED
    if resume and path.exists() and not overwrite:
        found = read_checkpoint(path).training.get("pruned")
        if found != pruned.training["pruned"]:
            raise CheckpointError(
                f"cannot resume {folder}: it was pruned from another checkpoint or by other shares; give the same,"
                " another folder, or --overwrite"
            )
    write_checkpoint(pruned, path)


def _tuned(
    pruned: Checkpoint,
    folder: Path,
    tuning: TrainOptions,
    splits: tuple[Dataset, Dataset],
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> Training:
    return train_network(
        pruned.network,
        *splits,
        folder,
        replace(tuning, freeze="zeros"),
        network_options=pruned.options,
        size=pruned.preprocess.size[0],
        weights=folder / PRUNED,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _record(before: Checkpoint, path: Path, folder: Path, run: Training | None, start: float) -> Compression:
    made = folder / CHECKPOINT
    after = read_checkpoint(made)
    same = run is not None and before.training.get("dataset_digest") == run.dataset_digest
    return Compression(
        deploykit=__version__,
        environment=environment.describe(),
        model=made.name,
        model_sha256=sha256_file(made),
        parent=path.name,
        parent_sha256=sha256_file(path),
        method="prune",
        file_bytes=made.stat().st_size,
        parent_bytes=path.stat().st_size,
        download_bytes=deflated_size(made),
        parent_download_bytes=deflated_size(path),
        seconds=round(time.perf_counter() - start, 3),
        pruned=count_zeros(load_module(after, source=str(made)), after.network),
        epochs=run.epochs if run else 0,
        dataset=run.dataset if run else None,
        top1_before=before.training.get("test_top1") if same else None,
        top1=run.test_top1 if run else None,
        warnings=run.warnings if run else (),
    )
