"""Draws what a network sees as pictures: sheets of labelled tiles, and a heat map over a picture with its scale."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["colorize", "greyscale", "heat_sheet", "png_bytes", "signed_colors", "tile_sheet"]

Pixels = NDArray[np.uint8]

# Viridis at 32 even steps: lightness rises evenly, also for the colour-blind and in print (Smith & van der Walt 2015,
# A Better Default Colormap for Matplotlib; values of d3-scale-chromatic).
_VIRIDIS = (
    "440154470e61481a6c482575472f7d443a834144873d4e8a39568c35608d31688e2d708e2a788e27818e23888e21918d"
    "1f988b1fa08822a8842ab07f35b77943bf7154c56866cc5d7ad1518fd744a5db36bcdf27d2e21be9e51afde725"
)
_INK, _SOFT, _PAPER, _MARK = (28, 36, 48), (90, 102, 117), (255, 255, 255), (214, 69, 69)
_MARGIN, _GAP = 12, 6
_LINE, _LABEL = 18, 13  # heights in pixels of a line of the caption and of a tile's label
_CAPTION_SIZE, _LABEL_SIZE = 13, 10
_SHEET = 1120  # pixels that a row of tiles takes at most
_TILE, _FACTOR = 200, 24  # largest side of a tile, and how much a small one is enlarged at most
_TILE_LEAST = 24
_HEAT = 420  # about the longer side of a picture under a heat map
_SCALE_WIDTH = 18
_OPACITY = 0.65  # of the heat map


def colorize(values: NDArray[Any], low: float, high: float) -> Pixels:
    """(…) numbers as (…, 3) colours of viridis, ``low`` dark blue and ``high`` yellow; all ``low`` where both agree."""
    table = np.array(list(bytes.fromhex(_VIRIDIS))).reshape(-1, 3)
    place = np.clip((np.asarray(values, np.float64) - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    steps = np.arange(len(table))
    channels = [np.interp(place * (len(table) - 1), steps, table[:, channel]) for channel in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def signed_colors(values: NDArray[Any]) -> Pixels:
    """(C, H, W) weights, C 1 or 3, as (H, W, 3): zero is middle grey, the largest in size is black or full."""
    largest = float(np.abs(values).max()) or 1.0
    pixels = np.rint(127.5 + 127.5 * (np.asarray(values, np.float64) / largest)).astype(np.uint8)
    return np.repeat(pixels.transpose(1, 2, 0), 3 // len(pixels), axis=2)


def greyscale(picture: Pixels) -> Pixels:
    """(H, W, 1 or 3) as (H, W, 3)."""
    return np.repeat(picture, 3 // picture.shape[2], axis=2)


def tile_sheet(tiles: Sequence[Pixels], labels: Sequence[str], caption: Sequence[str]) -> Image.Image:
    """Tiles of one size (H, W, 3) in rows, each with its label above; small ones are enlarged without smoothing.

    Args:
        tiles: One or more.
        labels: As many.
        caption: Lines above the sheet.
    """
    height, width = tiles[0].shape[:2]
    columns = _columns(len(tiles), height, width)
    room = min(_TILE, (_SHEET + _GAP) // columns - _GAP)
    shown = _fitted(height, width, room)
    cell = max(shown[1], _TILE_LEAST)
    rows = -(-len(tiles) // columns)
    top = _MARGIN + _LINE * len(caption) + _GAP
    sheet, pen = _sheet(
        columns * (cell + _GAP) - _GAP, top + rows * (shown[0] + _LABEL + _GAP) - _GAP + _MARGIN, caption
    )
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        row, column = divmod(index, columns)
        left, above = _MARGIN + column * (cell + _GAP), top + row * (shown[0] + _LABEL + _GAP)
        pen.text((left, above), _drawable(label), fill=_SOFT, font=_font(_LABEL_SIZE))
        sheet.paste(_resized(tile, shown), (left, above + _LABEL))
    return sheet


def heat_sheet(
    picture: Pixels,
    heat: NDArray[np.float64],
    *,
    box: tuple[int, int, int, int],
    caption: Sequence[str],
    scale_title: str,
) -> Image.Image:
    """A picture, the same under a heat map, and the map's colour scale.

    Args:
        picture: (H, W, 1 or 3).
        heat: (H, W) fractions, which the scale gives in percent.
        box: Outlined in both: top, left, bottom, right.
        caption: Lines above.
        scale_title: What the numbers are.
    """
    height, width = picture.shape[:2]
    shown = _fitted(height, width, _HEAT)
    low, high = min(0.0, float(heat.min())), max(float(heat.max()), 1e-6)
    colors = colorize(heat, low, high)
    mixed = np.rint(_OPACITY * colors + (1.0 - _OPACITY) * _luma(picture)[..., None]).astype(np.uint8)
    top = _MARGIN + _LINE * len(caption) + _GAP
    scale_left = _MARGIN + 2 * (shown[1] + _MARGIN)
    sheet, pen = _sheet(scale_left + 130 - 2 * _MARGIN, top + max(shown[0], 120) + _MARGIN, caption)
    for index, pixels in enumerate((greyscale(picture), mixed)):
        left = _MARGIN + index * (shown[1] + _MARGIN)
        sheet.paste(_resized(pixels, shown), (left, top))
        _outline(pen, box, (left, top), (shown[0] / height, shown[1] / width))
    _draw_scale(sheet, pen, (scale_left, top), max(shown[0], 120), (low, high), scale_title)
    return sheet


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG; the same pixels give the same bytes."""
    packed = io.BytesIO()
    image.save(packed, format="PNG")
    return packed.getvalue()


def _columns(count: int, height: int, width: int) -> int:
    """So many that the sheet is about as wide as high."""
    return max(1, min(count, round(math.sqrt(count * height / width) + 0.49)))


def _fitted(height: int, width: int, room: int) -> tuple[int, int]:
    """Height and width that fit into ``room``: a whole multiple of a small picture, a part of a large one."""
    longer = max(height, width)
    factor = min(_FACTOR, room // longer) if room >= longer else room / longer
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    grows = size[0] >= pixels.shape[0]
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST if grows else Image.Resampling.BOX)


def _sheet(content_width: int, height: int, caption: Sequence[str]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper with its caption, wide enough for both."""
    from PIL import Image, ImageDraw

    lines = [_drawable(line) for line in caption]
    widest = max((math.ceil(_font(_CAPTION_SIZE).getlength(line)) for line in lines), default=0)
    sheet = Image.new("RGB", (max(content_width, widest) + 2 * _MARGIN, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        ink = _INK if index == 0 else _SOFT
        pen.text((_MARGIN, _MARGIN + index * _LINE), line, fill=ink, font=_font(_CAPTION_SIZE))
    return sheet, pen


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """Pillow's own font knows ASCII only: letters lose their accents, what else there is becomes a question mark."""
    plain = unicodedata.normalize("NFKD", text.replace("×", "x"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


def _luma(picture: Pixels) -> NDArray[np.float64]:
    return np.asarray(greyscale(picture) @ np.array([0.299, 0.587, 0.114]))


def _outline(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], origin: tuple[int, int], factors: tuple[float, float]
) -> None:
    top, left, bottom, right = box
    corners = (
        origin[0] + round(left * factors[1]),
        origin[1] + round(top * factors[0]),
        origin[0] + round(right * factors[1]) - 1,
        origin[1] + round(bottom * factors[0]) - 1,
    )
    pen.rectangle(corners, outline=_MARK, width=2)
    around = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
    pen.rectangle(around, outline=_PAPER)  # a red frame on a red flower


def _draw_scale(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    origin: tuple[int, int],
    height: int,
    ends: tuple[float, float],
    title: str,
) -> None:
    """The colours from the highest at the top to the lowest, with five numbers."""
    from PIL import Image

    low, high = ends
    left, top = origin[0], origin[1] + _LINE
    length = height - _LINE
    pen.text(origin, _drawable(title), fill=_SOFT, font=_font(_LABEL_SIZE))
    column = colorize(np.linspace(high, low, length), low, high)[:, None]
    sheet.paste(Image.fromarray(np.repeat(column, _SCALE_WIDTH, axis=1)), (left, top))
    for step in range(5):
        y = top + round(step * (length - 1) / 4)
        value = high - step * (high - low) / 4
        pen.line((left + _SCALE_WIDTH, y, left + _SCALE_WIDTH + 4, y), fill=_SOFT)
        place = (left + _SCALE_WIDTH + 8, min(max(y - 6, top), top + length - 12))
        pen.text(place, f"{100.0 * value:.3g}", fill=_INK, font=_font(_LABEL_SIZE + 1))
