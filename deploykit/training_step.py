"""One step of a training: gradients of a batch, computed all at once or in parts, and the optimizer's step.

Computed in parts (``accumulate``, or after memory ran out), the gradient is that of the whole batch: each part's mean
loss counts by its share of the batch. Only what BatchNorm sees differs: each part is normalised by its own statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.augment import Mixed
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import Run

if TYPE_CHECKING:
    import torch

__all__ = ["apply_gradients", "compute_gradients", "part_sizes", "train_step"]


def train_step(run: Run, mixed: Mixed, total: int | None = None) -> torch.Tensor:
    """One step of the optimizer. Returns the pictures' mean loss and share of right answers, before it: (2,).

    Args:
        run: What is trained.
        mixed: A batch, or this process's part of it.
        total: Pictures of the batch in all processes.

    Raises: torch.OutOfMemoryError when not even the smallest part fits.
    """
    answered = _computed(run, mixed, total)
    run.team.sum_gradients(run.module.parameters())
    apply_gradients(run)
    return answered


def _computed(run: Run, mixed: Mixed, total: int | None) -> torch.Tensor:
    """The gradient; when memory runs out, anew with parts half as large, and when compiling fails, anew without it.

    Then BatchNorm's running statistics have seen some of the batch's pictures twice, and dropout draws anew.
    """
    import torch

    while True:
        try:
            return compute_gradients(run, mixed, total)
        except torch.OutOfMemoryError:
            if not run.can_halve(len(mixed.targets)):
                raise
        except run.compile_faults as problem:
            run.give_up_compiling(problem)
            continue
        # Here, as the exception and with it what its frames hold are gone.
        run.halve(len(mixed.targets))


def compute_gradients(run: Run, mixed: Mixed, total: int | None = None) -> torch.Tensor:
    """Leaves the gradient of the batch, or of this process's part of its ``total`` pictures, in the parameters.

    Nothing of an earlier one stays there. Returns the pictures' mean loss and share of right answers: (2,).

    Raises: torch.OutOfMemoryError.
    """
    import torch

    run.clear_gradients()
    answered, here = torch.zeros(2, device=mixed.targets.device), len(mixed.targets)
    for part in mixed.split(part_sizes(here, run.part)):
        share = len(part.targets) / (total or here)
        answered += _backward(run, part, share) * (len(part.targets) / here)
    return answered


def _backward(run: Run, mixed: Mixed, share: float) -> torch.Tensor:
    """Adds ``share`` of a part's gradient. Returns the part's mean loss and share of right answers: (2,)."""
    import torch

    heads = run.answers(mixed.pictures)
    loss = _loss(heads.logits, mixed, run.options)
    total = loss
    for logits in heads.auxiliary:
        total = total + run.module.auxiliary_weight * _loss(logits, mixed, run.options)  # type: ignore[operator]
    (total * share if share != 1.0 else total).backward()  # type: ignore[no-untyped-call]
    answers = heads.logits.detach().argmax(1)
    right = (answers == mixed.targets).float().mean() * mixed.share
    if mixed.share < 1.0:
        right = right + (answers == mixed.others).float().mean() * (1.0 - mixed.share)
    return torch.stack([loss.detach(), right])


def _loss(logits: torch.Tensor, mixed: Mixed, options: TrainOptions) -> torch.Tensor:
    """Cross entropy of (B, classes), in float, shared between both pictures' classes."""
    import torch.nn.functional as F

    logits = logits.float()
    loss = F.cross_entropy(logits, mixed.targets, label_smoothing=options.label_smoothing)
    if mixed.share == 1.0:
        return loss
    others = F.cross_entropy(logits, mixed.others, label_smoothing=options.label_smoothing)
    return mixed.share * loss + (1.0 - mixed.share) * others


def apply_gradients(run: Run) -> None:
    """The optimizer's step, with gradients cut and zeros spared as the options say."""
    import torch

    run.spare_zeros()
    if run.options.clip_norm:
        learning = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(learning, run.options.clip_norm)
    run.optimizer.step()


def part_sizes(total: int, size: int) -> list[int]:
    """Sizes that add up to ``total``, each ``size`` but the last.

    A last one of one picture joins the one before where there are larger ones, as BatchNorm needs two.
    """
    sizes = [size] * (total // size) + ([total % size] if total % size else [])
    if size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes
