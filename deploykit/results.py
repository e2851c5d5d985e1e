"""The measurement records: immutable values that become versioned JSON documents and come back from them.

``docs/interface.md`` promises their keys. Times are milliseconds (``_ms``), sizes bytes (``_bytes``), accuracies
fractions from 0 to 1. A record says what was really used; the environment travels with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from deploykit.errors import InputError
from deploykit.files import read_json

__all__ = [
    "Accuracy",
    "Bench",
    "Example",
    "Latency",
    "LayerProfile",
    "Memory",
    "Profile",
    "Quantization",
    "Record",
    "Timing",
    "Training",
    "read_record",
]

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records: a kind, a version, and what machine and versions it was made with."""

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 1

    environment: Mapping[str, Any] = field(default_factory=dict)
    deploykit: str = ""

    def to_document(self) -> dict[str, Any]:
        """The JSON document, with ``schema``, ``deploykit`` and ``environment`` first."""
        body = {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        head = {"schema": f"deploykit.{self.kind}/{self.schema_version}", "deploykit": body.pop("deploykit")}
        return head | {"environment": body.pop("environment")} | body

    @classmethod
    def from_document(cls: type[R], document: Mapping[str, Any], *, source: str = "document") -> R:
        """The record of a JSON document. Raises: InputError naming an unknown schema or a missing key."""
        expected = f"deploykit.{cls.kind}/{cls.schema_version}"
        if document.get("schema") != expected:
            raise InputError(f"{source} has schema {document.get('schema')!r}; this deploykit reads {expected!r}")
        return typing.cast(R, _build(cls, {key: value for key, value in document.items() if key != "schema"}, source))


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON has them; NaN and infinities as null, which JSON lacks."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not ClassVar}


def _build(cls: Any, values: Mapping[str, Any], source: str) -> Any:
    """Builds a dataclass from JSON; keys that a later version added are passed over."""
    hints = _hints(cls)
    needed = {
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(values)):
        raise InputError(f"{source} lacks the keys {', '.join(missing)} of a {cls.__name__} record")
    return cls(**{name: _typed(hints[name], values[name], source, name) for name in hints if name in values})


# What JSON may hold for a field's type; a float that was NaN or infinite stands there as null.
_SCALARS: dict[Any, tuple[type, ...]] = {float: (int, float, type(None)), int: (int,), str: (str,), bool: (bool,)}


def _typed(hint: Any, value: Any, source: str, key: str) -> Any:
    """The value as the field's type has it. Raises: InputError naming the key whose value is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return value if value is None or len(inner) != 1 else _typed(inner[0], value, source, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, source)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, source, key) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(name): _typed(arguments[1], item, source, key) for name, item in value.items()}
    if hint is Any or (isinstance(value, _SCALARS.get(hint, ())) and (hint is bool or not isinstance(value, bool))):
        return value
    expected = getattr(origin or hint, "__name__", str(hint))
    raise InputError(f"{source}: {key!r} is a {type(value).__name__}; expected a {expected}")


@dataclass(frozen=True)
class LayerProfile:
    """One layer of a profile. ``output_shape`` leaves out the batch axis; counts are for one picture."""

    name: str
    op: str
    output_shape: tuple[int, ...] | None
    parameters: int
    connections: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """What a network weighs (``inspect``).

    Attributes:
        connections: Multiply-accumulates with the bias counted as one, as LeCun et al. 1998 counts them.
        macs: Multiply-accumulates of convolutions and fully connected layers, without biases, for one picture.
        weight_bytes: Bytes of the weights as stored.
        file_bytes: Bytes on disk; None for a network that is only a name.
        download_bytes: The file after deflate; None for a network that is only a name.
        peak_activation_bytes: Largest sum of live activations, by liveness, batch 1; None when shapes are unknown.
    """

    kind: ClassVar[str] = "profile"

    name: str
    parameters: int
    connections: int | None
    macs: int | None
    weight_bytes: int
    file_bytes: int | None
    download_bytes: int | None
    peak_activation_bytes: int | None
    precision: str
    layers: tuple[LayerProfile, ...]
    operators: Mapping[str, int] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    opset: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    parent_sha256: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """One picture with its prediction, for the report: a PNG as base64, label and prediction by name."""

    png_base64: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Accuracy(Record):
    """What a model gets right (``evaluate``): fractions over ``samples`` pictures, each counted once."""

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
    examples: tuple[Example, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Latency of one inference call in milliseconds; ``ci_low`` and ``ci_high`` bound the median (95 %)."""

    median: float
    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    ci_low: float
    ci_high: float
    samples: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a fresh process that loads and runs one model.

    ``weights_bytes`` is the model file; ``after_load_bytes`` and ``peak_bytes`` are resident memory of the process
    less what it held before the session was made, ``process_peak_bytes`` is the whole process.
    """

    weights_bytes: int
    after_load_bytes: int | None
    peak_bytes: int | None
    process_peak_bytes: int | None = None


@dataclass(frozen=True)
class Timing:
    """Latency and memory of one model in one setting."""

    model: str
    model_sha256: str
    precision: str
    provider: str
    nodes_by_provider: Mapping[str, int]
    threads: int
    batch: int
    latency_ms: Latency
    throughput_per_s: float
    load_ms: float
    first_run_ms: float
    memory: Memory
    stable: bool
    warnings: tuple[str, ...] = ()
    network: str | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Bench(Record):
    """The timings of one interleaved run (``bench``)."""

    kind: ClassVar[str] = "timing"

    results: tuple[Timing, ...]


@dataclass(frozen=True, kw_only=True)
class Training(Record):
    """How a network was trained (``train``). ``history`` has one object an epoch: epoch, loss, accuracies, rate."""

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


@dataclass(frozen=True, kw_only=True)
class Quantization(Record):
    """What a recipe did to a model (``quantize``): sizes, and the outputs against the float model's.

    ``agreement`` is the fraction of the compared samples with the same top-1; ``snr_db`` the signal-to-noise ratio
    of the first output in decibels; ``max_abs`` its largest absolute difference. ``unoptimised_agreement`` is the
    fraction with the same top-1 when the quantized model runs without the runtime's optimisations, which replace the
    quantized nodes by integer kernels; None in records of versions that did not compare them.
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
    warnings: tuple[str, ...] = ()


_KINDS: dict[str, type[Record]] = {cls.kind: cls for cls in (Profile, Accuracy, Bench, Training, Quantization)}


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads any record by its ``schema``.

    Raises:
        InputError: Not JSON, no ``schema`` of deploykit, or a kind or version that this deploykit does not read.
    """
    document = read_json(path)
    schema = str(document.get("schema", ""))
    readable = [f"deploykit.{cls.kind}/{cls.schema_version}" for cls in _KINDS.values()]
    if schema not in readable:
        raise InputError(f"{Path(path)} has schema {schema!r}; this deploykit reads {', '.join(readable)}")
    kind = schema.removeprefix("deploykit.").split("/")[0]
    return _KINDS[kind].from_document(document, source=str(path))
