"""Which parts of a picture decide: a grey square slides over it, and the class's probability drops (occlusion).

Zeiler & Fergus 2014, Visualizing and Understanding Convolutional Networks, section 4.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError
from deploykit.progress import Progress, silent

__all__ = ["Occlusion", "default_window", "occlude"]

_POSITIONS = 400  # by default at most so many
_MOST_POSITIONS = 1 << 16
_BATCH_BYTES = 1 << 20  # pixels of the covered copies that are held at once
_BATCH = 64

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Occlusion:
    """What covering each place did.

    Attributes:
        window: Side of the square in pixels.
        stride: Pixels from one position to the next.
        positions: How many there were.
        probability: Of the class, nothing covered.
        drop: (H, W), the mean drop over the squares that cover a pixel; negative where covering helps.
        hottest: The square with the largest drop, what of it lies on the picture: top, left, bottom, right, the latter
            two beyond its last pixels.
        largest_drop: Its drop.
    """

    window: int
    stride: int
    positions: int
    probability: float
    drop: NDArray[np.float64]
    hottest: Box
    largest_drop: float


def default_window(size: tuple[int, int]) -> int:
    """A fifth of the shorter side: about an object's part, as a head is of an animal."""
    return max(1, round(min(size) / 5))


def occlude(
    picture: NDArray[np.uint8],
    probability: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    *,
    grey: tuple[int, ...],
    window: int | None = None,
    stride: int | None = None,
    progress: Progress = silent,
) -> Occlusion:
    """Covers one place after another.

    Args:
        picture: (H, W, C) uint8.
        probability: Of the class for (n, H, W, C); called with about a megabyte at a time.
        grey: The square's colour, one value a channel.
        window: Side of the square; ``default_window`` when None.
        stride: Pixels between positions; None takes the smallest that gives 400 positions or fewer.
        progress: Told the positions.

    Raises:
        InputError: The window is larger than the picture, the stride leaves gaps, or there are too many positions.
    """
    size = (picture.shape[0], picture.shape[1])
    window = default_window(size) if window is None else window
    if not 1 <= window <= min(size):
        raise InputError(f"window {window} on a network's picture of {size[0]}×{size[1]}; allowed: 1 to {min(size)}")
    stride = _default_stride(size, window) if stride is None else stride
    if not 1 <= stride <= window:
        raise InputError(
            f"stride {stride} with window {window}; allowed: 1 to {window}, so that every pixel is covered"
        )
    boxes = _boxes(size, window, stride)
    if len(boxes) > _MOST_POSITIONS:
        raise InputError(
            f"window {window} and stride {stride} give {len(boxes):,} positions on {size[0]}×{size[1]}; allowed:"
            f" {_MOST_POSITIONS:,}; take a larger stride"
        )
    before = float(probability(picture[None])[0])
    drops: list[float] = []
    for covered in _batches(picture, boxes, grey):
        drops += (before - probability(covered)).tolist()
        progress("occlude", len(drops), len(boxes))
    best = int(np.argmax(drops))
    return Occlusion(window, stride, len(boxes), before, _by_pixel(size, boxes, drops), boxes[best], float(drops[best]))


def _default_stride(size: tuple[int, int], window: int) -> int:
    fitting = (stride for stride in range(1, window) if math.prod(_counts(size, window, stride)) <= _POSITIONS)
    return next(fitting, window)


def _counts(size: tuple[int, int], window: int, stride: int) -> tuple[int, ...]:
    return tuple(len(_starts(side, window, stride)) for side in size)


def _starts(side: int, window: int, stride: int) -> range:
    """The first and last squares reach beyond the border, so that every pixel is covered as often as the others."""
    return range(stride - window, side, stride)


def _boxes(size: tuple[int, int], window: int, stride: int) -> list[Box]:
    """The parts of the squares that lie on the picture."""
    (height, width), (rows, columns) = size, (_starts(side, window, stride) for side in size)
    return [
        (max(0, top), max(0, left), min(height, top + window), min(width, left + window))
        for top, left in itertools.product(rows, columns)
    ]


def _batches(picture: NDArray[np.uint8], boxes: list[Box], grey: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    count = max(1, min(_BATCH, _BATCH_BYTES // picture.size))
    waiting = iter(boxes)
    while part := list(islice(waiting, count)):
        covered = np.repeat(picture[None], len(part), axis=0)
        for copy, (top, left, bottom, right) in zip(covered, part, strict=True):
            copy[top:bottom, left:right] = grey
        yield covered


def _by_pixel(size: tuple[int, int], boxes: list[Box], drops: list[float]) -> NDArray[np.float64]:
    total, count = np.zeros(size), np.zeros(size)
    for (top, left, bottom, right), drop in zip(boxes, drops, strict=True):
        total[top:bottom, left:right] += drop
        count[top:bottom, left:right] += 1
    return np.asarray(total / count)
