"""Augmentation on the device: what is drawn, and that it stays within bounds."""

from __future__ import annotations

import math

import pytest
import torch

from deploykit.augment import AUGMENTATIONS, CROPPING, _rectangle, _resized_crops, augmentation, mix


def _ramps(count: int, side: int) -> torch.Tensor:
    """Pictures whose first channel is the column and whose second is the row, both from 0 to 255; third: 100."""
    line = torch.linspace(0, 255, side)
    ramp = torch.stack([line.expand(side, side), line[:, None].expand(side, side), torch.full((side, side), 100.0)])
    return ramp.expand(count, 3, side, side)


def test_pieces_have_the_areas_and_ratios_of_the_paper() -> None:
    """Szegedy et al. 2015, section 6: 8 to 100 % of the area, sides in ratios of 3/4 to 4/3; read off the ramps."""
    torch.manual_seed(0)
    side, out = 256, 32
    pieces = _resized_crops(_ramps(2000, side), (out, out), 0.08)
    assert pieces.shape == (2000, 3, out, out)
    assert torch.allclose(pieces[:, 2], torch.full_like(pieces[:, 2], 100.0), atol=1e-3)
    # (out - 1) steps between the centres of out pixels, in shares of the (side - 1) steps between 0 and 255
    share = (side - 1) / 255 / side * out / (out - 1)
    wide = (pieces[:, 0, 0, -1] - pieces[:, 0, 0, 0]) * share
    tall = (pieces[:, 1, -1, 0] - pieces[:, 1, 0, 0]) * share
    area, ratio = wide * tall, wide / tall
    assert 0.075 < float(area.min()) < 0.10 and float(area.max()) <= 1.0 + 1e-3
    inside = (wide < 0.98) & (tall < 0.98)  # others were cut to the picture
    assert 0.74 < float(ratio[inside].min()) < 0.77 and 1.30 < float(ratio[inside].max()) < 1.35
    assert float(area.mean()) == pytest.approx(0.54, abs=0.03)  # the mean of 0.08 to 1, a little of it cut
    left = pieces[:, 0, 0, 0]
    assert float(left.min()) < 5.0 and float(left.max()) > 120.0  # they lie everywhere


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_any_augmentation_gives_floats_in_range_that_follow_the_seed(name: str, channels: int) -> None:
    stored = 28 if name not in CROPPING else 32
    pictures = torch.randint(0, 256, (16, channels, stored, stored), dtype=torch.uint8)
    before = pictures.clone()
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(augmentation(name)(pictures, (28, 28)))
    assert made[0].shape == (16, channels, 28, 28) and made[0].dtype == torch.float32
    assert float(made[0].min()) >= 0.0 and float(made[0].max()) <= 255.001
    assert torch.equal(made[0], made[1]) and torch.equal(made[1], made[2]) == (name == "none")
    assert torch.equal(pictures, before)


def test_colour_shift_moves_colours_and_keeps_their_mean() -> None:
    pictures = torch.tensor([120, 130, 110], dtype=torch.uint8).view(1, 3, 1, 1).expand(400, 3, 16, 16)
    torch.manual_seed(0)
    shifted = augmentation("crops")(pictures, (16, 16)).mean((2, 3))  # (400, 3)
    assert shifted.mean(0).tolist() == pytest.approx([120, 130, 110], abs=6)
    # Brightness: 120 times a factor that is uniform in 1 ± 0.4
    assert float(shifted[:, 0].std()) == pytest.approx(120 * 0.8 / math.sqrt(12), rel=0.25)
    assert float((shifted[:, 0] - shifted[:, 2]).std()) > 3  # and not of all channels alike


def test_mixup_blends_and_says_the_share() -> None:
    torch.manual_seed(0)
    pictures, targets = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 4), torch.arange(8)
    shares = []
    for _ in range(200):
        mixed = mix(pictures, targets, mixup=0.2, cutmix=0.0)
        expected = mixed.share * targets + (1.0 - mixed.share) * mixed.others
        assert torch.allclose(mixed.pictures[:, 0, 0, 0], expected, atol=1e-5)
        shares.append(mixed.share)
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 (2·0.2 + 1))
    assert sum(shares) / 200 == pytest.approx(0.5, abs=0.1)
    assert torch.tensor(shares).var().item() == pytest.approx(1 / 5.6, abs=0.03)


def test_cutmix_puts_in_a_rectangle_and_says_the_share() -> None:
    torch.manual_seed(0)
    pictures, targets = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 20, 30), torch.arange(8)
    shares = set()
    for _ in range(50):
        mixed = mix(pictures, targets, mixup=0.0, cutmix=1.0)
        own = (mixed.pictures == pictures).float().mean((1, 2, 3))
        moved = mixed.others != targets
        assert torch.allclose(own[moved], torch.full_like(own[moved], mixed.share), atol=1e-6)
        assert torch.equal(mixed.pictures[:, 0].amax((1, 2)), torch.maximum(targets, mixed.others).float()) or (
            mixed.share in (0.0, 1.0)
        )
        shares.add(mixed.share)
    assert len(shares) > 40


def test_rectangles_stay_inside_and_without_alphas_nothing_is_mixed() -> None:
    torch.manual_seed(0)
    for area in (0.0, 0.3, 1.0):
        for _ in range(50):
            top, bottom, left, right = _rectangle(20, 30, area)
            assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 30
    pictures, targets = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    mixed = mix(pictures, targets, mixup=0.0, cutmix=0.0)
    assert mixed.pictures is pictures and mixed.share == 1.0
