"""Latency and memory of one or more models, each in a fresh process, measured in turns.

On a shared machine two runs of the same model one after the other differ by more than 2 % in half of the cases;
measured in turns they do not, because a slow spell hits all alike (duet benchmarking: Bulej et al. 2020; order
A B B A against drift; repetitions of processes: Kalibera & Jones 2013). What makes a figure doubtful is said beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploykit import environment
from deploykit.bench_options import BenchOptions
from deploykit.contestant import Contestant, contestants_of
from deploykit.disturbances import Disturbances
from deploykit.errors import DeploykitError, InputError
from deploykit.feeds import parse_shapes
from deploykit.progress import Progress, silent
from deploykit.timings import Bench, Timing
from deploykit.turns import take_turns

__all__ = ["BenchOptions", "bench_onnx", "parse_shapes"]


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
    ``load_ms`` is the time with the file in the system's cache. Intervals are bootstrapped over processes and turns,
    as calls within a turn are not independent.

    Returns:
        A record with one timing a model and setting, in the order given.

    Raises:
        ModelFileError: A file is missing, damaged, holds weights that are not finite, or cannot be run.
        InputError: Shapes that are unknown or contradict the file; a worker that died or took too long.
        ProviderError: The provider is absent, cannot start or took no node.
            With ``keep_going`` what concerns one process is raised only when nothing could be measured.
    """
    chosen = replace(options or BenchOptions(), **changes)
    paths = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    if not paths:
        raise InputError("no model to measure; give one or more .onnx files")
    contestants = [item for path in paths for item in contestants_of(Path(path), chosen)]
    timings = _measure(contestants, chosen, progress)
    if chosen.per_operator:
        timings = _profile(timings, chosen, progress)
    from deploykit import __version__

    return Bench(
        results=tuple(timing for _, timing in timings),
        failures=tuple(item.failed() for item in contestants if item.failure is not None),
        headline=chosen.headline,
        environment=_environment(contestants),
        deploykit=__version__,
    )


def _environment(contestants: Sequence[Contestant]) -> dict[str, Any]:
    """This machine, with the versions of what ran models outside of the installed runtime."""
    found = environment.describe()
    for process in (process for item in contestants for process in item.processes):
        found["versions"] |= process.started.get("versions", {})
    return found


Timed = list[tuple[Contestant, Timing]]


def _measure(contestants: Sequence[Contestant], options: BenchOptions, progress: Progress) -> Timed:
    with ExitStack() as stack:
        for done, contestant in enumerate(contestants):
            progress("bench: load", done, len(contestants), contestant.artifact.name)
            with contestant.attempt(keep_going=options.keep_going):
                contestant.start(stack, options)
        progress("bench: load", len(contestants), len(contestants))
        _raise_if_all_failed(contestants)
        disturbances = Disturbances()
        go_on = _until_enough(contestants, options, progress)
        take_turns(contestants, seed=options.seed, go_on=go_on, keep_going=options.keep_going)
        noise = disturbances.warnings(sum(process.used_s for item in contestants for process in item.processes))
        timings: Timed = []
        for contestant in contestants:
            if contestant.failure is None:
                with contestant.attempt(keep_going=options.keep_going):  # its process may have died since
                    timings.append((contestant, contestant.timing(options, noise)))
    _raise_if_all_failed(contestants)
    return timings


def _profile(timings: Timed, options: BenchOptions, progress: Progress) -> Timed:
    """The timings with the time by operator, measured when nothing else runs; what cannot be profiled says why."""
    found: Timed = []
    for done, (contestant, timing) in enumerate(timings):
        progress("bench: operators", done, len(timings), contestant.artifact.name)
        try:
            profile = contestant.profile(options)
        except DeploykitError as problem:
            if not options.keep_going:
                raise
            lacking = f"no time by operator: {problem}"
            found.append((contestant, replace(timing, warnings=(*timing.warnings, lacking))))
            continue
        operators, nodes = profile.operators, profile.nodes
        found.append((contestant, replace(timing, operators=operators, nodes=nodes, profiled_ms=profile.call_ms)))
    progress("bench: operators", len(timings), len(timings))
    return found


def _raise_if_all_failed(contestants: Sequence[Contestant]) -> None:
    """Raises the first failure, with what the others say beside it where that is something else."""
    failures = [item.failure for item in contestants if item.failure is not None]
    if len(failures) < len(contestants):
        return
    reasons = dict.fromkeys(map(str, failures))
    if len(reasons) > 1:
        failures[0].args = ("; ".join(reasons),)
    raise failures[0]


def _until_enough(contestants: Sequence[Contestant], options: BenchOptions, progress: Progress) -> Callable[[], bool]:
    """Whether a model still lacks samples or seconds, and there is time left."""
    began = time.monotonic()

    def go_on() -> bool:
        running = [item.done(options) for item in contestants if item.failure is None]
        progress("bench", int(100 * min(running)), 100)
        in_time = time.monotonic() - began < options.max_time_s * len(running)
        if min(running) >= 1.0 or not in_time:
            progress("bench", 100, 100)
            return False
        return True

    return go_on
