"""Networks for phones: SqueezeNet 1.1, MobileNetV2, MobileNetV3-small.

What a mobile developer compares with today. Names of the layers are torchvision's, so that its state dicts fit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deploykit.models.pictures import PictureNetwork

__all__ = [
    "BlockRow",
    "ExcitedResidual",
    "Fire",
    "InvertedResidual",
    "MobileNetV2",
    "MobileNetV3Small",
    "SqueezeExcitation",
    "SqueezeNet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet",
]

# Sandler et al. 2018, table 2: expansion t, channels c, repetitions n, stride s of the first.
_V2_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class BlockRow(NamedTuple):
    """A row of Howard et al. 2019, table 2: ``excited`` is its SE, ``swish`` its HS (else ReLU)."""

    kernel: int
    expanded: int
    channels: int
    excited: bool
    swish: bool
    stride: int


_V3_SMALL_BLOCKS = (
    BlockRow(3, 16, 16, True, False, 2),
    BlockRow(3, 72, 24, False, False, 2),
    BlockRow(3, 88, 24, False, False, 1),
    BlockRow(5, 96, 40, True, True, 2),
    BlockRow(5, 240, 40, True, True, 1),
    BlockRow(5, 240, 40, True, True, 1),
    BlockRow(5, 120, 48, True, True, 1),
    BlockRow(5, 144, 48, True, True, 1),
    BlockRow(5, 288, 96, True, True, 2),
    BlockRow(5, 576, 96, True, True, 1),
    BlockRow(5, 576, 96, True, True, 1),
)


class Fire(nn.Module):
    """1×1 that squeezes, then 1×1 and 3×3 side by side that expand (Iandola et al. 2016, section 3.2)."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×2·expanded×H×W."""
        x = self.relu(self.squeeze(x))  # squeezed×H×W
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(PictureNetwork):
    """Iandola et al. 2016, table 1, in the authors' version 1.1: a 3×3 stem, poolings earlier, 2.4 times fewer MACs."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels, smallest=17)  # 17 → 8 → 4 → 2 → 1: the poolings round up, the stem down
        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, 64, 3, stride=2), nn.ReLU()),  # 64×111×111
            nn.MaxPool2d(3, stride=2, ceil_mode=True),  # 64×55×55
            *(Fire(64, 16, 64), Fire(128, 16, 64)),  # 128×55×55
            nn.MaxPool2d(3, stride=2, ceil_mode=True),  # 128×27×27
            *(Fire(128, 32, 128), Fire(256, 32, 128)),  # 256×27×27
            nn.MaxPool2d(3, stride=2, ceil_mode=True),  # 256×13×13
            *(Fire(256, 48, 192), Fire(384, 48, 192)),  # 384×13×13
            *(Fire(384, 64, 256), Fire(512, 64, 256)),  # 512×13×13
        )
        last = nn.Conv2d(512, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # every convolution here has one
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of 224."""
        self.check(x)
        x = self.features(x)  # 512×13×13
        x = self.classifier(x)  # classes×1×1: the last convolution answers at each place, the pooling averages
        return x.flatten(1)  # classes


class InvertedResidual(nn.Module):
    """1×1 that expands, depthwise 3×3, 1×1 that narrows; a shortcut where shapes agree.

    Sandler et al. 2018, table 1 and figure 4d. The last 1×1 has no activation: narrow layers lose by it (section 3.2).
    """

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = in_channels * expansion
        widen = [_conv_norm(in_channels, expanded, 1, 1, nn.ReLU6())] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm(expanded, expanded, 3, stride, nn.ReLU6(), groups=expanded),
            *(nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×channels×H/stride×W/stride, rounded up."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class SqueezeExcitation(nn.Module):
    """Scales each channel by what all channels' means say (Hu et al. 2018; Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _near_eight(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.activation = nn.Conv2d(channels, squeezed, 1), nn.ReLU()
        self.fc2, self.scale_activation = nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """N×channels×H×W to the same."""
        scale: Tensor = self.avgpool(x)  # channels×1×1
        scale = self.activation(self.fc1(scale))  # squeezed×1×1
        scale = self.scale_activation(self.fc2(scale))  # channels×1×1
        return x * scale


class ExcitedResidual(nn.Module):
    """An inverted residual whose expanded channels are squeezed and excited (Howard et al. 2019, figure 4).

    Args:
        in_channels: Of the input.
        row: Of the paper's table 2.
    """

    def __init__(self, in_channels: int, row: BlockRow) -> None:
        super().__init__()
        activation, expanded = nn.Hardswish if row.swish else nn.ReLU, row.expanded
        widen = [_v3_conv_norm(in_channels, expanded, 1, 1, activation())] if expanded != in_channels else []
        self.block = nn.Sequential(
            *widen,
            _v3_conv_norm(expanded, expanded, row.kernel, row.stride, activation(), groups=expanded),
            *([SqueezeExcitation(expanded)] if row.excited else []),
            _v3_conv_norm(expanded, row.channels, 1, 1),
        )
        self.shortcut = row.stride == 1 and in_channels == row.channels

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×channels×H/stride×W/stride, rounded up."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class MobileNetV2(PictureNetwork):
    """Sandler et al. 2018, table 2; for small pictures the stem does not stride. Every stride rounds up."""

    def __init__(self, num_classes: int, in_channels: int, small: bool) -> None:
        super().__init__(in_channels, smallest=1)
        layers: list[nn.Module] = [_conv_norm(in_channels, 32, 3, 1 if small else 2, nn.ReLU6())]  # 32×112×112
        channels = 32
        for expansion, wanted, count, first_stride in _V2_STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, wanted, expansion, stride))
                channels = wanted
        layers.append(_conv_norm(channels, 1280, 1, 1, nn.ReLU6()))  # 1280×7×7
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of 224, then of small pictures at 32."""
        self.check(x)
        x = self.features(x)  # 1280×7×7, 1280×2×2
        x = self.avgpool(x).flatten(1)  # 1280
        logits: Tensor = self.classifier(x)  # classes
        return logits


class MobileNetV3Small(PictureNetwork):
    """Howard et al. 2019, table 2; for small pictures the stem does not stride. Every stride rounds up.

    As in torchvision, whose weights fit: no squeeze-and-excitation behind the last convolution, which the table has.
    """

    def __init__(self, num_classes: int, in_channels: int, small: bool) -> None:
        super().__init__(in_channels, smallest=1)
        layers: list[nn.Module] = [_v3_conv_norm(in_channels, 16, 3, 1 if small else 2, nn.Hardswish())]  # 16×112×112
        channels = 16
        for row in _V3_SMALL_BLOCKS:
            layers.append(ExcitedResidual(channels, row))
            channels = row.channels
        layers.append(_v3_conv_norm(channels, 576, 1, 1, nn.Hardswish()))  # 576×7×7
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            *(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2)), nn.Linear(1024, num_classes)
        )
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of 224, then of small pictures at 32."""
        self.check(x)
        x = self.features(x)  # 576×7×7, 576×2×2
        x = self.avgpool(x).flatten(1)  # 576
        logits: Tensor = self.classifier(x)  # classes
        return logits


def squeezenet(num_classes: int, in_channels: int) -> nn.Module:
    """SqueezeNet 1.1."""
    return SqueezeNet(num_classes, in_channels)


def mobilenet_v2(num_classes: int, in_channels: int, pictures: str = "large") -> nn.Module:
    """MobileNetV2, width 1."""
    return MobileNetV2(num_classes, in_channels, small=pictures == "small")


def mobilenet_v3_small(num_classes: int, in_channels: int, pictures: str = "large") -> nn.Module:
    """MobileNetV3-small, width 1."""
    return MobileNetV3Small(num_classes, in_channels, small=pictures == "small")


def _conv_norm(
    in_channels: int, channels: int, size: int, stride: int, *activation: nn.Module, groups: int = 1
) -> nn.Sequential:
    """A convolution padded so that stride 1 keeps the size, BatchNorm, and the activation if there is one."""
    convolution = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), *activation)


def _v3_conv_norm(
    in_channels: int, channels: int, size: int, stride: int, *activation: nn.Module, groups: int = 1
) -> nn.Sequential:
    """The same, with running statistics that decay by 0.99 (Howard et al. 2019, section 6.1), and TensorFlow's eps."""
    convolution = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels, eps=0.001, momentum=0.01), *activation)


def _near_eight(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and no less than nine tenths of ``channels``, as the authors round."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _start(network: nn.Module) -> None:
    """He et al. 2015 by fan-in; small weights for the classes, biases zero.

    torchvision starts by fan-out, which torch counts as if a depthwise kernel fed all channels: with running statistics
    still untouched, a fresh network's logits are 1e-10.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
