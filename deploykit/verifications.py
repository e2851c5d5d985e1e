"""The record of a model's answers on other CPUs, beside those that it gives on this one (``verify``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deploykit.record import Record

__all__ = ["CpuRun", "Flip", "Verification"]


@dataclass(frozen=True)
class Flip:
    """A picture whose top-1 differs: its place in the dataset's split, its class, and both answers by name."""

    sample: int
    label: str
    native: str
    there: str


@dataclass(frozen=True)
class CpuRun:
    """One more run of the same file on the same samples, compared with the native one.

    Attributes:
        cpu: As it was asked for; ``"native"`` is this machine's.
        optimised: Whether ONNX Runtime rewrote the graph; without, QDQ files compute in float.
        emulator: What emulated the CPU, None where the CPU is this machine's.
        machine: The architecture that the run saw.
        cpu_features: What the run saw of those that decide how int8 is computed.
        onnxruntime: The version that ran there.
        python: The Python's version there.
        flips: Samples with another top-1, None where the run did not finish.
        agreement: Fraction of the samples with the same top-1.
        reference_agreement: Fraction with the same top-1 as the reference model's, where one was given.
        max_abs: Largest absolute difference of a logit; None also where a logit is not finite.
        seconds: Loading and running, the process's start left out.
        flipped: Which samples.
        error: Why the run did not finish.
    """

    cpu: str
    optimised: bool
    emulator: str | None = None
    machine: str | None = None
    cpu_features: tuple[str, ...] = ()
    onnxruntime: str | None = None
    python: str | None = None
    flips: int | None = None
    agreement: float | None = None
    reference_agreement: float | None = None
    max_abs: float | None = None
    seconds: float | None = None
    flipped: tuple[Flip, ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """Whether a model predicts the same on other CPUs, and without the runtime's optimisations.

    Attributes:
        onnxruntime: The version of the native run, which ``environment`` describes.
        largest_logit: Largest absolute logit of the native run, to read ``max_abs`` by.
        max_flips: The limit as it was given; ``allowed_flips`` is its number of samples.
        reference: The model whose native answers ``reference_agreement`` compares with, here those of the native run.
        verdict: ``"same"``, ``"differs"`` (a run flips more than allowed), or ``"incomplete"`` (none does, and one did
            not finish).
    """

    kind: ClassVar[str] = "verification"

    model: str
    model_sha256: str
    precision: str
    dataset: str
    split: str
    dataset_digest: str
    samples: int
    seed: int
    threads: int
    batch: int
    onnxruntime: str
    largest_logit: float
    max_flips: str
    allowed_flips: int
    verdict: str
    runs: tuple[CpuRun, ...]
    seconds: float
    reference: str | None = None
    reference_agreement: float | None = None
    network: str | None = None
    warnings: tuple[str, ...] = ()
