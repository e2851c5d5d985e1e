"""Commands whose work the processes of ``torchrun`` share, and the refusal of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.ranks import ALONE, Ranks, job
from deploykit.terminal import note

if TYPE_CHECKING:
    from deploykit.progress import Progress

__all__ = ["SHARED", "check_shared", "restarted", "shared_progress", "shared_work"]

SHARED = ("train", "evaluate", "quantize")


def check_shared(command: str | None) -> None:
    """Refuses what several processes would all do and write. Raises: InputError."""
    if command not in SHARED and (found := job()) is not None:
        raise InputError(
            f"{command} runs in one process; received {found.world} of torchrun; allowed with several:"
            f" {', '.join(SHARED)}"
        )


@contextmanager
def shared_work() -> Iterator[Ranks]:
    """The processes that ``torchrun`` has started for this command, of which rank 0 writes and prints.

    Raises:
        MissingDependencyError: torch is not installed, which joins them.
        RankError: One of them is gone.
    """
    found = job()
    if found is None:
        yield ALONE
        return
    from deploykit.extras import require

    require("torch", extra="torch", purpose="sharing the work of several processes")
    from deploykit.process_group import joined

    with joined(found, lambda reason: note(f"error: {reason}")) as ranks:
        yield ranks


def restarted() -> bool:
    """Whether ``torchrun`` has started the job again (``--max-restarts``) after it lost a process."""
    found = job()
    return found is not None and found.attempt > 0


@contextmanager
def shared_progress(ranks: Ranks) -> Iterator[Progress]:
    """Rank 0's progress bar."""
    from deploykit.progress import silent
    from deploykit.terminal import progress_bar

    if ranks.rank:
        yield silent
        return
    with progress_bar() as progress:
        yield progress
