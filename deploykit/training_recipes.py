"""How networks are trained: the options of a training, and one table of recipes by family and size of the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from deploykit.errors import InputError, UnknownNameError
from deploykit.models import spec

__all__ = ["AUGMENTATION_NAMES", "SMALL_SIDE", "TrainOptions", "recipe_for"]

AUGMENTATION_NAMES = ("none", "digits", "photos", "shapes", "crops", "mild-crops")
"""What ``augment`` has a function for, in its order; here, so that a wrong name is refused without loading torch."""

SMALL_SIDE = 64
"""Pixels: pictures up to this side are trained as CIFAR's are, with the networks' variants for small pictures."""

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "freeze": ("none", "features", "zeros"),
    "precision": ("auto", "fp32", "tf32", "bf16"),
    "compile": ("auto", "off", "on"),
}
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
        mixup: Alpha of mixup (Zhang et al. 2018); 0 for none.
        cutmix: Alpha of CutMix (Yun et al. 2019); 0 for none. With both, each batch takes one of them by chance.
        ema: Decay of the weights' moving average a step, below 1; 0 for none. It is what is measured and kept.
        clip_norm: Norm that the gradients are cut to (Pascanu et al. 2013); 0 for none.
        freeze: ``none``; ``features``: only the classifier learns; ``zeros``: weights that begin as zero stay zero, as
            pruned ones have to. The last two need weights to begin with.
        seed: Fixes initial weights, order, dropout and augmentation; 0 to 2**32 - 1.
        device: ``auto`` takes CUDA, then MPS, then the CPU.
        threads: CPU threads; None takes those available, or those of the training that is resumed. Recorded, since
            sums depend on it in the last bits.
        precision: ``fp32``, ``tf32``, or ``bf16``: autocast, the weights stay float. ``auto`` takes bf16 on CUDA
            devices that have it, fp32 elsewhere.
        compile: ``on`` or ``off``: whether ``torch.compile`` is used. ``auto`` uses it on CUDA devices where it saves
            more time than it takes.
        accumulate: Parts that a step is computed in, one after the other, which takes less memory. The gradient is that
            of the whole batch; only BatchNorm normalises each part by the part's own statistics.
        sync_batchnorm: Where several processes share a training, BatchNorm normalises by the pictures of all.

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
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip_norm: float = 0.0
    freeze: str = "none"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    compile: str = "auto"
    accumulate: int = 1
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}; allowed: 1 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise InputError(f"learning rate {self.learning_rate}; allowed: a positive number")
        for name in ("warmup_epochs", "weight_decay", "mixup", "cutmix", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise InputError(f"{name} {getattr(self, name)}; allowed: 0 or more")
        for name, text in (("label_smoothing", "label smoothing"), ("ema", "ema")):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{text} {getattr(self, name)}; allowed: from 0 to below 1")
        if self.accumulate > self.batch_size:
            raise InputError(f"accumulate {self.accumulate}; allowed: 1 to the batch size, which is {self.batch_size}")
        if self.sync_batchnorm and self.accumulate > 1:
            raise InputError(
                f"accumulate {self.accumulate} with synchronised BatchNorm, which sees a whole batch; allowed: 1"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
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

# Small pictures: He et al. 2016, section 4.2, and what followed it on CIFAR. Rates are those at which each family also
# starts without luck; without BatchNorm that takes a tenth of the rate, a longer warm-up and gradients that are cut.
_SMALL = TrainOptions(epochs=40, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, warmup_epochs=2.0, ema=0.999)
_SMALL_PLAIN = replace(_SMALL, learning_rate=0.01, warmup_epochs=3.0, clip_norm=1.0, label_smoothing=0.0, ema=0.0)
_SMALL_PICTURES = {
    "lenet": TrainOptions(),
    "small": TrainOptions(epochs=30, learning_rate=2e-3, weight_decay=0.02, ema=0.999),
    "alexnet": _SMALL_PLAIN,
    "zfnet": _SMALL_PLAIN,
    "vgg": _SMALL_PLAIN,
    "vgg-bn": replace(_SMALL, learning_rate=0.05, clip_norm=5.0, ema=0.0),
    "googlenet": _SMALL_PLAIN,
    "googlenet-bn": replace(_SMALL, learning_rate=0.05),
    "resnet": _SMALL,
    "densenet": replace(_SMALL, batch_size=64, learning_rate=0.05, weight_decay=1e-4),
    "mobile": replace(_SMALL, learning_rate=0.05, weight_decay=1e-4, clip_norm=5.0),
}

# Photos: Krizhevsky et al. 2012 (section 5), Simonyan & Zisserman 2015 (3.1), Szegedy et al. 2015 (6), He et al. 2016
# (3.4); the step schedules of the papers are a half cosine here, rates are scaled to the batch.
_PHOTOS = TrainOptions(
    epochs=60,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=1e-4,
    warmup_epochs=3.0,
    label_smoothing=0.1,
    augment="crops",
    ema=0.999,
)
_PHOTOS_PLAIN = replace(
    _PHOTOS, learning_rate=0.01, weight_decay=5e-4, warmup_epochs=5.0, label_smoothing=0.0, clip_norm=1.0, ema=0.0
)
_LARGE_PICTURES = {
    "lenet": TrainOptions(),
    "small": TrainOptions(epochs=30, learning_rate=2e-3, weight_decay=0.02, augment="mild-crops", ema=0.999),
    "alexnet": replace(_PHOTOS_PLAIN, batch_size=128),
    "zfnet": replace(_PHOTOS_PLAIN, batch_size=128),
    "vgg": _PHOTOS_PLAIN,
    "vgg-bn": replace(_PHOTOS, learning_rate=0.02, weight_decay=5e-4, clip_norm=5.0, ema=0.0),
    "googlenet": replace(_PHOTOS_PLAIN, weight_decay=2e-4),
    "googlenet-bn": _PHOTOS,
    "resnet": _PHOTOS,
    "densenet": _PHOTOS,
    "mobile": replace(_PHOTOS, weight_decay=4e-5, clip_norm=5.0),
}


def recipe_for(dataset: str, network: str | None = None, size: int | None = None) -> TrainOptions:
    """The recipe of a network on a dataset.

    Digits, clothes and shapes have theirs, made for the small networks; larger ones take their family's, with the
    dataset's augmentation. Pictures of a user's own are trained as photos.

    Args:
        dataset: Its name; what follows an ``@`` is passed over.
        network: Name in the table of networks; None for a small one.
        size: Pixels of the input's side; the table's when None.

    Raises:
        UnknownNameError: No such network.
    """
    given = _BY_DATASET.get(dataset.split("@")[0])
    if network is None:
        return given or TrainOptions()
    entry = spec(network)
    family = f"{entry.family}-bn" if network.endswith("-bn") else entry.family
    side = entry.input[1] if size is None else size
    recipe = (_SMALL_PICTURES if side <= SMALL_SIDE else _LARGE_PICTURES)[family]
    if given is None:
        return recipe
    return given if family in ("lenet", "small") else replace(recipe, augment=given.augment)
