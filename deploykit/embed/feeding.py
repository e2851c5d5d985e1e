"""How an app feeds a model: with the pixels of a picture as they are, or with what a `Preprocess` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact, Preprocess, TensorSpec
from deploykit.errors import DataError, InputError
from deploykit.preprocess import apply, fit_pictures, preprocess_for

__all__ = ["Feeding", "feeding_of"]


@dataclass(frozen=True)
class Feeding:
    """What the model's only input takes.

    Attributes:
        name: Of the input.
        dtype: Element type, numpy's name.
        channels: 1 (grey) or 3 (RGB) of the pictures.
        takes_pixels: Whether the input is uint8 (1, H, W, C) in RGB order or grey: pixels as they are.
        size: ``(H, W)`` that such pixels must have; None where any size is taken.
        preprocess: What an app does to the pixels of any picture; None where the graph does all, or nobody knows.
    """

    name: str
    dtype: str
    channels: int
    takes_pixels: bool
    size: tuple[int, int] | None
    preprocess: Preprocess | None

    @property
    def any_size(self) -> bool:
        """Whether pictures of every size can be shown."""
        if self.preprocess is not None:
            return self.preprocess.resize is not None
        return self.size is None

    def input(self, picture: NDArray[np.uint8]) -> NDArray[Any]:
        """The model's input, with a batch of one, for a picture (H, W, 1 or 3). Raises: DataError."""
        if self.preprocess is not None:
            return apply(self.preprocess, picture[None])
        height, width, _ = picture.shape
        if self.size is not None and self.size != (height, width):
            raise DataError(
                f"a picture of {height} x {width} pixels; the model takes {self.size[0]} x {self.size[1]} only"
            )
        plain = Preprocess(size=(height, width), channels="L" if self.channels == 1 else "RGB")
        return fit_pictures(plain, picture[None])

    def to_json(self) -> dict[str, Any]:
        """``input`` of an app's ``model.json``."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "channels": self.channels,
            "takes_pixels": self.takes_pixels,
            "size": None if self.size is None else list(self.size),
            "preprocess": self.preprocess and self.preprocess.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Feeding:
        """Reads ``input`` of a ``model.json``. Raises: KeyError, TypeError, ValueError or InputError."""
        size, how = value["size"], value["preprocess"]
        return cls(
            name=str(value["name"]),
            dtype=str(value["dtype"]),
            channels=int(value["channels"]),
            takes_pixels=bool(value["takes_pixels"]),
            size=None if size is None else (int(size[0]), int(size[1])),
            preprocess=None if how is None else Preprocess.from_json(how),
        )


def feeding_of(artifact: Artifact, given: Preprocess | str | None = None) -> Feeding:
    """How to feed a model with one picture.

    A uint8 input (N, H, W, C) takes pixels; every other input needs a preprocessing, which the file says or ``given``
    does.

    Raises:
        InputError: Several inputs, a batch fixed to more than one, or an unknown preprocessing.
    """
    if len(artifact.inputs) != 1:
        raise InputError(f"{artifact.path} has {len(artifact.inputs)} inputs; an app shows a model one picture")
    tensor = artifact.inputs[0]
    batch = tensor.shape[0] if tensor.shape else None
    if isinstance(batch, int) and batch != 1:
        raise InputError(
            f"{artifact.path} fixes its batch to {batch}; an app shows it one picture:"
            " deploykit rewrite --also free_batch makes it free"
        )
    if given is None and _is_pixels(tensor, artifact.preprocess):
        return _pixel_feeding(tensor, artifact.preprocess)
    pre = preprocess_for(artifact, given)
    return Feeding(tensor.name, tensor.dtype, pre.depth, False, None, pre)


def _is_pixels(tensor: TensorSpec, pre: Preprocess | None) -> bool:
    shape = tensor.shape or ()
    plain = tensor.dtype == "uint8" and len(shape) == 4 and shape[3] in (1, 3)
    return plain and (pre is None or pre.channels != "BGR")


def _pixel_feeding(tensor: TensorSpec, pre: Preprocess | None) -> Feeding:
    _, height, width, channels = tensor.shape or (None, None, None, 3)
    if isinstance(height, int) != isinstance(width, int):
        raise InputError(f"the input {tensor.name} fixes one side of pictures: {tensor.shape}; allowed: both or none")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    # Of any size, the graph brings them to its own; of a fixed size, the file may say how pictures get it.
    fits = pre is not None and (pre.dtype, pre.layout, pre.size) == ("uint8", "NHWC", size)
    how = pre if fits else None
    return Feeding(tensor.name, tensor.dtype, int(channels or 3), True, size, how)
