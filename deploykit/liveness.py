"""Peak memory of live activations: a pure walk over steps, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Step", "peak_live_bytes"]


@dataclass(frozen=True)
class Step:
    """One operation: the names of the buffers that it reads and writes.

    Attributes:
        inputs: Buffers read; weights are left out by the caller.
        outputs: Buffers written for the first time.
        in_place: An elementwise operation, which may write its first output over an input that nobody reads later.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_place: bool = False


def peak_live_bytes(
    steps: Sequence[Step], sizes: Mapping[str, int], inputs: Iterable[str], outputs: Iterable[str]
) -> int:
    """Largest sum of buffers that are needed at the same time when the steps run in the given order.

    1. A network's input is live from the start until its last reader has run.
    2. A step's output is live from that step until its last reader has run; one that nobody reads, during its step.
    3. A network's output stays live to the end.
    4. A step needs its inputs and outputs together, except that an ``in_place`` step takes over the buffer of an input
       of the first output's size that dies with the step.

    This is what an allocator without fragmentation needs; real arenas round up and may keep more.

    Args:
        steps: In order of execution.
        sizes: Bytes of every buffer.
        inputs: The network's inputs.
        outputs: The network's outputs; an input may be one of them.

    Returns:
        Bytes.

    Raises:
        ValueError: A buffer is read before it is written, is written twice, or has no size.
    """
    given, kept = set(inputs), set(outputs)
    _check(steps, sizes, given, kept)
    last_use = {name: index for index, step in enumerate(steps) for name in (*step.outputs, *step.inputs)}
    forever = len(steps)
    last_use |= dict.fromkeys(kept, forever)
    live = {name: sizes[name] for name in given}
    total = peak = sum(live.values())
    for index, step in enumerate(steps):
        total += sum(sizes[name] for name in step.outputs)
        peak = max(peak, total - _taken_over(step, sizes, last_use, index))
        live |= {name: sizes[name] for name in step.outputs}
        # An input that nobody reads has no last use: it goes with the first step.
        for name in [name for name in live if last_use.get(name, -1) <= index]:
            total -= live.pop(name)
    return peak


def _taken_over(step: Step, sizes: Mapping[str, int], last_use: Mapping[str, int], index: int) -> int:
    """Bytes that rule 4 saves."""
    if not step.in_place or not step.outputs:
        return 0
    size = sizes[step.outputs[0]]
    return size if any(last_use[name] == index and sizes[name] == size for name in step.inputs) else 0


def _check(steps: Sequence[Step], sizes: Mapping[str, int], given: set[str], kept: set[str]) -> None:
    known = set(given)
    for index, step in enumerate(steps):
        if unknown := [name for name in step.inputs if name not in known]:
            raise ValueError(f"step {index} reads {unknown[0]!r}, which is neither an input nor written before")
        if again := [name for name in step.outputs if name in known]:
            raise ValueError(f"step {index} writes {again[0]!r} a second time")
        known |= set(step.outputs)
    if unknown := sorted(kept - known):
        raise ValueError(f"output {unknown[0]!r} is never written")
    if unsized := sorted(known - set(sizes)):
        raise ValueError(f"buffer {unsized[0]!r} has no size")
