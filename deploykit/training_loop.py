"""The training loop: epochs over pictures on the device, and the state that continues them to the same bits.

Nothing in the loop depends on what happened before the epoch except the weights and the optimizer's moments: the
learning rate is a function of the step, and the order of pictures, dropout and augmentation are drawn from a
generator seeded with (seed, epoch). So the state after an epoch is those tensors and the history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifact import Preprocess
from deploykit.augment import augmentation
from deploykit.checkpoint import Checkpoint, check_tensors, write_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError
from deploykit.preprocess import fit_pictures
from deploykit.progress import Progress
from deploykit.training_recipes import TrainOptions

if TYPE_CHECKING:
    import torch

__all__ = [
    "TRAINING_SCHEMA",
    "Pixels",
    "Run",
    "check_batches",
    "check_same",
    "choose_device",
    "load_pixels",
    "restore",
    "run_epochs",
    "save_state",
    "start_run",
    "torch_threads",
]

TRAINING_SCHEMA = 1
"""Raised whenever equal options no longer give equal bits: a state of another number is not gone on with."""

_ROW = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "learning_rate", "train_seconds", "seconds")
_MOMENTS = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


@dataclass(frozen=True)
class Pixels:
    """One split on the training device: uint8 (N, C, H, W) and targets (N,)."""

    pictures: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class Run:
    """What one training works on."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    options: TrainOptions
    scale: torch.Tensor  # (1, C, 1, 1): input = pixels * scale + shift
    shift: torch.Tensor
    history: list[dict[str, Any]]

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * self.scale + self.shift


def check_same(found: Checkpoint, header: Checkpoint, path: Path) -> None:
    """Refuses to go on with a training that was started otherwise, naming what differs.

    The version of deploykit may differ: ``TRAINING_SCHEMA`` in the header's training says whether the bits do.

    Raises: CheckpointError.
    """

    def flat(item: Checkpoint) -> dict[str, Any]:
        head = item.header()
        training, _, _ = dict(head.pop("training")), head.pop("state"), head.pop("deploykit")
        options = dict(training.pop("options", {}))
        training.pop("test_top1", None)
        return head | training | {f"option {key}": value for key, value in options.items()}

    before, now = flat(found), flat(header)
    for key in sorted(set(before) | set(now)):
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"cannot resume {path}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; give the same"
                " options, another folder, or --overwrite"
            )


def choose_device(name: str) -> torch.device:
    """The device of that name, or the best that works for ``auto``. Raises: InputError naming those that work."""
    import torch

    works = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if works[device])
    if not works[name]:
        there = ", ".join(device for device, usable in works.items() if usable)
        raise InputError(f"device {name!r} does not work here; this machine has: {there}")
    return torch.device(name)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch's CPU threads for the block; the number before it comes back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_pixels(dataset: Dataset, preprocess: Preprocess, device: torch.device) -> Pixels:
    """The whole split as uint8 on the device, fitted to the network's size."""
    import torch

    pixels = np.empty((len(dataset), preprocess.depth, *preprocess.size), np.uint8)
    done = 0
    for pictures, _ in dataset.batches(256):
        fitted = fit_pictures(preprocess, pictures)  # (B, H, W, C)
        pixels[done : done + len(fitted)] = fitted.transpose(0, 3, 1, 2)
        done += len(fitted)
    return Pixels(torch.from_numpy(pixels).to(device), torch.from_numpy(dataset.targets).to(device))


def start_run(module: torch.nn.Module, options: TrainOptions, preprocess: Preprocess) -> Run:
    """A run at its beginning; the module is on its device already."""
    import torch

    device = next(module.parameters()).device
    scale, mean, std = preprocess.scale, np.array(preprocess.mean), np.array(preprocess.std)

    def channels(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    return Run(module, _optimizer(module, options), options, channels(scale / std), channels(-mean / std), [])


def _optimizer(module: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    import torch

    weights = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    # Biases and normalisation weights are not decayed (He et al. 2019, Bag of Tricks, section 3.1).
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _rate(options: TrainOptions, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""
    if epoch < options.warmup_epochs:
        return options.learning_rate * (epoch / options.warmup_epochs)
    rest = max(options.epochs - options.warmup_epochs, 1e-9)
    done = min((epoch - options.warmup_epochs) / rest, 1.0)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def check_batches(module: torch.nn.Module, options: TrainOptions, samples: int, network: str) -> None:
    """Refuses batches of one picture for a network with BatchNorm, which has no variance there. Raises: InputError."""
    from torch.nn.modules.batchnorm import _BatchNorm

    if min(options.batch_size, samples) < 2 and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        raise InputError(
            f"{network} has BatchNorm, which cannot learn from one picture at a time; received batch size"
            f" {options.batch_size} and {samples} training pictures; allowed: 2 or more of both"
        )


def run_epochs(run: Run, train: Pixels, test: Pixels, save: Callable[[], None], progress: Progress) -> None:
    """Trains the epochs that ``run.history`` lacks, and calls ``save`` after each.

    A row of the history has ``seconds`` of the whole epoch and ``train_seconds`` of its training pass alone.

    Raises: InputError when a loss is not finite.
    """
    for epoch in range(len(run.history), run.options.epochs):
        start = time.perf_counter()
        loss, top1 = _train_epoch(run, train, epoch, progress)
        train_seconds = time.perf_counter() - start
        _check_loss("training", loss, epoch, run.options)
        test_loss, test_top1 = _measure(run, test)
        _check_loss("test", test_loss, epoch, run.options)
        rate, seconds = _rate(run.options, epoch + 1.0), time.perf_counter() - start
        row = (epoch + 1, loss, top1, test_loss, test_top1, rate, train_seconds, seconds)
        run.history.append(dict(zip(_ROW, row, strict=True)))
        save()


def _check_loss(which: str, loss: float, epoch: int, options: TrainOptions) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the {which} loss became {loss} in epoch {epoch + 1}; the last good state is kept; try a smaller"
            f" --learning-rate than {options.learning_rate}"
        )


def _train_epoch(run: Run, train: Pixels, epoch: int, progress: Progress) -> tuple[float, float]:
    """One pass in a new random order. Returns mean loss and top-1 over the augmented pictures."""
    import torch
    import torch.nn.functional as F

    options, augment = run.options, augmentation(run.options.augment)
    torch.manual_seed((options.seed << 20) + epoch + 1)
    order = torch.randperm(len(train)).to(train.targets.device)
    stage = f"epoch {epoch + 1}/{options.epochs}"
    run.module.train()
    loss_sum, correct = torch.zeros((), device=order.device), torch.zeros((), device=order.device)
    for chosen in _batches(order, options.batch_size):
        done = int(min((chosen[0] + 1) * options.batch_size, len(train)))
        for group in run.optimizer.param_groups:
            group["lr"] = _rate(options, epoch + done / len(train))
        targets = train.targets[chosen[1]]
        logits = run.module(run.inputs(augment(train.pictures[chosen[1]])))  # (B, classes)
        loss = F.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()
        loss_sum += loss.detach() * len(targets)
        correct += (logits.detach().argmax(1) == targets).sum()
        progress(stage, done, len(train))
    return float(loss_sum) / len(train), float(correct) / len(train)


def _batches(order: torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Slices of the order; a last batch of one picture joins the one before, as BatchNorm needs two."""
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for number, start in enumerate(starts):
        stop = len(order) if number == len(starts) - 1 else start + size
        yield number, order[start:stop]


def _measure(run: Run, test: Pixels) -> tuple[float, float]:
    """Mean cross entropy and top-1 over a split, without augmentation; every picture once."""
    import torch
    import torch.nn.functional as F

    run.module.eval()
    loss_sum, correct = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(test), 500):
            targets = test.targets[start : start + 500]
            logits = run.module(run.inputs(test.pictures[start : start + 500].float()))
            loss_sum += float(F.cross_entropy(logits, targets, reduction="sum"))
            correct += int((logits.argmax(1) == targets).sum())
    return loss_sum / len(test), correct / len(test)


def save_state(run: Run, header: Checkpoint, path: Path) -> None:
    """Writes what ``restore`` needs. Raises: OutputError."""
    tensors = {f"model.{name}": tensor for name, tensor in run.module.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items() if value is not None}
    write_checkpoint(replace(header, tensors=tensors, state={"history": run.history}), path)


def restore(run: Run, state: Checkpoint, path: Path) -> None:
    """Puts weights, moments and history of a saved state, which lies at ``path``, into ``run``.

    Raises: CheckpointError when tensors or history do not fit the network and the options.
    """
    history = _history(state, run.options.epochs, path)
    weights = {name.removeprefix("model."): t for name, t in state.tensors.items() if name.startswith("model.")}
    check_tensors(run.module.state_dict(), weights, str(path), state.network)
    moments = _moments(run, state, path)
    run.module.load_state_dict(weights)
    run.optimizer.load_state_dict({"state": moments, "param_groups": run.optimizer.state_dict()["param_groups"]})
    run.history.extend(history)


def _history(state: Checkpoint, epochs: int, path: Path) -> list[dict[str, Any]]:
    rows = state.state.get("history")
    if not (isinstance(rows, list) and 1 <= len(rows) <= epochs and all(map(_is_row, rows, range(1, epochs + 1)))):
        raise CheckpointError(
            f"{path}: the state's history is damaged; expected 1 to {epochs} epochs in order, each with"
            f" {', '.join(_ROW)}"
        )
    return [{name: row[name] for name in _ROW} for row in rows]  # a JSON header does not keep their order


def _is_row(row: Any, epoch: int) -> bool:
    whole = isinstance(row, dict) and set(row) == set(_ROW)
    return whole and all(map(_is_number, row.values())) and row["epoch"] == epoch


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _moments(run: Run, state: Checkpoint, path: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The optimizer's tensors by parameter; each a number, or shaped as its parameter."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    keys = _MOMENTS[run.options.optimizer]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition(".")
        if kind != "optimizer":
            continue
        index, _, key = rest.partition(".")
        known = index.isdecimal() and int(index) < len(parameters) and key in keys
        if not known or tuple(tensor.shape) != (() if key == "step" else tuple(parameters[int(index)].shape)):
            raise CheckpointError(
                f"{path}: the optimizer's tensor {name} {tuple(tensor.shape)} does not fit the network {state.network};"
                " the state is damaged"
            )
        moments.setdefault(int(index), {})[key] = tensor
    lacking = [index for index in range(len(parameters)) if set(moments.get(index, keys)) != keys]
    if lacking or not moments:
        raise CheckpointError(f"{path}: the optimizer's tensors of parameters {lacking or 'all'} are missing")
    return moments
