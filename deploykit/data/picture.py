"""One picture: from a file's bytes to ``(H, W, C)`` uint8, or to one line that says why not."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.data.paths import printable
from deploykit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PICTURE_ENDINGS", "decode_picture", "look_at", "picture_bytes", "read_picture"]

PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Pillow knows by a file's content what it is. Formats that start other programs (EPS) are left out; MPO is a JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap height and width
_SWAPPED = (5, 6, 7, 8)
# Names of Pillow's Image.Transpose that bring a picture of each orientation upright (EXIF 2.32, table 6).
_UPRIGHT: Mapping[int, str] = MappingProxyType(
    {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_270",
        7: "TRANSVERSE",
        8: "ROTATE_90",
    }
)
_CUT_SHORT = re.compile("truncat|cut short|broken data stream|unexpected end|not enough", re.IGNORECASE)
_LONGEST_REASON = 160  # characters
# What Pillow raises over garbled files besides OSError.
_OF_DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)


def read_picture(path: Path, channels: int, *, shortest: int | None = None) -> NDArray[np.uint8]:
    """The picture in a file; see `decode_picture`."""
    return decode_picture(picture_bytes(path), printable(str(path)), channels, shortest=shortest)


def picture_bytes(path: Path) -> bytes:
    """The bytes of a picture's file. Raises: DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise _unreadable(printable(str(path)), _reason_of_system(path, problem)) from problem


def decode_picture(content: bytes, name: str, channels: int, *, shortest: int | None = None) -> NDArray[np.uint8]:
    """One picture as ``(H, W, channels)``, turned upright as its EXIF data say; of an animation the first frame.

    Transparency is dropped. 16-bit grey becomes 8-bit by ``round(value * 255 / 65535)``, 16-bit colour by its upper
    bytes. CMYK of JPEG is inverted where the file says that Adobe wrote it.

    Args:
        content: The file.
        name: Of the file, for messages.
        channels: 1 (grey) or 3 (RGB).
        shortest: Pixels that the shorter side needs. A larger JPEG may then come reduced by 2, 4 or 8, which decodes
            faster and gives *other* pixels than reducing the whole picture: for training, not for evaluation.

    Raises:
        DataError: Damaged, cut short, too large, or of a kind that has no 8-bit form; names the file.
    """
    if not content:
        raise _unreadable(name, "the file is empty")
    with _opened(BytesIO(content), name) as image:
        if shortest is not None:
            image.draft(None, (shortest, shortest))  # of other formats than JPEG, does nothing
        image.load()
        upright = _upright(image)
        plain, mode = _eight_bit(upright), "L" if channels == 1 else "RGB"
        pixels = np.asarray(plain if plain.mode == mode else plain.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def look_at(source: Path | bytes, name: str) -> tuple[tuple[int, int], bool]:
    """Height and width when upright, and whether the picture is grey; from the file's head, without decoding.

    Raises:
        DataError: Not a picture, or too large a one; names the file.
    """
    with _opened(BytesIO(source) if isinstance(source, bytes) else source, name) as image:
        width, height = image.size
        size = (width, height) if _announced(image) in _SWAPPED else (height, width)
        return size, image.mode in _GREY_MODES


@contextmanager
def _opened(source: Path | BytesIO, name: str) -> Iterator[Image.Image]:
    """An open picture; whatever Pillow says of a damaged one becomes a DataError that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata, on stderr, once a picture
            # Between one and two times its limit Pillow only warns, and takes up to 1 GB.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=_FORMATS) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        found = re.search(r"\d+", str(problem))
        pixels = f"{int(found[0]):,} pixels" if found else str(problem)
        most = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(
            f"{name} is too large a picture: {pixels}; allowed: up to {most}; make it smaller or remove it"
        ) from problem
    except UnidentifiedImageError as problem:
        empty = isinstance(source, Path) and source.stat().st_size == 0
        reason = "the file is empty" if empty else "its content is no picture of a known format, or damaged"
        raise _unreadable(name, reason) from problem
    except OSError as problem:
        raise _unreadable(name, _reason_of_system(source, problem)) from problem
    except _OF_DAMAGE as problem:
        raise _unreadable(name, _reason(problem)) from problem


def _unreadable(name: str, reason: str) -> DataError:
    return DataError(f"{name} is not a readable picture: {reason}; replace or remove it")


def _reason_of_system(source: Path | BytesIO, problem: OSError) -> str:
    if isinstance(source, Path) and source.is_symlink() and not source.exists():
        return "it is a link to a file that is not there"
    if problem.errno is not None:
        return problem.strerror or type(problem).__name__
    return _reason(problem)


def _reason(problem: Exception) -> str:
    said = " ".join(str(problem).split())[:_LONGEST_REASON] or type(problem).__name__
    return f"the file is cut short ({said})" if _CUT_SHORT.search(said) else said


def _announced(image: Image.Image) -> int:
    """The EXIF orientation still to be applied, as far as the file's head tells."""
    if image.format == "TIFF":
        return 1  # Pillow turns it while it loads, and gives its size as turned
    if image.format == "PNG" and not any(key in image.info for key in ("exif", "Raw profile type exif", "xmp")):
        return 1  # getexif would decode the whole picture to look behind it
    return int(image.getexif().get(_ORIENTATION) or 1)


def _upright(image: Image.Image) -> Image.Image:
    """The loaded picture, turned and mirrored as its EXIF data say."""
    from PIL import Image, ImageChops

    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = _copy_info(ImageChops.invert(image), image)  # Pillow takes every CMYK JPEG for an inverted one
    method = _UPRIGHT.get(int(image.getexif().get(_ORIENTATION) or 1))
    return image if method is None else _copy_info(image.transpose(Image.Transpose[method]), image)


def _copy_info(changed: Image.Image, image: Image.Image) -> Image.Image:
    changed.info = image.info
    return changed


def _eight_bit(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # Pillow warns when it goes to RGB at once
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)  # Pillow's own conversion clips at 255
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"pixels from {wide.min()} to {wide.max()}; allowed: 8 or 16 bits a channel")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; allowed: 8 or 16 bits a channel")
    return image
