"""Do inputs look like what a preprocessing gives? Their extent in pixels says so, where it is grossly wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.preprocessing_spec import Preprocess

__all__ = ["Extent", "other_layout"]

_BRIGHTEST = 255.0
_BEYOND = 0.1 * _BRIGHTEST  # a filter with negative lobes may overshoot by so much
_NARROW = 0.25 * _BRIGHTEST  # the darkest and the brightest pixel of some pictures are farther apart
_FLAT = 4.0  # pixels of some pictures deviate by more
_INTERLEAVED = 0.7  # neighbours of a plane differ less than the channels of a pixel do


@dataclass(frozen=True)
class Extent:
    """Least, greatest, mean and standard deviation of some inputs."""

    low: float
    high: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, inputs: NDArray[Any]) -> Extent:
        """Of finite inputs of any shape, at least one number."""
        values = inputs.astype(np.float64, copy=False)
        return cls(float(values.min()), float(values.max()), float(values.mean()), float(values.std()))

    def doubts(self, pre: Preprocess) -> Iterator[str]:
        """What speaks against these being pictures prepared as ``pre`` says; nothing in the usual case."""
        low, high = _ends(pre)
        pixel = (high - low) / _BRIGHTEST  # one step of a pixel, in units of the input
        received = (
            f"calibration samples reach from {self.low:.4g} to {self.high:.4g}, mean {self.mean:.4g}, deviation"
            f" {self.deviation:.4g}; the model's preprocessing gives {low:.4g} to {high:.4g}"
        )
        if self.low < low - _BEYOND * pixel or self.high > high + _BEYOND * pixel:
            yield f"{received}: they seem to be prepared in another way"
        elif self.high - self.low < _NARROW * pixel or self.deviation < _FLAT * pixel:
            yield f"{received}: they fill a small part of it, and seem to be scaled twice or not to be pictures"


def other_layout(inputs: NDArray[Any], pre: Preprocess) -> str | None:
    """A doubt, where planes (N, C, H, W) hold the channels of each pixel side by side, as after a wrong reshape."""
    if pre.layout != "NCHW" or pre.depth == 1 or inputs.ndim != 4 or inputs.shape[3] <= 2 * pre.depth:
        return None
    values = inputs.astype(np.float32, copy=False)
    next_value = float(np.abs(values[..., 1:] - values[..., :-1]).mean())
    next_pixel = float(np.abs(values[..., pre.depth :] - values[..., : -pre.depth]).mean())
    if next_pixel >= _INTERLEAVED * next_value:
        return None
    return "calibration samples seem to be NHWC in the shape of NCHW; transpose them instead of reshaping"


def _ends(pre: Preprocess) -> tuple[float, float]:
    """What the darkest and the brightest pixel become, over all channels."""
    mean, std = np.asarray(pre.mean), np.asarray(pre.std)
    ends = np.stack([(pixel * pre.scale - mean) / std for pixel in (0.0, _BRIGHTEST)])
    return float(ends.min()), float(ends.max())
