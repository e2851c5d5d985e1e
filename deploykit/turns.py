"""Turns: all processes in random order, then in its reverse, so that a slow spell of the machine hits all alike."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence

from deploykit.contestant import Contestant, ModelProcess
from deploykit.errors import DeploykitError

__all__ = ["OtherLoad", "take_turns"]

_MAX_OTHERS = 0.10  # processor time of other processes, as a fraction of the machine


def take_turns(
    contestants: Sequence[Contestant], *, seed: int, go_on: Callable[[], bool], keep_going: bool = False
) -> None:
    """Rounds of turns while ``go_on()``; a round is a random order of all processes and its reverse (A B B A).

    So every process has two turns a round, and turn ``i`` of one belongs to the same round as turn ``i`` of another.
    With ``keep_going`` a contestant that fails gets its ``failure`` and takes no further part; otherwise it is raised.

    Raises: DeploykitError.
    """
    order = [(item, process) for item in contestants for process in item.processes]
    generator = random.Random(seed)
    while any(item.failure is None for item in contestants) and go_on():
        generator.shuffle(order)
        for contestant, process in (*order, *reversed(order)):
            if contestant.failure is None:
                try:
                    process.take_turn()
                except DeploykitError as problem:
                    if not keep_going:
                        raise
                    contestant.failure = problem


class OtherLoad:
    """Processor time that went to others while we measured, for the warning beside the figures."""

    def __init__(self) -> None:
        self._before = _busy_seconds()
        self._own_before = time.process_time()
        self._began = time.monotonic()

    def warnings(self, processes: Iterable[ModelProcess]) -> list[str]:
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
