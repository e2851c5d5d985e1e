"""The measurement records: immutable values that become versioned JSON documents and come back from them.

``docs/interface.md`` promises their keys. Times are milliseconds (``_ms``), sizes bytes (``_bytes``), accuracies
fractions from 0 to 1. A record says what was really used; the environment travels with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from deploykit.compressions import Compression, FactoredLayer, PrunedLayer
from deploykit.embeddings import BundleVerification, Embedding
from deploykit.errors import InputError
from deploykit.files import read_json
from deploykit.operators import NodeTime, OperatorTime
from deploykit.profiles import Comparison, Difference, LayerProfile, Profile, StageProfile
from deploykit.record import Record
from deploykit.rewritings import Rewriting
from deploykit.timings import Bench, Failure, Latency, Memory, Timing
from deploykit.tunings import Candidate, Tuning
from deploykit.verdicts import Check, Verdict
from deploykit.verifications import CpuRun, Flip, Verification
from deploykit.wrappings import PixelParity, Wrapping

__all__ = [
    "Accuracy",
    "Bench",
    "BundleVerification",
    "Candidate",
    "Check",
    "Claims",
    "Comparison",
    "Compression",
    "CpuRun",
    "Difference",
    "Embedding",
    "EnsembleMember",
    "Example",
    "FactoredLayer",
    "Failure",
    "FileCost",
    "Flip",
    "Latency",
    "LayerProfile",
    "Memory",
    "NetworkCost",
    "NodeTime",
    "OperatorTime",
    "PixelParity",
    "Profile",
    "PrunedLayer",
    "Quantization",
    "Record",
    "Rewriting",
    "StageProfile",
    "Statement",
    "Timing",
    "Training",
    "Tuning",
    "Verdict",
    "Verification",
    "Wrapping",
    "read_record",
]


@dataclass(frozen=True)
class Example:
    """One picture with its prediction, for the report: a PNG as base64, label and prediction by name."""

    png_base64: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class EnsembleMember:
    """One model of an ensemble, with what it gets right alone."""

    model: str
    model_sha256: str
    precision: str
    top1: float
    network: str | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy(Record):
    """What a model gets right (``evaluate``): fractions over ``samples`` pictures, each counted once.

    Attributes:
        crops: Views of each picture whose probabilities were averaged.
        models: How many models were averaged; ``members`` describes them where there are several, and
            ``model_sha256`` is then of no file.
        forward_passes: For one picture, ``crops`` × ``models``.
        picture_ms: Preparing one picture and all its forward passes, decoding left out, on average.
        provider_options: What the provider was told, in its own names; its precision may hang on them.
        computed_in: What the layers were computed in, such as ``"tf32"`` for a float32 model; None where not known.
    """

    kind: ClassVar[str] = "accuracy"

    model: str
    model_sha256: str
    dataset: str
    split: str
    dataset_digest: str
    samples: int
    top1: float
    top5: float | None
    per_class: Mapping[str, float | None]
    agreement: float | None
    reference: str | None
    provider: str
    precision: str
    network: str | None = None
    file_bytes: int | None = None
    seconds: float | None = None
    crops: int = 1
    models: int = 1
    forward_passes: int = 1
    picture_ms: float | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    computed_in: str | None = None
    members: tuple[EnsembleMember, ...] = ()
    examples: tuple[Example, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training(Record):
    """How a network was trained (``train``). ``history`` has one object an epoch: epoch, loss, accuracies, rate.

    ``mfu`` is the fraction of the device's dense peak at ``precision`` that the training passes reached; None where the
    peak is not known, as for every CPU.
    """

    kind: ClassVar[str] = "training"

    network: str
    dataset: str
    dataset_digest: str
    epochs: int
    seconds: float
    images_per_s: float
    device: str
    precision: str
    test_top1: float
    parameters: int
    checkpoint: str
    checkpoint_sha256: str
    seed: int
    threads: int
    options: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quantization(Record):
    """What a recipe did to a model (``quantize``): sizes, and the outputs against the float model's.

    ``agreement`` is the fraction of the compared samples with the same top-1; ``snr_db`` the signal-to-noise ratio
    of the first output in decibels; ``max_abs`` its largest absolute difference. ``unoptimised_agreement`` is the
    fraction with the same top-1 when the quantized model runs without the runtime's optimisations, which replace the
    quantized nodes by integer kernels, and ``unoptimised_snr_db`` compares those two; None in records of versions that
    did not compare them. ``float_layers`` were
    left in float; ``kept_float`` says that the file is the float model, as no integer form met what was asked.
    ``sensitivity`` holds each layer's harm, the worst first (``sensitivity.LayerHarm``); ``held_out_drop`` is the
    fraction of top-1 lost on samples that calibration did not see; ``speedup`` the float model's median latency over
    the file's, on the machine of the record. ``border_levels`` is of a model that takes pixels, whose first layer reads
    them: by how much, of 255, the padding of a convolution differs from the mean pixel at most.
    """

    kind: ClassVar[str] = "quantization"

    model: str
    model_sha256: str
    parent: str
    parent_sha256: str
    recipe: str
    calibration: str
    calibration_digest: str | None
    calibration_samples: int
    file_bytes: int
    parent_bytes: int
    compared_samples: int
    agreement: float
    max_abs: float
    snr_db: float | None
    seconds: float
    unoptimised_agreement: float | None = None
    unoptimised_snr_db: float | None = None
    download_bytes: int | None = None
    precision: str = "int8"
    effort: str = "low"
    ranges: str = "minmax"
    rewrites: Mapping[str, int] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    kept_float: bool = False
    sensitivity: tuple[Mapping[str, Any], ...] = ()
    held_out_samples: int = 0
    held_out_drop: float | None = None
    speedup: float | None = None
    border_levels: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """What a paper or the lecture notes say, beside what was measured.

    ``said`` and ``measured`` are in ``unit``; ``measured`` is None where it takes data or weights that are not here.
    """

    says: str
    source: str
    said: float | None
    measured: float | None
    unit: str
    remark: str = ""


@dataclass(frozen=True)
class FileCost:
    """One file of a network, in a fresh process: latency is the median of a call, with its 95 % interval."""

    precision: str
    file_bytes: int
    download_bytes: int | None = None
    latency_ms: float | None = None
    ci_low_ms: float | None = None
    ci_high_ms: float | None = None
    load_ms: float | None = None
    peak_bytes: int | None = None
    stable: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkCost:
    """What a reference network costs, with what is said of it; fresh weights, batch 1."""

    network: str
    said: str
    parameters: int
    macs: int
    peak_activation_bytes: int | None
    threads: int
    files: tuple[FileCost, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claims(Record):
    """What papers and lecture notes say of the reference networks, beside what was measured (``report --claims``).

    ``measured_on`` is a day (UTC, ISO 8601), or the first and the last; ``command`` the command line that measured.
    """

    kind: ClassVar[str] = "claims"

    statements: tuple[Statement, ...]
    networks: tuple[NetworkCost, ...] = ()
    measured_on: str = ""
    command: str = ""


_KINDS: dict[str, type[Record]] = {
    cls.kind: cls
    for cls in (
        Profile,
        Comparison,
        Accuracy,
        Bench,
        Training,
        Quantization,
        Claims,
        Verification,
        Compression,
        Rewriting,
        Wrapping,
        Tuning,
        Verdict,
        Embedding,
        BundleVerification,
    )
}


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads any record by its ``schema``.

    Raises:
        InputError: Not JSON, no ``schema`` of deploykit, or a kind or version that this deploykit does not read.
    """
    document = read_json(path)
    schema = str(document.get("schema", ""))
    kind = schema.removeprefix("deploykit.").split("/")[0]
    if not schema.startswith("deploykit.") or kind not in _KINDS:
        readable = [f"deploykit.{cls.kind}/{cls.schema_version}" for cls in _KINDS.values()]
        raise InputError(f"{Path(path)} has schema {schema!r}; this deploykit reads {', '.join(readable)}")
    return _KINDS[kind].from_document(document, source=str(path))  # which names the version of this kind
