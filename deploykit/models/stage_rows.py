"""The layers of a profile as the rows of the table in the network's paper.

1. A layer belongs to the first row of ``paper_tables`` whose pattern matches its name; neighbours in one row are one.
2. Layers without a name of their own, such as the poolings of an ONNX file, belong to the row on both sides of them;
   between two rows they are a row themselves.
3. In a sequence each convolution, pooling and product starts a row; normalisations belong to the layer before them, and
   a pooling that keeps the shape (adaptive pooling at the paper's size) is none.

What stands in braces in a row's ``op`` is taken from its layers, so that other sizes and options are told rightly:

==========  =====================================================================
{kernel}    of the last convolution or pooling, with its stride: ``7×7/2``
{blocks}    kernels and channels of each block: ``[3×3, 64 | 3×3, 64] ×2``
{branches}  channels of an inception module: ``64, 96→128, 16→32, 32``
{fire}      channels of a fire module: ``16→64+64``
{bneck}     kernel, expanded channels and whether it squeezes: ``3×3, exp 16, SE``
{count}     blocks
{out}       channels that leave the row
{stride}    of all its layers together
==========  =====================================================================
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence

from deploykit.models.paper_tables import PUBLISHED, PUBLISHED_ROWS, SEQUENCES, TABLES, Row
from deploykit.models.paper_tables import Sequence as Names
from deploykit.models.table import TABLE
from deploykit.results import LayerProfile, StageProfile

__all__ = ["published", "stages"]

_SPECS = {entry.name: entry for entry in TABLE}
Named = tuple[Row, str]
Grouped = Iterator[tuple[Row, str, list[LayerProfile]]]


def stages(network: str | None, layers: Sequence[LayerProfile]) -> tuple[StageProfile, ...]:
    """The rows of the paper's table; empty for a network that has none here, or when no layer fits it.

    Args:
        network: A reference network's name, or anything else.
        layers: Of its profile, in order of execution.
    """
    entry = _SPECS.get(network or "")
    if entry is None:
        return ()
    if names := SEQUENCES.get(entry.family):
        return tuple(_stage(*group) for group in _sequence(names, layers))
    rows = TABLES.get(entry.name) or TABLES.get(entry.family, ())
    if not any(_row(rows, layer) for layer in layers):
        return ()
    printed = PUBLISHED_ROWS.get(entry.name, {}) if _is_the_papers(entry.name, layers) else {}
    return tuple(_stage(row, name, group, printed.get(name)) for row, name, group in _grouped(rows, layers))


def published(network: str | None, layers: Sequence[LayerProfile]) -> str | None:
    """What the paper prints of the whole network; None when it prints nothing, or the network is built otherwise."""
    return PUBLISHED.get(network or "") if _is_the_papers(network, layers) else None


def _is_the_papers(network: str | None, layers: Sequence[LayerProfile]) -> bool:
    """Whether it has the paper's size and classes: parameters may have been folded away, the products stay."""
    entry = _SPECS.get(network or "")
    return entry is not None and sum(layer.macs for layer in layers) == entry.macs


def _grouped(rows: Sequence[Row], layers: Sequence[LayerProfile]) -> Grouped:
    found: list[Named | None] = [_row(rows, layer) for layer in layers]
    known = [index for index, named in enumerate(found) if named]
    keys = []
    for index, (layer, named) in enumerate(zip(layers, found, strict=True)):
        before = next((found[i] for i in reversed(known) if i < index), None)
        after = next((found[i] for i in known if i > index), None)
        inside = before if before and after and before[1] == after[1] else None
        keys.append(named or inside or _own_row(layer))
    groups = itertools.groupby(zip(keys, layers, strict=True), key=lambda pair: pair[0][1])
    for name, group in groups:
        members = list(group)
        yield members[0][0][0], name, [layer for _, layer in members]


def _row(rows: Sequence[Row], layer: LayerProfile) -> Named | None:
    """The row that the layer belongs to, and its name for this layer."""
    matches = ((row, re.match(rf"(?:{row.pattern})(?:\.|$)", layer.name)) for row in rows)
    return next(((row, match.expand(row.name)) for row, match in matches if match), None)


def _own_row(layer: LayerProfile) -> Named:
    pooling = "max pool" if "MaxPool" in layer.op else "average pool"
    name = pooling if _is_pooling(layer) else layer.name
    return Row("", name, "{kernel}" if layer.kernel else ""), name


def _is_pooling(layer: LayerProfile) -> bool:
    """Whether a layer is a pooling, also one that an ONNX file has as a mean over the picture."""
    return "Pool" in layer.op or layer.op == "ReduceMean"


def _sequence(names: Names, layers: Sequence[LayerProfile]) -> Grouped:
    number, members = 0, list[LayerProfile]()
    row, name, shape = Row("", ""), "", None
    for layer in layers:
        pooling, convolution = _is_pooling(layer), layer.kernel is not None
        if pooling and layer.output_shape == shape:
            continue
        shape = layer.passes_on or layer.output_shape
        if not pooling and not layer.macs and members:
            members.append(layer)
            continue
        if members:
            yield row, name, members
        number += not pooling
        template = names.pooling if pooling else names.convolution if convolution else names.linear
        name, members = _filled(template, layer, number), [layer]
        row = Row("", name, "{kernel}" if convolution else "")
    if members:
        yield row, name, members


def _filled(name: str, layer: LayerProfile, number: int) -> str:
    side = layer.kernel[0] if layer.kernel else ""
    return name.format(n=number, side=side, out=layer.output_shape[0] if layer.output_shape else "?")


def _stage(row: Row, name: str, layers: list[LayerProfile], printed: str | None = None) -> StageProfile:
    weighted = {layer.precision for layer in layers if layer.precision}
    last = layers[-1]
    return StageProfile(
        name=name,
        op=_described(row, layers),
        output_shape=last.output_shape if _is_pooling(last) else last.passes_on or last.output_shape,
        parameters=sum(layer.parameters for layer in layers),
        connections=sum(layer.connections for layer in layers),
        macs=sum(layer.macs for layer in layers),
        layers=tuple(layer.name for layer in layers),
        precision=None if not weighted else weighted.pop() if len(weighted) == 1 else "mixed",
        published=printed,
    )


def _described(row: Row, layers: list[LayerProfile]) -> str:
    if not row.op:
        return layers[0].op
    fields = set(re.findall(r"{(\w+)}", row.op))
    return row.op.format(**{field: _FIELDS[field](row, layers) for field in fields})


def _convolutions(layers: Sequence[LayerProfile]) -> list[LayerProfile]:
    return [layer for layer in layers if layer.kernel and layer.macs]


def _kernel(_: Row, layers: Sequence[LayerProfile]) -> str:
    found = [layer for layer in layers if layer.kernel]
    return _kernel_text(found[-1]) if found else layers[0].op


def _kernel_text(layer: LayerProfile) -> str:
    step = max(layer.stride or (1,))
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    return "×".join(map(str, layer.kernel or ())) + (f"/{step}" if step > 1 else "") + groups


def _blocks(row: Row, layers: Sequence[LayerProfile]) -> str:
    """Equal neighbouring blocks are told once; the shortcut's projection is no part of a block (He et al., table 1)."""
    texts = []
    for block in _split(row, layers):
        kernels = [layer for layer in _convolutions(block) if "downsample" not in layer.name]
        texts.append(" | ".join(_block_text(layer) for layer in kernels))
    parts = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
    if not row.block:
        stride = max(max(layer.stride or (1,)) for layer in layers)
        return parts[0][0] + (f", stride {stride}" if stride > 1 else "")
    return ", ".join(f"[{text}] ×{times}" for text, times in parts)


def _block_text(layer: LayerProfile) -> str:
    channels = layer.output_shape[0] if layer.output_shape else "?"
    return f"{'×'.join(map(str, layer.kernel or ()))}, {channels}"


def _split(row: Row, layers: Sequence[LayerProfile]) -> list[list[LayerProfile]]:
    def block(layer: LayerProfile) -> str:
        match = re.match(row.block, layer.name)
        return match[0] if match and row.block else ""

    return [list(group) for _, group in itertools.groupby(layers, key=block)]


def _branches(_: Row, layers: Sequence[LayerProfile]) -> str:
    channels = [layer.output_shape[0] if layer.output_shape else "?" for layer in _convolutions(layers)]
    if len(channels) != 6:
        return ", ".join(map(str, channels))
    one, reduce3, three, reduce5, five, pool = channels
    return f"{one}, {reduce3}→{three}, {reduce5}→{five}, {pool}"


def _fire(_: Row, layers: Sequence[LayerProfile]) -> str:
    channels = [str(layer.output_shape[0]) if layer.output_shape else "?" for layer in _convolutions(layers)]
    return f"{channels[0]}→{'+'.join(channels[1:])}" if channels else ""


def _bneck(_: Row, layers: Sequence[LayerProfile]) -> str:
    depthwise = [layer for layer in _convolutions(layers) if layer.groups > 1]
    text = _block_text(depthwise[0]).replace(", ", ", exp ") if depthwise else ""
    return text + (", SE" if any(".fc1" in layer.name for layer in layers) else "")


_FIELDS: dict[str, Callable[[Row, Sequence[LayerProfile]], str]] = {
    "kernel": _kernel,
    "blocks": _blocks,
    "branches": _branches,
    "fire": _fire,
    "bneck": _bneck,
    "count": lambda row, layers: str(len(_split(row, layers))),
    "out": lambda _, layers: str((layers[-1].output_shape or ("?",))[0]),
    "stride": lambda _, layers: str(math.prod(max(layer.stride or (1,)) for layer in _convolutions(layers))),
}
