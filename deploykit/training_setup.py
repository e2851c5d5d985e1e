"""What is settled before a training starts: the size of its pictures, the network's options, what the inputs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifact import Preprocess
from deploykit.augment import CROPPING
from deploykit.checkpoint import Checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError
from deploykit.models import NetworkSpec, build, spec
from deploykit.preprocess import fit_pictures, for_network
from deploykit.training_recipes import SMALL_SIDE, TrainOptions

if TYPE_CHECKING:
    from deploykit.pretrained import Weights

__all__ = [
    "TRAINING_SCHEMA",
    "Plan",
    "begin_header",
    "common_size",
    "forward_macs",
    "plan_network",
    "training_view",
    "with_options",
]

TRAINING_SCHEMA = 2
"""Raised whenever equal options no longer give equal bits: a state of another number is not gone on with."""

_LARGEST_SIDE = 4096  # pixels
_LOOKED_AT = 5000  # small pictures whose statistics are taken
_LOOKED_AT_LARGE = 1000
_SAMPLED = 64  # pictures of a source too large to look at
_VALUES_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Plan:
    """A network as it will be trained.

    Attributes:
        network: Its name.
        side: Pixels of the input's sides.
        options: All options of the network that are not at their default, chosen or given.
        notes: What was chosen without being asked for.
    """

    network: str
    side: int
    options: Mapping[str, str]
    notes: tuple[str, ...] = ()


def common_size(train: Dataset) -> tuple[int, int] | None:
    """``(H, W)`` of all pictures, or, of a source too large to look at, of some that lie evenly in it; None if mixed.

    Raises: DataError for a picture that cannot be read.
    """
    if train.size is not None:
        return train.size
    rows = np.unique(np.linspace(0, len(train) - 1, _SAMPLED).astype(np.int64))
    sizes = {picture.shape[:2] for picture in train.pictures(rows[:2])}
    if len(sizes) == 1:
        sizes |= {picture.shape[:2] for picture in train.pictures(rows)}
    return (int((first := sizes.pop())[0]), int(first[1])) if len(sizes) == 1 else None


def plan_network(
    network: str,
    picture_size: tuple[int, int] | None,
    size: int | None = None,
    options: Mapping[str, str] | None = None,
) -> Plan:
    """Chooses what was not given.

    The input is as large as the table says, or as the pictures where all of them are smaller; for a side up to
    ``SMALL_SIDE`` the network's variant for small pictures is taken where it has one.

    Args:
        network: Its name.
        picture_size: ``(H, W)`` common to the pictures, where known.
        size: Side of the input.
        options: Options of the network.

    Raises:
        UnknownNameError: No such network.
        InputError: A size that the network does not take, naming the smallest; an option that it does not have.
    """
    entry, given = spec(network), dict(options or {})
    table = entry.input[1]
    if not entry.any_size:
        if size not in (None, table):
            raise InputError(f"{network} with --size {size}; allowed: {table}, as its layers are made for it")
        return Plan(network, table, given)
    if size is not None and not 1 <= size <= _LARGEST_SIDE:
        raise InputError(f"{network} with --size {size}; allowed: 1 to {_LARGEST_SIDE} pixels")
    wanted = side = size or min((table, *(picture_size or ())))
    notes = []
    if side <= SMALL_SIDE and "small" in entry.options.get("pictures", ()) and "pictures" not in given:
        given["pictures"] = "small"
        notes.append("pictures=small, the variant for small pictures (--option pictures=large for the other)")
    smallest = _smallest(network, given)
    if size is not None and size < smallest:
        chosen = "".join(f" with {name}={value}" for name, value in given.items())
        raise InputError(f"{network}{chosen} with --size {size}; allowed: {smallest} or more pixels")
    side = max(side, smallest)
    if size is None and side != table:
        pictures = "×".join(map(str, picture_size or ()))
        reason = "as the pictures have" if side == wanted else f"the smallest that {network} takes, for pictures of"
        notes.insert(0, f"size {side}, {reason} {pictures} pixels (--size for another)")
    return Plan(network, side, given, tuple(notes))


def _smallest(network: str, options: dict[str, str]) -> int:
    import torch

    with torch.device("meta"):  # names and shapes only: no memory, no random numbers
        return int(getattr(build(network, None, None, **options), "smallest", 1))


def forward_macs(plan: Plan, train: Dataset) -> int | None:
    """Multiply-accumulates of a forward pass of one picture, as ``inspect`` counts them; None where it cannot."""
    from deploykit.models.profile import profile_network

    depth, classes = _depth(plan, train), len(train.labels)
    shape = (depth, plan.side, plan.side)
    found = profile_network(plan.network, num_classes=classes, in_channels=depth, input_shape=shape, **plan.options)
    return found.macs


def _depth(plan: Plan, train: Dataset) -> int:
    return 1 if spec(plan.network).reads_grey else train.channels


def begin_header(plan: Plan, train: Dataset, options: TrainOptions, weights: Weights | None = None) -> Checkpoint:
    """The checkpoint without tensors: what stays the same over the whole training, but for the threads.

    Mean and deviation are those of the training pictures, or what ``weights`` expect.
    """
    entry = spec(plan.network)
    depth = _depth(plan, train)
    training = {
        "dataset_digest": train.source_digest,
        "samples": len(train),
        "training_schema": TRAINING_SCHEMA,
        "device": options.device,
        "options": _kept(options),
    }
    if weights is not None:
        training["weights_sha256"] = weights.sha256
    return Checkpoint(
        network=plan.network,
        options=dict(plan.options),
        num_classes=len(train.labels),
        in_channels=depth,
        preprocess=_preprocess(entry, plan, train, depth, weights),
        labels=train.labels,
        dataset=train.name,
        training=training,
        tensors={},
    )


def with_options(header: Checkpoint, options: TrainOptions) -> Checkpoint:
    """The header of the same training with these options and threads."""
    return replace(header, training={**header.training, "options": _kept(options), "threads": options.threads})


def _kept(options: TrainOptions) -> dict[str, Any]:
    return {key: value for key, value in options.to_json().items() if key not in ("device", "threads")}


def _preprocess(entry: NetworkSpec, plan: Plan, train: Dataset, depth: int, weights: Weights | None) -> Preprocess:
    side = plan.side
    plain = for_network(
        (depth, side, side),
        entry.content_size,
        mean=(0.0,) * depth,
        std=(1.0,) * depth,
        picture_size=common_size(train) if entry.any_size else train.size,
        margin=entry.any_size,
    )
    if weights is None:
        mean, std = _statistics(train, _content(plain, entry))
    else:
        mean, std = _expected(weights, plan.network, depth)
    return replace(plain, mean=mean, std=std)


def _expected(weights: Weights, network: str, depth: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from deploykit.pretrained import statistics

    before = weights.checkpoint.preprocess if weights.checkpoint else None
    if before is not None and before.depth == depth:
        return before.mean, before.std
    return statistics(network, depth)


def _content(plain: Preprocess, entry: NetworkSpec) -> Preprocess:
    """What is seen of a picture, without the padding around it."""
    if entry.content_size is None:
        return plain
    side = entry.content_size
    return replace(plain, size=(side, side), crop=None if isinstance(plain.resize, tuple) else "center")


def _statistics(train: Dataset, plain: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the scaled pixels, channel by channel, over some of the pictures."""
    depth, values = plain.depth, plain.depth * plain.size[0] * plain.size[1]
    sums, squares, count = np.zeros(depth), np.zeros(depth), 0
    looked_at = train.take(_LOOKED_AT if max(plain.size) <= SMALL_SIDE else _LOOKED_AT_LARGE)
    for pictures, _ in looked_at.batches(max(1, min(256, _VALUES_AT_ONCE // values))):
        pixels = fit_pictures(plain, pictures).reshape(-1, depth) / 255.0  # (B·H·W, C)
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


def training_view(preprocess: Preprocess, augment: str) -> Preprocess:
    """What training pictures are fitted to: the input, or the whole resized middle where pieces are cut out of it."""
    if augment not in CROPPING or not isinstance(preprocess.resize, int):
        return preprocess
    side = max(preprocess.resize, *preprocess.size)
    return replace(preprocess, size=(side, side), crop="center")
