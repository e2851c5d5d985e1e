"""A model that is shown pictures: its logits, its probabilities averaged over crops, and whose classes they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.answers import first_answers
from deploykit.artifact import Artifact, Preprocess, load_model, repeated
from deploykit.crops import crop_batches
from deploykit.data.dataset import Pictures
from deploykit.errors import InputError
from deploykit.graph.integer_operators import check_integers_run
from deploykit.graph.precision import precision_of
from deploykit.preprocess import normalize, preprocess_for
from deploykit.raw_pictures import inputs_of
from deploykit.runtime import Session, create_session

__all__ = [
    "Answers",
    "Classes",
    "Classifier",
    "Panel",
    "ends_in_softmax",
    "match_classes",
    "match_members",
    "mean_answer",
]

Answers: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
"""Logits or probabilities, (N, classes)."""

_SUMS_TO_ONE = 1e-3  # how far the sum of probabilities may be off
# What may stand between a softmax and the output and leaves probabilities what they are.
_HARMLESS = ("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Classifier:
    """A session that takes pictures and gives logits (N, classes).

    Attributes:
        artifact: The file.
        session: Runs it.
        preprocess: What it is fed with.
        precision: As ``precision_of`` names it.
        gives_probabilities: Its output is a distribution already, not logits.
        remark: What a reader has to know of how the provider computes it.
    """

    artifact: Artifact
    session: Session
    preprocess: Preprocess
    precision: str
    gives_probabilities: bool = False
    remark: str | None = None

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        preprocess: Preprocess | str | None = None,
        provider: str = "cpu",
        **session: Any,
    ) -> Classifier:
        """Opens a model with one picture input; ``preprocess`` is needed where the file does not say it.

        ``session`` are further arguments of ``runtime.create_session``. With several models ``spinning`` is better
        off: threads that wait actively are in each other's way.

        Raises:
            ModelFileError: The file is not a usable model.
            InputError: The model has several inputs, or its preprocessing is unknown.
            ProviderError: The provider cannot be used, or does not compute with the integers of the model.
        """
        proto = load_model(model)
        artifact = Artifact.of_model(proto, Path(model))
        if len(artifact.inputs) != 1:
            raise InputError(
                f"{model} has {len(artifact.inputs)} inputs; evaluation feeds models with exactly one picture input"
            )
        wanted = preprocess_for(artifact, preprocess)
        told = check_integers_run(proto, Path(model), provider, allow_fallback=bool(session.get("allow_fallback")))
        opened = create_session(model, provider, **session)
        remark = told if opened.provider == provider else None
        return cls(artifact, opened, wanted, precision_of(proto), ends_in_softmax(proto.graph), remark)

    @classmethod
    def open_reference(
        cls, model: str | os.PathLike[str], preprocess: Preprocess | str | None, **given: Any
    ) -> Classifier:
        """``open`` for one of several models: its own preprocessing goes before ``preprocess``."""
        return cls.open(model, preprocess=preprocess if Artifact.read(model).preprocess is None else None, **given)

    def told_by(self, pictures: Pictures) -> Classifier:
        """Itself, knowing whether its output is a distribution: its graph says so, or all these answers are one."""
        values = self.predict(pictures).astype(np.float64)
        distributions = values.min() >= 0.0 and bool((np.abs(values.sum(1) - 1.0) < _SUMS_TO_ONE).all())
        return replace(self, gives_probabilities=self.gives_probabilities or distributions)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """First output (N, classes) for preprocessed inputs (N, …). Raises: InputError for NaN or another shape."""
        answers = first_answers(self.session, inputs, self.artifact.path, what="real pictures")
        if answers.size != len(inputs) * max(answers.shape[1:], default=0):
            raise InputError(
                f"{self.artifact.path} answers {answers.shape} for {len(inputs)} pictures; expected (N, classes)"
            )
        return answers.reshape(len(inputs), -1).astype(np.float32)

    def predict(self, pictures: Pictures) -> NDArray[np.float32]:
        """Logits for uint8 pictures."""
        return np.concatenate([self.logits(inputs) for inputs in inputs_of(self.preprocess, pictures)])

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Softmax of (N, classes), unless the output is a distribution already."""
        values = logits.astype(np.float64)
        if self.gives_probabilities:
            return values
        powers = np.exp(values - values.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def averaged(self, pictures: Pictures, crops: int, batch_size: int) -> NDArray[np.float64]:
        """Probabilities (N, classes), the mean over the crops of each picture.

        Args:
            pictures: uint8, as ``preprocess.fit_pictures`` takes them.
            crops: 1, 10 or 144.
            batch_size: Inputs a call, as ``inputs_a_call`` rounds it.

        Raises: as ``logits`` and ``crop_batches``; InputError for crops of a model that cuts pictures itself.
        """
        if self.preprocess.any_size:
            return self._of_whole_pictures(pictures, crops)
        found = []
        for views in crop_batches(self.preprocess, pictures, crops, self.inputs_a_call(batch_size)):
            found.append(self.probabilities(self.logits(normalize(self.preprocess, views))))
        return np.asarray(np.concatenate(found).reshape(len(pictures), crops, -1).mean(1))

    def _of_whole_pictures(self, pictures: Pictures, crops: int) -> NDArray[np.float64]:
        if crops > 1:
            raise InputError(
                f"{self.artifact.path} resizes and cuts pictures in its own graph; allowed: 1 crop, or a model wrapped"
                " with a fixed size"
            )
        return self.probabilities(self.predict(pictures))

    def inputs_a_call(self, batch_size: int) -> int:
        """``batch_size``, or for a model that fixes its batch as many full ones as it holds, at least one."""
        fixed = self.session.fixed_batch or 1
        return max(1, batch_size // fixed) * fixed

    def count_classes(self, pictures: Pictures) -> int:
        """Number of its logits. Raises: InputError when its labels are not as many."""
        width, labels = int(self.predict(pictures).shape[1]), self.artifact.labels
        if labels and len(labels) != width:
            raise InputError(
                f"{self.artifact.path} has {len(labels)} labels in its metadata but gives {width} logits;"
                " both must be equal"
            )
        return width


@dataclass(frozen=True)
class Panel:
    """The models that answer together, one or several, and how each of them is asked.

    Attributes:
        members: The models.
        orders: For each, which of its logits stands for each of the first one's.
        crops: Views of a picture.
        batch_size: Inputs a call.
    """

    members: tuple[Classifier, ...]
    orders: tuple[NDArray[np.int64], ...]
    crops: int
    batch_size: int

    @property
    def averages(self) -> bool:
        """Whether probabilities are averaged; otherwise the answers are one model's logits, to the last digit."""
        return self.crops > 1 or len(self.members) > 1

    @property
    def pictures_a_step(self) -> int:
        """Pictures whose crops about fill a call, so that few decoded ones are held at once."""
        return max(1, max(member.inputs_a_call(self.batch_size) for member in self.members) // self.crops)

    def answers(self, pictures: Pictures) -> list[Answers]:
        """Of each model (N, classes), in the order of the first one's classes."""
        if not self.averages:
            return [self.members[0].predict(pictures)]
        return [
            member.averaged(pictures, self.crops, self.batch_size)[:, order]
            for member, order in zip(self.members, self.orders, strict=True)
        ]

    def joint(self, pictures: Pictures) -> Answers:
        """What they answer together, (N, classes)."""
        return mean_answer(self.answers(pictures))

    def probabilities(self, answer: Answers) -> NDArray[np.float64]:
        """Of a joint answer (N, classes)."""
        if self.averages:
            return answer.astype(np.float64, copy=False)
        return self.members[0].probabilities(answer.astype(np.float32, copy=False))


def mean_answer(answers: Sequence[Answers]) -> Answers:
    """The mean of several models' answers, each (N, classes); of one, what it is."""
    return answers[0] if len(answers) == 1 else np.mean(answers, axis=0)


def ends_in_softmax(graph: Any) -> bool:
    """Whether the first output of an ONNX graph is a softmax's, perhaps quantized or reshaped.

    The numbers alone do not tell: a quantized softmax of many classes does not sum to one.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name) if graph.output else None
    while node is not None and node.op_type in _HARMLESS:
        node = made_by.get(node.input[0]) if node.input else None
    return node is not None and node.op_type in ("Softmax", "QLinearSoftmax")


@dataclass(frozen=True)
class Classes:
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


def match_classes(classifier: Classifier, picture: Pictures, classes: tuple[str, ...], of: str) -> Classes:
    """Finds each of ``classes``, those of ``of``, among the model's logits: by name, else by position.

    Raises: InputError when the classes do not fit, or one's name stands twice.
    """
    path, labels, width = classifier.artifact.path, classifier.artifact.labels, classifier.count_classes(picture)
    if twice := repeated(classes):
        raise InputError(f"{of} has the class {twice!r} more than once; each class needs its own name")
    if labels and set(classes) <= set(labels):
        return Classes(_places(classes, labels), labels, width)
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
    return Classes(np.arange(width, dtype=np.int64), classes, width, warning)


def match_members(
    members: Sequence[Classifier], picture: Pictures, classes: Classes, data_labels: tuple[str, ...]
) -> tuple[NDArray[np.int64], ...]:
    """For each model of an ensemble, which of its logits stands for each of the first model's, ``(classes,)``.

    By the names in the files. A model without names has the dataset's order if it tells as many classes apart, and
    otherwise the first model's.

    Args:
        members: The models.
        picture: Any one.
        classes: The first model's, matched to the dataset's.
        data_labels: The dataset's names.

    Raises: InputError when two models tell different classes apart.
    """
    first = members[0]
    orders = [np.arange(classes.width, dtype=np.int64)]
    for member in members[1:]:
        labels, wanted = member.artifact.labels, classes.names
        width = member.count_classes(picture)
        if labels and set(labels) == set(first.artifact.labels):
            wanted = first.artifact.labels
        names = labels or (data_labels if len(data_labels) == width else wanted)
        if set(names) != set(wanted) or width != classes.width:
            raise InputError(
                f"{member.artifact.path} tells {_some(names, width)} apart, {first.artifact.path}"
                f" {_some(wanted, classes.width)}; the models of an ensemble must have the same classes"
            )
        orders.append(_places(wanted, names))
    return tuple(orders)


def _places(wanted: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.int64]:
    place = {name: index for index, name in enumerate(names)}
    return np.array([place[name] for name in wanted], np.int64)


def _some(names: tuple[str, ...], width: int) -> str:
    shown = f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if len(names) == width else ""
    return f"{width} classes{shown}"
