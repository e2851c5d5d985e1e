"""Augmentation of a batch on the training device, from uint8 pictures to floats of 0–255.

All draws come from torch's global generators, which the training loop seeds anew each epoch: a resumed training sees
the same pictures. Where only a part of the batch is here (``part_of_batch``), each draw is made for all of it, so that
a picture is augmented alike wherever it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnknownNameError
from deploykit.training_recipes import AUGMENTATION_NAMES

if TYPE_CHECKING:
    import torch

__all__ = ["AUGMENTATIONS", "CROPPING", "Augmentation", "Mixed", "Part", "augmentation", "mix", "part_of_batch"]

Augmentation = Callable[["torch.Tensor", tuple[int, int]], "torch.Tensor"]

CROPPING = frozenset({"crops", "mild-crops"})
"""Those that cut their pieces out of pictures larger than the network's input, where there is more to see."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601

# Eigenvectors of RGB over ImageNet, each times its standard deviation, in units of 0 to 255; Krizhevsky et al. 2012,
# section 4.1; the values are those of fb.resnet.torch's datasets/imagenet.lua.
_LIGHTING = tuple(
    tuple(255.0 * deviation * part for part in vector)
    for deviation, vector in (
        (0.2175, (-0.5675, -0.5808, -0.5836)),
        (0.0188, (0.7192, -0.0045, -0.6948)),
        (0.0045, (0.4009, -0.8140, 0.4203)),
    )
)
_LIGHTING_DEVIATION = 0.1


@dataclass(frozen=True)
class Part:
    """Which pictures of a batch are here.

    Attributes:
        total: Pictures of the batch.
        start: Place of the first that is here; the others follow it.
        generators: By type of device; alike wherever another part is.
    """

    total: int
    start: int
    generators: Mapping[str, torch.Generator]


_PART: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(part: Part | None) -> Iterator[None]:
    """Within the block only a part of each batch is augmented; all of it where ``part`` is None."""
    before = _PART.set(part)
    try:
        yield
    finally:
        _PART.reset(before)


def _drawn(
    draw: Callable[[tuple[int, ...], torch.Generator | None], torch.Tensor],
    shape: tuple[int, ...],
    device: torch.device,
) -> torch.Tensor:
    """Random numbers whose first axis is the pictures."""
    part = _PART.get()
    if part is None:
        return draw(shape, None)
    return draw((part.total, *shape[1:]), part.generators[device.type])[part.start : part.start + shape[0]]


def _rand(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    import torch

    return _drawn(lambda size, generator: torch.rand(size, device=device, generator=generator), shape, device)


def _randn(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    import torch

    return _drawn(lambda size, generator: torch.randn(size, device=device, generator=generator), shape, device)


def _uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> torch.Tensor:
    import torch

    def draw(size: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        return torch.empty(size, device=device).uniform_(low, high, generator=generator)

    return _drawn(draw, shape, device)


def _randint(below: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    import torch

    def draw(size: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(0, below, size, device=device, generator=generator)

    return _drawn(draw, shape, device)


def augmentation(name: str) -> Augmentation:
    """The augmentation of that name, from uint8 (N, C, H, W) and a size (h, w) to float32 (N, C, h, w) of 0–255.

    All but those in ``CROPPING`` need pictures of that size already.

    Raises: UnknownNameError.
    """
    if name not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def _plain(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return pictures.float()


def _digits(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Rotation, scale, shear, shift and elastic distortion, as LeNet-5's distorted copies (LeCun et al. 1998, III-A).

    The elastic field is a coarse random one, smoothly enlarged (Simard, Steinkraus & Platt 2003).
    """
    import torch.nn.functional as F

    images = pictures.float()
    count, _, height, width = images.shape
    matrices = _affine(count, degrees=10.0, scale=0.10, shear=0.10, shift=0.05, like=images)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (N, H, W, 2)
    coarse = _randn((count, 2, 6, 6), images.device) * 0.035
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)  # (N, 2, H, W)
    return F.grid_sample(images, grid + field.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)


def _affine(
    count: int, *, degrees: float, scale: float, shear: float, shift: float, like: torch.Tensor
) -> torch.Tensor:
    """Random affine matrices (N, 2, 3): each amount uniform in ± its bound, shift in fractions of the picture."""
    import torch

    def uniform(bound: float) -> torch.Tensor:
        return (_rand((count,), like.device) * 2.0 - 1.0) * bound

    angle = uniform(math.radians(degrees))
    zoom_x, zoom_y, slant = 1.0 + uniform(scale), 1.0 + uniform(scale), uniform(shear)
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([cos * zoom_x, (slant * cos - sin) * zoom_y, uniform(2.0 * shift)], dim=1)
    bottom = torch.stack([sin * zoom_x, (slant * sin + cos) * zoom_y, uniform(2.0 * shift)], dim=1)
    return torch.stack([top, bottom], dim=1)


def _shifted(pictures: torch.Tensor, *, flip_rows: bool) -> torch.Tensor:
    """Mirrors half of the pictures (left-right, and top-bottom where asked) and shifts each by up to an eighth."""
    import torch
    import torch.nn.functional as F

    images = pictures.float()
    count, _, height, width = images.shape
    for axis in (3, 2) if flip_rows else (3,):
        images = _mirrored(images, axis)
    reach = max(1, height // 8)
    padded = F.pad(images, (reach, reach, reach, reach))
    tops = _randint(2 * reach + 1, (count, 1), images.device)
    lefts = _randint(2 * reach + 1, (count, 1), images.device)
    rows = (tops + torch.arange(height, device=images.device))[:, None, :, None]  # (N, 1, H, 1)
    columns = (lefts + torch.arange(width, device=images.device))[:, None, None, :]  # (N, 1, 1, W)
    picture = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[picture, channel, rows, columns]  # (N, C, H, W)


def _mirrored(images: torch.Tensor, axis: int) -> torch.Tensor:
    import torch

    chosen = _rand((len(images), 1, 1, 1), images.device) < 0.5
    return torch.where(chosen, images.flip(axis), images)


def _photos(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Left-right flips and random crops of the zero-padded picture (Krizhevsky 2012, section 4.1; He 2016, 4.2)."""
    return _shifted(pictures, flip_rows=False)


def _shapes(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Flips along both axes and shifts: a triangle stays a triangle."""
    return _shifted(pictures, flip_rows=True)


def _cropped(pictures: torch.Tensor, size: tuple[int, int], *, least_area: float, colour: float) -> torch.Tensor:
    """Pieces of random place, area and aspect ratio, resized; flips; colour shift (Szegedy et al. 2015, section 6)."""
    images = _resized_crops(pictures.float(), size, least_area)
    return _recoloured(_mirrored(images, 3), colour)


def _resized_crops(images: torch.Tensor, size: tuple[int, int], least_area: float) -> torch.Tensor:
    """(N, C, h, w): of each picture a piece of ``least_area`` to all of it, sides in a ratio of 3:4 to 4:3.

    One bilinear sample a pixel. Pieces are at most 256/224 as large as what they become, so that hardly a pixel is
    passed over.
    """
    import torch
    import torch.nn.functional as F

    count, channels, height, width = images.shape
    area = _uniform((count,), least_area, 1.0, images.device)
    ratio = _uniform((count,), -1.0, 1.0, images.device).mul_(math.log(4.0 / 3.0)).exp_()
    # In shares of the picture; a side that would stick out is cut to it, where torchvision draws again.
    wide = (area * ratio * (height / width)).sqrt_().clamp_(max=1.0)
    tall = (area / ratio * (width / height)).sqrt_().clamp_(max=1.0)
    across = _uniform((count,), -1.0, 1.0, images.device) * (1.0 - wide)
    down = _uniform((count,), -1.0, 1.0, images.device) * (1.0 - tall)
    zero = torch.zeros_like(wide)
    rows = (torch.stack([wide, zero, across], 1), torch.stack([zero, tall, down], 1))
    grid = F.affine_grid(torch.stack(rows, 1), [count, channels, *size], align_corners=False)  # (N, h, w, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recoloured(images: torch.Tensor, amount: float) -> torch.Tensor:
    """Brightness, contrast and, of colours, saturation by factors in 1 ± ``amount``, then AlexNet's lighting."""
    import torch

    def factor() -> torch.Tensor:
        return _uniform((len(images), 1, 1, 1), 1.0 - amount, 1.0 + amount, images.device)

    coloured = images.shape[1] == 3
    luma = _constant(_LUMA if coloured else (1.0,), images.device).view(1, -1, 1, 1)
    images = (images * factor()).clamp_(0.0, 255.0)
    middle = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(middle, images, factor()).clamp_(0.0, 255.0)
    if not coloured:
        return images
    grey = (images * luma).sum(1, keepdim=True)
    strengths = _randn((len(images), 3), images.device) * _LIGHTING_DEVIATION
    light = strengths @ _constant(_LIGHTING, images.device)  # (N, 3)
    return torch.lerp(grey, images, factor()).add_(light[:, :, None, None]).clamp_(0.0, 255.0)


@cache
def _constant(values: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    """Copied to the device once: a copy from memory that is not pinned waits for what the device still has to do."""
    import torch

    return torch.tensor(values, device=device)


_crops = partial(_cropped, least_area=0.08, colour=0.4)
# A twelfth of a picture of a few thousand teaches little of it: pieces are larger, colours nearer to what they were.
_mild_crops = partial(_cropped, least_area=0.35, colour=0.2)

AUGMENTATIONS: dict[str, Augmentation] = dict(
    zip(AUGMENTATION_NAMES, (_plain, _digits, _photos, _shapes, _crops, _mild_crops), strict=True)
)


@dataclass(frozen=True)
class Mixed:
    """A batch whose pictures are ``share`` of ``targets`` and the rest of ``others``."""

    pictures: torch.Tensor
    targets: torch.Tensor
    others: torch.Tensor
    share: float

    def split(self, sizes: Sequence[int]) -> list[Mixed]:
        """The batch in parts of these sizes, which share its memory."""
        import torch

        pictures, targets, others = (
            torch.split(tensor, list(sizes)) for tensor in (self.pictures, self.targets, self.others)
        )
        return [Mixed(*part, share=self.share) for part in zip(pictures, targets, others, strict=True)]


def mix(pictures: torch.Tensor, targets: torch.Tensor, *, mixup: float, cutmix: float) -> Mixed:
    """Mixes each picture of a batch with another one of it; with both alphas 0 it stays as it is.

    Args:
        pictures: Float (N, C, H, W).
        targets: (N,).
        mixup: Alpha of Zhang et al. 2018: pictures are blended, the share is drawn from Beta(alpha, alpha).
        cutmix: Alpha of Yun et al. 2019: a rectangle of the other picture is put in.
    """
    import torch

    if not mixup and not cutmix:
        return Mixed(pictures, targets, targets, 1.0)
    # On the CPU, where reading a number does not wait for the device.
    blend = not cutmix or (mixup > 0 and float(torch.rand(())) < 0.5)
    alpha = torch.tensor(mixup if blend else cutmix)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(targets), device=targets.device)
    if blend:
        return Mixed(torch.lerp(pictures[order], pictures, share), targets, targets[order], share)
    top, bottom, left, right = _rectangle(pictures.shape[2], pictures.shape[3], 1.0 - share)
    made = pictures.clone()
    made[:, :, top:bottom, left:right] = pictures[order, :, top:bottom, left:right]
    replaced = (bottom - top) * (right - left) / (pictures.shape[2] * pictures.shape[3])
    return Mixed(made, targets, targets[order], 1.0 - replaced)


def _rectangle(height: int, width: int, area: float) -> tuple[int, int, int, int]:
    """Rows and columns of a rectangle of a share of the picture around a random pixel, cut at its edges."""
    import torch

    tall, wide = round(height * math.sqrt(area)), round(width * math.sqrt(area))
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, left = row - tall // 2, column - wide // 2
    return max(0, top), min(height, top + tall), max(0, left), min(width, left + wide)
