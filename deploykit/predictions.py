"""What a file predicts on held-out pictures under one provider, and what that loses against the float model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact, Preprocess
from deploykit.classifier import Classifier
from deploykit.data.dataset import Dataset
from deploykit.progress import Progress, silent

__all__ = ["Judge", "Loss", "predicted"]

_BATCH = 32


@dataclass(frozen=True)
class Loss:
    """What a candidate gets right, and what counts against the allowed drop.

    Attributes:
        top1: Fraction that is right; None where the classes are not the model's.
        agreement: Fraction with the float model's top-1.
        drop: Top-1 lost, which is negative where some was won; without labels one less the agreement.
    """

    top1: float | None
    agreement: float
    drop: float


@dataclass(frozen=True)
class Judge:
    """Compares predictions with the float model's, and with the labels where the model knows them.

    Attributes:
        wanted: The float model's predictions on the CPU, ``(N,)``.
        targets: The logit of each picture's class, ``(N,)``; None where the classes are not the model's.
    """

    wanted: NDArray[np.int64]
    targets: NDArray[np.int64] | None

    @classmethod
    def of(cls, wanted: Sequence[int], width: int, source: Artifact, data: Dataset) -> Judge:
        """Classes are matched by name where the model has names; without them, where it has as many as the pictures.

        Args:
            wanted: The float model's predictions.
            width: Number of its logits.
            source: The float model.
            data: The pictures that were shown.
        """
        names, labels = source.labels, data.labels
        place = {name: index for index, name in enumerate(names or labels)}
        known = set(labels) <= set(names) if names else len(labels) == width
        logits = np.array([place[label] for label in labels], np.int64)[data.targets] if known else None
        return cls(np.asarray(wanted, np.int64), logits)

    @property
    def by(self) -> str:
        """What the drop is measured by: ``top1`` or ``agreement``."""
        return "agreement" if self.targets is None else "top1"

    @property
    def right(self) -> float:
        """Fraction that the float model gets right; 0 where the classes are not the model's."""
        return 0.0 if self.targets is None else float((self.wanted == self.targets).mean())

    def guesses(self, classes: int) -> bool:
        """Whether the float model is right no more often than guessing among ``classes`` may be: by two deviations."""
        chance = 1.0 / classes
        return self.right <= chance + 2.0 * math.sqrt(chance * (1.0 - chance) / len(self.wanted))

    def loss(self, answers: Sequence[int]) -> Loss:
        """Of other predictions on the same pictures."""
        given = np.asarray(answers, np.int64)
        agreement = float((given == self.wanted).mean())
        if self.targets is None:
            return Loss(None, agreement, 1.0 - agreement)
        right, before = int((given == self.targets).sum()), int((self.wanted == self.targets).sum())
        return Loss(right / len(given), agreement, (before - right) / len(given))


def predicted(
    model: Path,
    data: Dataset,
    *,
    provider: str = "cpu",
    preprocess: Preprocess | str | None = None,
    optimize: bool = True,
    progress: Progress = silent,
) -> tuple[list[int], int]:
    """The top-1 of each picture as a number of a logit, and how many logits there are.

    Raises:
        ModelFileError, ProviderError: The file does not run there.
        InputError: It does not take pictures or does not answer with classes, or its preprocessing is unknown.
        DataError: A damaged picture.
    """
    classifier = Classifier.open(model, preprocess=preprocess, provider=provider, optimize=optimize)
    found: list[int] = []
    width = 0
    for pictures, _ in data.batches(_BATCH):
        logits = classifier.predict(pictures)  # (n, classes)
        width = logits.shape[1]
        found += logits.argmax(1).tolist()
        progress("tune: predict", len(found), len(data), model.name)
    return found, width
