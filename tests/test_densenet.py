"""The DenseNets against their paper's table 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.models.densenet import DenseBlock


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_meta(name, classes=None, **options):
    with torch.device("meta"):
        return models.build(name, classes, **options).eval()


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("densenet121", [6, 12, 24, 16], [256, 512, 1024, 1024]),
        ("densenet169", [6, 12, 32, 32], [256, 512, 1280, 1664]),
        ("densenet201", [6, 12, 48, 32], [256, 512, 1792, 1920]),
        ("densenet264", [6, 12, 64, 48], [256, 512, 2304, 2688]),
    ],
)
def test_blocks_are_the_papers(name, layers, channels):
    """k = 32: 64 maps from the stem, 32 more a layer, half of them after each transition."""
    features = on_meta(name).features
    blocks = [features.get_submodule(f"denseblock{i}") for i in (1, 2, 3, 4)]
    assert [len(block) for block in blocks] == layers
    behind = [features.transition1.norm, features.transition2.norm, features.transition3.norm, features.norm5]
    assert [norm.num_features for norm in behind] == channels
    convolutions = sum(isinstance(part, nn.Conv2d) for part in features.modules())
    # The name counts layers with weights; with the paper's own blocks the largest has one more.
    assert convolutions + 1 == {"densenet264": 265}.get(name, int(name.removeprefix("densenet")))


@pytest.mark.parametrize(
    ("side", "options", "expected"),
    [(224, {}, [112, 56, 56, 28, 14, 7]), (32, {"pictures": "small"}, [32, 32, 32, 16, 8, 4])],
)
def test_sizes_are_the_papers(side, options, expected):
    """Table 1: convolution, pooling, then the four blocks; small pictures meet the first block at their own size."""
    module, found = on_meta("densenet121", 10, **options), []
    parts = ["conv0", "relu0" if options else "pool0", *(f"denseblock{i}" for i in (1, 2, 3, 4))]
    for part in parts:
        module.features.get_submodule(part).register_forward_hook(lambda _, __, out: found.append(out.shape[-1]))
    module(torch.empty(1, 3, side, side, device="meta"))
    assert found == expected


def test_a_block_hands_on_all_that_was_found():
    torch.manual_seed(0)
    block = DenseBlock(8, 3).eval()
    x = torch.randn(2, 8, 6, 6)
    answer = block(x)
    assert answer.shape == (2, 8 + 3 * 32, 6, 6)
    assert torch.equal(answer[:, :8], x)
    for index in range(3):
        seen, found = answer[:, : 8 + 32 * index], answer[:, 8 + 32 * index : 40 + 32 * index]
        torch.testing.assert_close(block[index](seen), found)


def test_the_small_variant_has_another_stem_and_nothing_else():
    large, small = on_meta("densenet121", 10).state_dict(), on_meta("densenet121", 10, pictures="small").state_dict()
    assert list(large) == list(small)
    differing = [name for name in large if large[name].shape != small[name].shape]
    assert differing == ["features.conv0.weight"]
    assert small["features.conv0.weight"].shape == (64, 3, 3, 3)


@pytest.mark.slow
def test_it_learns_a_batch():
    torch.manual_seed(0)
    module = models.build("densenet121", 4, pictures="small")
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(tensor.grad.abs().sum() > 0 for tensor in module.parameters())
        optimizer.step()
    assert (module(x).argmax(1) == y).float().mean() >= 0.9
