"""What two models answer to the same pictures: how many each gets right, and how often they agree."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.classifier import Classes, Classifier, match_classes
from deploykit.data.dataset import Dataset
from deploykit.progress import Progress, silent
from deploykit.ratio import Interval, normal_quantile

__all__ = ["PairedAnswers", "answers_of_both"]


@dataclass(frozen=True)
class PairedAnswers:
    """Counts over the same pictures.

    Attributes:
        samples: Pictures.
        both: Right in both models.
        only_candidate: Right in the candidate alone.
        only_baseline: Right in the baseline alone.
        agreeing: With the same top-1, right or wrong.
        warnings: What is doubtful about how classes were matched.
    """

    samples: int
    both: int
    only_candidate: int
    only_baseline: int
    agreeing: int
    warnings: tuple[str, ...] = ()

    @property
    def candidate_top1(self) -> float:
        """As a fraction."""
        return (self.both + self.only_candidate) / self.samples

    @property
    def baseline_top1(self) -> float:
        """As a fraction."""
        return (self.both + self.only_baseline) / self.samples

    @property
    def agreement(self) -> float:
        """As a fraction."""
        return self.agreeing / self.samples

    def drop(self, confidence: float = 0.95) -> Interval:
        """Top-1 lost, as a fraction, exact on these pictures; the bounds are for pictures like them.

        The interval is Wald's for paired proportions with half a picture added to each of the four counts (Agresti &
        Min 2005), which holds its coverage where the models rarely differ.
        """
        lost, won, total = self.only_baseline + 0.5, self.only_candidate + 0.5, self.samples + 2.0
        middle = (lost - won) / total
        reach = normal_quantile((1.0 + confidence) / 2.0) * math.sqrt(lost + won - (lost - won) ** 2 / total) / total
        exact = (self.only_baseline - self.only_candidate) / self.samples
        return Interval(exact, min(exact, middle - reach), max(exact, middle + reach))

    def agreeing_interval(self, confidence: float = 0.95) -> Interval:
        """The agreement, exact on these pictures, with Wilson's bounds for pictures like them (Wilson 1927)."""
        z, share, count = normal_quantile((1.0 + confidence) / 2.0), self.agreement, self.samples
        middle = (share + z * z / (2.0 * count)) / (1.0 + z * z / count)
        reach = z * math.sqrt(share * (1.0 - share) / count + (z / (2.0 * count)) ** 2) / (1.0 + z * z / count)
        return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


def answers_of_both(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    data: Dataset,
    *,
    preprocess: Preprocess | str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    batch_size: int = 32,
    progress: Progress = silent,
) -> PairedAnswers:
    """Shows every picture to both models, each by its own preprocessing; counts as ``evaluate_onnx`` does.

    Args:
        candidate: An ``.onnx`` classifier with one input.
        baseline: Another, of the same classes.
        data: Labelled pictures.
        preprocess: For those that do not say their own.
        provider: Short name of the execution provider.
        threads: Threads of one operator.
        batch_size: Pictures a call, unless a model fixes it.
        progress: Called after each batch.

    Raises:
        ModelFileError, ProviderError: A file does not run.
        InputError: The classes of models and pictures do not fit, or a preprocessing is unknown.
        DataError: A damaged picture.
    """
    given: dict[str, Any] = {"provider": provider, "threads": threads, "spinning": False}
    models = [Classifier.open_reference(model, preprocess, **given) for model in (candidate, baseline)]
    picture = data.pictures(np.zeros(1, np.int64))
    classes = [match_classes(model, picture, data.labels, data.name) for model in models]
    step = max(model.inputs_a_call(batch_size) for model in models)
    right, same, seen = np.zeros((2, 2), np.int64), 0, 0
    for pictures, targets in data.batches(step):
        top1 = [model.predict(pictures).argmax(1) for model in models]
        hits = [found == known.logit[targets] for found, known in zip(top1, classes, strict=True)]
        np.add.at(right, (hits[0].astype(int), hits[1].astype(int)), 1)
        same += int((_named(top1[0], classes[0]) == _named(top1[1], classes[1])).sum())
        seen += len(targets)
        progress("gate: predict", seen, len(data))
    warnings = tuple(dict.fromkeys(item.warning for item in classes if item.warning))
    counts = {"both": right[1, 1], "only_candidate": right[1, 0], "only_baseline": right[0, 1]}
    return PairedAnswers(seen, **{name: int(n) for name, n in counts.items()}, agreeing=same, warnings=warnings)


def _named(top1: NDArray[np.int64], classes: Classes) -> NDArray[np.str_]:
    """The names of the predicted classes, which two models may have in different orders."""
    return np.array([classes.names[index] for index in top1], np.str_)
