"""The rows of a report: what several records say about one model file, joined by the file's SHA-256."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploykit.files import sha256_json
from deploykit.report.verified import told_by
from deploykit.results import Accuracy, Bench, Compression, Profile, Quantization, Record, Timing, Verification

__all__ = ["Caveat", "Environments", "Row", "dataset_label", "join_records", "protocol_label"]

# Figures of two environments that differ in one of these do not compare; versions and free memory may differ.
MACHINE_KEYS = ("machine", "cpu", "cpu_features", "available_cpus", "gpus")
_PRECISION_ORDER = ("fp32", "float32", "bf16", "fp16", "float16", "mixed", "int8")


@dataclass(frozen=True)
class Caveat:
    """A warning and the figure that it spoils: ``latency``, ``accuracy`` or ``model``."""

    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model file in one setting; None where no record says. Counts and activations are for one picture.

    Attributes:
        name: The file's name, with as much of its folder as tells it from others.
        network: The network, or the file's name where it is unknown.
        forward_passes: For one picture, crops × models; ``picture_ms`` is their time, decoding left out.
        provider: Where the latency was measured; without one, where the accuracy was.
        latency_ms: Median of one call; ``latency_ci_low_ms`` and ``latency_ci_high_ms`` bound it (95 %).
        peak_bytes: Peak resident memory of a fresh process, less what it held before the model was loaded.
        stable: False when the timing was too noisy to trust.
        same_on: Where the predictions were found to be the same, such as ``haswell, arm64``.
        environment: Index into the collection's environments, of the timing or else of the first record.
        machine: Index of the machine; rows of different machines do not compare in time and memory.
    """

    name: str
    network: str
    precision: str
    recipe: str | None = None
    dataset: str | None = None
    samples: int | None = None
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    crops: int | None = None
    models: int | None = None
    forward_passes: int | None = None
    picture_ms: float | None = None
    provider: str | None = None
    threads: int | None = None
    batch: int | None = None
    latency_ms: float | None = None
    latency_ci_low_ms: float | None = None
    latency_ci_high_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    throughput_per_s: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    after_load_bytes: int | None = None
    peak_bytes: int | None = None
    file_bytes: int | None = None
    download_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    weight_bytes: int | None = None
    peak_activation_bytes: int | None = None
    stable: bool | None = None
    same_on: str | None = None
    warnings: tuple[Caveat, ...] = ()
    environment: int = 0
    machine: int = 0
    sha256: str | None = None
    parent_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them, warnings as texts."""
        body = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return body | {"warnings": [str(warning) for warning in self.warnings]}

    def caveats(self, about: str) -> list[str]:
        """The warnings that spoil one kind of figure."""
        return [warning.text for warning in self.warnings if warning.about == about]


class Environments:
    """The distinct environments of the records, in the order in which they came."""

    def __init__(self) -> None:
        self.found: list[Mapping[str, Any]] = []
        self._index: dict[str, int] = {}
        self._machine: list[int] = []
        self._machines: dict[str, int] = {}

    def index(self, environment: Mapping[str, Any]) -> int:
        """The environment's place in ``found``; a new one is added."""
        key = sha256_json(dict(environment))
        if key not in self._index:
            self._index[key] = len(self.found)
            self.found.append(environment)
            machine = sha256_json({name: environment.get(name) for name in MACHINE_KEYS})
            self._machine.append(self._machines.setdefault(machine, len(self._machines)))
        return self._index[key]

    def machine(self, index: int) -> int:
        """The number of the machine of an environment."""
        return self._machine[index]

    @property
    def machines(self) -> int:
        """How many different machines there are."""
        return len(self._machines)


@dataclass
class _Model:
    """What the records say about one file; each record with the index of its environment."""

    profile: tuple[Profile, int] | None = None
    quantization: tuple[Quantization | Compression, int] | None = None
    accuracies: list[tuple[Accuracy, int]] = field(default_factory=list)
    timings: list[tuple[Timing, int]] = field(default_factory=list)
    verifications: list[tuple[Verification, int]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What the records call the file, most telling first."""
        named = [timing.model for timing, _ in self.timings] + [accuracy.model for accuracy, _ in self.accuracies]
        named += [verification.model for verification, _ in self.verifications]
        named += [self.quantization[0].model] if self.quantization else []
        return [*named, *([self.profile[0].name] if self.profile else [])]

    @property
    def parent_sha256(self) -> str | None:
        """The file that this one was made from."""
        if self.quantization:
            return self.quantization[0].parent_sha256
        return self.profile[0].parent_sha256 if self.profile else None

    def network(self) -> str | None:
        """The network's name, as far as this file's own records say it."""
        measured: list[Timing | Accuracy | Verification] = [*(t for t, _ in self.timings)]
        measured += [a for a, _ in self.accuracies] + [v for v, _ in self.verifications]
        named = [record.network for record in measured if record.network]
        metadata = self.profile[0].metadata if self.profile else {}
        written = metadata.get("deploykit.network") or metadata.get("network")
        return named[0] if named else str(written) if written else None


def join_records(records: Iterable[Record], environments: Environments) -> tuple[Row, ...]:
    """One row for each model file, dataset and setting, by network, then precision."""
    models = _by_model(records, environments)
    names = _short_names({key: model.names[0] for key, model in models.items()})
    rows = []
    for key, model in models.items():
        first = Row(name=names[key], network=_network(key, models) or names[key], precision="?", sha256=_digest(key))
        rows += [
            replace(row, machine=environments.machine(row.environment))
            for row in _rows_of(model, _described(first, model))
        ]
    return tuple(sorted(rows, key=_order))


def _digest(key: str) -> str | None:
    return None if key.startswith("name:") else key


def _by_model(records: Iterable[Record], environments: Environments) -> dict[str, _Model]:
    models: dict[str, _Model] = defaultdict(_Model)
    for record in records:
        index = environments.index(record.environment)
        if isinstance(record, Profile):
            models[record.sha256 or f"name:{record.name}"].profile = record, index
        elif isinstance(record, Quantization) or (isinstance(record, Compression) and record.factored):
            models[record.model_sha256].quantization = record, index
        elif isinstance(record, Accuracy):
            models[record.model_sha256].accuracies.append((record, index))
        elif isinstance(record, Verification):
            models[record.model_sha256].verifications.append((record, index))
        elif isinstance(record, Bench):
            for timing in record.results:
                models[timing.model_sha256].timings.append((timing, index))
    return dict(models)


def _short_names(paths: Mapping[str, str]) -> dict[str, str]:
    """File names without their folders, except where two files have the same."""
    parts = {key: re.split(r"[\\/]+", path.rstrip("\\/")) for key, path in paths.items()}
    seen = Counter(part[-1] for part in parts.values())
    return {key: part[-1] if seen[part[-1]] == 1 else "/".join(part[-3:]) for key, part in parts.items()}


def _network(key: str, models: Mapping[str, _Model]) -> str | None:
    """The network of a file, or of the file that it was made from."""
    visited: set[str] = set()
    while key in models and key not in visited:
        visited.add(key)
        if name := models[key].network():
            return name
        key = models[key].parent_sha256 or ""
    return None


def _described(row: Row, model: _Model) -> Row:
    """The row with what holds in every setting: sizes, counts, the recipe."""
    caveats: list[Caveat] = []
    if model.verifications:
        record, index = model.verifications[-1]
        same_on, doubts = told_by([verification for verification, _ in model.verifications])
        row = replace(row, same_on=same_on, precision=record.precision, environment=index)
        caveats += [Caveat("model", text) for text in doubts]
    if model.quantization:
        made, index = model.quantization
        row = replace(row, recipe=made.recipe, precision=made.precision, environment=index)
        row = replace(row, file_bytes=made.file_bytes, download_bytes=made.download_bytes)
        caveats += [Caveat("model", text) for text in made.warnings]
    if model.profile:
        profile, index = model.profile
        row = replace(
            row,
            precision=profile.precision,
            parameters=profile.parameters,
            macs=profile.macs,
            weight_bytes=profile.weight_bytes,
            file_bytes=profile.file_bytes,
            download_bytes=profile.download_bytes,
            peak_activation_bytes=profile.peak_activation_bytes,
            environment=index,
        )
        caveats += [Caveat("model", text) for text in profile.warnings]
    return replace(row, warnings=tuple(dict.fromkeys(caveats)), parent_sha256=model.parent_sha256)


def _rows_of(model: _Model, row: Row) -> list[Row]:
    """One row a timing and dataset, and one for each accuracy on a provider that was not timed.

    Accuracies that take several forward passes have rows of their own: a latency is that of one.
    """
    single = [pair for pair in model.accuracies if pair[0].forward_passes == 1]
    several = _by_dataset([pair for pair in model.accuracies if pair[0].forward_passes > 1])
    rows = [_scored(row, *pair, pair[0].provider) for accuracies in several for pair in accuracies]
    if not single:
        return [*(_timed(row, timing, index) for timing, index in model.timings), *rows] or [row]
    for accuracies in _by_dataset(single):
        by_provider = {accuracy.provider: (accuracy, index) for accuracy, index in accuracies}
        rest = dict(by_provider)
        for timing, index in model.timings:
            match = by_provider.get(timing.provider, accuracies[0])
            rest.pop(match[0].provider, None)
            rows.append(_timed(_scored(row, *match, timing.provider), timing, index))
        rows += [_scored(row, *match, match[0].provider) for match in rest.values()]
    return rows


def _by_dataset(accuracies: Sequence[tuple[Accuracy, int]]) -> list[list[tuple[Accuracy, int]]]:
    """The accuracies of each dataset by crops; of several on one provider the one over the most pictures stands."""
    groups: dict[tuple[str, str, str, int], dict[str, tuple[Accuracy, int]]] = defaultdict(dict)
    for accuracy, index in sorted(accuracies, key=lambda pair: (pair[0].samples, pair[0].agreement is not None)):
        key = accuracy.dataset, accuracy.split, accuracy.dataset_digest, accuracy.crops
        groups[key][accuracy.provider] = accuracy, index
    return [list(group.values()) for group in groups.values()]


def _scored(row: Row, accuracy: Accuracy, index: int, provider: str) -> Row:
    caveats = [Caveat("accuracy", text) for text in accuracy.warnings]
    if accuracy.provider != provider:
        caveats.append(Caveat("accuracy", f"measured on {accuracy.provider}, not on {provider}"))
    return replace(
        row,
        dataset=dataset_label(accuracy),
        samples=accuracy.samples,
        top1=accuracy.top1,
        top5=accuracy.top5,
        agreement=accuracy.agreement,
        crops=accuracy.crops,
        models=accuracy.models,
        forward_passes=accuracy.forward_passes,
        picture_ms=accuracy.picture_ms,
        provider=provider,
        precision=_known(accuracy.precision, row),
        file_bytes=row.file_bytes if row.file_bytes is not None else accuracy.file_bytes,
        environment=index,
        warnings=row.warnings + tuple(caveats),
    )


def _known(precision: str, row: Row) -> str:
    """A record's precision, unless it does not know and another record did."""
    return row.precision if precision == "unknown" and row.precision != "?" else precision


def dataset_label(accuracy: Accuracy) -> str:
    """The dataset with its split, such as ``mnist test``."""
    return f"{accuracy.dataset} {accuracy.split}".strip()


def protocol_label(accuracy: Accuracy) -> str:
    """``dataset_label``, with the crops where there are several: ``mnist test, 10 crops``."""
    return dataset_label(accuracy) + (f", {accuracy.crops} crops" if accuracy.crops > 1 else "")


def _timed(row: Row, timing: Timing, index: int) -> Row:
    texts = list(timing.warnings) or (
        [] if timing.stable else ["unstable: the runs spread too far to trust this figure"]
    )
    latency, memory = timing.latency_ms, timing.memory
    return replace(
        row,
        precision=_known(timing.precision, row),
        provider=timing.provider,
        threads=timing.threads,
        batch=timing.batch,
        latency_ms=latency.median,
        latency_ci_low_ms=latency.ci_low,
        latency_ci_high_ms=latency.ci_high,
        latency_p90_ms=latency.p90,
        latency_p99_ms=latency.p99,
        throughput_per_s=timing.throughput_per_s,
        load_ms=timing.load_ms,
        first_run_ms=timing.first_run_ms,
        after_load_bytes=memory.after_load_bytes,
        peak_bytes=memory.peak_bytes,
        file_bytes=row.file_bytes if row.file_bytes is not None else (timing.file_bytes or memory.weights_bytes),
        stable=timing.stable,
        environment=index,
        warnings=row.warnings + tuple(Caveat("latency", text) for text in texts),
    )


def _order(row: Row) -> tuple[Any, ...]:
    rank = _PRECISION_ORDER.index(row.precision) if row.precision in _PRECISION_ORDER else len(_PRECISION_ORDER)
    setting = (row.dataset or "", row.machine, row.provider or "", row.threads or 0, row.batch or 0, row.crops or 0)
    return (row.network, rank, row.precision, row.name, *setting)
