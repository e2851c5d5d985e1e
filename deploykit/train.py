"""Training: from a network's name and two splits to a folder with checkpoint, history, curves and record.

It can be killed at any moment and resumed to the same bits; ``training_loop`` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import environment
from deploykit.artifact import Preprocess
from deploykit.batch_size import fit_batch, scaled
from deploykit.checkpoint import Checkpoint, read_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError
from deploykit.extras import require
from deploykit.files import check_writable, read_json, remove_partials, removed_if_empty, sha256_file
from deploykit.lock import folder_lock
from deploykit.models import build, spec
from deploykit.pixels import Pixels, load_pixels
from deploykit.progress import Progress, silent
from deploykit.ranks import ALONE, Ranks, agree, threads_each
from deploykit.results import Training
from deploykit.shared_training import Team
from deploykit.training_compile import choose_compile, compile_module
from deploykit.training_loop import run_epochs
from deploykit.training_precision import choose_precision, device_peak, float_arithmetic
from deploykit.training_recipes import TrainOptions, recipe_for
from deploykit.training_results import CHECKPOINT, CURVES, HISTORY, RECORD, RESULTS, write_results
from deploykit.training_run import Run, check_batches, choose_device, start_run, torch_threads
from deploykit.training_setup import (
    begin_header,
    common_size,
    forward_macs,
    plan_network,
    training_view,
    with_options,
)
from deploykit.training_state import check_same, restore, save_state

if TYPE_CHECKING:
    import torch

    from deploykit.pretrained import Weights

__all__ = ["CHECKPOINT", "CURVES", "HISTORY", "RECORD", "STATE", "TrainOptions", "train_network"]

STATE = "state.safetensors"


@dataclass(frozen=True)
class _Saved:
    """What lies in the folder: a state, or a finished training's checkpoint with its record."""

    path: Path
    checkpoint: Checkpoint
    options: TrainOptions
    record: Training | None


def train_network(
    network: str,
    train: Dataset,
    test: Dataset,
    output: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    network_options: Mapping[str, str] | None = None,
    size: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    memory_cap: int | None = None,
    workers: int | None = None,
    largest_batch: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Training:
    """Trains a reference network and writes checkpoint, history, curves and record into the folder ``output``.

    What can be refused is refused first; an earlier training in ``output`` stays until this one's first epoch is saved.

    Args:
        network: Name in the table of networks; its classes and channels follow the dataset.
        train: Training split.
        test: Test split of the same classes; only measured, never used to choose anything.
        output: Folder; ``state.safetensors`` lies there while the training runs.
        options: How to train; by default the recipe of the network and the dataset.
        network_options: Such as ``{"activation": "tanh"}``.
        size: Pixels of the input's side, for networks that take any; see ``training_setup.plan_network``.
        weights: What to begin with: a file of torchvision's weights or a checkpoint of deploykit.
        memory_cap: Bytes that the pictures may take; a split that does not fit is read anew each epoch. For each half
            of the free memory when None. It does not change the result, and neither do ``workers``.
        workers: Processes that read pictures; as many as the CPUs allow when None.
        largest_batch: Take the largest batch that the device holds, and scale the learning rate from that of
            ``options``; see ``batch_size.fit_batch``. A resumed training keeps the batch that it has.
        resume: Go on after the last complete epoch in ``output``, to the same bits as if never interrupted (on the
            CPU, with the same threads: the state's, unless ``options`` has a number). Starts afresh where there is
            none; a finished training is returned as it is.
        overwrite: Replace a training that lies in ``output``; with ``resume`` only one that cannot be gone on with.
        ranks: Processes that share the training; ``batch_size`` is that of all together. Rank 0 reads and writes
            ``output``, all return the record; see ``shared_training``.
        progress: Called after each batch.

    Returns:
        The record, which is also ``output/train.json``; its options have what was used for what was ``auto``, the
        threads, the size and the network's options. Its warnings say what was chosen without being asked for.

    Raises:
        UnknownNameError: No such network.
        InputError: Options, datasets, weights or a size that do not fit each other, a loss that is not finite.
        DataError: A picture that cannot be read.
        OutputError: ``output`` holds a training and neither ``resume`` nor ``overwrite`` was given, or is not writable.
        CheckpointError: What should be resumed is damaged, replaced, or of other options; weights that do not fit.
        RankError: Another process is gone.
    """
    folder, team = Path(output), Team(ranks)
    require("torch", extra="torch", purpose="training")
    _check_splits(train, test)
    started = _read_weights(weights)
    plan = plan_network(network, common_size(train), size, _options_of(started, network) | dict(network_options or {}))
    asked = options or recipe_for(train.name, network, plan.side)
    _check_frozen(asked, started)
    team.check_batch(largest=largest_batch, synchronised=asked.sync_batchnorm)
    device = team.device(choose_device(asked.device), asked.device)
    macs = forward_macs(plan, train) if device.type == "cuda" else None
    options = _settled(asked, device, macs, len(train))
    header = begin_header(plan, train, options, started)
    agree(ranks, {"test pictures": None if team.alone else test.digest, **header.header()})
    with _own(folder) if team.first else nullcontext(), ExitStack() as opened:
        asks = resume and team.first
        saved = _saved(folder, header, options, fitted=largest_batch, overwrite=overwrite) if asks else None
        saved = saved if team.alone else _told(saved, header, team)
        if saved is not None and saved.record is not None:
            return saved.record
        options = _threaded(options, saved, ranks)
        opened.enter_context(torch_threads(options.threads or 1))
        opened.enter_context(float_arithmetic(options.precision, device))
        run, notes = _begin(header, options, device, len(train), started, team)
        run.macs, run.peak = macs, team.peak(device_peak(options.precision, device))
        if saved is not None:
            restore(run, saved.checkpoint, saved.path)
        if team.first:
            _check_folder(folder, resume=resume, overwrite=overwrite)
        readers = team.workers(workers, device)

        def pixels(split: Dataset, view: Preprocess, cap: int | None, *, exact: bool) -> Pixels:
            loaded = load_pixels(split, view, device, cap=team.cap(cap, device), workers=readers, exact=exact)
            opened.callback(loaded.close)
            return loaded

        view = training_view(header.preprocess, options.augment)
        learnt = pixels(train, view, memory_cap, exact=False)
        rest = None if memory_cap is None else memory_cap - learnt.held_bytes
        measured = pixels(test, header.preprocess, rest, exact=True)
        if largest_batch and saved is None:
            run.warnings.append(fit_batch(run, view.size, len(train)))
        if options.compile == "on":
            run.compiled = compile_module(run.module, run.part, macs, device, required=asked.compile == "on")
        header = with_options(header, run.options)
        run_epochs(run, learnt, measured, partial(_save, run, header, folder), progress)
        return _finish(run, header, folder, (*plan.notes, *notes, *team.notes()))


def _threaded(options: TrainOptions, saved: _Saved | None, ranks: Ranks) -> TrainOptions:
    """With a number of threads: a state's keep its bits; processes that share a training share the CPUs instead."""
    cpus = environment.available_cpus()
    each = threads_each(ranks, cpus)
    if saved is None:
        return replace(options, threads=options.threads or each or cpus)
    return saved.options if each is None or options.threads else replace(saved.options, threads=each)


def _settled(options: TrainOptions, device: torch.device, macs: int | None, samples: int) -> TrainOptions:
    """With the device's choice for what is ``auto``. Raises: InputError when the device lacks what is asked for."""
    options = replace(options, device=device.type, precision=choose_precision(options.precision, device))
    return replace(options, compile=choose_compile(options, device, macs, samples))


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """The folder, writable and locked; a new one that stays empty goes again."""
    with removed_if_empty(folder):
        check_writable(folder / RECORD)
        with folder_lock(folder):
            yield


def _check_splits(train: Dataset, test: Dataset) -> None:
    if train.labels != test.labels or train.channels != test.channels:
        raise InputError(
            f"training and test split differ: {len(train.labels)} classes in {train.channels} channels against"
            f" {len(test.labels)} in {test.channels}; both must be the same"
        )


def _read_weights(path: str | os.PathLike[str] | None) -> Weights | None:
    if path is None:
        return None
    from deploykit.pretrained import read_weights

    return read_weights(path)


def _options_of(weights: Weights | None, network: str) -> dict[str, str]:
    """The network's options that the weights were trained with: others would not fit them."""
    if weights is None:
        return {}
    if weights.checkpoint is None:  # torchvision's, which has no variants for small pictures
        return {"pictures": "large"} if "pictures" in spec(network).options else {}
    return dict(weights.checkpoint.options) if weights.checkpoint.network == network else {}


def _check_frozen(options: TrainOptions, weights: Weights | None) -> None:
    if options.freeze != "none" and weights is None:
        raise InputError(
            f"freeze {options.freeze} without weights would keep random ones; give --weights FILE, or freeze none"
        )


def _saved(folder: Path, header: Checkpoint, options: TrainOptions, *, fitted: bool, overwrite: bool) -> _Saved | None:
    """The training in ``folder``, checked to be that of ``header``; None where there is none, or one to overwrite.

    A state comes first: it is removed last and written before the results of an earlier training go, so that results
    beside it say nothing.
    """
    try:
        if (folder / STATE).exists():
            return _same(folder / STATE, header, options, fitted, None)
        if (folder / RECORD).exists() and (folder / CHECKPOINT).exists():
            return _same(folder / CHECKPOINT, header, options, fitted, _record(folder))
    except InputError:
        if not overwrite:
            raise
    return None


def _same(path: Path, header: Checkpoint, options: TrainOptions, fitted: bool, record: Training | None) -> _Saved:
    found = read_checkpoint(path)
    threads = _positive(found.training, "threads", path)
    options = replace(options, threads=options.threads or threads)
    if fitted:
        options = scaled(options, _positive(found.training.get("options", {}), "batch_size", path))
    check_same(found, with_options(header, options), path)
    return _Saved(path, found, options, record)


def _positive(values: Mapping[str, object], name: str, path: Path) -> int:
    value = values.get(name)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{path}: the header is damaged: {name} {value!r}; expected 1 or more")
    return value


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


def _told(saved: _Saved | None, header: Checkpoint, team: Team) -> _Saved | None:
    """What rank 0 has found in the folder, on every process."""
    mine = None
    if saved is not None:
        record = None if saved.record is None else saved.record.to_document()
        mine = {
            "path": str(saved.path),
            "state": dict(saved.checkpoint.state),
            "options": saved.options.to_json(),
            "record": record,
        }
    if (found := team.told(mine)) is None:
        return None
    path, options = Path(found["path"]), TrainOptions(**found["options"])
    if found["record"] is not None:
        return _Saved(path, header, options, Training.from_document(found["record"], source=found["path"]))
    tensors = team.from_first(None if saved is None else saved.checkpoint.tensors)
    return _Saved(path, replace(header, tensors=tensors, state=found["state"]), options, None)


def _begin(
    header: Checkpoint, options: TrainOptions, device: torch.device, samples: int, weights: Weights | None, team: Team
) -> tuple[Run, tuple[str, ...]]:
    """A run with fresh weights, which come before anything else draws from the generator, or with those of a file.

    Also what was noted of the file.
    """
    import torch

    torch.manual_seed(options.seed)
    module = build(header.network, header.num_classes, header.in_channels, **header.options)
    check_batches(module, options, samples, header.network, team)
    notes: tuple[str, ...] = ()
    if weights is not None:
        from deploykit.pretrained import load_weights

        notes = load_weights(module, header.network, weights).notes
    return start_run(module.to(device), options, header.preprocess, spec(header.network).classifier, team), notes


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    for name in (*RESULTS, STATE):
        check_writable(folder / name)
    there = [name for name in (RECORD, CHECKPOINT, STATE) if (folder / name).exists()]
    if there and not resume and not overwrite:
        raise OutputError(
            f"{folder} holds a training already ({there[0]}); give another folder, --resume or --overwrite"
        )
    remove_partials(folder)


def _save(run: Run, header: Checkpoint, folder: Path) -> None:
    """Writes the state, and only then removes the results of an earlier training."""
    run.warnings = run.team.gathered(run.warnings)
    if not run.team.first:
        return
    save_state(run, header, folder / STATE)
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)


def _finish(run: Run, header: Checkpoint, folder: Path, notes: tuple[str, ...]) -> Training:
    """The state goes last: until then, a killed training is gone on with."""
    if run.team.first:
        record = write_results(run, header, folder, notes)
        (folder / STATE).unlink(missing_ok=True)
        run.team.told(record.to_document())
        return record
    return Training.from_document(run.team.told(None) or {}, source=RECORD)
