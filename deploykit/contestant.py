"""One model in one setting, in its own fresh processes: loaded, warmed, timed turn by turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploykit import environment, stats
from deploykit.artifact import Artifact, load_model
from deploykit.bench_options import BenchOptions, Setting
from deploykit.errors import DeploykitError
from deploykit.feeds import feeds_of
from deploykit.graph.precision import precision_of
from deploykit.graph.weights import check_weights
from deploykit.results import Failure, Latency, Memory, Timing
from deploykit.worker import Worker

__all__ = ["Contestant", "ModelProcess", "contestants_of"]

_WARM_RUNS, _WARM_S, _WARM_LIMIT_S = 3, 0.1, 2.0
# Short turns mix the models well. With several threads a turn has to be long against the 50 ms that a worker takes to
# come to rest after it.
_BLOCK_S, _THREADED_BLOCK_S = 0.03, 0.1
_MAX_BLOCK_RUNS = 2000

_MAX_SPREAD = 0.10  # robust coefficient of variation
_MAX_DRIFT = 0.05  # second half against the first
_MIN_SAMPLES = 20  # below, the 99th percentile and the interval mean little


@dataclass
class ModelProcess:
    """One fresh process of a model: what it said when it started, and its timed calls, turn by turn."""

    worker: Worker
    started: Mapping[str, Any]
    runs: int  # timed calls in one turn
    lead: int
    levelled: bool
    cpu_before_s: float  # processor seconds that the worker had used before its first turn
    blocks: list[list[float]] = field(default_factory=list)  # milliseconds
    cpu_s: float = 0.0

    def take_turn(self) -> None:
        """Times one turn. Raises: DeploykitError when the model fails, or its process dies or hangs."""
        answer = self.worker.ask("measure", runs=self.runs, lead=self.lead)
        self.blocks.append([nanoseconds / 1e6 for nanoseconds in answer["latencies_ns"]])
        self.cpu_s = answer["cpu_s"]


@dataclass
class Contestant:
    """One model in one setting; ``failure`` says why it takes no further part."""

    artifact: Artifact
    precision: str
    feeds: list[dict[str, Any]]
    setting: Setting = field(default_factory=Setting)
    processes: list[ModelProcess] = field(default_factory=list)
    failure: DeploykitError | None = None

    def start(self, stack: ExitStack, options: BenchOptions) -> None:
        """Loads and warms the model in fresh processes, one after the other, so that none disturbs another's load."""
        for _ in range(options.processes):
            worker = Worker(self.artifact.name, provider=self.setting.provider, timeout_s=options.timeout_s)
            stack.enter_context(worker)
            started = worker.ask(
                "start",
                model=str(self.artifact.path.resolve()),
                feeds=self.feeds,
                seed=options.seed,
                provider=self.setting.provider,
                threads=self.setting.threads or environment.available_cpus(),
                **self.setting.session,
            )
            warm = worker.ask("warm", min_runs=_WARM_RUNS, min_s=_WARM_S, max_s=_WARM_LIMIT_S)
            block_s = _BLOCK_S if started["threads"] == 1 else _THREADED_BLOCK_S
            runs = int(block_s * 1000.0 / max(warm["median_ms"], 1e-6))
            runs = max(1, min(runs, _MAX_BLOCK_RUNS))
            lead = max(1, runs // 10)
            self.processes.append(
                ModelProcess(worker, started, runs, lead, warm["levelled"], warm["cpu_s"], cpu_s=warm["cpu_s"])
            )

    def done(self, options: BenchOptions) -> float:
        """How much of the samples and seconds asked for is there, from 0 to 1."""
        latencies = self.latencies()
        by_count = len(latencies) / options.samples
        by_time = sum(latencies) / 1000.0 / options.min_time_s if options.min_time_s else 1.0
        return min(1.0, by_count, by_time)

    def latencies(self) -> list[float]:
        """All timed calls, in milliseconds."""
        return [value for process in self.processes for block in process.blocks for value in block]

    def turn_medians(self) -> tuple[tuple[float, ...], ...]:
        """The median of every turn, in milliseconds, process by process."""
        return tuple(tuple(stats.median(block) for block in process.blocks) for process in self.processes)

    def timing(self, options: BenchOptions, noise: Sequence[str]) -> Timing:
        """The record of what was timed; ``noise`` are warnings about the machine."""
        started = self.processes[0].started
        latency = _latency(self.processes)
        memory = [process.worker.ask("memory") for process in self.processes]
        doubts = [*self._doubts(options), *noise]
        return Timing(
            model=self.artifact.name,
            model_sha256=self.artifact.sha256,
            precision=self.precision,
            provider=started["provider"],
            nodes_by_provider=started["nodes_by_provider"],
            threads=started["threads"],
            batch=self.setting.batch,
            latency_ms=latency,
            throughput_per_s=1000.0 * self.setting.batch / latency.mean,
            load_ms=stats.median([process.started["load_ms"] for process in self.processes]),
            first_run_ms=stats.median([process.started["first_run_ms"] for process in self.processes]),
            memory=Memory(
                weights_bytes=self.artifact.file_bytes,
                after_load_bytes=max(process.started["after_load_bytes"] for process in self.processes),
                peak_bytes=max(answer["peak_bytes"] for answer in memory),
                process_peak_bytes=max(answer["process_peak_bytes"] for answer in memory),
            ),
            stable=not doubts,
            warnings=(*doubts, *_placement_notes(self.setting.provider, started)),
            network=self.artifact.network,
            file_bytes=self.artifact.file_bytes,
            turns_ms=tuple(tuple(round(value, 6) for value in turns) for turns in self.turn_medians()),
        )

    def failed(self) -> Failure:
        """The record of why there are no figures."""
        threads = self.setting.threads or environment.available_cpus()
        name, digest = self.artifact.name, self.artifact.sha256
        return Failure(name, digest, self.setting.provider, threads, self.setting.batch, str(self.failure))

    def _doubts(self, options: BenchOptions) -> Iterator[str]:
        """What makes the latency doubtful."""
        values = self.latencies()
        if self.done(options) < 1.0:
            asked = f"{options.samples} samples and {options.min_time_s:g} s"
            yield f"only {len(values)} samples in {sum(values) / 1000.0:.1f} s of calls; {asked} were asked for"
        elif len(values) < _MIN_SAMPLES:
            yield f"only {len(values)} samples; {_MIN_SAMPLES} are the least that percentiles mean something for"
        if (spread := stats.relative_spread(values)) > _MAX_SPREAD:
            yield f"the latencies spread by {spread:.0%} (robust standard deviation over median)"
        for process in self.processes:
            half = len(process.blocks) // 2
            if (
                half
                and abs(drift := _middle(process.blocks[half:]) / _middle(process.blocks[:half]) - 1.0) > _MAX_DRIFT
            ):
                yield f"the second half of the measurement is {abs(drift):.0%} {'slower' if drift > 0 else 'faster'}"
        if not all(process.levelled for process in self.processes):
            yield f"the latency was still falling after {_WARM_LIMIT_S:g} s of warm-up"


def contestants_of(path: Path, options: BenchOptions) -> list[Contestant]:
    """The model in every setting. Raises: ModelFileError, InputError for shapes that are unknown or do not fit."""
    model = load_model(path)
    artifact = Artifact.of_model(model, path)
    check_weights(model, path)  # NaN and denormals take other times than numbers do
    precision = precision_of(model)
    found = []
    for setting in options.settings():
        feeds = [asdict(feed) for feed in feeds_of(artifact, batch=setting.batch, shapes=options.shape)]
        found.append(Contestant(artifact, precision, feeds, setting))
    return found


def _middle(blocks: Sequence[Sequence[float]]) -> float:
    return stats.median(list(itertools.chain(*blocks)))


def _placement_notes(asked: str, started: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the figures must know about where they were computed; it says nothing of their stability."""
    nodes = started["nodes_by_provider"]
    if started["provider"] != asked:
        yield f"provider {asked!r} could not be used; these are figures of {started['provider']!r}"
    elif asked != "cpu" and nodes.get("cpu"):
        yield f"{nodes['cpu']} of {sum(nodes.values())} nodes ran on the CPU"
    yield from started["notes"]


def _latency(processes: Sequence[ModelProcess]) -> Latency:
    values = [value for process in processes for block in process.blocks for value in block]
    middles = [stats.median(block) for process in processes for block in process.blocks]
    middle = stats.median(values)
    few = len(middles) < 5  # too few turns to resample
    low, high = stats.bootstrap_median_interval(values if few else middles)
    return Latency(
        median=middle,
        mean=sum(values) / len(values),
        p50=middle,
        p90=stats.percentile(values, 90),
        p99=stats.percentile(values, 99),
        min=min(values),
        ci_low=min(low, middle),
        ci_high=max(high, middle),
        samples=len(values),
    )
