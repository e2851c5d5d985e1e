"""How each dataset's networks are trained: one table of optimizer, rate, epochs and augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from deploykit.errors import InputError, UnknownNameError

__all__ = ["AUGMENTATION_NAMES", "TrainOptions", "recipe_for"]

AUGMENTATION_NAMES = ("none", "digits", "photos", "shapes")
"""What ``augment`` has a function for, in its order; here, so that a wrong name is refused without loading torch."""

_OPTIMIZERS = ("adamw", "sgd")
_DEVICES = ("auto", "cpu", "cuda", "mps")
_MOST_THREADS = 1024  # far more and the system refuses to start them, which ends the process
_SEEDS = 1 << 32  # times 2**20 epochs, still well inside torch's 64 bits


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides a training's outcome, validated.

    Attributes:
        epochs: Passes over the training pictures.
        batch_size: Pictures a step.
        optimizer: ``adamw`` or ``sgd`` (Nesterov momentum 0.9).
        learning_rate: Peak of the schedule: a linear warm-up, then a half cosine down to zero.
        warmup_epochs: Length of the warm-up in epochs; may be a fraction.
        weight_decay: Decoupled for AdamW; on weights with two or more axes only.
        label_smoothing: Probability mass spread over all classes (Szegedy et al. 2016, section 7).
        augment: Name in ``AUGMENTATION_NAMES``.
        seed: Fixes initial weights, order, dropout and augmentation; 0 to 2**32 - 1.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
        threads: CPU threads; None takes those available, or those of the training that is resumed. Recorded, since
            sums depend on it in the last bits.

    Raises:
        InputError: A value that is not allowed.
        UnknownNameError: No such augmentation.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    augment: str = "photos"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}; allowed: 1 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise InputError(f"learning rate {self.learning_rate}; allowed: a positive number")
        for name in ("warmup_epochs", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise InputError(f"{name} {getattr(self, name)}; allowed: 0 or more")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"label smoothing {self.label_smoothing}; allowed: from 0 to below 1")
        if self.optimizer not in _OPTIMIZERS:
            raise InputError(f"optimizer {self.optimizer!r}; allowed: {', '.join(_OPTIMIZERS)}")
        if self.device not in _DEVICES:
            raise InputError(f"device {self.device!r}; allowed: {', '.join(_DEVICES)}")
        if self.augment not in AUGMENTATION_NAMES:
            raise UnknownNameError("augmentation", self.augment, AUGMENTATION_NAMES)
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_SEEDS - 1}")
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise InputError(f"threads {self.threads}; allowed: 1 to {_MOST_THREADS}")

    def changed(self, **given: Any) -> TrainOptions:
        """A copy with those options replaced that are not None."""
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """All options as JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


_BY_DATASET = {
    "mnist": TrainOptions(epochs=30, augment="digits", label_smoothing=0.05),
    "fashion-mnist": TrainOptions(epochs=20, augment="photos"),
    "shapes-color": TrainOptions(epochs=40, batch_size=64, learning_rate=5e-3, augment="shapes"),
    "shapes-shape": TrainOptions(epochs=40, batch_size=64, learning_rate=5e-3, augment="shapes"),
    "shapes-color-shape": TrainOptions(epochs=30, batch_size=64, learning_rate=5e-3, augment="shapes"),
}


def recipe_for(dataset: str) -> TrainOptions:
    """The recipe of a dataset's networks; pictures of a user's own are trained as photos."""
    return _BY_DATASET.get(dataset.split("@")[0], TrainOptions())
