"""The DenseNets: every layer of a block sees what all layers before it found (Huang et al. 2017).

These are the paper's DenseNet-BC of table 1: bottlenecks of four times the growth rate, transitions that halve the
channels. Names of the layers are torchvision's, so that its state dicts fit.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from deploykit.models.pictures import PictureNetwork

__all__ = ["DenseBlock", "DenseLayer", "DenseNet", "densenet"]

_GROWTH = 32  # k, feature maps that a layer adds: Huang et al. 2017, table 1
_BOTTLENECK = 4 * _GROWTH  # section 3, "Bottleneck layers"
_STEM = 2 * _GROWTH  # section 3, "Implementation Details"

# Huang et al. 2017, table 1: dense layers in each of the four blocks.
_DEPTHS = {
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}


class DenseLayer(nn.Module):
    """BN-ReLU-Conv(1×1)-BN-ReLU-Conv(3×3), the paper's H_l with a bottleneck (section 3)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, _BOTTLENECK, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(_BOTTLENECK), nn.ReLU()
        self.conv2 = nn.Conv2d(_BOTTLENECK, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to the N×32×H×W that are new."""
        x = self.conv1(self.relu1(self.norm1(x)))  # 128×H×W
        found: Tensor = self.conv2(self.relu2(self.norm2(x)))  # 32×H×W
        return found


class DenseBlock(nn.Sequential):
    """Layers that each read the concatenation of the block's input and all that was found before (equation 2)."""

    def __init__(self, in_channels: int, count: int) -> None:
        layers = {f"denselayer{i + 1}": DenseLayer(in_channels + i * _GROWTH) for i in range(count)}
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×(in_channels + 32·count)×H×W."""
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class DenseNet(PictureNetwork):
    """Huang et al. 2017, table 1, k = 32.

    Args:
        num_classes: Number of logits.
        in_channels: Of the pictures.
        depth: Layers with weights: 121, 169, 201 or 264 (which has 265 by the blocks of the paper's table).
        small: Pictures of about 32×32: the stem is a 3×3 with stride 1 and nothing is pooled before the first block,
            as the paper has it for CIFAR (section 3, "Implementation Details").
    """

    def __init__(self, num_classes: int, in_channels: int, depth: int, small: bool) -> None:
        # The three transitions halve and round down: 8 pixels before them. The stem's two strides round up: 29 for 8.
        super().__init__(in_channels, smallest=8 if small else 29)
        self.features = _stem(in_channels, small)  # 64×56×56 at 224, 64×32×32 for small pictures at 32
        channels = _STEM
        for index, count in enumerate(_DEPTHS[depth], 1):
            if index > 1:
                self.features.add_module(f"transition{index - 1}", _transition(channels, channels // 2))
                channels //= 2
            self.features.add_module(f"denseblock{index}", DenseBlock(channels, count))
            channels += count * _GROWTH
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu, self.avgpool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of DenseNet-121 at 224, then of its variant for small pictures at 32."""
        self.check(x)
        x = self.relu(self.features(x))  # 1024×7×7, 1024×4×4
        x = self.avgpool(x).flatten(1)  # 1024
        logits: Tensor = self.classifier(x)  # classes
        return logits


def densenet(num_classes: int, in_channels: int, depth: str, pictures: str = "large") -> nn.Module:
    """One member of the family; the arguments are the table's."""
    return DenseNet(num_classes, in_channels, int(depth), small=pictures == "small")


def _stem(in_channels: int, small: bool) -> nn.Sequential:
    size, stride = (3, 1) if small else (7, 2)
    stem = nn.Sequential(
        OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(in_channels, _STEM, size, stride=stride, padding=size // 2, bias=False),
            norm0=nn.BatchNorm2d(_STEM),
            relu0=nn.ReLU(),
        )
    )
    if not small:
        stem.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
    return stem


def _transition(in_channels: int, channels: int) -> nn.Sequential:
    """Between blocks: half the channels (compression, theta = 0.5), half the size (section 3)."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(in_channels, channels, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def _start(network: nn.Module) -> None:
    """He et al. 2015, as the paper's section 4.2 says; the classifier's biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
