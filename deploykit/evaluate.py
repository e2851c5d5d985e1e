"""Evaluation: what an ONNX model gets right on real pictures, under ONNX Runtime, each picture counted once."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError
from deploykit.preprocess import apply, preprocess_for
from deploykit.progress import Progress, silent
from deploykit.results import Accuracy, Example
from deploykit.runtime import Session, create_session

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


@dataclass(frozen=True)
class Classifier:
    """A session that takes pictures and gives logits (N, classes)."""

    artifact: Artifact
    session: Session
    preprocess: Preprocess

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
        artifact = Artifact.read(model)
        if len(artifact.inputs) != 1:
            raise InputError(
                f"{model} has {len(artifact.inputs)} inputs; evaluation feeds models with exactly one picture input"
            )
        wanted = preprocess_for(artifact, preprocess)
        session = create_session(model, provider, threads=threads, optimize=optimize)
        return cls(artifact, session, wanted)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """First output (N, classes) for preprocessed inputs (N, …). Raises: InputError for NaN or another shape."""
        outputs = self.session.run_rows(inputs).astype(np.float32)
        if outputs.shape[0] != len(inputs) or outputs.size != len(inputs) * max(outputs.shape[1:], default=0):
            raise InputError(
                f"{self.artifact.path} answers {outputs.shape} for {len(inputs)} pictures; expected (N, classes)"
            )
        if not np.isfinite(outputs).all():
            raise InputError(
                f"{self.artifact.path} answers NaN or infinite values on real pictures; it cannot be evaluated"
            )
        return outputs.reshape(len(inputs), -1)

    def predict(self, pictures: Any) -> NDArray[np.float32]:
        """Logits for uint8 pictures."""
        return self.logits(apply(self.preprocess, pictures))


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

    def add(
        self, logits: NDArray[np.float32], targets: NDArray[np.int64], reference: NDArray[np.float32] | None
    ) -> None:
        best = logits.argmax(1)
        hit = best == targets
        # Rank among the logits; ties go to the lower index, as argmax decides them.
        order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        self.samples += len(targets)
        self.top1 += int(hit.sum())
        self.top5 += int((order == targets[:, None]).any(1).sum())
        np.add.at(self.seen, targets, 1)
        np.add.at(self.right, targets[hit], 1)
        if reference is not None:
            self.agreeing += int((best == reference.argmax(1)).sum())


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
            of pictures with the same top-1.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        options: Provider, threads, batch size.
        progress: Called after each batch.

    Returns:
        Top-1, top-5 (None for five classes or fewer, where it says nothing), per-class accuracy and agreement.

    Raises:
        InputError: The classes of model and data do not fit, or preprocessing is unknown.
        DataError: A damaged picture.
    """
    options, start = options or EvaluateOptions(), time.perf_counter()
    given: dict[str, Any] = {"preprocess": preprocess, "provider": options.provider, "threads": options.threads}
    classifier = Classifier.open(model, **given)
    other = Classifier.open(reference, **given) if reference is not None else None
    width = classifier.predict(data.pictures(np.zeros(1, np.int64))).shape[1]
    mapping, names, warning = _class_mapping(classifier.artifact, data, width)
    counts, shown, examples = _Counts(width), _shown(len(data), options.examples), list[Example]()
    for pictures, labels in data.batches(options.batch_size):
        targets, logits, first = mapping[labels], classifier.predict(pictures), counts.samples
        counts.add(logits, targets, other.predict(pictures) if other else None)
        for row in range(len(targets)):
            if first + row in shown:
                examples.append(_example(pictures[row], logits[row], int(targets[row]), names))
        progress("evaluate", counts.samples, len(data))
    return Accuracy(
        deploykit=__version__,
        environment=environment.describe(),
        model=Path(model).name,
        model_sha256=classifier.artifact.sha256,
        dataset=data.name,
        split=data.split,
        dataset_digest=data.digest,
        samples=counts.samples,
        top1=counts.top1 / counts.samples,
        top5=counts.top5 / counts.samples if counts.classes > 5 else None,
        per_class=_per_class(counts, names),
        agreement=counts.agreeing / counts.samples if other else None,
        reference=Path(reference).name if reference is not None else None,
        provider=classifier.session.provider,
        precision=classifier.artifact.precision or "unknown",
        network=classifier.artifact.network,
        file_bytes=classifier.artifact.file_bytes,
        seconds=round(time.perf_counter() - start, 3),
        examples=tuple(examples),
        warnings=(*data.notes, *([warning] if warning else [])),
    )


def _shown(total: int, count: int) -> set[int]:
    """Which pictures the record keeps: drawn at random from a fixed seed, as datasets may be sorted or periodic."""
    return set(np.random.default_rng(0).choice(total, min(count, total), replace=False).tolist())


def _class_mapping(
    artifact: Artifact, data: Dataset, width: int
) -> tuple[NDArray[np.int64], tuple[str, ...], str | None]:
    """The logit of each of the dataset's classes, the names of all logits, and a warning.

    Raises: InputError when the classes do not fit.
    """
    labels, classes = artifact.labels, data.labels
    if labels and len(labels) != width:
        raise InputError(
            f"{artifact.path} has {len(labels)} labels in its metadata but gives {width} logits; both must be equal"
        )
    if labels and set(classes) <= set(labels):
        return np.array([labels.index(name) for name in classes], np.int64), labels, None
    if len(classes) != width:
        raise InputError(
            f"{artifact.path} tells {width} classes apart, {data.name} has {len(classes)}"
            f" ({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''}); both must have the same"
        )
    warning = None
    if labels:
        warning = f"class names differ (model: {labels[0]}, …; data: {classes[0]}, …); they were matched by position"
    return np.arange(width, dtype=np.int64), classes, warning


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
