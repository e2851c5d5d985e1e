"""Turns: all processes in random order, then in its reverse, so that a slow spell of the machine hits all alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from deploykit.contestant import Contestant

__all__ = ["take_turns"]


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
                with contestant.attempt(keep_going=keep_going):
                    process.take_turn()
