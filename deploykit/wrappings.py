"""The record of a model that takes pixels: what its graph does to them, and how near that comes to Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from deploykit.record import Record

__all__ = ["PixelParity", "Wrapping"]


@dataclass(frozen=True, kw_only=True)
class PixelParity:
    """Some pictures, prepared by Python for the model before, and given as pixels to the wrapped one.

    Attributes:
        pictures: Which ones, such as ``"odd sizes"``.
        samples: Their number.
        max_levels: Largest difference of a pixel when both have resized and cut, of 255.
        mean_levels: Mean difference of a pixel.
        max_abs: Largest absolute difference of the first output.
        max_rel: The same, over the largest value of that output in all pictures.
        top1_agreement: Fraction of the pictures with the same top-1.
    """

    pictures: str
    samples: int
    max_levels: int
    mean_levels: float
    max_abs: float
    max_rel: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Wrapping(Record):
    """What ``wrap`` did to a model.

    Attributes:
        input: Name of the new input, uint8 (N, H, W, C).
        input_shape: Its shape; names where it is free.
        any_size: Whether pictures of every size are taken.
        outputs: Names of all outputs; the first one is the model's own.
        graph_preprocess: What the graph does, as ``deploykit.preprocess`` said it before.
        resize: How, in the words of the ONNX operator; None where nothing is resized.
        reads_pixels: Whether a quantized model's first layer reads the pixels, with no pass in float before.
        border_levels: In that case the most, of 255, by which the padding of a convolution differs from the mean pixel.
        samples_name: Where the pictures come from that both were given.
        samples: Their number, with what was made of them.
        max_levels: As in ``PixelParity``, over all of them.
        mean_levels: As there.
        max_abs: As there.
        max_rel: As there.
        top1_agreement: As there.
        parity: The same for each kind of pictures.
    """

    kind: ClassVar[str] = "wrapping"

    model: str
    model_sha256: str
    parent: str
    parent_sha256: str
    file_bytes: int
    parent_bytes: int
    opset_before: int | None
    opset_after: int | None
    input: str
    input_shape: tuple[int | str | None, ...]
    any_size: bool
    outputs: tuple[str, ...]
    graph_preprocess: Mapping[str, Any]
    resize: str | None
    reads_pixels: bool
    border_levels: float | None
    samples_name: str
    samples: int
    max_levels: int
    mean_levels: float
    max_abs: float
    max_rel: float
    top1_agreement: float
    parity: tuple[PixelParity, ...]
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
