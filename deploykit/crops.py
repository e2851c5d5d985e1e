"""Testing protocols: which parts of a picture a network is shown, so that its answers to them can be averaged.

1
    What the model's own preprocessing says: the middle, once.
10
    The four corners, the middle, and their mirror images (Krizhevsky et al. 2012, section 4.1). torchvision's
    ``TenCrop`` takes the middle of the mirrored picture instead, one pixel beside where the room is odd.
144
    4 scales × 3 squares × 6 crops × 2 mirrorings (Szegedy et al. 2015, section 7). Of a square picture the three
    squares are the same.

A crop has the size of what the preprocessing fills of the input: all of it, or the content of a network that is fed
with a border of zeros, such as LeNet-5's 28 of 32 pixels; the border then lies around each crop. For an input that is
not square, rectangles of its proportions take the place of the squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.data.dataset import Pictures
from deploykit.errors import DataError, InputError
from deploykit.preprocess import check_pixels, fit_pictures, scaled_size

__all__ = ["PROTOCOLS", "check_crops", "crop_batches", "views"]

PROTOCOLS = (1, 10, 144)
"""Crops of a picture that a protocol exists for."""

_Size: TypeAlias = tuple[int, int]
_Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, C)

_INPUT = 224  # pixels; what the scales below are for, other inputs are shown the same in proportion
_TEN_SCALE = 256  # shorter side of the picture that ten crops are cut from
_SCALES = (256, 288, 320, 352)
_kept = lru_cache(maxsize=64)  # checking a Preprocess takes longer than cutting a small picture


def check_crops(crops: int) -> None:
    """Raises: InputError for a number of crops without a protocol."""
    if crops not in PROTOCOLS:
        raise InputError(f"crops {crops}; allowed: {', '.join(map(str, PROTOCOLS))}")


def crop_batches(pre: Preprocess, pictures: Pictures, crops: int, size: int) -> Iterator[_Pixels]:
    """The views of all pictures, picture by picture, in stacks of ``size``; the last one may be smaller.

    Args:
        pre: What the network wants.
        pictures: ``(N, H, W, C)``, or a list of ``(H, W, C)``; uint8; C is 1 or 3 (RGB).
        crops: Views of each picture, 1, 10 or 144.
        size: Views in a stack. No more of them are held at once.

    Yields:
        ``(n, H, W, C)`` uint8 of the network's size and channels, for ``preprocess.normalize``.

    Raises:
        InputError: Another number of crops.
        DataError: Not uint8 pictures, or one that cannot be brought to the network's size.
    """
    check_crops(crops)
    if crops == 1:
        for start in range(0, len(pictures), size):
            yield fit_pictures(pre, pictures[start : start + size])
        return
    shown = (view for picture in pictures for view in views(pre, picture, crops))
    while stack := list(islice(shown, size)):
        yield np.stack(stack)


def views(pre: Preprocess, picture: _Pixels, crops: int) -> Iterator[_Pixels]:
    """What the network is shown of one picture ``(H, W, C)``: ``crops`` arrays of its input's size, uint8.

    Ten: top left, top right, bottom left, bottom right, middle, then their mirror images. 144: scale by scale and
    square by square (left to right, or top to bottom) those five and the whole square, then their mirror images.

    Raises: as ``crop_batches``.
    """
    check_crops(crops)
    if crops == 1:
        yield fit_pictures(pre, [picture])[0]
        return
    if picture.ndim != 3 or 0 in picture.shape:
        raise DataError(f"a picture of shape {picture.shape}; allowed: (H, W, 1 or 3), at least one pixel")
    content = _content(pre, picture)
    for group in _ten(pre, picture, content) if crops == 10 else _many(pre, picture, content):
        both = np.stack([*group, *(crop[:, ::-1] for crop in group)])  # (2 × crops, H, W, C)
        yield from both if content == pre.size else fit_pictures(_bordering(pre), both)


def _content(pre: Preprocess, picture: _Pixels) -> _Size:
    """Rows and columns of the input that hold picture, not border."""
    rows, columns = scaled_size(pre, picture.shape[:2])
    return min(rows, pre.size[0]), min(columns, pre.size[1])


def _ten(pre: Preprocess, picture: _Pixels, content: _Size) -> Iterator[list[_Pixels]]:
    resized = _recolored(pre, picture, _ten_size(pre, picture, content))
    yield _corners_and_middle(resized, content)


def _ten_size(pre: Preprocess, picture: _Pixels, content: _Size) -> _Size:
    """The size after the preprocessing's own resize; where that leaves no room for corners, 256/224 of the crop."""
    own = scaled_size(pre, picture.shape[:2])
    if own[0] > content[0] and own[1] > content[1]:
        return own[0], own[1]
    rows, columns = _in_proportion(content, _TEN_SCALE)
    if isinstance(pre.resize, tuple):  # the network knows pictures that are stretched
        return max(own[0], rows), max(own[1], columns)
    return _covering(picture, (rows, columns))


def _many(pre: Preprocess, picture: _Pixels, content: _Size) -> Iterator[list[_Pixels]]:
    for scale in _SCALES:
        square = _in_proportion(content, scale)
        resized = _recolored(pre, picture, _covering(picture, square))
        for part in _three(resized, square):
            yield [*_corners_and_middle(part, content), _stretched(pre, part, content)]


def _in_proportion(content: _Size, scale: int) -> _Size:
    """What ``scale`` pixels of a network for 224 are for this one."""
    return round(content[0] * scale / _INPUT), round(content[1] * scale / _INPUT)


def _covering(picture: _Pixels, size: _Size) -> _Size:
    """The smallest size of the picture's proportions that ``size`` fits into; the longer side is cut off to a pixel."""
    (height, width), (rows, columns) = picture.shape[:2], size
    if rows * width >= columns * height:
        return rows, rows * width // height
    return columns * height // width, columns


def _three(pixels: _Pixels, size: _Size) -> list[_Pixels]:
    """Left, middle and right, or top, middle and bottom: one of the sides is ``size``'s."""
    places = zip(*(_places(have, want) for have, want in zip(pixels.shape, size, strict=False)), strict=True)
    return [_cut(pixels, row, column, size) for row, column in places]


def _corners_and_middle(pixels: _Pixels, size: _Size) -> list[_Pixels]:
    (top, middle, bottom), (left, centre, right) = (
        _places(have, want) for have, want in zip(pixels.shape, size, strict=False)
    )
    corners = (top, left), (top, right), (bottom, left), (bottom, right)
    return [_cut(pixels, row, column, size) for row, column in (*corners, (middle, centre))]


def _places(have: int, want: int) -> tuple[int, int, int]:
    """Where a window starts at one end, in the middle (rounded half to even, as torchvision does), at the other end."""
    return 0, round((have - want) / 2), have - want


def _cut(pixels: _Pixels, row: int, column: int, size: _Size) -> _Pixels:
    return pixels[row : row + size[0], column : column + size[1]]


def _recolored(pre: Preprocess, picture: _Pixels, size: _Size) -> _Pixels:
    """The whole picture with the network's channels, stretched to ``size``."""
    check_pixels(picture.shape, size)
    return np.asarray(fit_pictures(_stretching(pre, size), [picture])[0])


def _stretched(pre: Preprocess, pixels: _Pixels, size: _Size) -> _Pixels:
    """Pixels that have the network's channels already, stretched to ``size``."""
    return _recolored(_colored(pre), pixels, size)


@_kept
def _stretching(pre: Preprocess, size: _Size) -> Preprocess:
    return replace(pre, size=size, resize=size, crop=None)


@_kept
def _bordering(pre: Preprocess) -> Preprocess:
    """Puts zeros around crops, as the preprocessing puts them around pictures."""
    return replace(_colored(pre), resize=None)


@_kept
def _colored(pre: Preprocess) -> Preprocess:
    """For pixels that have the network's channels already, in its order."""
    return replace(pre, channels="L" if pre.depth == 1 else "RGB")
