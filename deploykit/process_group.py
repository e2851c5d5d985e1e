"""The processes that ``torchrun`` has started, joined by torch.distributed: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from deploykit.errors import DeploykitError, InputError, RankError
from deploykit.rank_meeting import meet
from deploykit.rank_watch import RankWatch
from deploykit.ranks import Job

if TYPE_CHECKING:
    import torch

__all__ = ["ProcessGroup", "joined"]

_JOIN = timedelta(minutes=5)
_CALL = timedelta(minutes=30)  # of one collective call; the watch finds a dead process long before
_PATIENCE_S = 4.0  # between a broken connection and what the watch finds out of it
_INTERRUPTED = 130


class ProcessGroup:
    """This process among the others (``ranks.Ranks``), with collective calls on tensors.

    Tensors on the CPU go through gloo, those on a GPU through NCCL.
    """

    def __init__(self, job: Job, watch: RankWatch) -> None:
        self.job, self._watch = job, watch

    @property
    def rank(self) -> int:
        """See ``Ranks``."""
        return self.job.rank

    @property
    def world(self) -> int:
        """See ``Ranks``."""
        return self.job.world

    @property
    def local_world(self) -> int:
        """See ``Ranks``."""
        return self.job.local_world

    def gather(self, part: bytes) -> list[bytes]:
        """See ``Ranks``."""
        import torch

        lengths = self._all(torch.tensor([len(part)]))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(part)] = torch.frombuffer(bytearray(part or b"\0"), dtype=torch.uint8)[: len(part)]
        parts = self._all(padded) if longest else [padded] * self.world
        return [found[: int(length)].numpy().tobytes() for found, length in zip(parts, lengths, strict=True)]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of every process's ``tensor``, in place."""
        import torch.distributed as dist

        with self._calling():
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's ``tensor`` on every process, in place."""
        import torch.distributed as dist

        with self._calling():
            dist.broadcast(tensor, src=0)
        return tensor

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._calling():
            dist.all_gather(found, tensor)
        return found

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as problem:
            lost = self._watch.verdict(_PATIENCE_S)
            raise lost or RankError(f"the processes lost each other: {' '.join(str(problem).split())}") from problem


@contextmanager
def joined(job: Job, last_words: Callable[[str], None]) -> Iterator[ProcessGroup]:
    """The processes of ``job``, joined for the block.

    A process that ends before the others are done ends them too: with ``RankError``, which says which one it was and,
    where it could say so, why.

    Args:
        job: What ``ranks.job`` found.
        last_words: Called with that reason where the process has to be ended within a call that does not return.

    Raises:
        InputError: Not all processes came within five minutes.
        RankError: Another process is gone.
    """
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented there
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_JOIN)))
        store.set_timeout(_JOIN)
        limit_s = _JOIN.total_seconds()
        word = meet(PrefixStore("deploykit/meeting", store), job.rank, job.world, timeout_s=limit_s)
        # First, as the group's own first meeting does not find out that another process has died meanwhile.
        watch = RankWatch(PrefixStore(f"deploykit/{word}/watch", store.clone()), job.rank, job.world, last_words)
    except RuntimeError as problem:
        raise InputError(
            f"rank {job.rank} could not join the {job.world} processes within {_JOIN.seconds // 60} minutes:"
            f" {' '.join(str(problem).split())[:200]}"
        ) from problem
    with _left(), _told(watch, keeps_store=job.keeps_store):
        meeting = PrefixStore(f"deploykit/{word}/group", store)
        dist.init_process_group(_backend(), store=meeting, rank=job.rank, world_size=job.world, timeout=_CALL)
        yield ProcessGroup(job, watch)


@contextmanager
def _left() -> Iterator[None]:
    """Leaves the group; after a failure not between GPUs, where NCCL would wait for those that are gone."""
    import torch.distributed as dist

    failed = True
    try:
        yield
        failed = False
    finally:
        if dist.is_initialized() and not (failed and _backend() != "gloo"):
            dist.destroy_process_group()


@contextmanager
def _told(watch: RankWatch, *, keeps_store: bool) -> Iterator[None]:
    """Tells the others how the block ended; where one of them ended it, raises that."""
    code, reason, passed_on = 0, "", False
    try:
        yield
    except RankError as problem:
        code, reason, passed_on = problem.exit_code, str(problem), True
        raise
    except DeploykitError as problem:
        code, reason = problem.exit_code, " ".join(str(problem).split())
        raise
    except (KeyboardInterrupt, RuntimeError) as problem:
        broken = isinstance(problem, RuntimeError)
        lost = watch.verdict(_PATIENCE_S if broken else 0.0)
        interrupted = not broken and (lost is None or lost.exit_code == _INTERRUPTED)
        code, reason = (_INTERRUPTED, "interrupted") if interrupted else (2, _said(problem))
        if lost is None or interrupted:
            raise
        code, reason, passed_on = lost.exit_code, str(lost), True
        raise lost from problem
    except BaseException as problem:
        code, reason = 2, _said(problem)
        raise
    finally:
        watch.close(code, reason, passed_on=passed_on, wait_for_others=keeps_store)


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"


def _backend() -> str:
    import torch
    import torch.distributed as dist

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
