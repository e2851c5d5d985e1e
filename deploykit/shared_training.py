"""A training that several processes share: each computes its part of every batch, and all take the same step.

Batches and their order are those of one process, and so is what augmentation draws where nothing else draws: the number
of processes then changes sums in their last bits. Dropout and mixing are drawn by each process for its own part, after
which one process would also augment otherwise; BatchNorm sees the pictures of its process alone unless synchronised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError
from deploykit.pixels import default_cap, default_workers
from deploykit.ranks import ALONE, Ranks, part_of

if TYPE_CHECKING:
    import torch

    from deploykit.process_group import ProcessGroup

__all__ = ["Team"]

_BUCKET_BYTES = 32 << 20  # of gradients that travel together


class Team:
    """The processes of one training, seen from this one; alone, it changes nothing.

    Args:
        ranks: ``ALONE``, or a ``process_group.ProcessGroup``.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks

    def __deepcopy__(self, memory: Mapping[int, Any]) -> Team:
        """Copies of a training stay in the team."""
        return self

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.ranks.world == 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.ranks.rank == 0

    @property
    def _group(self) -> ProcessGroup:
        from deploykit.process_group import ProcessGroup

        if not isinstance(self.ranks, ProcessGroup):
            raise AssertionError("tensors travel between joined processes only")
        return self.ranks

    def device(self, chosen: torch.device, asked: str) -> torch.device:
        """The device that this process trains on: of several GPUs, the one of its number on this machine.

        Raises: InputError when the machine has fewer, or for MPS, between which nothing carries tensors.
        """
        import torch

        if not self.alone and chosen.type == "mps":
            if asked != "auto":
                raise InputError(f"device {asked!r} in {self.ranks.world} processes; allowed: cpu, cuda")
            return torch.device("cpu")
        if self.alone or chosen.type != "cuda":
            return chosen

        index, count = self._group.job.local_rank, torch.cuda.device_count()
        if index >= count:
            raise InputError(f"process {index} of this machine has no GPU of its own; there are {count}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def check_batch(self, *, largest: bool, synchronised: bool) -> None:
        """Raises: InputError where processes would try out batches that they normalise together."""
        if largest and synchronised and not self.alone:
            raise InputError(
                "batch size auto with synchronised BatchNorm in several processes, which would wait for each other;"
                " allowed: a number"
            )

    def peak(self, peak: float | None) -> float | None:
        """Operations a second of all devices, where each does ``peak``."""
        return None if peak is None else peak * self.ranks.world

    def workers(self, given: int | None, device: torch.device) -> int | None:
        """Processes that read for this one; those of one machine share its CPUs."""
        if given is not None or self.alone:
            return given
        return max(1, default_workers(device) // self.ranks.local_world)

    def cap(self, given: int | None, device: torch.device) -> int | None:
        """Bytes that pictures may take here; processes of one machine share its memory, but not that of GPUs."""
        if given is not None or self.alone or device.type == "cuda":
            return given
        return default_cap(device) // self.ranks.local_world

    def notes(self) -> tuple[str, ...]:
        """What a reader of the record has to know."""
        if self.alone:
            return ()
        return (f"{self.ranks.world} processes shared the training; rates are those of all together",)

    def gathered(self, notes: Sequence[str]) -> list[str]:
        """What any process has noted, each once."""
        parts = self.ranks.gather(json.dumps(list(notes)).encode())
        return list(dict.fromkeys(text for part in parts for text in json.loads(part)))

    def part(self, count: int) -> slice:
        """This process's part of a batch of ``count`` pictures, which are as many as processes at least."""
        found = part_of(count, self.ranks)
        return slice(found.start, found.stop)

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share of a list."""
        found = part_of(len(items), self.ranks)
        return items[found.start : found.stop]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over the processes, in place."""
        return tensor if self.alone else self._group.sum(tensor)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Leaves the sum of all processes' gradients in every process's parameters.

        They travel in buckets, so that few large messages take the place of many small ones.
        """
        if self.alone:
            return
        import torch

        for bucket in _buckets([item.grad for item in parameters if item.grad is not None]):
            flat = self._group.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Means over the processes, in place, of floating-point tensors; BatchNorm's running statistics differ."""
        for tensor in () if self.alone else tensors:
            if tensor.is_floating_point():
                self._group.sum(tensor).div_(self.ranks.world)

    def all(self, values: Sequence[float]) -> list[float]:
        """The values of all processes, in their order."""
        parts = self.ranks.gather(json.dumps(list(values)).encode())
        return [value for part in parts for value in json.loads(part)]

    def told(self, document: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Rank 0's document on every process."""
        found: dict[str, Any] | None = json.loads(self.ranks.gather(json.dumps(document).encode())[0])
        return found

    def from_first(self, tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Rank 0's tensors, by name, on the CPU of every process; None gives those of the others nothing to say."""
        if self.alone:
            return dict(tensors or {})
        import torch

        held = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
        shapes = self.told({name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in held.items()}) or {}
        found = {}
        for name, (shape, dtype) in shapes.items():
            tensor = held[name] if self.first else torch.empty(shape, dtype=getattr(torch, dtype.partition(".")[2]))
            found[name] = self._group.from_first(tensor)
        return found


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """In order, each of one type and of ``_BUCKET_BYTES`` or little more."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        full = sum(held.nbytes for held in bucket) >= _BUCKET_BYTES
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
