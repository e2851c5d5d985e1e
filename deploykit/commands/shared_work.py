"""Commands whose work the processes of ``torchrun`` share, and the refusal of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.process_start import started
from deploykit.ranks import ALONE, Ranks, job
from deploykit.terminal import note

if TYPE_CHECKING:
    from deploykit.progress import Progress

__all__ = ["SHARED", "check_shared", "restarted_with", "shared_progress", "shared_work"]

SHARED = ("train", "evaluate", "quantize")


def check_shared(command: str | None) -> None:
    """Refuses what several processes would all do and write. Raises: InputError."""
    if command not in SHARED and (found := job()) is not None:
        raise InputError(
            f"{command} runs in one process; received {found.world} of torchrun; allowed with several:"
            f" {', '.join(SHARED)}"
        )


@contextmanager
def shared_work(*, gpu_each: bool = False) -> Iterator[Ranks]:
    """The processes that ``torchrun`` has started for this command, of which rank 0 writes and prints.

    Args:
        gpu_each: Each sees the GPU of its own number alone, for runtimes that take the first one.

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

    if gpu_each:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        mine = seen.split(",")[found.local_rank : found.local_rank + 1] if seen else [str(found.local_rank)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    with joined(found, lambda reason: note(f"error: {reason}")) as ranks:
        yield ranks


def restarted_with(*results: Path) -> bool:
    """Whether this job of ``torchrun`` has written one of ``results`` in an earlier round, with which it then goes on.

    Rounds end when a process is lost or, which nothing counts, when a machine comes or goes. What was there before the
    job's agent started is not this job's, and the agent is the parent of every process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    began = started(os.getppid())
    return began is not None and any(path.stat().st_mtime >= began for path in results if path.exists())


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
