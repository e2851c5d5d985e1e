"""Latency and memory of one or more models, each in a fresh process, measured in turns.

On a shared machine two runs of the same model one after the other differ by more than 2 % in half of the cases;
measured in turns they do not, because a slow spell hits all alike (duet benchmarking: Bulej et al. 2020; order
A B B A against drift; repetitions of processes: Kalibera & Jones 2013). What makes a figure doubtful is said beside it.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploykit import environment, stats
from deploykit.artifact import Artifact, load_model
from deploykit.errors import InputError, UnknownNameError
from deploykit.feeds import feeds_of, parse_shapes
from deploykit.graph.precision import precision_of
from deploykit.graph.weights import check_weights
from deploykit.progress import Progress, silent
from deploykit.results import Bench, Latency, Memory, Timing
from deploykit.runtime import PROVIDERS, check_threads
from deploykit.worker import Worker

__all__ = ["BenchOptions", "bench_onnx", "parse_shapes"]

_WARM_RUNS, _WARM_S, _WARM_LIMIT_S = 3, 0.1, 2.0
# Short turns mix the models well. With several threads a turn has to be long against the 50 ms that a worker takes to
# come to rest after it.
_BLOCK_S, _THREADED_BLOCK_S = 0.03, 0.1
_MAX_BLOCK_RUNS = 2000

_MAX_SPREAD = 0.10  # robust coefficient of variation
_MAX_DRIFT = 0.05  # second half against the first
_MAX_OTHERS = 0.10  # processor time of other processes, as a fraction of the machine
_MIN_SAMPLES = 20  # below, the 99th percentile and the interval mean little


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. Raises InputError for values that cannot be used.

    Attributes:
        provider: Short name of the execution provider (``runtime.PROVIDERS``).
        threads: Threads of one operator; None takes what affinity and the cgroup's quota allow.
        batch: Pictures in one call, for models whose batch axis is dynamic.
        samples: Timed calls of each model, at least.
        min_time_s: Seconds of timed calls of each model, at least.
        max_time_s: Seconds after which a model gets no further turn, though samples are missing.
        processes: Fresh processes of each model; layout in memory differs from one to the next.
        shape: Input shapes by input name, for dynamic axes that the file does not tell.
        seed: Fixes inputs and the order of turns.
        timeout_s: Seconds that one step (loading, one turn) may take before the worker is ended.
        allow_fallback: Whether a provider that cannot start may be replaced by the CPU; the record then says so.
    """

    provider: str = "cpu"
    threads: int | None = None
    batch: int = 1
    samples: int = 200
    min_time_s: float = 1.0
    max_time_s: float = 60.0
    processes: int = 1
    shape: Mapping[str, tuple[int, ...]] | None = None
    seed: int = 0
    timeout_s: float = 120.0
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise UnknownNameError("provider", self.provider, PROVIDERS)
        for name in ("batch", "samples", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}; allowed: 1 or more")
        check_threads(self.threads)
        finite = all(map(math.isfinite, (self.min_time_s, self.max_time_s, self.timeout_s)))
        if not finite or self.min_time_s < 0 or self.max_time_s <= 0 or self.timeout_s <= 0:
            times = f"min_time_s {self.min_time_s}, max_time_s {self.max_time_s}, timeout_s {self.timeout_s}"
            raise InputError(f"{times}; allowed: positive, finite seconds")
        if self.max_time_s < self.min_time_s:
            raise InputError(f"max_time_s {self.max_time_s} is below min_time_s {self.min_time_s}")
        for name, shape in (self.shape or {}).items():
            if any(size < 1 for size in shape):
                raise InputError(f"shape {name}={shape}; allowed: sizes of 1 or more")

    def changed(self, **values: Any) -> BenchOptions:
        """These options with other values; None leaves an option as it is. Raises: InputError."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def bench_onnx(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: BenchOptions | None = None,
    *,
    progress: Progress = silent,
    **changes: Any,
) -> Bench:
    """Measures models in turns; ``changes`` replace single fields of ``options``: ``bench_onnx(paths, threads=1)``.

    Each model is loaded in a fresh process that imports only numpy and ONNX Runtime; all stay loaded during the
    measurement. The same model may be given twice, which shows the noise floor. The file is read before, so that
    ``load_ms`` is the time with the file in the system's cache. The interval of the median is bootstrapped over
    turns, as calls within a turn are not independent.

    Returns:
        A record with one timing a model, in the order given.

    Raises:
        ModelFileError: A file is missing, damaged, holds weights that are not finite, or cannot be run.
        InputError: Shapes that are unknown or contradict the file; a worker that died or took too long.
        ProviderError: The provider is absent, cannot start or took no node.
    """
    chosen = replace(options or BenchOptions(), **changes)
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    if not paths:
        raise InputError("no model to measure; give one or more .onnx files")
    contestants = [_contestant(Path(path), chosen) for path in paths]
    with ExitStack() as stack:
        for done, contestant in enumerate(contestants):
            progress("bench: load", done, len(contestants), contestant.artifact.name)
            contestant.start(stack, chosen)
        progress("bench: load", len(contestants), len(contestants))
        others = _OtherLoad()
        _take_turns(contestants, chosen, progress)
        noise = others.warnings([process for contestant in contestants for process in contestant.processes])
        timings = tuple(contestant.timing(chosen, noise) for contestant in contestants)
    from deploykit import __version__

    return Bench(results=timings, environment=environment.describe(), deploykit=__version__)


@dataclass
class _Process:
    """One fresh process of a model: what it said when it started, and its timed calls, turn by turn."""

    worker: Worker
    started: Mapping[str, Any]
    runs: int  # timed calls in one turn
    lead: int
    levelled: bool
    cpu_before_s: float  # processor seconds that the worker had used before its first turn
    blocks: list[list[float]] = field(default_factory=list)  # milliseconds
    cpu_s: float = 0.0


@dataclass
class _Contestant:
    """One model of the comparison."""

    artifact: Artifact
    precision: str
    feeds: list[dict[str, Any]]
    processes: list[_Process] = field(default_factory=list)

    def start(self, stack: ExitStack, options: BenchOptions) -> None:
        """Loads and warms the model in fresh processes, one after the other, so that none disturbs another's load."""
        for _ in range(options.processes):
            worker = Worker(self.artifact.name, provider=options.provider, timeout_s=options.timeout_s)
            stack.enter_context(worker)
            started = worker.ask(
                "start",
                model=str(self.artifact.path.resolve()),
                feeds=self.feeds,
                seed=options.seed,
                provider=options.provider,
                threads=options.threads or environment.available_cpus(),
                allow_fallback=options.allow_fallback,
            )
            warm = worker.ask("warm", min_runs=_WARM_RUNS, min_s=_WARM_S, max_s=_WARM_LIMIT_S)
            block_s = _BLOCK_S if started["threads"] == 1 else _THREADED_BLOCK_S
            runs = int(block_s * 1000.0 / max(warm["median_ms"], 1e-6))
            runs = max(1, min(runs, _MAX_BLOCK_RUNS))
            lead = max(1, runs // 10)
            self.processes.append(
                _Process(worker, started, runs, lead, warm["levelled"], warm["cpu_s"], cpu_s=warm["cpu_s"])
            )

    def done(self, options: BenchOptions) -> float:
        """How much of the samples and seconds asked for is there, from 0 to 1."""
        latencies = self.latencies()
        by_count = len(latencies) / options.samples
        by_time = sum(latencies) / 1000.0 / options.min_time_s if options.min_time_s else 1.0
        return min(1.0, by_count, by_time)

    def latencies(self) -> list[float]:
        return [value for process in self.processes for block in process.blocks for value in block]

    def timing(self, options: BenchOptions, noise: Sequence[str]) -> Timing:
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
            batch=options.batch,
            latency_ms=latency,
            throughput_per_s=1000.0 * options.batch / latency.mean,
            load_ms=stats.median([process.started["load_ms"] for process in self.processes]),
            first_run_ms=stats.median([process.started["first_run_ms"] for process in self.processes]),
            memory=Memory(
                weights_bytes=self.artifact.file_bytes,
                after_load_bytes=max(process.started["after_load_bytes"] for process in self.processes),
                peak_bytes=max(answer["peak_bytes"] for answer in memory),
                process_peak_bytes=max(answer["process_peak_bytes"] for answer in memory),
            ),
            stable=not doubts,
            warnings=(*doubts, *_placement_notes(options.provider, started)),
            network=self.artifact.network,
            file_bytes=self.artifact.file_bytes,
        )

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


def _latency(processes: Sequence[_Process]) -> Latency:
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


def _take_turns(contestants: Sequence[_Contestant], options: BenchOptions, progress: Progress) -> None:
    """Rounds of turns: all workers in random order, then in the reverse of it, until every model has enough."""
    order = [(contestant, process) for contestant in contestants for process in contestant.processes]
    generator = random.Random(options.seed)
    began = time.monotonic()
    while time.monotonic() - began < options.max_time_s * len(contestants):
        progress("bench", int(100 * min(item.done(options) for item in contestants)), 100)
        if all(item.done(options) >= 1.0 for item in contestants):
            break
        generator.shuffle(order)
        for _, process in (*order, *reversed(order)):
            answer = process.worker.ask("measure", runs=process.runs, lead=process.lead)
            process.blocks.append([nanoseconds / 1e6 for nanoseconds in answer["latencies_ns"]])
            process.cpu_s = answer["cpu_s"]
    progress("bench", 100, 100)


class _OtherLoad:
    """Processor time that went to others while we measured, for the warning beside the figures."""

    def __init__(self) -> None:
        self._before = _busy_seconds()
        self._own_before = time.process_time()
        self._began = time.monotonic()

    def warnings(self, processes: Sequence[_Process]) -> list[str]:
        busy, stolen = (after - before for after, before in zip(_busy_seconds(), self._before, strict=True))
        own = (
            time.process_time() - self._own_before + sum(process.cpu_s - process.cpu_before_s for process in processes)
        )
        machine = (os.cpu_count() or 1) * (time.monotonic() - self._began)
        found = []
        if (share := (busy - own) / machine) > _MAX_OTHERS:
            found.append(f"other processes used {share:.0%} of the machine's processors")
        if (share := stolen / machine) > _MAX_OTHERS / 4:
            found.append(f"the hypervisor took {share:.0%} of the machine's processors away")
        return found


def _busy_seconds() -> tuple[float, float]:
    """Processor seconds of all processes since the machine started, and those that a hypervisor took."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return sum(times) - idle - stolen - guest, stolen


def _contestant(path: Path, options: BenchOptions) -> _Contestant:
    model = load_model(path)
    artifact = Artifact.of_model(model, path)
    check_weights(model, path)  # NaN and denormals take other times than numbers do
    feeds = feeds_of(artifact, batch=options.batch, shapes=options.shape)
    return _Contestant(artifact, precision_of(model), [asdict(feed) for feed in feeds])
