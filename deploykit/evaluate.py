"""Evaluation: what ONNX models get right on real pictures, under ONNX Runtime, each picture counted once.

One model, or several whose probabilities are averaged; of each picture one crop, or several by a protocol of ``crops``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.answer_counts import Counts, of_all
from deploykit.artifact import Preprocess
from deploykit.classifier import Classes, Classifier, Panel, match_classes, match_members, mean_answer
from deploykit.crops import check_crops
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError
from deploykit.progress import Progress, silent
from deploykit.ranks import ALONE, Ranks, agree, part_of
from deploykit.results import Accuracy, EnsembleMember, Example
from deploykit.runtime import (
    check_memory,
    check_provider,
    check_provider_options,
    check_threads,
    check_unbound,
    computed_in,
)

__all__ = ["Classifier", "EvaluateOptions", "evaluate_ensemble", "evaluate_onnx"]

_PROBES = 8  # pictures that tell whether a model answers with probabilities


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate, validated.

    Attributes:
        provider: Short name of the execution provider.
        provider_options: Options of the provider, in its own names.
        allow_fallback: Whether the CPU may stand in for a provider that cannot be used; the record then says so.
        memory: ``"default"`` or ``"lean"``, as ``runtime.create_session`` takes it.
        threads: Threads of the runtime; None takes those available.
        batch_size: Network inputs a call, unless the model fixes it.
        examples: Number of pictures kept in the record with their predictions.
        crops: Views of each picture whose probabilities are averaged: 1, 10 or 144 (see ``deploykit.crops``).
    """

    provider: str = "cpu"
    threads: int | None = None
    batch_size: int = 64
    examples: int = 16
    crops: int = 1
    provider_options: Mapping[str, str] = field(default_factory=dict)
    allow_fallback: bool = False
    memory: str = "default"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}; allowed: 1 or more")
        if self.examples < 0:
            raise InputError(f"examples {self.examples}; allowed: 0 or more")
        check_crops(self.crops)
        check_threads(self.threads)
        check_provider(self.provider)
        check_provider_options(self.provider, self.provider_options)
        check_unbound(self.provider, self.provider_options)
        check_memory(self.memory)


def evaluate_onnx(
    model: str | os.PathLike[str],
    data: Dataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | str | None = None,
    options: EvaluateOptions | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Accuracy:
    """Counts what ``model`` gets right on every picture of ``data``.

    Args:
        model: An ``.onnx`` classifier with one input.
        data: Labelled pictures.
        reference: Another model, fed with the same pictures by its own preprocessing and with as many crops;
            ``agreement`` is the fraction of pictures with the same top-1 by the classes' names.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset. The reference takes it only when its
            file does not say its own.
        options: Provider, threads, batch size, crops.
        ranks: Processes that share the pictures, in the batches of one process; each returns what all have counted.
        progress: Called after each batch, of this process's share.

    Returns:
        Top-1, top-5 (None for five classes or fewer, where it says nothing), per-class accuracy and agreement, and
        what they cost.

    Raises:
        InputError: The classes of model, data and reference do not fit, or preprocessing is unknown.
        DataError: A damaged picture.
        RankError: Another process is gone.
    """
    options, start = options or EvaluateOptions(), time.perf_counter()
    given = _opening(options, sessions=1 if reference is None else 2)
    classifier = Classifier.open(model, preprocess=preprocess, **given)
    other = Classifier.open_reference(reference, preprocess, **given) if reference is not None else None
    record = _measured((classifier,), other, data, options, ranks, progress)
    return replace(record, seconds=round(time.perf_counter() - start, 3))


def evaluate_ensemble(
    models: Sequence[str | os.PathLike[str]],
    data: Dataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | str | None = None,
    options: EvaluateOptions | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Accuracy:
    """``evaluate_onnx`` for several models whose probabilities are averaged (Szegedy et al. 2015, section 7).

    The models may differ in input, preprocessing and the order of the classes, which are matched by name. The record's
    ``members`` tell what each model gets right alone, with as many crops.

    Args:
        models: Two or more ``.onnx`` classifiers that tell the same classes apart.
        data: As there.
        reference: As there; it answers alone.
        preprocess: For those models that do not say their own.
        options: As there.
        ranks: As there.
        progress: As there.

    Raises:
        InputError: As there; fewer than two models, or models of different classes.
    """
    options, start = options or EvaluateOptions(), time.perf_counter()
    if len(models) < 2:
        raise InputError(f"an ensemble of {len(models)} models; allowed: two or more")
    given = _opening(options, sessions=len(models))
    members = tuple(Classifier.open_reference(model, preprocess, **given) for model in models)
    other = Classifier.open_reference(reference, preprocess, **given) if reference is not None else None
    record = _measured(members, other, data, options, ranks, progress)
    return replace(record, seconds=round(time.perf_counter() - start, 3))


def _opening(options: EvaluateOptions, sessions: int) -> dict[str, Any]:
    return {
        "provider": options.provider,
        "threads": options.threads,
        "spinning": sessions == 1,
        "provider_options": options.provider_options,
        "allow_fallback": options.allow_fallback,
        "memory": options.memory,
    }


def _measured(
    members: tuple[Classifier, ...],
    other: Classifier | None,
    data: Dataset,
    options: EvaluateOptions,
    ranks: Ranks,
    progress: Progress,
) -> Accuracy:
    probe = data.pictures(range(min(_PROBES, len(data))))
    members, other = tuple(member.told_by(probe) for member in members), other.told_by(probe) if other else None
    classes, orders, alike = _matched(members, other, data)
    panel = Panel(members, orders, options.crops, options.batch_size)
    referee = Panel((other,), (alike.logit,), options.crops, options.batch_size) if other and alike else None
    shas = [member.artifact.sha256 for member in members]
    agree(ranks, {"models": shas, "pictures": None if ranks.world == 1 else data.digest, **_decisive(options)})
    counts, examples = Counts(classes.width, len(members)), list[Example]()
    shown, part = _shown(len(data), options.examples), part_of(len(data), ranks, step=panel.pictures_a_step)
    for start_row in part[:: panel.pictures_a_step]:
        rows = range(start_row, min(start_row + panel.pictures_a_step, part.stop))
        pictures, targets = data.pictures(rows), classes.logit[data.targets[rows.start : rows.stop]]
        start = time.perf_counter()
        answers = panel.answers(pictures)
        counts.seconds += time.perf_counter() - start
        answer = mean_answer(answers)
        counts.add(answer, targets)
        counts.alone += [int((single.argmax(1) == targets).sum()) for single in answers]
        if referee and alike:
            counts.agreeing += int((alike.logit[answer.argmax(1)] == referee.joint(pictures).argmax(1)).sum())
        for row in (row for row in range(len(targets)) if rows[row] in shown):
            sure = panel.probabilities(answer[row : row + 1])[0]
            examples.append(_example(pictures[row], sure, int(targets[row]), classes.names))
        progress("evaluate", counts.samples, len(part))
    counts, examples = of_all(counts, examples, ranks)
    found = [matching.warning for matching in (classes, alike) if matching and matching.warning]
    return replace(
        _record(panel, data, counts, classes.names),
        agreement=counts.agreeing / counts.samples if other else None,
        reference=other.artifact.path.name if other else None,
        members=_members(members, counts.alone / counts.samples) if len(members) > 1 else (),
        examples=tuple(examples),
        warnings=(
            *data.notes,
            *found,
            *_twice(members),
            *_provider_notes(members, options.provider),
            *_shared_notes(ranks),
        ),
    )


def _decisive(options: EvaluateOptions) -> dict[str, Any]:
    return {"provider": options.provider, "batch size": options.batch_size, "crops": options.crops}


def _record(panel: Panel, data: Dataset, counts: Counts, names: Sequence[str]) -> Accuracy:
    artifacts = [member.artifact for member in panel.members]
    networks = {artifact.network for artifact in artifacts}
    return Accuracy(
        deploykit=__version__,
        environment=environment.describe(),
        model=" + ".join(artifact.path.name for artifact in artifacts),
        model_sha256=_joint_sha256([artifact.sha256 for artifact in artifacts]),
        dataset=data.name,
        split=data.split,
        dataset_digest=data.digest,
        samples=counts.samples,
        top1=counts.top1 / counts.samples,
        top5=counts.top5 / counts.samples if counts.classes > 5 else None,
        per_class=_per_class(counts, names),
        agreement=None,
        reference=None,
        provider="+".join(dict.fromkeys(member.session.provider for member in panel.members)),
        provider_options=panel.members[0].session.provider_options,
        precision="+".join(dict.fromkeys(member.precision for member in panel.members)),
        computed_in=_computed_in(panel.members),
        network=networks.pop() if len(networks) == 1 else None,
        file_bytes=sum(artifact.file_bytes for artifact in artifacts),
        crops=panel.crops,
        models=len(panel.members),
        forward_passes=panel.crops * len(panel.members),
        picture_ms=1000.0 * counts.seconds / counts.samples,
    )


def _computed_in(members: Sequence[Classifier]) -> str | None:
    """Of all members; None where one does not tell."""
    found = [
        None
        if member.remark
        else computed_in(member.session.provider, member.session.provider_options, member.precision)
        for member in members
    ]
    known = [kind for kind in found if kind is not None]
    return "+".join(dict.fromkeys(known)) if len(known) == len(found) else None


def _joint_sha256(digests: Sequence[str]) -> str:
    """The model's own, or one for these models together, whatever their order, which is no file's."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _members(members: Sequence[Classifier], top1: NDArray[np.float64]) -> tuple[EnsembleMember, ...]:
    return tuple(
        EnsembleMember(
            model=member.artifact.path.name,
            model_sha256=member.artifact.sha256,
            precision=member.precision,
            top1=float(alone),
            network=member.artifact.network,
            file_bytes=member.artifact.file_bytes,
        )
        for member, alone in zip(members, top1, strict=True)
    )


def _twice(members: Sequence[Classifier]) -> list[str]:
    seen: dict[str, str] = {}
    notes = []
    for artifact in (member.artifact for member in members):
        if artifact.sha256 in seen:
            notes.append(f"{artifact.path.name} and {seen[artifact.sha256]} are the same file, which counts twice")
        seen.setdefault(artifact.sha256, artifact.path.name)
    return notes


def _provider_notes(members: Sequence[Classifier], asked: str) -> list[str]:
    """What a reader has to know of where the answers were computed, each once."""
    notes = [member.remark for member in members if member.remark]
    for session in (member.session for member in members):
        if session.provider != asked:
            notes.append(f"provider {asked!r} could not be used; these are answers of {session.provider!r}")
        elif asked != "cpu" and (on_cpu := session.nodes_by_provider.get("cpu")):
            notes.append(f"{on_cpu} of {sum(session.nodes_by_provider.values())} nodes ran on the CPU")
        notes += session.notes
    return list(dict.fromkeys(notes))


def _shared_notes(ranks: Ranks) -> list[str]:
    text = f"{ranks.world} processes shared the pictures; the time a picture is that of each beside the others"
    return [text] if ranks.world > 1 else []


def _shown(total: int, count: int) -> set[int]:
    """Which pictures the record keeps: drawn at random from a fixed seed, as datasets may be sorted or periodic."""
    return set(np.random.default_rng(0).choice(total, min(count, total), replace=False).tolist())


def _matched(
    members: Sequence[Classifier], other: Classifier | None, data: Dataset
) -> tuple[Classes, tuple[NDArray[np.int64], ...], Classes | None]:
    """The first model's logits by the dataset's classes, and all models' and the reference's by the first model's."""
    picture, first = data.pictures(np.zeros(1, np.int64)), members[0]
    classes = match_classes(first, picture, data.labels, data.name)
    orders = match_members(members, picture, classes, data.labels)
    if other is None:
        return classes, orders, None
    names = first.artifact.labels or classes.names
    return classes, orders, match_classes(other, picture, names, first.artifact.path.name)


def _per_class(counts: Counts, names: Sequence[str]) -> Mapping[str, float | None]:
    return {
        name: (int(right) / int(seen) if seen else None)
        for name, right, seen in zip(names, counts.right, counts.seen, strict=True)
        if seen or len(names) <= 100
    }


def _example(picture: NDArray[np.uint8], sure: NDArray[np.float64], target: int, names: Sequence[str]) -> Example:
    from PIL import Image

    thumbnail = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    thumbnail.thumbnail((96, 96))
    packed = io.BytesIO()
    thumbnail.save(packed, format="PNG", optimize=True)
    best = int(sure.argmax())
    return Example(
        png_base64=base64.b64encode(packed.getvalue()).decode(),
        label=names[target],
        predicted=names[best],
        probability=float(sure[best]),
    )
