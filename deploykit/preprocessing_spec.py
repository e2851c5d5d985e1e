"""How pictures become a network's input, as data: what ``deploykit.preprocess`` in a file says, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from deploykit.errors import InputError

__all__ = ["Preprocess"]

_LAYOUTS = ("NCHW", "NHWC")
_CHANNELS = {"L": 1, "RGB": 3, "BGR": 3}
_DTYPES = ("float32", "float16", "uint8")
_TEXT_CHARACTERS = 80  # of a value in a message


@dataclass(frozen=True)
class Preprocess:
    """How pictures become a network's input; the order of the fields is the order of the steps.

    ``x = (pixel * scale - mean) / std``, channel by channel, with pixels from 0 to 255.

    Attributes:
        resize: None; an int: the shorter side gets this many pixels, the aspect ratio stays; ``(H, W)``: both sides.
        crop: None, or ``"center"``: cut the middle out at ``size``; where the picture is smaller, pad with zeros.
        size: ``(H, W)`` of the network's input.
        channels: ``"L"`` (grey), ``"RGB"`` or ``"BGR"``.
        scale: Factor applied to pixels first.
        mean: One number a channel, in units of the scaled pixel.
        std: One positive number a channel.
        layout: Order of the axes of the network's input.
        dtype: Element type of the network's input.
        any_size: The input takes pictures of every height and width, of which all in a batch share one, and brings
            them to its size itself. Where one array of many is wanted, they are resized and cropped to ``size`` first.
    """

    size: tuple[int, int]
    channels: str = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: str | None = None
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    dtype: str = "float32"
    any_size: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("channels", tuple(_CHANNELS)), ("layout", _LAYOUTS), ("dtype", _DTYPES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"preprocess {name} {_text(getattr(self, name))}; allowed: {', '.join(allowed)}")
        if self.crop not in (None, "center"):
            raise InputError(f"preprocess crop {_text(self.crop)}; allowed: null or 'center'")
        if not isinstance(self.any_size, bool):
            raise InputError(f"preprocess any_size {_text(self.any_size)}; allowed: true or false")
        depth = _CHANNELS[self.channels]
        if not _is_number(self.scale):
            raise InputError(f"preprocess scale {_text(self.scale)}; allowed: a finite number")
        object.__setattr__(self, "mean", _numbers("mean", self.mean) or (0.0,) * depth)
        object.__setattr__(self, "std", _numbers("std", self.std) or (1.0,) * depth)
        object.__setattr__(self, "size", _pair("size", self.size))
        if isinstance(self.resize, (tuple, list)):
            object.__setattr__(self, "resize", _pair("resize", self.resize))
        elif self.resize is not None and not _is_side(self.resize):
            raise InputError(
                f"preprocess resize {_text(self.resize)}; allowed: null, a positive number of pixels, [height, width]"
            )
        if len(self.mean) != depth or len(self.std) != depth or min(self.std) <= 0:
            raise InputError(
                f"preprocess mean {self.mean} and std {self.std}; allowed: {depth} numbers each for {self.channels},"
                " std positive"
            )

    @property
    def depth(self) -> int:
        """Number of channels of the network's input."""
        return _CHANNELS[self.channels]

    def to_json(self) -> dict[str, Any]:
        """The value of ``deploykit.preprocess``."""
        said = {
            "layout": self.layout,
            "size": list(self.size),
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": self.crop,
            "channels": self.channels,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "dtype": self.dtype,
        }
        return said | ({"any_size": True} if self.any_size else {})

    @classmethod
    def from_json(cls, value: Any) -> Preprocess:
        """Reads ``deploykit.preprocess``. Raises: InputError naming what is missing or unknown."""
        if not isinstance(value, dict):
            raise InputError(f"preprocess is a {type(value).__name__}; expected a JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise InputError(f"preprocess has unknown keys {unknown}; allowed: {', '.join(sorted(known))}")
        if "size" not in value:
            raise InputError("preprocess lacks 'size': [height, width] of the network's input")
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        try:
            return cls(**values)
        except TypeError as problem:
            raise InputError(f"preprocess {value}: {problem}") from problem


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(map(_is_side, pair)):
        raise InputError(f"preprocess {name} {_text(value)}; expected [height, width], two positive numbers of pixels")
    return pair


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (None,)
    if not all(map(_is_number, numbers)):
        raise InputError(f"preprocess {name} {_text(value)}; allowed: a list of finite numbers, one a channel")
    return numbers


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - 1] + "…"
