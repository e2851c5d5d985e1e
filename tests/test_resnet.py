"""The ResNets against their paper's table, and against what others count for CIFAR's variants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.models.profile import profile_module
from deploykit.models.resnet import BasicBlock, Bottleneck


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_meta(name, classes=None, **options):
    with torch.device("meta"):
        return models.build(name, classes, **options).eval()


def sizes(module, shape, *parts):
    """What the named parts give for one picture."""
    found, hooks = {}, []
    for part in parts:
        layer = module.get_submodule(part)
        hooks.append(layer.register_forward_hook(lambda _, __, out, part=part: found.update({part: (*out.shape[1:],)})))
    module(torch.empty(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return [found[part] for part in parts]


STAGES = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(("name", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_sizes_are_the_papers(name, expansion):
    """He et al. 2016, table 1, "output size" and the channels of the last convolution of each block."""
    assert sizes(on_meta(name), (3, 224, 224), *STAGES) == [
        (64, 112, 112),
        (64, 56, 56),
        (64 * expansion, 56, 56),
        (128 * expansion, 28, 28),
        (256 * expansion, 14, 14),
        (512 * expansion, 7, 7),
    ]


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions"),
    [
        ("resnet18", [2, 2, 2, 2], 17),
        ("resnet34", [3, 4, 6, 3], 33),
        ("resnet50", [3, 4, 6, 3], 49),
        ("resnet101", [3, 4, 23, 3], 100),
        ("resnet152", [3, 8, 36, 3], 151),
    ],
)
def test_depth_is_the_papers(name, blocks, convolutions):
    """The name counts layers with weights: all convolutions but the shortcuts', and the fully connected one."""
    module = on_meta(name)
    assert [len(module.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)] == blocks
    counted = [n for n, part in module.named_modules() if isinstance(part, nn.Conv2d) and "downsample" not in n]
    assert len(counted) == convolutions == int(name.removeprefix("resnet")) - 1


def test_the_bottleneck_strides_in_its_3x3():
    """Moved to the first 1×1, where the paper has it, the stride gives the paper's 3.8 billion."""
    module = on_meta("resnet50")
    for index in (2, 3, 4):
        first = module.get_submodule(f"layer{index}.0")
        assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    macs = profile_module(module, (3, 224, 224)).macs
    assert math.floor(macs / 1e8) / 10 == 3.8
    assert macs < models.spec("resnet50").macs


def test_a_bottleneck_costs_a_seventeenth_of_two_3x3():
    """The lecture notes' 70,016 against 1,180,160, one bias a channel counted."""

    def weights(block):
        kernels = [part.weight for part in block.modules() if isinstance(part, nn.Conv2d)]
        return sum(kernel.numel() + len(kernel) for kernel in kernels)

    narrow, wide = weights(Bottleneck(256, 64, 1)), weights(BasicBlock(256, 256, 1))
    assert (narrow, wide) == (70_016, 1_180_160)


@pytest.mark.parametrize(("name", "projections"), [("resnet18", 3), ("resnet34", 3), ("resnet50", 4)])
def test_shortcuts_are_the_input_where_shapes_agree(name, projections):
    shortcuts = [part for n, part in on_meta(name).named_modules() if n.endswith("downsample")]
    assert sum(isinstance(part, nn.Sequential) for part in shortcuts) == projections
    assert all(isinstance(part, (nn.Sequential, nn.Identity)) for part in shortcuts)


@pytest.mark.parametrize(("block", "last"), [(BasicBlock(8, 8, 1), "bn2"), (Bottleneck(32, 8, 1), "bn3")])
def test_a_block_adds_to_its_input(block, last):
    x = torch.randn(2, block.conv1.in_channels, 5, 7)
    assert not torch.equal(block(x), x.relu())
    nn.init.zeros_(block.get_submodule(last).weight)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize(
    ("name", "parameters", "millions_of_macs"),
    [("resnet18", 11_173_962, 555), ("resnet34", 21_282_122, None), ("resnet50", 23_520_842, 1_297)],
)
def test_the_small_variants_are_the_fields(name, parameters, millions_of_macs):
    """Ten classes; the counts that go with kuangliu/pytorch-cifar's models, which have this stem."""
    module = on_meta(name, 10, pictures="small")
    assert sum(tensor.numel() for tensor in module.parameters()) == parameters
    if millions_of_macs:
        assert profile_module(module, (3, 32, 32)).macs // 10**6 == millions_of_macs


def test_small_pictures_are_not_shrunk_before_the_blocks():
    module = on_meta("resnet18", 10, pictures="small")
    assert sizes(module, (3, 32, 32), *STAGES) == [
        (64, 32, 32),
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]


@pytest.mark.parametrize("width", [16, 32])
def test_thinner_networks_have_that_share_of_every_layer(width):
    full, thin = on_meta("resnet18", 10, pictures="small"), on_meta("resnet18", 10, pictures="small", width=str(width))
    share = 64 // width
    for name, tensor in full.state_dict().items():
        found = tuple(thin.state_dict()[name].shape)
        expected = [side // share for side in tensor.shape]
        if name == "conv1.weight":
            expected[1:] = tensor.shape[1:]
        elif name.startswith("fc."):
            expected[0] = 10
        elif tensor.ndim == 4:
            expected[2:] = tensor.shape[2:]
        assert found == tuple(expected), name


def test_convolutions_start_as_he_et_al_2015():
    torch.manual_seed(0)
    module = models.build("resnet18", 10)
    for name in ("conv1", "layer1.0.conv1", "layer4.1.conv2", "layer3.0.downsample.0"):
        layer = module.get_submodule(name)
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
    scales = {name: part.weight for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, scale in scales.items():
        branch_ends = name.endswith("bn2")
        torch.testing.assert_close(scale, torch.full_like(scale, 8**-0.5 if branch_ends else 1.0))


def test_a_thin_one_learns_a_batch():
    torch.manual_seed(0)
    module = models.build("resnet18", 4, pictures="small", width="16")
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(tensor.grad.abs().sum() > 0 for tensor in module.parameters())
        optimizer.step()
    assert (module(x).argmax(1) == y).float().mean() >= 0.9
