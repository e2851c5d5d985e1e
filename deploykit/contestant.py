"""One model in one setting, in its own fresh processes: loaded, warmed, timed turn by turn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploykit import environment, stats
from deploykit.artifact import Artifact, load_model
from deploykit.bench_options import BenchOptions, Setting
from deploykit.disturbances import clock_warning
from deploykit.energy import POWERCAP
from deploykit.errors import DeploykitError
from deploykit.feeds import feeds_of
from deploykit.graph.integer_operators import check_integers_run
from deploykit.graph.precision import precision_of
from deploykit.graph.weights import check_weights
from deploykit.latencies import doubts, latency_of, pooled, timer_note
from deploykit.lean_model import lean_copy
from deploykit.operators import NodeTime, OperatorProfile, OperatorTime
from deploykit.providers import WEB
from deploykit.runtime import computed_in
from deploykit.timings import Failure, Memory, Timing
from deploykit.web_worker import WebWorker, check_web
from deploykit.worker import Worker

__all__ = ["Contestant", "ModelProcess", "contestants_of"]

_WARM_RUNS, _WARM_S, _WARM_LIMIT_S = 3, 0.1, 2.0
# Short turns mix the models well. With several threads a turn has to be long against the 50 ms that a worker takes to
# come to rest after it.
_BLOCK_S, _THREADED_BLOCK_S = 0.03, 0.1
_MAX_BLOCK_RUNS = 2000
_TOP_NODES = 20


@dataclass
class ModelProcess:
    """One fresh process of a model: what it said when it started and was warm, and its timed calls, turn by turn."""

    worker: Worker | WebWorker
    started: Mapping[str, Any]
    warm: Mapping[str, Any]
    blocks: list[list[float]] = field(default_factory=list)  # milliseconds
    busy_blocks: list[list[float]] = field(default_factory=list)  # the same calls: the calling thread's processor time
    energy_uj: int = 0
    clocks_khz: list[int] = field(default_factory=list)
    runs: int = field(init=False)  # timed calls in one turn
    lead: int = field(init=False)
    cpu_s: float = field(init=False)

    def __post_init__(self) -> None:
        block_s = _BLOCK_S if self.started["threads"] == 1 else _THREADED_BLOCK_S
        self.runs = max(1, min(int(block_s * 1000.0 / max(self.warm["median_ms"], 1e-6)), _MAX_BLOCK_RUNS))
        self.lead = max(1, self.runs // 10)
        self.cpu_s = self.warm["cpu_s"]

    def take_turn(self) -> None:
        """Times one turn. Raises: DeploykitError when the model fails, or its process dies or hangs."""
        answer = self.worker.ask("measure", runs=self.runs, lead=self.lead)
        self.blocks.append([nanoseconds / 1e6 for nanoseconds in answer["latencies_ns"]])
        self.busy_blocks.append([nanoseconds / 1e6 for nanoseconds in answer["busy_ns"]])
        self.cpu_s = answer["cpu_s"]
        self.energy_uj += answer["energy_uj"] or 0
        if answer["clock_khz"] is not None:
            self.clocks_khz.append(answer["clock_khz"])

    @property
    def used_s(self) -> float:
        """Processor seconds since it was warm."""
        return self.cpu_s - float(self.warm["cpu_s"])


@dataclass
class Contestant:
    """One model in one setting; ``failure`` says why it takes no further part."""

    artifact: Artifact
    precision: str
    feeds: list[dict[str, Any]]
    setting: Setting = field(default_factory=Setting)
    remark: str | None = None  # of how the provider computes it
    processes: list[ModelProcess] = field(default_factory=list)
    failure: DeploykitError | None = None

    @property
    def threads(self) -> int:
        """Threads that are asked for."""
        return self.setting.threads or environment.available_cpus()

    @contextmanager
    def attempt(self, *, keep_going: bool) -> Iterator[None]:
        """Around what may fail: with ``keep_going`` the error becomes the ``failure``, otherwise it goes on."""
        try:
            yield
        except DeploykitError as problem:
            if not keep_going:
                raise
            self.failure = problem

    def start(self, stack: ExitStack, options: BenchOptions) -> None:
        """Loads and warms the model in fresh processes, one after the other, so that none disturbs another's load."""
        request = self._request(options) | {"model": self._model(stack)}
        for _ in range(options.processes):
            worker, started = self._started(stack, request, options)
            warm = worker.ask("warm", min_runs=_WARM_RUNS, min_s=_WARM_S, max_s=_WARM_LIMIT_S)
            self.processes.append(ModelProcess(worker, started, warm))

    def _started(
        self, stack: ExitStack, request: Mapping[str, Any], options: BenchOptions
    ) -> tuple[Worker | WebWorker, Mapping[str, Any]]:
        """A process that has loaded the model, and what it said; where a CUDA graph is refused, a second one without.

        The first has started CUDA and may have loaded the model: its memory is not what the model takes.
        """
        with ExitStack() as own:
            worker = own.enter_context(self._worker(options))
            started: Mapping[str, Any] = worker.ask("start", **request)
            if (reason := started.get("graph_refused")) is None:
                stack.push(own.pop_all())
                return worker, started
        worker, started = self._started(stack, {**request, "cuda_graph": False}, options)
        if started["provider"] != self.setting.provider:  # then there is nothing that could capture one
            return worker, started
        refused = f"no CUDA graph is replayed, as it was refused: {' '.join(reason.split())}"
        return worker, {**started, "notes": [refused, *started["notes"]]}

    def _worker(self, options: BenchOptions) -> AbstractContextManager[Worker | WebWorker]:
        if self.setting.provider == WEB:
            return WebWorker(self.artifact.name, timeout_s=options.timeout_s)
        return Worker(self.artifact.name, provider=self.setting.provider, timeout_s=options.timeout_s)

    def _model(self, stack: ExitStack) -> str:
        """The file that the processes load; for lean memory a copy that goes with ``stack``, made once for all."""
        if self.setting.session.get("memory") != "lean":
            return str(self.artifact.path.resolve())
        # Windows does not remove files that are mapped.
        place = tempfile.TemporaryDirectory(prefix="deploykit-lean-", ignore_cleanup_errors=True)
        optimize = bool(self.setting.session.get("optimize", True))
        folder = stack.enter_context(place)
        return str(lean_copy(self.artifact.path, folder, provider=self.setting.provider, optimize=optimize))

    def _request(self, options: BenchOptions) -> dict[str, Any]:
        binds = options.binds(self.setting.provider)
        return {
            "feeds": self.feeds,
            "seed": options.seed,
            "provider": self.setting.provider,
            "threads": self.threads,
            "io_binding": binds,
            "cuda_graph": binds and options.cuda_graph and self.setting.provider == "cuda",
            "powercap": str(POWERCAP) if options.energy else None,
            **self.setting.session,
        }

    def profile(self, options: BenchOptions) -> OperatorProfile:
        """Time by operator, in one more fresh process. Raises: as ``start``."""
        request = self._request(options) | {"cuda_graph": False, "powercap": None}  # a replayed graph has no operators
        with ExitStack() as stack:
            request["model"] = self._model(stack)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deploykit-"))
            worker = stack.enter_context(self._worker(options))
            worker.ask("start", **request, profile_prefix=str(Path(folder) / "profile"))
            answer = worker.ask("profile", top=_TOP_NODES)
        return OperatorProfile(
            operators=tuple(OperatorTime(**row) for row in answer["operators"]),
            nodes=tuple(NodeTime(**row) for row in answer["nodes"]),
            call_ms=answer["call_ms"],
            runs=answer["runs"],
        )

    def done(self, options: BenchOptions) -> float:
        """How much of the samples and seconds asked for is there, from 0 to 1."""
        latencies = self.latencies()
        by_count = len(latencies) / options.samples
        by_time = sum(latencies) / 1000.0 / options.min_time_s if options.min_time_s else 1.0
        return min(1.0, by_count, by_time)

    def latencies(self) -> list[float]:
        """All timed calls, in milliseconds."""
        return pooled([process.blocks for process in self.processes])

    def turn_medians(self) -> tuple[tuple[float, ...], ...]:
        """The median of every turn, in milliseconds, process by process."""
        return tuple(tuple(stats.median(block) for block in process.blocks) for process in self.processes)

    def timing(self, options: BenchOptions, noise: Sequence[str]) -> Timing:
        """The record of what was timed; ``noise`` are warnings about the machine. Raises: DeploykitError."""
        started = self.processes[0].started
        latency = latency_of([process.blocks for process in self.processes], timer_step_ns=self._timer_step_ns())
        told = dict(self.setting.session.get("provider_options") or {})
        unclear = self.remark is not None and started["provider"] == self.setting.provider
        doubtful = [*self._doubts(options), *noise]
        answers = [{**process.started, **process.worker.ask("memory")} for process in self.processes]
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
            memory=self._memory(answers),
            stable=not doubtful,
            warnings=(*doubtful, *self._notes(options, answers)),
            network=self.artifact.network,
            file_bytes=self.artifact.file_bytes,
            turns_ms=tuple(tuple(round(value, 6) for value in turns) for turns in self.turn_medians()),
            processes=len(self.processes),
            memory_mode=self.setting.session.get("memory", "default"),
            provider_options=told,
            io_binding=options.binds(self.setting.provider),
            cuda_graph=started["cuda_graph"],
            computed_in=None if unclear else computed_in(started["provider"], told, self.precision),
            energy_mj_per_inference=self._energy_mj(),
            energy_sources=tuple(started["energy_sources"]),
        )

    def _memory(self, answers: Sequence[Mapping[str, Any]]) -> Memory:
        """The most of all processes."""
        keys = ("after_load_bytes", "peak_bytes", "process_peak_bytes", "load_peak_bytes", "steady_bytes")
        found = {key: [answer[key] for answer in answers] for key in keys}
        most = {key: None if None in values else max(values) for key, values in found.items()}
        return Memory(weights_bytes=self.artifact.file_bytes, **most, **_on_device(answers))

    def _energy_mj(self) -> float | None:
        """Millijoules of one timed call, on average."""
        if not all(process.started["energy_sources"] for process in self.processes):
            return None
        return sum(process.energy_uj for process in self.processes) / 1000.0 / len(self.latencies())

    def _timer_step_ns(self) -> int:
        return min(int(process.warm["timer_step_ns"]) for process in self.processes)

    def failed(self) -> Failure:
        """The record of why there are no figures."""
        name, digest = self.artifact.name, self.artifact.sha256
        return Failure(name, digest, self.setting.provider, self.threads, self.setting.batch, str(self.failure))

    def _doubts(self, options: BenchOptions) -> Iterator[str]:
        """What makes the latency doubtful."""
        blocks = [process.blocks for process in self.processes]
        yield from doubts(blocks, samples=options.samples, min_time_s=options.min_time_s)
        if not all(process.warm["levelled"] for process in self.processes):
            yield f"the latency was still falling after {_WARM_LIMIT_S:g} s of warm-up"
        if warning := clock_warning([clock for process in self.processes for clock in process.clocks_khz]):
            yield warning

    def _notes(self, options: BenchOptions, answers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What a reader of the figures must know; it says nothing of their stability."""
        started, asked = self.processes[0].started, self.setting.provider
        nodes = started["nodes_by_provider"]
        if started["provider"] != asked:
            yield f"provider {asked!r} could not be used; these are figures of {started['provider']!r}"
        elif asked != "cpu" and nodes.get("cpu"):
            yield f"{nodes['cpu']} of {sum(nodes.values())} nodes ran on the CPU"
        if options.binds(started["provider"]) and started["provider"] != "cpu":
            yield "inputs and outputs stay in the device's memory: no copy is in the latency"
        if self.remark and started["provider"] == asked:
            yield self.remark
        lacking = next(filter(None, (answer.get("device_missing") for answer in answers)), None)
        if started["provider"] == asked and lacking:
            yield f"no device memory: {lacking}"
        if options.energy and started["energy_missing"]:
            yield f"no energy: {started['energy_missing']}"
        if note := timer_note(stats.median(self.latencies()), self._timer_step_ns()):
            yield note
        yield from started["notes"]


def _on_device(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Memory on the GPU, the most of all processes; null where one does not run there, or cannot tell."""
    held = [(answer.get("device_bytes"), answer.get("device_counted")) for answer in answers]
    known = [(amount, counted) for amount, counted in held if amount is not None]
    if len(known) < len(answers):
        return {"device_bytes": None, "device_counted": None}
    most, counted = max(known)
    return {"device_bytes": most, "device_counted": counted}


def contestants_of(path: Path, options: BenchOptions) -> list[Contestant]:
    """The model in every setting.

    Raises:
        ModelFileError: The file cannot be used.
        InputError: Shapes that are unknown or do not fit; what ``check_web`` raises, where a browser is asked for.
    """
    if any(setting.provider == WEB for setting in options.settings()):
        check_web()
    model = load_model(path)
    artifact = Artifact.of_model(model, path)
    check_weights(model, path)  # NaN and denormals take other times than numbers do
    precision = precision_of(model)
    found = []
    for setting in options.settings():
        remark = check_integers_run(model, path, setting.provider, allow_fallback=options.allow_fallback)
        shapes = _shapes(artifact, options, setting.batch)
        feeds = [asdict(feed) for feed in feeds_of(artifact, batch=setting.batch, shapes=shapes)]
        found.append(Contestant(artifact, precision, feeds, setting, remark))
    return found


def _shapes(artifact: Artifact, options: BenchOptions, batch: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes that were given; where several batches are measured, each takes the place of a free first axis."""
    given = options.shape or {}
    if len({setting.batch for setting in options.settings()}) == 1:
        return given
    free = {spec.name for spec in artifact.inputs if spec.shape and not isinstance(spec.shape[0], int)}
    return {name: (batch, *shape[1:]) if name in free else shape for name, shape in given.items()}
