"""The networks for phones against their papers' tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.models.mobile import ExcitedResidual, Fire, InvertedResidual, SqueezeExcitation


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_meta(name, classes=None, **options):
    with torch.device("meta"):
        return models.build(name, classes, **options).eval()


def feature_sizes(module, side):
    """What each entry of ``features`` gives for one picture."""
    found = []
    for layer in module.features:
        layer.register_forward_hook(lambda _, __, out: found.append((*out.shape[1:3],)))
    module(torch.empty(1, 3, side, side, device="meta"))
    return found


def test_squeezenet_has_fifty_times_fewer_parameters_than_alexnet():
    """The title of Iandola et al. 2016; and none of them is in a fully connected layer."""
    assert 49 < models.spec("alexnet").parameters / models.spec("squeezenet1.1").parameters < 51
    assert not [part for part in on_meta("squeezenet1.1").modules() if isinstance(part, nn.Linear)]


def test_squeezenets_sizes():
    sizes = feature_sizes(on_meta("squeezenet1.1"), 224)
    assert [sizes[i] for i in (0, 2, 4, 5, 7, 8, 10, 12)] == [
        *((64, 111), (64, 55), (128, 55), (128, 27), (256, 27), (256, 13), (384, 13), (512, 13)),
    ]


def test_squeezenet_answers_with_the_mean_over_places():
    torch.manual_seed(0)
    module, x = models.build("squeezenet1.1", 5).eval(), torch.randn(2, 3, 49, 65)
    _, last, relu, _ = module.classifier
    with torch.no_grad():
        places = relu(last(module.features(x)))
        assert places.shape[2:] != (1, 1)
        torch.testing.assert_close(module(x), places.mean((2, 3)))


def test_fire_by_hand():
    """Iandola et al. 2016, table 1, fire2: 11,920 parameters of 96 inputs, 16 squeezed and 64 + 64 expanded."""
    assert sum(tensor.numel() for tensor in Fire(96, 16, 64).parameters()) == 11_920


def test_mobilenet_v2_is_the_papers_table():
    """Sandler et al. 2018, table 2: the sizes of the inputs of each row, and n blocks in a row."""
    sizes = feature_sizes(on_meta("mobilenet-v2"), 224)
    assert sizes == [
        *[(32, 112), (16, 112)],
        *[(24, 56)] * 2,
        *[(32, 28)] * 3,
        *[(64, 14)] * 4,
        *[(96, 14)] * 3,
        *[(160, 7)] * 3,
        *[(320, 7), (1280, 7)],
    ]


def test_mobilenet_v3_small_is_the_papers_table():
    """Howard et al. 2019, table 2."""
    module = on_meta("mobilenet-v3-small")
    assert feature_sizes(module, 224) == [
        *[(16, 112), (16, 56), (24, 28), (24, 28)],
        *[(40, 14)] * 3,
        *[(48, 14)] * 2,
        *[(96, 7)] * 3,
        (576, 7),
    ]
    blocks = [part for part in module.features if isinstance(part, ExcitedResidual)]
    excited = [any(isinstance(part, SqueezeExcitation) for part in block.modules()) for block in blocks]
    swish = [any(isinstance(part, nn.Hardswish) for part in block.modules()) for block in blocks]
    assert excited == [True, False, False] + [True] * 8
    assert swish == [False] * 3 + [True] * 8


@pytest.mark.parametrize("name", ["mobilenet-v2", "mobilenet-v3-small"])
def test_small_pictures_shrink_once_less(name):
    large, small = feature_sizes(on_meta(name, 10), 64), feature_sizes(on_meta(name, 10, pictures="small"), 32)
    assert large == small and small[-1][1] == 2


@pytest.mark.parametrize(("channels", "squeezed"), [(16, 8), (72, 24), (96, 24), (120, 32), (144, 40), (240, 64)])
def test_squeezed_channels_are_near_a_quarter_and_multiples_of_eight(channels, squeezed):
    """The widths that the authors' checkpoints have."""
    assert SqueezeExcitation(channels).fc1.out_channels == squeezed


def test_squeeze_and_excitation_scales_channels():
    torch.manual_seed(0)
    layer, x = SqueezeExcitation(16), torch.randn(2, 16, 5, 6)
    scale = layer(x) / x
    torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale))
    assert scale.min() >= 0 and scale.max() <= 1
    assert not torch.allclose(scale[:, 0], scale[:, 1])


def test_the_last_1x1_has_no_activation_and_the_shortcut_only_agreeing_shapes():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 6)
    with_shortcut, without = InvertedResidual(16, 16, 6, 1).eval(), InvertedResidual(16, 16, 6, 2).eval()
    nn.init.zeros_(with_shortcut.conv[-1].weight)
    assert torch.equal(with_shortcut(x), x)
    assert (without(x) < 0).any() and without(x).shape == (2, 16, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1.1", "mobilenet-v2", "mobilenet-v3-small"])
def test_it_learns_a_batch(name):
    torch.manual_seed(0)
    module = models.build(name, 4)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x, y = torch.randn(16, 3, 40, 40), torch.arange(16) % 4
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(30):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (module(x).argmax(1) == y).float().mean() >= 0.75
