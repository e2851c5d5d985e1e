"""A duet: one fresh process of each of two models, measured in turns (Bulej et al. 2020, "Duet benchmarking").

What disturbs the machine for longer than a turn disturbs both, and leaves their ratio. What is shorter than a turn is
left out where the system tells: with one thread on the CPU a turn stands for the time in which its calls had a
processor, which is their latency where nobody else wanted it. Otherwise it stands for the latency itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import stats
from deploykit.bench_options import BenchOptions
from deploykit.contestant import Contestant, ModelProcess
from deploykit.disturbances import Disturbances
from deploykit.turns import take_turns

__all__ = ["Duet", "Part", "play"]

_LEAST_ROUNDS = 3  # of a pair, unless the deadline comes before
_MOST_RAISED = 3  # times the calls that the warm-up asks for


@dataclass(frozen=True)
class Part:
    """What one process of a duet gave.

    Attributes:
        blocks: Milliseconds of every call, turn by turn.
        turns_ms: What each turn stands for.
        waited: Share of the calls' time in which others had the processor; None where the system does not tell.
        peak_bytes: Of the process while it loaded and ran, less what it held before.
        provider: What really ran.
        threads: Of one operator.
        notes: What a reader of its figures has to know.
        timer_step_ns: The smallest step of the timer.
        cuda_graph: Whether one captured CUDA graph was replayed.
    """

    blocks: tuple[tuple[float, ...], ...]
    turns_ms: tuple[float, ...]
    waited: float | None
    peak_bytes: int
    provider: str
    threads: int
    notes: tuple[str, ...] = ()
    timer_step_ns: int = 0
    cuda_graph: bool = False

    @classmethod
    def of(cls, process: ModelProcess) -> Part:
        """Asks the process for its memory too. Raises: DeploykitError when it has died."""
        started: dict[str, Any] = dict(process.started)
        busy = process.busy_blocks if _tells_busy(started) else None
        blocks = tuple(tuple(block) for block in process.blocks)
        return cls(
            blocks=blocks,
            turns_ms=tuple(stats.median(block) for block in busy or blocks),
            waited=_waited(blocks, busy) if busy else None,
            peak_bytes=process.worker.ask("memory")["peak_bytes"],
            provider=started["provider"],
            threads=started["threads"],
            notes=tuple(started["notes"]),
            timer_step_ns=process.warm["timer_step_ns"],
            cuda_graph=started["cuda_graph"],
        )

    def round_logs(self) -> NDArray[np.float64]:
        """The logarithm of the milliseconds of each round, the mean of its two turns, ``(rounds,)``."""
        return np.asarray(np.log(self.turns_ms).reshape(-1, 2).mean(1), np.float64)


def _tells_busy(started: dict[str, Any]) -> bool:
    """Whether the calling thread's processor time is what a call would take undisturbed.

    Linux counts it in nanoseconds; further threads and devices work on their own time.
    """
    return started["threads"] == 1 and started["provider"] == "cpu" and sys.platform == "linux"


def _waited(blocks: Sequence[Sequence[float]], busy: Sequence[Sequence[float]]) -> float:
    total = sum(map(sum, blocks))
    return max(0.0, 1.0 - sum(map(sum, busy)) / total) if total else 0.0


@dataclass(frozen=True)
class Duet:
    """One process of each model, measured together; without a baseline the candidate plays alone.

    Attributes:
        candidate: What its process gave.
        baseline: The same of the other.
        seconds: From the start of the first process to the end of the last.
        disturbances: What else went on while turns were taken.
    """

    candidate: Part
    baseline: Part | None
    seconds: float
    disturbances: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that play."""
        return (self.candidate,) if self.baseline is None else (self.candidate, self.baseline)

    @property
    def rounds(self) -> int:
        """Rounds of turns, A B B A each."""
        return len(self.candidate.turns_ms) // 2

    def log_ratios(self) -> NDArray[np.float64]:
        """The logarithm of candidate over baseline in each round, ``(rounds,)``."""
        assert self.baseline is not None
        return self.candidate.round_logs() - self.baseline.round_logs()


def play(
    models: Sequence[Contestant],
    options: BenchOptions,
    *,
    turn_seed: int,
    seconds: float,
    in_time: Callable[[], bool],
) -> Duet:
    """Starts one fresh process of the candidate and one of the baseline, measures them in turns, and ends them.

    Args:
        models: Candidate and, if there is one, baseline; they stay as they are.
        options: Inputs, seed, time limits.
        turn_seed: Fixes the order of turns; odd ones load the baseline first.
        seconds: Of turns; with 0 nothing is timed, and only the memory is read.
        in_time: Whether there is time for another round; one is measured in any case.

    Raises: DeploykitError when a model cannot be loaded or run, or a process dies or hangs.
    """
    began = time.monotonic()
    players = [replace(model, processes=[]) for model in models]
    with ExitStack() as stack:
        for player in players if turn_seed % 2 == 0 else reversed(players):
            player.start(stack, options)
        processes = [player.processes[0] for player in players]
        _level(processes)
        noise = Disturbances()
        take_turns(players, seed=turn_seed, go_on=_until(processes[0], seconds, in_time))
        disturbances = noise.warnings(sum(process.used_s for process in processes)) if seconds else ()
        parts = [Part.of(process) for process in processes]
    baseline = parts[1] if len(parts) > 1 else None
    return Duet(parts[0], baseline, time.monotonic() - began, tuple(disturbances))


def _level(processes: Sequence[ModelProcess]) -> None:
    """As many calls a turn for both, unless one is far slower: a disturbed warm-up asks for fewer than it should."""
    most = max(process.runs for process in processes)
    for process in processes:
        process.runs = min(most, _MOST_RAISED * process.runs)
        process.lead = max(1, process.runs // 10)


def _until(process: ModelProcess, seconds: float, in_time: Callable[[], bool]) -> Callable[[], bool]:
    began = time.monotonic()

    def go_on() -> bool:
        rounds = len(process.blocks) // 2
        enough = rounds >= _LEAST_ROUNDS and time.monotonic() - began >= seconds
        return seconds > 0 and not enough and (rounds < 1 or in_time())

    return go_on
