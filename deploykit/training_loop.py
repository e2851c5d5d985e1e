"""The training loop: epochs over pictures on the device.

Nothing in the loop depends on what happened before the epoch except the weights, their average and the optimizer's
moments: the learning rate is a function of the step, and the order of pictures, dropout and augmentation are drawn
from generators seeded with (seed, epoch). So the state after an epoch is those tensors and the history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploykit.augment import Part, augmentation, mix, part_of_batch
from deploykit.errors import InputError
from deploykit.figures import percent_text
from deploykit.pixels import Pixels
from deploykit.progress import Progress
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import HISTORY_KEYS, Run
from deploykit.training_step import train_step

if TYPE_CHECKING:
    import torch

__all__ = ["run_epochs"]

_MOST_TOGETHER = 500  # pictures that are measured at once, and
_MOST_PIXELS = 1 << 21  # their pixels, so that large ones do not take all memory
_RANK_BITS = 53  # above those of seed and epoch


def run_epochs(run: Run, train: Pixels, test: Pixels, save: Callable[[], None], progress: Progress) -> None:
    """Trains the epochs that ``run.history`` lacks, and calls ``save`` after each.

    A row of the history has ``seconds`` of the whole epoch and ``train_seconds`` of its training pass alone.

    Raises: InputError when a loss is not finite, or the device's memory is too small.
    """
    import torch

    try:
        for epoch in range(len(run.history), run.options.epochs):
            run.history.append(_epoch(run, train, test, epoch, progress))
            save()
    except torch.OutOfMemoryError as problem:
        side = "×".join(map(str, run.size))
        raise InputError(
            f"the memory of {run.device} does not hold a step of {run.options.batch_size} pictures of {side}, not even"
            f" in parts of {run.part}; give a smaller --batch-size, --size or --memory-cap"
        ) from problem


def _epoch(run: Run, train: Pixels, test: Pixels, epoch: int, progress: Progress) -> dict[str, float]:
    start = time.perf_counter()
    loss, top1 = _train_epoch(run, train, epoch, progress)
    train_seconds = time.perf_counter() - start
    _check_loss("training", loss, epoch, run.options)
    run.speed = _speed(run, len(train.targets) / train_seconds)
    test_loss, test_top1 = _measure(run, test)
    _check_loss("test", test_loss, epoch, run.options)
    rate, seconds = _rate(run.options, epoch + 1.0), time.perf_counter() - start
    row = (epoch + 1, loss, top1, test_loss, test_top1, rate, train_seconds, seconds)
    return dict(zip(HISTORY_KEYS, row, strict=True))


def _speed(run: Run, images_per_s: float) -> str:
    share = run.mfu(images_per_s)
    return f"{images_per_s:,.0f} pictures/s" + (f", MFU {percent_text(share)}" if share is not None else "")


def _rate(options: TrainOptions, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""
    if epoch < options.warmup_epochs:
        return options.learning_rate * (epoch / options.warmup_epochs)
    rest = max(options.epochs - options.warmup_epochs, 1e-9)
    done = min((epoch - options.warmup_epochs) / rest, 1.0)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _check_loss(which: str, loss: float, epoch: int, options: TrainOptions) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the {which} loss became {loss} in epoch {epoch + 1}; the last good state is kept; try a smaller"
            f" --learning-rate than {options.learning_rate}"
        )


def _train_epoch(run: Run, train: Pixels, epoch: int, progress: Progress) -> tuple[float, float]:
    """One pass in a new random order. Returns mean loss and top-1 over the augmented pictures.

    Nothing within it waits for the device: sums stay there until the end, and row numbers are copied at the beginning.
    """
    import torch

    options, augment, total = run.options, augmentation(run.options.augment), len(train.targets)
    generators = _seeded(run, epoch)
    order = torch.randperm(total, generator=generators["cpu"] if generators else None)
    chosen, targets = _batches(order, options.batch_size, run.team.ranks.world), train.targets[order.to(run.device)]
    parts = [run.team.part(len(rows)) for rows in chosen]  # of each batch, what is learnt from here
    mine = [rows[part] for rows, part in zip(chosen, parts, strict=True)]
    run.begin_training()
    sums, done = torch.zeros(2, device=run.device), 0  # of losses and of right answers
    for number, (rows, part, pictures) in enumerate(zip(chosen, parts, train.batches(mine), strict=True)):
        first, done = done, done + len(rows)
        for group in run.optimizer.param_groups:
            group["lr"] = _rate(options, epoch + done / total)
        with part_of_batch(Part(len(rows), part.start, generators) if generators else None):
            augmented = augment(pictures, run.size)
        mixed = mix(augmented, targets[first:done][part], mixup=options.mixup, cutmix=options.cutmix)
        sums += train_step(run, mixed, len(rows)) * len(pictures)
        run.follow(epoch * len(chosen) + number)
        progress(f"epoch {epoch + 1}/{options.epochs}", done, total, run.speed)
    run.average_statistics()
    loss, right = run.team.sum(sums).tolist()
    return loss / total, right / total


def _seeded(run: Run, epoch: int) -> dict[str, torch.Generator]:
    """Seeds torch's generators for the epoch.

    Of several processes each gets its own, for dropout and mixing; order and augmentation then come out of generators
    that all have alike, with the numbers that one process would draw.
    """
    import torch

    seed = (run.options.seed << 20) + epoch + 1
    torch.manual_seed(seed + (run.team.ranks.rank << _RANK_BITS))
    if run.team.alone:
        return {}
    return {device: torch.Generator(device).manual_seed(seed) for device in {"cpu", run.device.type}}


def _batches(order: torch.Tensor, size: int, world: int = 1) -> list[torch.Tensor]:
    """Slices of the order; a last batch of one picture a process joins the one before, as BatchNorm needs two."""
    import torch

    slices = list(torch.split(order, size))
    if len(slices) > 1 and len(slices[-1]) < (2 * world if world > 1 else 2):
        slices[-2:] = [order[(len(slices) - 2) * size :]]
    return slices


def _measure(run: Run, test: Pixels) -> tuple[float, float]:
    """Mean cross entropy and top-1 over a split, in float and without augmentation; every picture once."""
    import torch
    import torch.nn.functional as F

    module, total = run.result.eval(), len(test.targets)
    together = max(1, min(_MOST_TOGETHER, _MOST_PIXELS // (run.size[0] * run.size[1])))
    chosen = run.team.mine(torch.split(torch.arange(total), together))
    expected = run.team.mine(torch.split(test.targets, together))
    losses, right = [], []  # on the device until the end, so that nothing waits for it
    with torch.inference_mode():
        for pictures, targets in zip(test.batches(chosen), expected, strict=True):
            logits = module(run.inputs(pictures.float()))
            losses.append(F.cross_entropy(logits, targets, reduction="sum"))
            right.append((logits.argmax(1) == targets).sum())
        found = [torch.stack(values).tolist() if values else [] for values in (losses, right)]
    loss, correct = (sum(run.team.all(values)) for values in found)
    return loss / total, correct / total
