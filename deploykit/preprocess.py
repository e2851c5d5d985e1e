"""Pictures become a network's input exactly as its `Preprocess` says: the same in training, evaluation and apps.

Resizing is Pillow's bilinear filter with antialiasing and cropping is torchvision's ``CenterCrop``, so that the figures
of models trained elsewhere are reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact, Preprocess
from deploykit.data.dataset import Pictures
from deploykit.errors import DataError, InputError, UnknownNameError

__all__ = [
    "PRESETS",
    "apply",
    "check_pixels",
    "fit_pictures",
    "for_network",
    "normalize",
    "preprocess_for",
    "preset",
    "scaled_size",
]

# ITU-R 601-2 luma in 16-bit fixed point, as Pillow's convert("L") has it (libImaging/Convert.c).
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)
_CHANNELS = {1: "L", 3: "RGB"}
_MOST_PIXELS = 178_956_970  # of a resized picture; the size at which Pillow refuses to open one
_MARGIN = 256 / 224  # of the resized shorter side over the part of it that is looked at
_SQUARE_ISH = 1.25  # sides whose ratio is below this are stretched
_CHUNK_VALUES = 1 << 18  # normalised at once, so that both steps find them in the processor's cache

# Deng et al. 2009; the statistics that torchvision's models are trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def apply(pre: Preprocess, pictures: Pictures) -> NDArray[Any]:
    """``normalize(pre, fit_pictures(pre, pictures))``: the network's input for some pictures."""
    return normalize(pre, fit_pictures(pre, pictures))


def fit_pictures(pre: Preprocess, pictures: Pictures) -> NDArray[np.uint8]:
    """Brings pictures to the network's channels and size, ``(N, H, W, C)`` uint8.

    Grey becomes colour by repetition, colour grey by the ITU-R 601 luma; then resize and crop as ``pre`` says.

    Args:
        pre: What the network wants.
        pictures: ``(N, H, W, C)``, or a list of ``(H, W, C)``; uint8; C is 1 or 3 (RGB).

    Raises:
        DataError: Not uint8 pictures, or of another size than the network's and ``pre`` neither resizes nor crops.
    """
    if isinstance(pictures, np.ndarray) and scaled_size(pre, _shape(pictures, 4)[1:3]) == pictures.shape[1:3]:
        return np.ascontiguousarray(_cropped(pre, _recolored(pre, pictures)))
    fitted = np.empty((len(pictures), *pre.size, pre.depth), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        _shape(picture, 3)
        fitted[index] = _cropped(pre, _resized(pre, _recolored(pre, picture)[None]))[0]
    return fitted


def normalize(pre: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """``(pixel * scale - mean) / std`` in the network's layout and type.

    Args:
        pre: What the network wants.
        pixels: ``(N, H, W, C)`` of the network's size and channels, as ``fit_pictures`` gives them.

    Returns:
        ``(N, C, H, W)`` or ``(N, H, W, C)``, C-contiguous.

    Raises:
        DataError: Another size or number of channels.
        InputError: ``pre`` asks for uint8 and for numbers that do not fit into it.
    """
    shape = _shape(pixels, 4)
    if shape[1:] != (*pre.size, pre.depth):
        raise DataError(f"pixels of shape {shape}; the network takes (N, {pre.size[0]}, {pre.size[1]}, {pre.depth})")
    first = pre.layout == "NCHW"
    if pre.dtype == "uint8":
        _check_plain(pre)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if first else pixels)
    factor = np.asarray(pre.scale, np.float64) / np.asarray(pre.std)
    offset = -np.asarray(pre.mean) / np.asarray(pre.std)
    axes = (-1, 1, 1) if first else (-1,)
    factor, offset = (values.astype(np.float32).reshape(axes) for values in (factor, offset))
    turned = pixels.transpose(0, 3, 1, 2) if first else pixels
    result = np.empty(turned.shape, dtype=pre.dtype)
    step = max(1, _CHUNK_VALUES // turned[0].size) if len(turned) else 1
    for start in range(0, len(turned), step):
        part = np.multiply(turned[start : start + step], factor, dtype=np.float32)
        np.add(part, offset, out=result[start : start + step], casting="same_kind")
    return result


def _check_plain(pre: Preprocess) -> None:
    if pre.scale != 1.0 or set(pre.mean) != {0.0} or set(pre.std) != {1.0}:
        raise InputError(
            f"preprocess of a uint8 input has scale {pre.scale:g}, mean {pre.mean}, std {pre.std};"
            " allowed: scale 1, mean 0, std 1"
        )


def _shape(pixels: NDArray[np.uint8], axes: int) -> tuple[int, ...]:
    if pixels.dtype != np.uint8 or pixels.ndim != axes or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape[-3:]:
        expected = "(N, H, W, 1 or 3)" if axes == 4 else "(H, W, 1 or 3)"
        raise DataError(f"pictures are {pixels.dtype} of shape {pixels.shape}; allowed: uint8 of shape {expected}")
    return pixels.shape


def _recolored(pre: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(..., C)`` with the network's channels, in its order."""
    if pre.depth == 3 and pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pre.depth == 1 and pixels.shape[-1] == 3:
        return ((pixels @ _LUMA + 0x8000) >> 16).astype(np.uint8)[..., None]
    return pixels[..., ::-1] if pre.channels == "BGR" else pixels


def scaled_size(pre: Preprocess, size: tuple[int, ...]) -> tuple[int, ...]:
    """``(H, W)`` of a picture of ``size`` after the resize step; the longer side is cut off to a whole number.

    So does torchvision.
    """
    if pre.resize is None:
        return size
    if isinstance(pre.resize, tuple):
        return pre.resize
    height, width = size
    if height <= width:
        return pre.resize, pre.resize * width // height
    return pre.resize * height // width, pre.resize


def _resized(pre: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(1, H, W, C)`` after the resize step."""
    from PIL import Image

    height, width = scaled_size(pre, pixels.shape[1:3])
    if (height, width) == pixels.shape[1:3]:
        return pixels
    check_pixels(pixels.shape[1:3], (height, width))
    flat = pixels[0, ..., 0] if pre.depth == 1 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(flat)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(1, height, width, pre.depth)


def check_pixels(picture: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Raises: DataError when a picture of (H, W) is to become one of ``size`` (H, W) that takes too much memory."""
    if size[0] * size[1] > _MOST_PIXELS:
        raise DataError(
            f"a picture of {picture[0]} x {picture[1]} pixels would become {size[0]} x {size[1]};"
            f" allowed: {_MOST_PIXELS} pixels"
        )


def _cropped(pre: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(N, *pre.size, C)``: the middle, with zeros around where the picture is smaller."""
    count, *size, depth = pixels.shape
    if tuple(size) == pre.size:
        return pixels
    if pre.crop is None:
        raise DataError(
            f"a picture of {size[0]} x {size[1]} pixels after resize {pre.resize}; the network takes {pre.size[0]} x"
            f" {pre.size[1]}, and its preprocess has no crop"
        )
    (rows_from, rows_to), (columns_from, columns_to) = (
        _window(have, want) for have, want in zip(size, pre.size, strict=True)
    )
    middle = pixels[:, rows_from, columns_from]
    if middle.shape[1:3] == pre.size:
        return middle
    canvas = np.zeros((count, *pre.size, depth), dtype=np.uint8)
    canvas[:, rows_to, columns_to] = middle
    return canvas


def _window(have: int, want: int) -> tuple[slice, slice]:
    """Where the middle of one axis is taken from and put to, with torchvision's rounding (``F.center_crop``)."""
    if have >= want:
        start = round((have - want) / 2.0)  # half to even
        return slice(start, start + want), slice(0, want)
    start = (want - have) // 2
    return slice(0, have), slice(start, start + have)


def _scaling(scale: float, mean: float, std: float) -> Callable[[int], dict[str, Any]]:
    return lambda depth: {"scale": scale, "mean": (mean,) * depth, "std": (std,) * depth}


def _imagenet(depth: int) -> dict[str, Any]:
    if depth != 3:
        raise InputError(f"the imagenet preset is for colour pictures, the network takes {depth} channel; allowed: 3")
    return {"scale": 1.0 / 255.0, "mean": _IMAGENET_MEAN, "std": _IMAGENET_STD}


PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = MappingProxyType(
    {
        "imagenet": _imagenet,
        "unit": _scaling(1.0 / 255.0, 0.0, 1.0),  # 0 to 1
        "signed": _scaling(1.0 / 127.5, 1.0, 1.0),  # -1 to 1
        "raw": _scaling(1.0, 0.0, 1.0),  # 0 to 255
    }
)
"""What pixels become, by name: the fields scale, mean and std for a number of channels."""


def preset(
    name: str,
    *,
    size: tuple[int, int],
    depth: int = 3,
    layout: str = "NCHW",
    dtype: str = "float32",
) -> Preprocess:
    """A usual preprocessing by name, for models that do not say theirs.

    All crop the middle; ``imagenet`` resizes the shorter side to 256/224 of the network's, the others to the network's.

    Args:
        name: ``imagenet``, ``unit``, ``signed`` or ``raw``.
        size: ``(H, W)`` of the network's input.
        depth: 1 or 3.
        layout: ``NCHW`` or ``NHWC``.
        dtype: ``float32``, ``float16`` or ``uint8`` (which goes with ``raw``).

    Raises:
        UnknownNameError: No such preset.
        InputError: The preset does not fit the network.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    if depth not in _CHANNELS:
        raise InputError(f"the network takes {depth} channels; allowed: 1 (grey) or 3 (colour)")
    shorter = max(size)
    pre = Preprocess(
        size=size,
        channels=_CHANNELS[depth],
        resize=round(shorter * _MARGIN) if name == "imagenet" else shorter,
        crop="center",
        layout=layout,
        dtype=dtype,
        **PRESETS[name](depth),
    )
    if dtype == "uint8":
        _check_plain(pre)
    return pre


def for_network(
    input_shape: tuple[int, int, int],
    content_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    picture_size: tuple[int, int] | None = None,
    margin: bool = False,
) -> Preprocess:
    """The preprocessing that a training begins with.

    Pictures are resized to the content's size and padded with zeros to the network's. Those known to be nearly square
    are stretched; of others the shorter side is resized, and the middle stays. With ``margin``, of pictures that are
    larger than the input or of several sizes the shorter side becomes 256/224 of it (Krizhevsky et al. 2012, section
    2), and the middle stays.

    Args:
        input_shape: ``(C, H, W)`` of the network's input.
        content_size: Pixels of the sides of what is padded, such as 28 in LeNet's 32; None for no padding.
        mean: Of the pixels scaled to 0 to 1, one a channel.
        std: Likewise.
        picture_size: ``(H, W)`` common to the pictures, where known.
        margin: Whether the network is for photos, whose edges may be cut off.

    Raises:
        InputError: The channels are neither 1 nor 3, or mean and std do not fit them.
    """
    depth, height, width = input_shape
    if depth not in _CHANNELS:
        raise InputError(f"the network takes {depth} channels; allowed: 1 (grey) or 3 (colour)")
    content = (height, width) if content_size is None else (content_size, content_size)
    stretch = picture_size is not None and max(picture_size) < _SQUARE_ISH * min(picture_size)
    resize: int | tuple[int, int] = content if stretch else max(content)
    if margin and (picture_size is None or min(picture_size) > max(content)):
        stretch, resize = False, round(max(content) * _MARGIN)
    return Preprocess(
        size=(height, width),
        channels=_CHANNELS[depth],
        resize=resize,
        crop=None if stretch and content == (height, width) else "center",
        scale=1.0 / 255.0,
        mean=tuple(mean),
        std=tuple(std),
    )


def preprocess_for(artifact: Artifact, given: Preprocess | str | None = None) -> Preprocess:
    """What to feed a model with: ``given`` or its name in ``PRESETS``, else what the model itself says.

    Raises:
        InputError: The model does not say it and nothing was given, or a preset needs a size the model does not fix.
        UnknownNameError: No such preset.
    """
    if isinstance(given, Preprocess):
        return given
    if isinstance(given, str):
        return _preset_of_input(artifact, given)
    if artifact.preprocess is None:
        raise InputError(
            f"{artifact.path} does not say how its pictures are prepared; name it with --preprocess:"
            f" {', '.join(PRESETS)}"
        )
    return artifact.preprocess


def _preset_of_input(artifact: Artifact, name: str) -> Preprocess:
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    tensor = artifact.inputs[0]
    shape = tensor.shape or ()
    known = [axis if isinstance(axis, int) else 0 for axis in shape]
    if len(known) == 4 and known[1] in _CHANNELS and min(known[2:]) > 0:
        layout, (depth, height, width) = "NCHW", known[1:]
    elif len(known) == 4 and known[3] in _CHANNELS and min(known[1:3]) > 0:
        layout, (height, width, depth) = "NHWC", known[1:]
    else:
        raise InputError(
            f"preset {name!r} does not fit {artifact.path}: its input is {tensor.name} of shape {shape};"
            " allowed: (N, 1 or 3, H, W) or (N, H, W, 1 or 3) with known H and W"
        )
    return preset(name, size=(height, width), depth=depth, layout=layout, dtype=tensor.dtype)
