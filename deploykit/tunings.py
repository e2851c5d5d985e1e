"""The record of a search for the best file and session of a model (``tune``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from deploykit.record import Record

__all__ = ["Candidate", "Tuning"]


@dataclass(frozen=True)
class Candidate:
    """One file in one session: what is known of it, as far as it came.

    Attributes:
        recipe: How the file was made: ``float`` (as it is), ``rewritten``, or a recipe of ``quantize``.
        provider: Short name of the execution provider.
        threads: Threads of one operator.
        session: Further arguments of ``runtime.create_session`` that are not its defaults.
        file: Where it lies in the folder; None where it was not kept.
        file_bytes: Bytes of the file; None where it was not made.
        latency_ms: Median latency in the last run that it took part in; None where it was not measured.
        ci_low_ms: Lower end of the median's 95 % interval.
        ci_high_ms: Upper end.
        relative_latency: Over the latency of the float model as it is, in the same interleaved run.
        peak_bytes: Peak memory of a fresh process that loads and runs it, less what it held before.
        top1: Fraction of the held-out samples that is right; None where their classes are not the model's.
        agreement: Fraction of them with the same top-1 as the float model on the CPU.
        drop: What counts against the allowed drop: top-1 lost, or without labels one less the agreement.
        on_front: Whether no other candidate is as good in latency, bytes, memory and accuracy, and better in one.
        rejected_because: In words; None for those that were measured to the end or lie on the front.
        model_sha256: Of the file.
        stable: Whether the latency may be relied on.
    """

    recipe: str
    provider: str
    threads: int
    session: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    file_bytes: int | None = None
    latency_ms: float | None = None
    ci_low_ms: float | None = None
    ci_high_ms: float | None = None
    relative_latency: float | None = None
    peak_bytes: int | None = None
    top1: float | None = None
    agreement: float | None = None
    drop: float | None = None
    on_front: bool = False
    rejected_because: str | None = None
    model_sha256: str | None = None
    stable: bool = True

    @property
    def name(self) -> str:
        """Such as ``int8 on cpu with 2 threads``."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        further = ", ".join(f"{key} {value}" for key, value in self.session.items())
        return f"{self.recipe} on {self.provider} with {threads}" + (f" ({further})" if further else "")


@dataclass(frozen=True, kw_only=True)
class Tuning(Record):
    """What was tried and what is best (``tune``).

    Attributes:
        best: The candidate that is named; its file is ``best.onnx``.
        why: In one sentence.
        candidates: All, those that were refused at once included.
        session: The settings that an app has to use, as in ``session.json``.
        objective: ``latency``, ``size`` or ``memory``.
        max_drop: Largest drop that was allowed, a fraction.
        accuracy_by: ``top1`` or ``agreement``.
        speedup: Latency of the float model in its fastest setting over the best one's, in the last interleaved run.
        speedup_low: Lower end of its 95 % interval.
        speedup_high: Upper end.
        steps_done: Steps (files, predictions, runs) that this call did.
        steps_reused: Steps whose results lay in the folder.
    """

    kind: ClassVar[str] = "tuning"

    model: str
    model_sha256: str
    objective: str
    max_drop: float
    accuracy_by: str
    best: Candidate
    why: str
    candidates: tuple[Candidate, ...]
    session: Mapping[str, Any]
    dataset: str
    dataset_digest: str
    held_out_samples: int
    calibration: str
    calibration_digest: str
    effort: str
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    seconds: float | None = None
    steps_done: int = 0
    steps_reused: int = 0
    warnings: tuple[str, ...] = ()
