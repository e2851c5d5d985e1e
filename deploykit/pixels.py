"""Pictures on their way to the training device: a split in its memory, or read anew each epoch by other processes.

Either way the same rows in the same order give the same uint8 pictures, so that a training's bits do not depend on
how much memory there was. What is random happens afterwards, on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit import environment
from deploykit.artifact import Preprocess
from deploykit.data.dataset import ArrayReader, Dataset
from deploykit.errors import InputError
from deploykit.picture_worker import PictureWorker, read_pixels

if TYPE_CHECKING:
    import torch

__all__ = ["InMemory", "Pixels", "Streamed", "default_cap", "default_workers", "load_pixels"]

_AHEAD = 3  # batches that are read while one is learnt from
_READ_ROWS = 256  # of a split that goes into memory, at once
_ALONE = 1000  # pictures that are read sooner than processes start
_MOST_WORKERS = 16


class Pixels(Protocol):
    """One split."""

    @property
    def targets(self) -> torch.Tensor:
        """(N,), on the training device."""

    @property
    def held_bytes(self) -> int:
        """Of the device's memory that the pictures take, beside those under way."""

    def batches(self, chosen: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each tensor of row numbers, on the CPU, those pictures on the device: uint8 (B, C, H, W)."""

    def close(self) -> None:
        """Ends what reads for it."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A split on the training device: uint8 (N, C, H, W) and targets (N,)."""

    pictures: torch.Tensor
    targets: torch.Tensor

    @property
    def held_bytes(self) -> int:
        """See ``Pixels``."""
        return self.pictures.nbytes

    def batches(self, chosen: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See ``Pixels``."""
        import torch

        parts = list(chosen)
        if not parts:
            return
        places = torch.cat(parts).to(self.pictures.device)  # once: each copy from here waits for the device
        for rows in torch.split(places, [len(part) for part in parts]):
            yield self.pictures[rows]

    def close(self) -> None:
        """Nothing to end."""


class _Local:
    """Reads in this process; what a ``PictureWorker`` does in another."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, *, exact: bool) -> None:
        self._reader, self._preprocess, self._exact = dataset.reader, preprocess, exact

    def read(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        into[:] = read_pixels(self._reader, rows, self._preprocess, exact=self._exact)

    def close(self) -> None:
        pass


class Streamed:
    """A split whose pictures are read when they are needed, some batches ahead.

    Each batch is shared among the workers, each of which a thread waits for; the bytes go straight into the batch's
    memory, which is pinned for CUDA.

    Args:
        dataset: The split.
        preprocess: What its pictures are fitted to.
        device: The training device.
        workers: Processes that read; 0 reads in this one. Pictures that lie in this process's memory always are.
        exact: Whether they are decoded as for a measurement; large JPEGs may otherwise come from a reduced decoding.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, device: torch.device, workers: int, *, exact: bool = True
    ) -> None:
        import torch

        self._rows, self._device = dataset.rows, device
        self._shape = (preprocess.depth, *preprocess.size)
        self.targets = torch.from_numpy(dataset.targets).to(device)
        count = 0 if isinstance(dataset.reader, ArrayReader) else workers
        self._readers: list[PictureWorker | _Local] = [
            PictureWorker(dataset, preprocess, exact=exact) for _ in range(count)
        ]
        self._readers = self._readers or [_Local(dataset, preprocess, exact=exact)]
        self._threads = [ThreadPoolExecutor(1) for _ in self._readers]
        self.held_bytes = 0

    def __enter__(self) -> Streamed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batches(self, chosen: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See ``Pixels``. Raises: DataError naming the picture that cannot be read."""
        read = self._read(chosen)
        if self._device.type == "cuda":
            return _copied_ahead(read, self._device)
        return (batch.to(self._device) for batch in read)

    def _read(self, chosen: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The batches in this process's memory."""
        under_way: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        for rows in chosen:
            under_way.append(self._begin(rows))
            if len(under_way) > _AHEAD:
                yield self._finished(*under_way.popleft())
        while under_way:
            yield self._finished(*under_way.popleft())

    def close(self) -> None:
        """Ends the processes and drops what was being read."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers:
            reader.close()
        for thread in self._threads:
            thread.shutdown(wait=True)

    def _begin(self, chosen: torch.Tensor) -> tuple[torch.Tensor, list[Future[None]]]:
        import torch

        batch = torch.empty((len(chosen), *self._shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        rows, memory = self._rows[chosen.numpy()], batch.numpy()
        edges = np.linspace(0, len(rows), len(self._readers) + 1).round().astype(int)
        parts = zip(self._threads, self._readers, edges[:-1], edges[1:], strict=True)
        return batch, [
            thread.submit(reader.read, rows[start:stop], memory[start:stop])
            for thread, reader, start, stop in parts
            if stop > start
        ]

    def _finished(self, batch: torch.Tensor, reading: Sequence[Future[None]]) -> torch.Tensor:
        for part in reading:
            part.result()
        return batch


def _copied_ahead(batches: Iterable[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Batches on a CUDA device, each copied by a stream of its own while the device works on the one before."""
    import torch

    side, ahead = torch.cuda.Stream(device), None  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(side):
            copy = batch.to(device, non_blocking=True)
            copied = side.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copy, copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(copy: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    """The copy, for the current stream, which waits for it; its memory is not used anew before that has read it."""
    import torch

    stream = torch.cuda.current_stream(copy.device)
    stream.wait_event(copied)
    copy.record_stream(stream)
    return copy


def load_pixels(
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    *,
    cap: int | None = None,
    workers: int | None = None,
    exact: bool = True,
) -> Pixels:
    """A split, in the device's memory where it fits.

    Args:
        dataset: The split.
        preprocess: What its pictures are fitted to.
        device: The training device.
        cap: Bytes that the pictures may take; half of what is free there when None.
        workers: Processes that read; ``default_workers`` when None.
        exact: See ``Streamed``.

    Raises:
        DataError: A picture that cannot be read.
        InputError: ``workers`` or ``cap`` below 0.
    """
    if (workers is not None and workers < 0) or (cap is not None and cap < 0):
        raise InputError(f"workers {workers}, memory cap {cap}; allowed: 0 or more")
    count = default_workers(device) if workers is None else workers
    needed = len(dataset) * preprocess.depth * preprocess.size[0] * preprocess.size[1]
    if needed > (default_cap(device) if cap is None else cap):
        return Streamed(dataset, preprocess, device, count, exact=exact)
    count = count if len(dataset) >= _ALONE and count > 1 else 0
    with Streamed(dataset, preprocess, device, count, exact=exact) as source:
        return _gathered(source, len(dataset), preprocess, device)


def _gathered(source: Streamed, count: int, preprocess: Preprocess, device: torch.device) -> InMemory:
    import torch

    pictures = torch.empty((count, preprocess.depth, *preprocess.size), dtype=torch.uint8, device=device)
    done = 0
    for batch in source.batches(torch.split(torch.arange(count), _READ_ROWS)):
        pictures[done : done + len(batch)] = batch
        done += len(batch)
    return InMemory(pictures, source.targets)


def default_workers(device: torch.device) -> int:
    """Processes that read pictures: most of the CPUs beside an accelerator, half of them beside a training on them."""
    cpus = environment.available_cpus()
    return max(1, min(_MOST_WORKERS, cpus // 2 if device.type == "cpu" else cpus - 1))


def default_cap(device: torch.device) -> int:
    """Bytes: half of the memory that is free on the device, or that this process may still have."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    free = int(psutil.virtual_memory().available)
    limit = environment.memory_limit()
    return min(free, free if limit is None else limit) // 2
