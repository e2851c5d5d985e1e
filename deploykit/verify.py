"""Verification: whether an ONNX file predicts the same on other CPUs, and without the runtime's optimisations.

An int8 model may lose points on a processor that its maker does not have: x86 without VNNI saturates full-range
products. The same file runs on the same samples under an emulator, and natively in an unoptimised session, whose float
arithmetic is what the file says.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.artifact import Preprocess
from deploykit.classifier import Classifier, match_classes
from deploykit.data.dataset import Dataset
from deploykit.emulation import Job, Machine, machines_of, run_on
from deploykit.errors import InputError, NotComparableError
from deploykit.preprocess import apply
from deploykit.progress import Progress, silent
from deploykit.results import CpuRun, Flip, Verification
from deploykit.runtime import check_threads

__all__ = ["VerifyOptions", "verify_onnx"]

_NATIVE = "native"
_BATCH = 8  # a call under an emulator takes up to a minute; progress is told between calls
_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")
_SEEDS = 2**32


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify, validated.

    Attributes:
        cpus: Names as ``qemu.cpu_named`` takes them; ``"native"`` is always part of it.
        samples: Pictures, balanced over the classes.
        seed: Fixes which ones; from 0 to 2³² − 1.
        threads: Threads of one operator, the same in every run.
        timeout_s: Seconds that one run on another CPU may take.
        max_flips: Samples that may have another top-1 in each run: a number, or a share as ``"0.5%"``, rounded down.
        arm64_root: A folder with an ARM64 Python; None takes the one that was prepared.
    """

    cpus: tuple[str, ...] = (_NATIVE,)
    samples: int = 64
    seed: int = 0
    threads: int = 1
    timeout_s: float = 1800.0
    max_flips: str = "0.5%"
    arm64_root: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"{self.samples} samples to verify; allowed: 1 or more")
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_SEEDS - 1}")
        if not 0.0 < self.timeout_s < float("inf"):
            raise InputError(f"timeout {self.timeout_s:g}; allowed: more than 0 seconds, and finite")
        if not self.cpus:
            raise InputError(f"no CPU to verify on; {_NATIVE} compares with the unoptimised session only")
        check_threads(self.threads)
        self.allowed_flips(1)

    @property
    def others(self) -> tuple[str, ...]:
        """The CPUs that are not this machine's."""
        return tuple(name for name in self.cpus if name.strip().lower() != _NATIVE)

    def allowed_flips(self, samples: int) -> int:
        """``max_flips`` of so many samples. Raises: InputError for another form."""
        text = self.max_flips.strip()
        if text.isascii() and text.isdecimal():
            return int(text)
        share = _PERCENT.fullmatch(text)
        if share is None or float(share[1]) > 100.0:
            raise InputError(f"max flips {self.max_flips!r}; allowed: a number of samples, or a share such as 0.5%")
        return int(samples * float(share[1]) / 100.0)


def verify_onnx(
    model: str | os.PathLike[str],
    data: Dataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | str | None = None,
    options: VerifyOptions | None = None,
    progress: Progress = silent,
) -> Verification:
    """Compares a model's answers here with those of an unoptimised session and of other CPUs, sample by sample.

    Args:
        model: An ``.onnx`` classifier with one input; never changed.
        data: Real pictures; ``options.samples`` of them are taken.
        reference: Another model, such as the float one, which runs natively by its own preprocessing: each run's
            ``reference_agreement`` is the fraction of samples with its top-1, by the classes' names.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        options: CPUs, samples, limits.
        progress: Called as samples are done.

    Returns:
        The record. A run that does not finish is part of it, with the reason, and the others go on.

    Raises:
        UnknownNameError: No such CPU.
        EmulatorError: An emulator or a root is missing; found out before anything runs.
        InputError: The model does not take these pictures or answers NaN natively, or the reference has other classes.
        DataError: A damaged picture.
    """
    options, start = options or VerifyOptions(), time.perf_counter()
    machines = machines_of(options.others, options.arm64_root)
    given: dict[str, Any] = {"preprocess": preprocess, "threads": options.threads, "spinning": False}
    native = Classifier.open(model, **given)
    chosen = data.take(options.samples, seed=options.seed)
    inputs = np.concatenate([apply(native.preprocess, pictures) for pictures, _ in chosen.batches()])
    fixed = native.session.fixed_batch
    job = Job(Path(model), inputs, fixed or _BATCH, fixed is not None, options.threads)
    samples = _Samples(data, chosen, native.artifact.labels, _natively(native, job, "verify: native", progress))
    warnings = list(data.notes)
    if reference is not None:
        other = Classifier.open_reference(reference, **given)
        samples, doubt = _referred(other, native, samples)
        warnings += [doubt] if doubt else []
    runs = [_unoptimised(Classifier.open(model, optimize=False, **given), job, samples, progress)]
    for machine in machines:
        run, doubts = _elsewhere(machine, job, samples, options.timeout_s, progress)
        runs.append(run)
        warnings += doubts
    named = None if reference is None else Path(reference).name
    record = replace(_record(native, chosen, samples, job, options, runs), reference=named)
    warnings += _version_notes(record)
    return replace(record, warnings=tuple(warnings), seconds=round(time.perf_counter() - start, 3))


@dataclass(frozen=True)
class _Samples:
    """The pictures that were taken, and what is known of them.

    Attributes:
        data: Where they are from.
        chosen: The pictures.
        labels: The model's names of its classes, if it has any.
        logits: What the model answers natively, (N, classes).
        reference: The reference's top-1 among the model's classes, (N,), -1 where the model lacks that class.
    """

    data: Dataset
    chosen: Dataset
    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    reference: NDArray[np.int64] | None = None

    def compared(self, run: CpuRun, logits: NDArray[np.float32]) -> CpuRun:
        """``run`` with its figures for its logits; a row that is not finite counts as another answer."""
        if logits.shape != self.logits.shape:
            return replace(run, error=f"answers of shape {logits.shape}, natively {self.logits.shape}")
        finite = np.asarray(np.isfinite(logits).all(1))
        differ = np.flatnonzero((logits.argmax(1) != self.logits.argmax(1)) | ~finite)
        largest = float(np.abs(logits - self.logits).max()) if finite.all() else None
        return replace(
            run,
            flips=len(differ),
            agreement=1.0 - len(differ) / len(logits),
            reference_agreement=self.reference_agreement(logits),
            max_abs=largest,
            flipped=tuple(self._flip(int(row), logits, bool(finite[row])) for row in differ),
        )

    def reference_agreement(self, logits: NDArray[np.float32]) -> float | None:
        """Fraction of the samples with the reference's top-1."""
        return None if self.reference is None else float((logits.argmax(1) == self.reference).mean())

    def _flip(self, row: int, logits: NDArray[np.float32], finite: bool) -> Flip:
        place = int(np.flatnonzero(self.data.rows == self.chosen.rows[row])[0])
        there = self._name(int(logits[row].argmax())) if finite else "not finite"
        label = self.chosen.labels[int(self.chosen.targets[row])]
        return Flip(place, label, self._name(int(self.logits[row].argmax())), there)

    def _name(self, index: int) -> str:
        names = self.labels or self.chosen.labels
        return names[index] if len(names) == self.logits.shape[1] else str(index)


def _referred(other: Classifier, native: Classifier, samples: _Samples) -> tuple[_Samples, str | None]:
    """The samples with the top-1 of ``other``, and what is doubtful about how the classes were matched."""
    names = samples.labels or samples.chosen.labels
    alike = match_classes(other, samples.chosen.pictures([0]), names, native.artifact.path.name)
    place = np.full(alike.width, -1, np.int64)
    place[alike.logit] = np.arange(len(alike.logit))
    answers = [other.predict(pictures).argmax(1) for pictures, _ in samples.chosen.batches(_BATCH)]
    return replace(samples, reference=place[np.concatenate(answers)]), alike.warning


def _natively(classifier: Classifier, job: Job, stage: str, progress: Progress) -> NDArray[np.float32]:
    """(N, classes), in the batches that the other runs take: sums may depend on them in the last bits."""
    parts = []
    for start in range(0, len(job.inputs), job.batch):
        parts.append(classifier.logits(job.inputs[start : start + job.batch]))
        progress(stage, min(start + job.batch, len(job.inputs)), len(job.inputs))
    return np.concatenate(parts)


def _unoptimised(classifier: Classifier, job: Job, samples: _Samples, progress: Progress) -> CpuRun:
    start = time.perf_counter()
    logits = _natively(classifier, job, "verify: unoptimised", progress)
    here = environment.describe()
    run = CpuRun(
        cpu=_NATIVE,
        optimised=False,
        machine=here["machine"],
        cpu_features=environment.cpu_features(),
        onnxruntime=_runtime_version(),
        python=here["python"],
        seconds=round(time.perf_counter() - start, 3),
    )
    return samples.compared(run, logits)


def _elsewhere(
    machine: Machine, job: Job, samples: _Samples, timeout_s: float, progress: Progress
) -> tuple[CpuRun, list[str]]:
    """The run on another CPU, or why there is none, and what is doubtful about it."""
    run = CpuRun(cpu=machine.cpu.name, optimised=True, emulator=machine.emulator)
    try:
        answer = run_on(machine, job, timeout_s=timeout_s, progress=progress)
    except NotComparableError as problem:
        return replace(run, error=str(problem)), []
    run = replace(
        run,
        machine=answer.machine,
        cpu_features=answer.cpu_features,
        onnxruntime=answer.onnxruntime,
        python=answer.python,
        seconds=round(answer.seconds, 3),
    )
    doubts = []
    if answer.left_out:
        doubts.append(
            f"{machine.emulator} leaves out {', '.join(answer.left_out)}, which a real {machine.cpu.name} has:"
            " the kernels for it did not run"
        )
    return samples.compared(run, answer.logits), doubts


def _version_notes(record: Verification) -> list[str]:
    return [
        f"{run.cpu} ran ONNX Runtime {run.onnxruntime}, this machine {record.onnxruntime}: a difference may be theirs"
        for run in record.runs
        if run.onnxruntime and run.onnxruntime != record.onnxruntime
    ]


def _record(
    native: Classifier, chosen: Dataset, samples: _Samples, job: Job, options: VerifyOptions, runs: Sequence[CpuRun]
) -> Verification:
    artifact, allowed = native.artifact, options.allowed_flips(len(chosen))
    return Verification(
        deploykit=__version__,
        environment=environment.describe(),
        model=artifact.path.name,
        model_sha256=artifact.sha256,
        precision=native.precision,
        dataset=chosen.name,
        split=chosen.split,
        dataset_digest=chosen.digest,
        samples=len(chosen),
        seed=options.seed,
        threads=options.threads,
        batch=job.batch,
        onnxruntime=_runtime_version(),
        largest_logit=float(np.abs(samples.logits).max()),
        reference_agreement=samples.reference_agreement(samples.logits),
        max_flips=options.max_flips.strip(),
        allowed_flips=allowed,
        verdict=_verdict(runs, allowed),
        runs=tuple(runs),
        seconds=0.0,
        network=artifact.network,
    )


def _verdict(runs: Sequence[CpuRun], allowed: int) -> str:
    if any(run.flips is not None and run.flips > allowed for run in runs):
        return "differs"
    return "incomplete" if any(run.error for run in runs) else "same"


def _runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
