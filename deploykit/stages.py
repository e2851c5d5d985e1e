"""The stages of a network, found from its operations alone: where everything it knows of a picture is in one tensor.

Between two such narrow places lies a layer, or a block whose branches have been joined again (a residual block, an
inception module, a dense block), whoever wrote the network and in whatever format.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

__all__ = ["Operation", "Stage", "find_stages", "narrow_values"]

Value: TypeAlias = Any
"""What stands for a value of the network: its number or its name, whatever can be a key."""

_MANY = 16  # more stages than these are thinned
# He et al. 2016, table 1, under torchvision's names for the same.
_RESNET_NAMES = {f"layer{index}": f"conv{index + 1}_x" for index in range(1, 5)}
_PAPER_LAYER = re.compile(r"[cshf]\d+")  # LeCun et al. 1990 and 1998, Krizhevsky et al. 2012: H1, C1, S2, F6


@dataclass(frozen=True)
class Operation:
    """One operation of a network in order of execution.

    Attributes:
        kind: ``"conv"``, ``"pool"`` or ``"other"``.
        inputs: Values read; names of constants may be among them.
        outputs: Values made.
        scope: Path of the layer that it belongs to, with dots; empty where unknown.
    """

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: str = ""


@dataclass(frozen=True)
class Stage:
    """A place between layers or blocks.

    Attributes:
        name: What to call it, as in the network or its paper; each stage of a network has its own.
        layer: Path of the layer or block in the network; empty where unknown.
        value: The value there, after activation and normalisation.
        shape: Its shape (N, channels, height, width).
        kind: ``"conv"`` (one convolution), ``"pool"`` or ``"block"``.
    """

    name: str
    layer: str
    value: Value
    shape: tuple[int, ...]
    kind: str


def narrow_values(
    operations: Sequence[Operation], given: Value, answers: Iterable[Value] = ()
) -> list[tuple[int, Value]]:
    """After which operations all that depends on the input is in one value, and in which.

    Args:
        operations: In order of execution.
        given: The network's input.
        answers: Values that are needed after the last operation.
    """
    last_use = {name: index for index, operation in enumerate(operations) for name in operation.inputs}
    last_use |= dict.fromkeys(answers, len(operations))
    found: list[tuple[int, Value]] = []
    live: set[Value] = {given}
    for index, operation in enumerate(operations):
        if not live.intersection(operation.inputs):
            continue  # computed from constants alone
        live |= {name for name in operation.outputs if last_use.get(name, -1) > index}
        live = {name for name in live if last_use.get(name, -1) > index}
        if len(live) == 1 and live <= set(operation.outputs):
            found.append((index, next(iter(live))))
    return found


def find_stages(
    operations: Sequence[Operation],
    given: Value,
    shapes: Mapping[Value, tuple[int, ...]],
    answers: Iterable[Value] = (),
) -> tuple[Stage, ...]:
    """The stages with feature maps.

    1. A segment ends at each narrow value. One that has convolutions or poolings and gives maps is a stage.
    2. One without them that keeps the shape (activation, normalisation, quantization) belongs to the stage before.
    3. Neighbours whose layers lie in the same part of the network are one stage, unless the part is more than a block:
       it has maps of three or more sizes, or there is no other part.
    4. Maps of a single pixel are a stage only where a convolution made them.
    5. More than sixteen are thinned: of neighbours of one kind and shape the last stays.

    Args:
        operations: See ``narrow_values``.
        given: The network's input.
        shapes: Of the narrow values, (N, C, H, W) and others.
        answers: See ``narrow_values``.
    """
    segments = list(_segments(operations, narrow_values(operations, given, answers), shapes))
    found = [stage for stage in _grouped(segments, 0) if stage.kind != "pool" or stage.shape[2:] != (1, 1)]
    stages = tuple(_named(found))
    if len(stages) <= _MANY:
        return stages
    runs = itertools.groupby(stages, key=lambda stage: (stage.kind, stage.shape))
    return tuple(list(run)[-1] for _, run in runs)


def _segments(
    operations: Sequence[Operation],
    narrow: Iterable[tuple[int, Value]],
    shapes: Mapping[Value, tuple[int, ...]],
) -> Iterator[Stage]:
    """Rules 1 and 2; the names are still empty."""
    start, pending = 0, None
    for index, value in narrow:
        inside, start = operations[start : index + 1], index + 1
        shape = shapes.get(value, ())
        convolutions = [operation.scope for operation in inside if operation.kind == "conv"]
        poolings = [operation.scope for operation in inside if operation.kind == "pool"]
        if len(shape) == 4 and (convolutions or poolings):
            if pending:
                yield pending
            kind = "pool" if not convolutions else "conv" if len(convolutions) == 1 and not poolings else "block"
            pending = Stage("", _common(convolutions or poolings), value, shape, kind)
        elif pending and shape == pending.shape:
            pending = replace(pending, value=value)
    if pending:
        yield pending


def _common(paths: Sequence[str]) -> str:
    columns = zip(*(path.split(".") for path in paths), strict=False)  # to the end of the shortest
    return ".".join(parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))


def _grouped(segments: Sequence[Stage], depth: int) -> Iterator[Stage]:
    """Rule 3, part by part of the paths."""
    parts = [_part(index, segment, depth) for index, segment in enumerate(segments)]
    pairs = itertools.groupby(zip(parts, segments, strict=True), key=lambda pair: pair[0])
    runs = [[segment for _, segment in run] for _, run in pairs]
    for inside in runs:
        first = inside[0]
        sizes = {segment.shape[2:] for segment in inside}
        if len(inside) == 1:
            yield first
        elif len(runs) == 1 or len(sizes) >= 3:
            yield from _grouped(inside, depth + 1)
        else:
            layer = ".".join(first.layer.split(".")[: depth + 1])
            yield replace(inside[-1], layer=layer, kind="block")


def _part(index: int, segment: Stage, depth: int) -> str | int:
    """What a segment has in common with its neighbours of the same part; a number of its own beyond its path."""
    parts = segment.layer.split(".")
    return parts[depth] if segment.layer and depth < len(parts) else index


def _named(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Short names: the paper's where it is known, the part of the path that tells stages apart, or kind and number."""
    paths = [tuple(stage.layer.split(".")) for stage in stages]
    shared = Counter(path[:depth] for path in paths for depth in range(1, len(path) + 1))
    names = [_short(path, shared) for path in paths]
    if set(_RESNET_NAMES) <= set(names):
        names = [_RESNET_NAMES.get(name, name) for name in names]
    taken = {name for name, count in Counter(names).items() if count == 1}
    for stage, name in zip(stages, names, strict=True):
        if name not in taken or not name:
            name = _next_name(name or stage.kind, taken)
        yield replace(stage, name=name)


def _next_name(base: str, taken: set[str]) -> str:
    name = next(name for name in (f"{base}{number}" for number in itertools.count(1)) if name not in taken)
    taken.add(name)
    return name


def _short(path: tuple[str, ...], shared: Mapping[tuple[str, ...], int]) -> str:
    """The first word that is this stage's own, as papers write it: ``conv1`` of ``conv1.conv``; empty for a number."""
    own = (part for depth, part in enumerate(path) if shared[path[: depth + 1]] == 1)
    name = next(own, path[-1])
    if name.isdecimal():
        return ""
    return name.upper() if _PAPER_LAYER.fullmatch(name) else name
