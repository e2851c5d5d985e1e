"""Evaluation: what an ONNX model gets right on real pictures, under ONNX Runtime, each picture counted once."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.answers import first_answers
from deploykit.artifact import Artifact, Preprocess, load_model, repeated
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, UnknownNameError
from deploykit.graph.precision import precision_of
from deploykit.preprocess import apply, preprocess_for
from deploykit.progress import Progress, silent
from deploykit.results import Accuracy, Example
from deploykit.runtime import PROVIDERS, Session, check_threads, create_session

__all__ = ["Classifier", "EvaluateOptions", "evaluate_onnx"]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate, validated.

    Attributes:
        provider: Short name of the execution provider.
        threads: Threads of the runtime; None takes those available.
        batch_size: Pictures a call, unless the model fixes it.
        examples: Number of pictures kept in the record with their predictions.
    """

    provider: str = "cpu"
    threads: int | None = None
    batch_size: int = 64
    examples: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}; allowed: 1 or more")
        if self.examples < 0:
            raise InputError(f"examples {self.examples}; allowed: 0 or more")
        check_threads(self.threads)
        if self.provider not in PROVIDERS:
            raise UnknownNameError("provider", self.provider, PROVIDERS)


@dataclass(frozen=True)
class Classifier:
    """A session that takes pictures and gives logits (N, classes)."""

    artifact: Artifact
    session: Session
    preprocess: Preprocess
    precision: str

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        preprocess: Preprocess | str | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        optimize: bool = True,
    ) -> Classifier:
        """Opens a model with one picture input; ``preprocess`` is needed where the file does not say it.

        Raises:
            ModelFileError: The file is not a usable model.
            InputError: The model has several inputs, or its preprocessing is unknown.
        """
        proto = load_model(model)
        artifact = Artifact.of_model(proto, Path(model))
        if len(artifact.inputs) != 1:
            raise InputError(
                f"{model} has {len(artifact.inputs)} inputs; evaluation feeds models with exactly one picture input"
            )
        wanted = preprocess_for(artifact, preprocess)
        session = create_session(model, provider, threads=threads, optimize=optimize)
        return cls(artifact, session, wanted, precision_of(proto))

    @classmethod
    def open_reference(
        cls, model: str | os.PathLike[str], preprocess: Preprocess | str | None, **given: Any
    ) -> Classifier:
        """``open`` for a model that another one is compared with: its own preprocessing goes before ``preprocess``."""
        return cls.open(model, preprocess=preprocess if Artifact.read(model).preprocess is None else None, **given)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """First output (N, classes) for preprocessed inputs (N, …). Raises: InputError for NaN or another shape."""
        answers = first_answers(self.session, inputs, self.artifact.path, what="real pictures")
        if answers.size != len(inputs) * max(answers.shape[1:], default=0):
            raise InputError(
                f"{self.artifact.path} answers {answers.shape} for {len(inputs)} pictures; expected (N, classes)"
            )
        return answers.reshape(len(inputs), -1).astype(np.float32)

    def predict(self, pictures: Any) -> NDArray[np.float32]:
        """Logits for uint8 pictures."""
        return self.logits(apply(self.preprocess, pictures))


@dataclass(frozen=True)
class _Classes:
    """How a model's logits stand to the classes that it is measured on.

    Attributes:
        logit: Of each of the classes, ``(classes,)``.
        names: Of all logits.
        width: Number of logits.
        warning: What is doubtful, or None.
    """

    logit: NDArray[np.int64]
    names: tuple[str, ...]
    width: int
    warning: str | None = None


@dataclass
class _Counts:
    """What the pictures seen so far say."""

    classes: int
    samples: int = 0
    top1: int = 0
    top5: int = 0
    agreeing: int = 0
    right: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.right, self.seen = np.zeros(self.classes, np.int64), np.zeros(self.classes, np.int64)

    def add(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        hit = logits.argmax(1) == targets
        # Rank among the logits; ties go to the lower index, as argmax decides them.
        order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        self.samples += len(targets)
        self.top1 += int(hit.sum())
        self.top5 += int((order == targets[:, None]).any(1).sum())
        np.add.at(self.seen, targets, 1)
        np.add.at(self.right, targets[hit], 1)


def evaluate_onnx(
    model: str | os.PathLike[str],
    data: Dataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | str | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = silent,
) -> Accuracy:
    """Counts what ``model`` gets right on every picture of ``data``.

    Args:
        model: An ``.onnx`` classifier with one input.
        data: Labelled pictures.
        reference: Another model, fed with the same pictures by its own preprocessing; ``agreement`` is the fraction
            of pictures with the same top-1 by the classes' names.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset. The reference takes it only when its
            file does not say its own.
        options: Provider, threads, batch size.
        progress: Called after each batch.

    Returns:
        Top-1, top-5 (None for five classes or fewer, where it says nothing), per-class accuracy and agreement.

    Raises:
        InputError: The classes of model, data and reference do not fit, or preprocessing is unknown.
        DataError: A damaged picture.
    """
    options, start = options or EvaluateOptions(), time.perf_counter()
    given: dict[str, Any] = {"provider": options.provider, "threads": options.threads}
    classifier = Classifier.open(model, preprocess=preprocess, **given)
    other = Classifier.open_reference(reference, preprocess, **given) if reference is not None else None
    classes, alike = _matched(classifier, other, data)
    counts, shown, examples = _Counts(classes.width), _shown(len(data), options.examples), list[Example]()
    for pictures, labels in data.batches(options.batch_size):
        targets, logits, first = classes.logit[labels], classifier.predict(pictures), counts.samples
        counts.add(logits, targets)
        if other and alike:
            counts.agreeing += int((alike.logit[logits.argmax(1)] == other.predict(pictures).argmax(1)).sum())
        for row in range(len(targets)):
            if first + row in shown:
                examples.append(_example(pictures[row], logits[row], int(targets[row]), classes.names))
        progress("evaluate", counts.samples, len(data))
    found = [matching.warning for matching in (classes, alike) if matching and matching.warning]
    return replace(
        _record(classifier, data, counts, classes.names),
        agreement=counts.agreeing / counts.samples if other else None,
        reference=Path(reference).name if reference is not None else None,
        seconds=round(time.perf_counter() - start, 3),
        examples=tuple(examples),
        warnings=(*data.notes, *found),
    )


def _record(classifier: Classifier, data: Dataset, counts: _Counts, names: Sequence[str]) -> Accuracy:
    artifact = classifier.artifact
    return Accuracy(
        deploykit=__version__,
        environment=environment.describe(),
        model=artifact.path.name,
        model_sha256=artifact.sha256,
        dataset=data.name,
        split=data.split,
        dataset_digest=data.digest,
        samples=counts.samples,
        top1=counts.top1 / counts.samples,
        top5=counts.top5 / counts.samples if counts.classes > 5 else None,
        per_class=_per_class(counts, names),
        agreement=None,
        reference=None,
        provider=classifier.session.provider,
        precision=classifier.precision,
        network=artifact.network,
        file_bytes=artifact.file_bytes,
    )


def _shown(total: int, count: int) -> set[int]:
    """Which pictures the record keeps: drawn at random from a fixed seed, as datasets may be sorted or periodic."""
    return set(np.random.default_rng(0).choice(total, min(count, total), replace=False).tolist())


def _matched(classifier: Classifier, other: Classifier | None, data: Dataset) -> tuple[_Classes, _Classes | None]:
    """The model's logits by the dataset's classes, and the reference's logits by the model's."""
    picture = data.pictures(np.zeros(1, np.int64))
    classes = _match(classifier, picture, data.labels, data.name)
    if other is None:
        return classes, None
    names = classifier.artifact.labels or classes.names
    return classes, _match(other, picture, names, classifier.artifact.path.name)


def _match(classifier: Classifier, picture: Any, classes: tuple[str, ...], of: str) -> _Classes:
    """Finds each of ``classes``, those of ``of``, among the model's logits: by name, else by position.

    Raises: InputError when the classes do not fit, or one's name stands twice.
    """
    path, labels, width = classifier.artifact.path, classifier.artifact.labels, classifier.predict(picture).shape[1]
    if twice := repeated(classes):
        raise InputError(f"{of} has the class {twice!r} more than once; each class needs its own name")
    if labels and len(labels) != width:
        raise InputError(
            f"{path} has {len(labels)} labels in its metadata but gives {width} logits; both must be equal"
        )
    if labels and set(classes) <= set(labels):
        return _Classes(np.array([labels.index(name) for name in classes], np.int64), labels, width)
    if len(classes) != width:
        raise InputError(
            f"{path} tells {width} classes apart, {of} has {len(classes)}"
            f" ({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''}); both must have the same"
        )
    warning = None
    if labels:
        first = next(index for index in range(width) if labels[index] != classes[index])
        differ = f"{path.name}: {labels[first]}, …; {of}: {classes[first]}, …"
        warning = f"class names differ ({differ}); they were matched by position"
    return _Classes(np.arange(width, dtype=np.int64), classes, width, warning)


def _per_class(counts: _Counts, names: Sequence[str]) -> Mapping[str, float | None]:
    return {
        name: (int(right) / int(seen) if seen else None)
        for name, right, seen in zip(names, counts.right, counts.seen, strict=True)
        if seen or len(names) <= 100
    }


def _example(picture: NDArray[np.uint8], logits: NDArray[np.float32], target: int, names: Sequence[str]) -> Example:
    from PIL import Image

    thumbnail = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    thumbnail.thumbnail((96, 96))
    packed = io.BytesIO()
    thumbnail.save(packed, format="PNG", optimize=True)
    best = int(logits.argmax())
    return Example(
        png_base64=base64.b64encode(packed.getvalue()).decode(),
        label=names[target],
        predicted=names[best],
        probability=float(_probabilities(logits)[best]),
    )


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax, unless the model's output is a distribution already."""
    values = logits.astype(np.float64)
    if values.min() >= 0.0 and abs(values.sum() - 1.0) < 1e-3:
        return values
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
