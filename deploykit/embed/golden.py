"""Golden pictures: a few pictures with the outputs that every app has to give for them, to within a tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Dataset
from deploykit.data.paths import user_path
from deploykit.data.picture import read_picture
from deploykit.embed.app_model import AppModel
from deploykit.errors import DataError, InputError

__all__ = ["Golden", "GoldenPicture", "chosen_from", "chosen_pictures"]

_SCHEMA = "deploykit.golden/1"
_COUNT = 3
_MOST = 16
_LOOKED_AT = 64
_LONGEST_SIDE = 320  # pixels; larger ones are made smaller, so that the folder stays small
# Of the largest output: what kernels of other runtimes may differ by. Integer kernels round to other neighbours.
_FLOAT_SHARE, _ROUNDED_SHARE = 1e-3, 2e-2
_CLEAR = 4.0  # tolerances between the best and the second class, so that within them the label stays


@dataclass(frozen=True, eq=False)
class GoldenPicture:
    """One picture and what the model answers.

    Attributes:
        pixels: (H, W, C) uint8.
        outputs: (classes,).
    """

    pixels: NDArray[np.uint8]
    outputs: NDArray[np.float32]

    @property
    def winner(self) -> int:
        """The class with the largest output."""
        return int(self.outputs.argmax())

    @property
    def margin(self) -> float:
        """By how much the largest output is above the second."""
        below, above = np.sort(self.outputs)[-2:]
        return float(above - below)

    def encoded(self, format: str) -> bytes:
        """The picture as a file without loss: ``"PNG"``, ``"PPM"`` (grey: PGM), or ``"RAW"``, the pixels alone."""
        from PIL import Image

        if format == "RAW":
            return self.pixels.tobytes()
        grey = self.pixels.shape[2] == 1
        image, content = Image.fromarray(self.pixels[..., 0] if grey else self.pixels), BytesIO()
        image.save(content, format=format)
        return content.getvalue()


@dataclass(frozen=True, eq=False)
class Golden:
    """The golden test of an app.

    Attributes:
        pictures: One to sixteen.
        labels: Names of all classes.
        tolerance: Largest difference of an output that passes.
    """

    pictures: tuple[GoldenPicture, ...]
    labels: tuple[str, ...]
    tolerance: float

    def names(self, ending: str) -> tuple[str, ...]:
        """Names of the pictures' files."""
        return tuple(f"{number}{ending}" for number in range(1, len(self.pictures) + 1))

    def to_json(self, ending: str) -> dict[str, Any]:
        """``golden.json``: the outputs of each picture, rounded to what a float32 holds."""
        rows = zip(self.names(ending), self.pictures, strict=True)
        return {
            "schema": _SCHEMA,
            "tolerance": self.tolerance,
            "pictures": [
                {
                    "file": name,
                    "height": picture.pixels.shape[0],
                    "width": picture.pixels.shape[1],
                    "channels": picture.pixels.shape[2],
                    "index": picture.winner,
                    "label": self.labels[picture.winner],
                    "outputs": [float(f"{value:.9g}") for value in picture.outputs],
                }
                for name, picture in rows
            ],
        }


def chosen_from(model: AppModel, data: Dataset) -> Golden:
    """Three pictures of different classes out of a balanced 64: clear ones that the model gets right come first.

    Raises: DataError or InputError where the model cannot be shown them.
    """
    part = data.take(_LOOKED_AT)
    rows = range(0, len(part))
    asked = [_asked(model, part.pictures([row])[0]) for row in rows]
    labels = model.labels(len(asked[0].outputs), data.labels)
    known = [labels[item.winner] == data.labels[target] for item, target in zip(asked, part.targets, strict=True)]
    tolerance = _tolerance(model, asked)
    order = sorted(rows, key=lambda row: (not known[row], asked[row].margin < _CLEAR * tolerance))
    picked = list(_of_different_classes([asked[row] for row in order]))[:_COUNT]
    return Golden(tuple(picked), labels, tolerance)


def _of_different_classes(pictures: Sequence[GoldenPicture]) -> Iterator[GoldenPicture]:
    """First one of each class, then the others, in order."""
    seen: set[int] = set()
    later = []
    for picture in pictures:
        if picture.winner in seen:
            later.append(picture)
        else:
            seen.add(picture.winner)
            yield picture
    yield from later


def chosen_pictures(model: AppModel, paths: Sequence[Path]) -> Golden:
    """The pictures in these files.

    Raises:
        DataError: A file is no readable picture.
        InputError: None or more than sixteen, or the model cannot be shown them.
    """
    if not 1 <= len(paths) <= _MOST:
        raise InputError(f"{len(paths)} golden pictures; allowed: 1 to {_MOST}")
    asked = [_asked(model, read_picture(user_path(path), model.feeding.channels)) for path in paths]
    return Golden(tuple(asked), model.labels(len(asked[0].outputs)), _tolerance(model, asked))


def _asked(model: AppModel, picture: NDArray[np.uint8]) -> GoldenPicture:
    pixels = _kept(model, picture)
    outputs = model.outputs(pixels)
    if outputs.size < 2:
        raise InputError(f"{model.artifact.path} gives {outputs.size} output; an app tells at least two classes apart")
    return GoldenPicture(pixels, outputs)


def _kept(model: AppModel, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies in the folder: of the model's size where it has one, as some apps take no other; never large."""
    if model.feeding.takes_pixels and model.feeding.size is not None:
        return np.asarray(model.feeding.input(picture)[0])
    return _smaller(picture) if model.feeding.any_size else picture


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width, depth = picture.shape
    factor = _LONGEST_SIDE / max(height, width)
    if factor >= 1.0:
        return np.ascontiguousarray(picture)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if depth == 1 else picture))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], depth)


def _tolerance(model: AppModel, asked: Sequence[GoldenPicture]) -> float:
    largest = max(float(np.abs(item.outputs).max()) for item in asked)
    share = _FLOAT_SHARE if model.precision == "fp32" else _ROUNDED_SHARE
    if not largest > 0.0:
        raise DataError(f"{model.artifact.path} answers only zeros; a golden test would prove nothing")
    return float(f"{share * largest:.3g}")
