"""How near a model that takes pixels comes to Python's ``preprocess`` and the model before, on pictures of many kinds.

Two things are compared: the pixels when both have resized and cut, and the answers. Where the pixels are equal, so have
to be the answers, up to what summing in another order does; where they differ by a level, the answers may by more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.answers import first_answers
from deploykit.artifact import Preprocess
from deploykit.errors import ParityError
from deploykit.graph.picture_input import PictureInput, pixels_model
from deploykit.preprocess import fit_pictures, normalize
from deploykit.raw_pictures import inputs_of
from deploykit.runtime import create_session
from deploykit.wrappings import PixelParity

if TYPE_CHECKING:
    from deploykit.runtime import Session

__all__ = ["MOST_LEVELS", "PixelTolerance", "Pixels", "compare_pixels", "kinds_of_pictures"]

MOST_LEVELS = 2
"""Difference of a pixel, of 255, above which resizing in the graph is not what Python's is; 1 was the most measured."""

_ODD = ((0.63, 1.21), (1.7, 0.9), (2.31, 3.17), (0.4, 0.55), (1.0, 2.9), (0.21, 0.34), (1.37, 1.0), (0.8, 0.8))
_NOISE = ((1.13, 1.71), (2.2, 0.7))  # sizes of pictures of noise, over the network's
_FEW = 4  # pictures that are turned, or grey

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelTolerance:
    """Largest difference of an answer, over the largest answer to all pictures.

    Attributes:
        equal: Where the pixels are equal.
        near: Where they differ by a level or two.
    """

    equal: float = 1e-4
    near: float = 0.1


def kinds_of_pictures(pictures: Sequence[Pixels], network: Preprocess) -> dict[str, list[Pixels]]:
    """Some pictures (H, W, 1 or 3) as they are, and what phones and scanners make of them.

    Stretched to odd sizes, smaller and larger than the network's, tall and wide; turned by a quarter, as EXIF data ask
    for; grey, where the network reads colours; and noise, which resizing has most to do with.
    """
    odd = [_stretched(picture, network, size) for picture, size in zip(pictures, _ODD, strict=False)]
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*_scaled(network, size), network.depth), np.uint8) for size in _NOISE]
    kinds = {"as they are": list(pictures), "odd sizes": odd, "turned": [np.rot90(picture) for picture in odd[:_FEW]]}
    if network.depth == 3:
        kinds["grey"] = [picture.mean(axis=2, keepdims=True).astype(np.uint8) for picture in odd[:_FEW]]
    return kinds | {"noise": noise}


def _scaled(network: Preprocess, size: tuple[float, float]) -> tuple[int, int]:
    """Odd numbers of pixels, at least 3."""
    height, width = (max(3, int(side * share) | 1) for side, share in zip(network.size, size, strict=True))
    return height, width


def _stretched(picture: Pixels, network: Preprocess, size: tuple[float, float]) -> Pixels:
    from PIL import Image

    height, width = _scaled(network, size)
    flat = picture[..., 0] if picture.shape[2] == 1 else picture
    image = Image.fromarray(np.ascontiguousarray(flat)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, picture.shape[2])


def compare_pixels(
    before: Path,
    after: Path,
    picture: PictureInput,
    kinds: Mapping[str, Sequence[Pixels]],
    tolerance: PixelTolerance,
) -> list[PixelParity]:
    """Compares on each kind of pictures, after bringing them to the size in Python where only one is taken.

    Args:
        before: The model that takes what ``picture.network`` says.
        after: The one that takes pixels.
        picture: What its graph does to them.
        kinds: Pictures by what they are called.
        tolerance: Of the answers.

    Raises:
        ParityError: Pixels differ by more than ``MOST_LEVELS``, or an answer by more than the tolerance.
    """
    usable = {name: _fitting(picture, pictures) for name, pictures in kinds.items()}
    seen = _Seen.of(before, after, picture, {name: pictures for name, pictures in usable.items() if pictures})
    scale = max(float(np.abs(rows.wanted).max(initial=0.0)) for rows in seen.kinds.values()) or 1.0
    for name, rows in seen.kinds.items():
        _check(name, rows, scale, tolerance)
    return [_measured(name, rows, scale) for name, rows in seen.kinds.items()]


def _fitting(picture: PictureInput, pictures: Sequence[Pixels]) -> list[Pixels]:
    """Those that the network can be shown: without resize and crop, of its size only."""
    pre = picture.network
    if pre.resize is None and pre.crop is None:
        return [item for item in pictures if item.shape[:2] == pre.size]
    if pre.crop is None and not isinstance(pre.resize, tuple):  # the shorter side is set, and nothing is cut
        return [item for item in pictures if item.shape[0] * pre.size[1] == item.shape[1] * pre.size[0]]
    return list(pictures)


@dataclass(frozen=True)
class _Rows:
    """Of each picture: levels by which pixels differ, at most and in the mean, and the answers (N, …) of both."""

    most: NDArray[np.int64]
    mean: NDArray[np.float64]
    wanted: NDArray[np.float64]
    got: NDArray[np.float64]

    @property
    def differences(self) -> NDArray[np.float64]:
        return np.asarray(np.abs(self.got - self.wanted).reshape(len(self.wanted), -1).max(axis=1))


@dataclass(frozen=True)
class _Seen:
    kinds: Mapping[str, _Rows]

    @classmethod
    def of(cls, before: Path, after: Path, picture: PictureInput, kinds: Mapping[str, list[Pixels]]) -> _Seen:
        """One session after the other, so that weights are in memory once."""
        import onnx_ir as ir

        pixels = {name: _python_pixels(picture.network, pictures) for name, pictures in kinds.items()}
        session = create_session(before)
        wanted = {name: _answers(session, before, _normalized(picture, made)) for name, made in pixels.items()}
        session = create_session(after)
        got = {name: _answers(session, after, inputs_of(picture.fed, pictures)) for name, pictures in kinds.items()}
        session = create_session(ir.to_proto(pixels_model(picture)).SerializeToString())
        rows = {}
        for name, pictures in kinds.items():
            made = np.concatenate([session.run(raw)[0] for raw in inputs_of(picture.fed, pictures)])
            levels = np.abs(made.astype(np.int64) - pixels[name]).reshape(len(made), -1)
            rows[name] = _Rows(levels.max(axis=1), levels.mean(axis=1), wanted[name], got[name])
        return cls(rows)


def _python_pixels(network: Preprocess, pictures: Sequence[Pixels]) -> Pixels:
    """(N, H, W, C) of the network's size, in the order of the new input's channels."""
    fitted = fit_pictures(network, list(pictures))
    return fitted[..., ::-1] if network.channels == "BGR" else fitted


def _normalized(picture: PictureInput, pixels: Pixels) -> Iterator[NDArray[Any]]:
    turned = pixels[..., ::-1] if picture.network.channels == "BGR" else pixels
    for row in turned:
        yield normalize(picture.network, row[None])


def _answers(session: Session, path: Path, inputs: Iterator[NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([first_answers(session, rows, path, what="pictures") for rows in inputs])


def _check(name: str, rows: _Rows, scale: float, tolerance: PixelTolerance) -> None:
    if (most := int(rows.most.max())) > MOST_LEVELS:
        raise ParityError(
            f"pictures ({name}) resized in the graph differ by {most} levels from Python's, allowed: {MOST_LEVELS};"
            " nothing was written"
        )
    for equal, limit in ((True, tolerance.equal), (False, tolerance.near)):
        chosen = rows.differences[(rows.most == 0) == equal] / scale
        if not (chosen <= limit).all():  # NaN fails too
            what = "of equal pixels" if equal else "of pixels that differ by a level"
            raise ParityError(
                f"answers to pictures ({name}) {what} differ by {chosen.max():.3g} of the largest answer, allowed:"
                f" {limit:g}; nothing was written"
            )


def _measured(name: str, rows: _Rows, scale: float) -> PixelParity:
    flat = [answers.reshape(len(answers), -1).argmax(axis=1) for answers in (rows.wanted, rows.got)]
    return PixelParity(
        pictures=name,
        samples=len(rows.most),
        max_levels=int(rows.most.max()),
        mean_levels=float(rows.mean.mean()),
        max_abs=float(rows.differences.max()),
        max_rel=float(rows.differences.max()) / scale,
        top1_agreement=float((flat[0] == flat[1]).mean()),
    )
