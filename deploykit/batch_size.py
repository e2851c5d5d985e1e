"""The largest batch that a device's memory holds (``--batch-size auto``), and the learning rate that goes with it."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

from deploykit.augment import augmentation, mix
from deploykit.errors import InputError
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import Run
from deploykit.training_step import apply_gradients, compute_gradients

__all__ = ["fit_batch", "fits", "largest_batch", "scaled"]

_LARGEST = 8192  # pictures: up to here a linearly scaled rate keeps the accuracy (Goyal et al. 2017, figure 1)
_FEWEST_STEPS = 32  # an epoch: with fewer, a network hardly learns before the schedule ends
_TRIED = 2  # steps: the second one has the optimizer's moments as well


def scaled(options: TrainOptions, batch_size: int) -> TrainOptions:
    """The options with another batch size, and the learning rate that it takes.

    Linear in the batch for SGD (Goyal et al. 2017, section 2.1), by its square root for AdamW (Malladi et al. 2022,
    "On the SDEs and scaling rules for adaptive gradient algorithms").
    """
    ratio = batch_size / options.batch_size
    factor = ratio if options.optimizer == "sgd" else math.sqrt(ratio)
    return replace(options, batch_size=batch_size, learning_rate=options.learning_rate * factor)


def fit_batch(run: Run, view: tuple[int, int], samples: int) -> str:
    """Gives a run that has not begun the largest batch that fits, and says which and why.

    On CUDA, by trying; elsewhere the batch stays, as memory sets no useful limit.

    Args:
        run: Its options' learning rate belongs to their batch size.
        view: ``(H, W)`` of the pictures before they are augmented.
        samples: Training pictures.

    Raises: InputError when not even the smallest batch fits.
    """
    before = run.options
    if run.device.type != "cuda":
        return f"batch size {before.batch_size}, the recipe's: the memory of {run.device.type} sets no useful limit"
    batch_size, reason = largest_batch(run, view, samples)
    if not run.team.alone:
        batch_size = int(min(run.team.all([batch_size])))
    run.use(scaled(before, batch_size))
    how = "linearly (Goyal et al. 2017)" if before.optimizer == "sgd" else "by the square root (Malladi et al. 2022)"
    return (
        f"batch size {batch_size}, {reason}; learning rate {run.options.learning_rate:.4g}: {before.learning_rate:.4g}"
        f" for {before.batch_size} pictures, scaled {how}"
    )


def largest_batch(run: Run, view: tuple[int, int], samples: int) -> tuple[int, str]:
    """The options' batch size doubled as long as it fits, or halved until it does; and what set the limit.

    Args:
        run: Stays as it is: each size is tried on a copy.
        view: See ``fit_batch``.
        samples: See ``fit_batch``; an epoch keeps ``_FEWEST_STEPS`` steps.

    Raises: InputError when not even the smallest batch fits.
    """
    start = batch_size = run.options.batch_size
    if not fits(run, view, start):
        return _halved(run, view, start), f"the largest that {run.device.type} holds"
    most = max(start, min(_LARGEST, samples // _FEWEST_STEPS))
    while 2 * batch_size <= most:
        if not fits(run, view, 2 * batch_size):
            return batch_size, f"the largest that {run.device.type} holds"
        batch_size *= 2
    limit = f"{_LARGEST} pictures" if most == _LARGEST else f"{_FEWEST_STEPS} steps an epoch"
    return batch_size, f"at the limit of {limit}, where {run.device.type} would hold more"


def _halved(run: Run, view: tuple[int, int], batch_size: int) -> int:
    least = max(run.fewest, run.options.accumulate) * run.team.ranks.world
    while batch_size // 2 >= least:
        batch_size //= 2
        if fits(run, view, batch_size):
            return batch_size
    side = "×".join(map(str, run.size))
    raise InputError(
        f"the memory of {run.device} does not hold a batch of {batch_size} pictures of {side}; give a smaller --size or"
        " --memory-cap"
    )


def fits(run: Run, view: tuple[int, int], batch_size: int) -> bool:
    """Whether steps of that many pictures fit, by taking some with a copy of the run."""
    import torch

    try:
        _try_steps(run, view, batch_size)
        fitting = True
    except torch.OutOfMemoryError:
        fitting = False
    # Here, as what the exception's frames hold is gone.
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return fitting


def _try_steps(run: Run, view: tuple[int, int], batch_size: int) -> None:
    import torch

    trial = deepcopy(run)
    trial.use(replace(run.options, batch_size=batch_size))
    trial.begin_training()
    options, augment = trial.options, augmentation(trial.options.augment)
    mine = -(-batch_size // run.team.ranks.world)
    pictures = torch.zeros((mine, trial.scale.shape[1], *view), dtype=torch.uint8, device=run.device)
    targets = torch.zeros(mine, dtype=torch.int64, device=run.device)
    for _ in range(_TRIED):
        mixed = mix(augment(pictures, trial.size), targets, mixup=options.mixup, cutmix=options.cutmix)
        compute_gradients(trial, mixed)
        apply_gradients(trial)
