"""Augmentation of a batch on the training device, from uint8 pictures to floats of 0–255.

All draws come from torch's global generator, which the training loop seeds anew each epoch: a resumed training sees
the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploykit.errors import UnknownNameError
from deploykit.training_recipes import AUGMENTATION_NAMES

if TYPE_CHECKING:
    import torch

__all__ = ["AUGMENTATIONS", "augmentation"]


def augmentation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The augmentation of that name: uint8 or float (N, C, H, W) to float32 of the same shape and range.

    Raises: UnknownNameError.
    """
    if name not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def _plain(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float()


def _digits(pictures: torch.Tensor) -> torch.Tensor:
    """Rotation, scale, shear, shift and elastic distortion, as LeNet-5's distorted copies (LeCun et al. 1998, III-A).

    The elastic field is a coarse random one, smoothly enlarged (Simard, Steinkraus & Platt 2003).
    """
    import torch
    import torch.nn.functional as F

    images = pictures.float()
    count, _, height, width = images.shape
    matrices = _affine(count, degrees=10.0, scale=0.10, shear=0.10, shift=0.05, like=images)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (N, H, W, 2)
    coarse = torch.randn(count, 2, 6, 6, device=images.device) * 0.035
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)  # (N, 2, H, W)
    return F.grid_sample(images, grid + field.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)


def _affine(
    count: int, *, degrees: float, scale: float, shear: float, shift: float, like: torch.Tensor
) -> torch.Tensor:
    """Random affine matrices (N, 2, 3): each amount uniform in ± its bound, shift in fractions of the picture."""
    import torch

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(count, device=like.device) * 2.0 - 1.0) * bound

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
        mirrored = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(axis), images)
    reach = max(1, height // 8)
    padded = F.pad(images, (reach, reach, reach, reach))
    tops = torch.randint(0, 2 * reach + 1, (count, 1), device=images.device)
    lefts = torch.randint(0, 2 * reach + 1, (count, 1), device=images.device)
    rows = (tops + torch.arange(height, device=images.device))[:, None, :, None]  # (N, 1, H, 1)
    columns = (lefts + torch.arange(width, device=images.device))[:, None, None, :]  # (N, 1, 1, W)
    picture = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[picture, channel, rows, columns]  # (N, C, H, W)


def _photos(pictures: torch.Tensor) -> torch.Tensor:
    """Left-right flips and random crops of the zero-padded picture (Krizhevsky 2012, section 4.1; He 2016, 4.2)."""
    return _shifted(pictures, flip_rows=False)


def _shapes(pictures: torch.Tensor) -> torch.Tensor:
    """Flips along both axes and shifts: a triangle stays a triangle."""
    return _shifted(pictures, flip_rows=True)


AUGMENTATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = dict(
    zip(AUGMENTATION_NAMES, (_plain, _digits, _photos, _shapes), strict=True)
)
