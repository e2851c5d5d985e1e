"""One interleaved run of many files in many settings, as plain figures that can be kept; and ratios within a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploykit import environment, stats
from deploykit.artifact import Artifact
from deploykit.bench_options import BenchOptions, Setting
from deploykit.contestant import Contestant, contestants_of
from deploykit.disturbances import Disturbances
from deploykit.progress import Progress, silent
from deploykit.ratio import Interval, hierarchical_interval
from deploykit.timings import Timing
from deploykit.turns import take_turns

__all__ = ["Entry", "Measured", "batch_of", "heats_of", "joined", "race", "ratio_of"]

_FEW_TURNS = 5  # too few to resample: then the extremes are the interval
_SHARE = 0.6  # of the memory that may be used
# Bytes that a process holds for each byte of its file once it is loaded, and beside that: VGG-16 1.3 in float32; of its
# int8 file, where activations count for more, 2.2 in all.
_PER_FILE, _PER_PROCESS = 1.5, 200_000_000
_LOADING = 1.0  # further bytes for each byte of the file that is being loaded


@dataclass(frozen=True)
class Entry:
    """A file in a session; ``session`` holds further arguments of ``runtime.create_session``."""

    path: Path
    provider: str
    threads: int
    session: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a run says of an entry; ``problem`` says why it says nothing.

    Attributes:
        latency_ms: Median of a call.
        ci_low_ms: Lower end of its 95 % interval.
        ci_high_ms: Upper end.
        peak_bytes: Of a fresh process, less what it held before; None where the system does not tell.
        stable: Whether nothing makes the latency doubtful.
        turns_ms: The median of each turn, process by process; turns of two entries of one run belong together by their
            places.
        problem: Why there are no figures.
    """

    latency_ms: float = 0.0
    ci_low_ms: float = 0.0
    ci_high_ms: float = 0.0
    peak_bytes: int | None = None
    stable: bool = False
    turns_ms: tuple[tuple[float, ...], ...] = ()
    problem: str | None = None

    @classmethod
    def of(cls, timing: Timing) -> Measured:
        """The figures of a timing."""
        latency = timing.latency_ms
        ends = (latency.median, latency.ci_low, latency.ci_high)
        return cls(*ends, timing.memory.peak_bytes, timing.stable, timing.turns_ms)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """What ``to_json`` gave."""
        return cls(**{**values, "turns_ms": tuple(map(tuple, values["turns_ms"]))})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def joined(runs: Sequence[Measured]) -> Measured:
    """The figures of several runs of the same entry; the first problem, where there is one."""
    problem = next((run for run in runs if run.problem), None)
    if problem is not None or len(runs) == 1:
        return problem or runs[0]
    turns = tuple(process for run in runs for process in run.turns_ms)
    middle = stats.median([turn for process in turns for turn in process])
    bounds = hierarchical_interval(turns)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return Measured(
        latency_ms=middle,
        ci_low_ms=min(bounds.low, middle),
        ci_high_ms=max(bounds.high, middle),
        peak_bytes=max(peaks, default=None),
        stable=all(run.stable for run in runs),
        turns_ms=turns,
    )


def ratio_of(one: Measured, other: Measured, *, confidence: float = 0.95) -> Interval:
    """The latency of one entry over that of another of the same runs, by the turns that belong together.

    A slow spell of the machine hits both turns of a pair and leaves their ratio (duet benchmarking: Bulej et al. 2020).
    With several processes each, what differs between these widens the interval. It is that of the ratios' logarithms,
    so that the ratio the other way round has the inverse bounds.
    """
    logs = [
        [math.log(a / b) for a, b in zip(of_one, of_other, strict=False)]
        for of_one, of_other in zip(one.turns_ms, other.turns_ms, strict=True)
    ]
    if len(logs) > 1:
        found = hierarchical_interval(logs, confidence=confidence)
    elif len(logs[0]) < _FEW_TURNS:
        found = Interval(stats.median(logs[0]), min(logs[0]), max(logs[0]))
    else:
        middle, bounds = stats.median(logs[0]), stats.bootstrap_median_interval(logs[0], confidence=confidence)
        found = Interval(middle, min(bounds[0], middle), max(bounds[1], middle))
    return Interval(math.exp(found.middle), math.exp(found.low), math.exp(found.high))


def heats_of(sizes: Sequence[int], always: int) -> list[list[int]]:
    """Places of the entries whose processes fit into memory at once; all that fit are one heat.

    Args:
        sizes: Bytes of each entry's file.
        always: Bytes of the file of what takes part in every heat besides.
    """
    room = _room_bytes() - int(_LOADING * max([always, *sizes])) - _held(always)
    heats: list[list[int]] = [[]]
    left = room
    for place, size in enumerate(sizes):
        if heats[-1] and _held(size) > left:
            heats.append([])
            left = room
        heats[-1].append(place)
        left -= _held(size)
    return heats


def _held(file_bytes: int) -> int:
    return int(_PER_FILE * file_bytes) + _PER_PROCESS


def _room_bytes() -> int:
    import psutil

    limits = [int(psutil.virtual_memory().available), environment.memory_limit()]
    return int(_SHARE * min(limit for limit in limits if limit is not None))


def batch_of(artifact: Artifact) -> int:
    """The batch that a model fixes, else 1."""
    shape = artifact.inputs[0].shape if artifact.inputs else None
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1


def race(entries: Sequence[Entry], options: BenchOptions, *, progress: Progress = silent) -> list[Measured]:
    """Measures all entries in turns, each in fresh processes; one that fails does not stop the others.

    Args:
        entries: What to measure; their order does not matter.
        options: How long; provider and threads are those of the entries.
        progress: Called often.

    Returns:
        One result an entry, in order.

    Raises:
        ModelFileError: A file is damaged or holds weights that are not finite.
        InputError: Shapes of inputs that cannot be known.
    """
    contestants = _contestants(entries, options)
    with ExitStack() as stack:
        for done, contestant in enumerate(contestants):
            progress("tune: load", done, len(contestants), contestant.artifact.name)
            with contestant.attempt(keep_going=True):
                contestant.start(stack, options)
        disturbances = Disturbances()
        take_turns(contestants, seed=options.seed, go_on=_until_enough(contestants, options, progress), keep_going=True)
        noise = disturbances.warnings(sum(process.used_s for item in contestants for process in item.processes))
        return [_result(contestant, options, noise) for contestant in contestants]


def _until_enough(contestants: Sequence[Contestant], options: BenchOptions, progress: Progress) -> Callable[[], bool]:
    """Whether an entry still lacks samples or seconds, and there is time left."""
    began = time.monotonic()

    def go_on() -> bool:
        running = [item.done(options) for item in contestants if item.failure is None]
        progress("tune: measure", int(100 * min(running)), 100)
        return min(running) < 1.0 and time.monotonic() - began < options.max_time_s * len(running)

    return go_on


def _result(contestant: Contestant, options: BenchOptions, noise: Sequence[str]) -> Measured:
    with contestant.attempt(keep_going=True):
        if contestant.failure is None:
            return Measured.of(contestant.timing(options, noise))
    return Measured(problem=str(contestant.failure))


def _contestants(entries: Sequence[Entry], options: BenchOptions) -> list[Contestant]:
    known: dict[Path, Contestant] = {}
    for entry in entries:
        if entry.path not in known:
            known[entry.path] = contestants_of(entry.path, replace(options, provider="cpu", threads=1))[0]
    found = []
    for entry in entries:
        model = known[entry.path]
        setting = Setting(entry.provider, entry.threads, model.setting.batch, dict(entry.session))
        found.append(Contestant(model.artifact, model.precision, model.feeds, setting))
    return found
