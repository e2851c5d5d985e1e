"""Processes that share the work of one command: which of them this one is, and what they tell each other.

``ALONE`` is the process that shares with nobody; ``process_group`` joins those that ``torchrun`` has started. Rooms
that share their work take ``Ranks`` and never learn what carries the bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deploykit.errors import InputError

__all__ = ["ALONE", "Job", "Ranks", "agree", "job", "part_of", "threads_each"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks(Protocol):
    """One of ``world`` processes."""

    @property
    def rank(self) -> int:
        """Its number, 0 to ``world - 1``; rank 0 writes and prints."""

    @property
    def world(self) -> int:
        """Number of processes."""

    @property
    def local_world(self) -> int:
        """Number of those on this machine."""

    def gather(self, part: bytes) -> list[bytes]:
        """What every process gave, in the order of the ranks, on every one of them; waits for all.

        Raises: RankError when one of them is gone.
        """


@dataclass(frozen=True)
class _Alone:
    rank: int = 0
    world: int = 1
    local_world: int = 1

    def gather(self, part: bytes) -> list[bytes]:
        return [part]


ALONE: Ranks = _Alone()
"""A process that shares with nobody."""


def part_of(count: int, ranks: Ranks, *, step: int = 1) -> range:
    """This process's share of ``count`` items: contiguous, none twice, none left out.

    Args:
        count: Number of items.
        ranks: The processes.
        step: Shares begin at multiples of it, so that batches of that size are those of one process.
    """
    batches = -(-count // step)
    start, stop = (batches * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1))
    return range(min(start * step, count), min(stop * step, count))


def threads_each(ranks: Ranks, cpus: int) -> int | None:
    """Threads for each process, so that those of one machine share its CPUs; None for one alone, which may choose."""
    return None if ranks.world == 1 else max(1, cpus // ranks.local_world)


def agree(ranks: Ranks, document: Mapping[str, Any]) -> None:
    """Checks that every process has the same JSON values. Raises: InputError naming what differs first."""
    if ranks.world == 1:
        return
    found = [json.loads(part) for part in ranks.gather(json.dumps(_flat(document)).encode())]
    mine = found[ranks.rank]
    for rank, other in enumerate(found):
        if differing := sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key)):
            key = differing[0]
            raise InputError(
                f"the processes differ in {key}: rank {ranks.rank} has {mine.get(key)!r}, rank {rank}"
                f" {other.get(key)!r}; start all with the same files and options"
            )


def _flat(document: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Values of mappings within mappings, by the names on the way."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        path = f"{name} {key}".strip()
        found |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found


@dataclass(frozen=True)
class Job:
    """What ``torchrun`` says of this process (https://docs.pytorch.org/docs/stable/elastic/run.html).

    Attributes:
        rank: Its number.
        world: Number of processes, 2 or more.
        local_rank: Its number on this machine, which is that of its GPU.
        local_world: Number of processes on this machine.
        attempt: How often the job was restarted.
        keeps_store: Whether this process, not an agent of ``torchrun``, keeps the list of processes.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    attempt: int
    keeps_store: bool


def job() -> Job | None:
    """This process's place among those of ``torchrun``; None where it was started otherwise, or alone.

    Raises: InputError when the environment contradicts itself.
    """
    if any(name not in os.environ for name in _NEEDED):
        return None
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if not 0 <= rank < world:
        raise InputError(f"RANK {rank} of WORLD_SIZE {world} in the environment; allowed: 0 to WORLD_SIZE - 1")
    if world == 1:
        return None
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
    return Job(
        rank=rank,
        world=world,
        local_rank=_number("LOCAL_RANK", rank),
        local_world=max(1, _number("LOCAL_WORLD_SIZE", world)),
        attempt=_number("TORCHELASTIC_RESTART_COUNT", 0),
        keeps_store=rank == 0 and not agent,
    )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r} in the environment; expected a whole number") from None
