"""The rows of a report: what several records say about one model file, joined by the file's SHA-256."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploykit.report.environments import Environments, differing, onnxruntime_version, provider_version
from deploykit.report.rows import Caveat, Row, dataset_label
from deploykit.report.verified import told_by
from deploykit.results import Accuracy, Bench, Compression, Profile, Quantization, Record, Timing, Verification

__all__ = ["join_records", "session_text"]

_PRECISION_ORDER = ("fp32", "float32", "bf16", "fp16", "float16", "mixed", "int8")


@dataclass
class _Model:
    """What the records say about one file; each record with the index of its environment."""

    profile: tuple[Profile, int] | None = None
    quantization: tuple[Quantization | Compression, int] | None = None
    accuracies: list[tuple[Accuracy, int]] = field(default_factory=list)
    timings: list[tuple[Timing, int, int]] = field(default_factory=list)  # and the number of its bench
    verifications: list[tuple[Verification, int]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What the records call the file, most telling first."""
        named = [timing.model for timing, *_ in self.timings] + [accuracy.model for accuracy, _ in self.accuracies]
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
        measured: list[Timing | Accuracy | Verification] = [*(t for t, *_ in self.timings)]
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
        rows += [_placed(row, environments) for row in _rows_of(model, _described(first, model), environments)]
    return tuple(sorted(rows, key=_order))


def _placed(row: Row, environments: Environments) -> Row:
    """The row with its machine and the versions that decide its times."""
    machine, environment = environments.machine(row.environment), environments.found[row.environment]
    return replace(
        row,
        machine=machine,
        machine_name=environments.names()[machine],
        onnxruntime=onnxruntime_version(environment),
        provider_version=provider_version(environment, row.provider),
    )


def _digest(key: str) -> str | None:
    return None if key.startswith("name:") else key


def _by_model(records: Iterable[Record], environments: Environments) -> dict[str, _Model]:
    models: dict[str, _Model] = defaultdict(_Model)
    runs = itertools.count()
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
            run = next(runs)
            for timing in record.results:
                models[timing.model_sha256].timings.append((timing, index, run))
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


def _rows_of(model: _Model, row: Row, environments: Environments) -> list[Row]:
    """One row a timing and dataset, and one for each accuracy of a provider and machine that was not timed.

    Accuracies that take several forward passes have rows of their own: a latency is that of one.
    """
    single = [pair for pair in model.accuracies if pair[0].forward_passes == 1]
    several = _by_dataset([pair for pair in model.accuracies if pair[0].forward_passes > 1], environments)
    rows = [_scored(row, *pair, pair[0].provider) for accuracies in several for pair in accuracies]
    if not single:
        return [*(_timed(row, *timed) for timed in model.timings), *rows] or [row]
    for accuracies in _by_dataset(single, environments):
        rest = dict(enumerate(accuracies))
        for timing, index, run in model.timings:
            place = _nearest(accuracies, timing.provider, index, environments)
            rest.pop(place, None)
            scored = _scored(row, *accuracies[place], timing.provider)
            doubts = _elsewhere(environments, accuracies[place][1], index)
            rows.append(_timed(replace(scored, warnings=scored.warnings + doubts), timing, index, run))
        rows += [_scored(row, *match, match[0].provider) for match in rest.values()]
    return rows


def _nearest(accuracies: Sequence[tuple[Accuracy, int]], provider: str, index: int, environments: Environments) -> int:
    """Which accuracy stands beside a timing: of its provider and machine, else its provider, else its machine."""
    machine = environments.machine(index)

    def distance(place: int) -> tuple[bool, bool]:
        accuracy, measured_in = accuracies[place]
        return accuracy.provider != provider, environments.machine(measured_in) != machine

    return min(range(len(accuracies)), key=distance)


def _elsewhere(environments: Environments, accuracy_in: int, timed_in: int) -> tuple[Caveat, ...]:
    """A doubt where the processor's features, which decide how integers are rounded, are others than the timing's."""
    accuracy, timing = environments.found[accuracy_in], environments.found[timed_in]
    if not {"machine", "cpu_features"} & set(differing((accuracy, timing))):
        return ()
    names = [environments.names()[environments.machine(index)] for index in (accuracy_in, timed_in)]
    return (Caveat("accuracy", f"measured on {names[0]}, not on {names[1]}"),)


def _by_dataset(
    accuracies: Sequence[tuple[Accuracy, int]], environments: Environments
) -> list[list[tuple[Accuracy, int]]]:
    """The accuracies of each dataset by crops; of several on one provider and machine that over the most pictures."""
    groups: dict[tuple[str, str, str, int], dict[tuple[str, int], tuple[Accuracy, int]]] = defaultdict(dict)
    for accuracy, index in sorted(accuracies, key=lambda pair: (pair[0].samples, pair[0].agreement is not None)):
        key = accuracy.dataset, accuracy.split, accuracy.dataset_digest, accuracy.crops
        groups[key][accuracy.provider, environments.machine(index)] = accuracy, index
    return [list(group.values()) for group in groups.values()]


def _scored(row: Row, accuracy: Accuracy, index: int, provider: str) -> Row:
    caveats = [Caveat("accuracy", text) for text in accuracy.warnings]
    if accuracy.provider != provider:
        caveats.append(Caveat("accuracy", f"measured on {accuracy.provider}, not on {provider}"))
    return replace(
        row,
        dataset=dataset_label(accuracy),
        dataset_digest=accuracy.dataset_digest,
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


def _timed(row: Row, timing: Timing, index: int, run: int) -> Row:
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
        session=session_text(timing) or None,
        latency_ms=latency.median,
        latency_ci_low_ms=latency.ci_low,
        latency_ci_high_ms=latency.ci_high,
        latency_mean_ms=latency.mean,
        latency_min_ms=latency.min,
        latency_p90_ms=latency.p90,
        latency_p99_ms=latency.p99,
        latency_samples=latency.samples,
        throughput_per_s=timing.throughput_per_s,
        load_ms=timing.load_ms,
        first_run_ms=timing.first_run_ms,
        after_load_bytes=memory.after_load_bytes,
        load_peak_bytes=memory.load_peak_bytes,
        steady_bytes=memory.steady_bytes,
        peak_bytes=memory.peak_bytes,
        process_peak_bytes=memory.process_peak_bytes,
        energy_mj_per_inference=timing.energy_mj_per_inference,
        file_bytes=row.file_bytes if row.file_bytes is not None else (timing.file_bytes or memory.weights_bytes),
        stable=timing.stable,
        environment=index,
        run=run,
        warnings=row.warnings + tuple(Caveat("latency", text) for text in texts),
    )


def session_text(timing: Timing) -> str:
    """What of the session is not the default: ``memory low, io binding, device_type CPU``."""
    parts = [f"memory {timing.memory_mode}"] if timing.memory_mode != "default" else []
    parts += ["io binding"] if timing.io_binding else []
    parts += ["cuda graph"] if timing.cuda_graph else []
    return ", ".join(parts + [f"{key} {value}" for key, value in sorted(timing.provider_options.items())])


def _order(row: Row) -> tuple[Any, ...]:
    rank = _PRECISION_ORDER.index(row.precision) if row.precision in _PRECISION_ORDER else len(_PRECISION_ORDER)
    place = (row.dataset or "", row.machine, row.onnxruntime or "")
    setting = (row.provider or "", row.threads or 0, row.batch or 0, row.session or "", row.crops or 0)
    return (row.network, rank, row.precision, row.name, *place, *setting)
