"""The ResNets: layers learn what to add to their input (He et al. 2016).

Where the paper's bottleneck strides in its first 1×1, these stride in the 3×3, as fb.resnet.torch, torchvision and
Goyal et al. 2017 (section 5.1) do: 4.1 billion MACs instead of the 3.8 of the paper's table 1 for 50 layers, and a
little more accuracy. Names of the layers are torchvision's, so that its state dicts fit; the paper's stand beside them.
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.pictures import PictureNetwork

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×channels×H/stride×W/stride, rounded up."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        total: Tensor = self.relu(y + self.downsample(x))
        return total


class Bottleneck(nn.Module):
    """1×1 that narrows, 3×3, 1×1 that widens fourfold, beside a shortcut (He et al. 2016, figure 5, right)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1, self.bn1 = _conv(in_channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        """N×in_channels×H×W to N×4·channels×H/stride×W/stride, rounded up."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        total: Tensor = self.relu(y + self.downsample(x))
        return total


# He et al. 2016, table 1: the block, and how many of them conv2_x to conv5_x have.
_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(PictureNetwork):
    """He et al. 2016, table 1; for small pictures with the stem of its section 4.2.

    Every stride rounds up, so that even one pixel stays one.

    Args:
        num_classes: Number of logits.
        in_channels: Of the pictures.
        depth: Layers with weights: 18, 34, 50, 101 or 152.
        small: Pictures of about 32×32: the stem is a 3×3 with stride 1, and nothing is pooled before conv2_x.
        width: Channels of the stem and of conv2_x's 3×3; each later stage doubles them.
    """

    def __init__(self, num_classes: int, in_channels: int, depth: int, small: bool, width: int) -> None:
        super().__init__(in_channels, smallest=1)
        block, counts = _DEPTHS[depth]
        self.conv1 = _conv(in_channels, width, 3) if small else _conv(in_channels, width, 7, stride=2)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        channels = width
        for index, count in enumerate(counts):
            inner, stride = width * 2**index, 1 if index == 0 else 2
            stages.append(_stage(block, channels, inner, count, stride))
            channels = inner * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages  # conv2_x, conv3_x, conv4_x, conv5_x
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of ResNet-50 at 224, then of ResNet-18 for small pictures at 32."""
        self.check(x)
        x = self.relu(self.bn1(self.conv1(x)))  # 64×112×112, 64×32×32
        x = self.maxpool(x)  # 64×56×56, 64×32×32
        x = self.layer1(x)  # 256×56×56, 64×32×32
        x = self.layer2(x)  # 512×28×28, 128×16×16
        x = self.layer3(x)  # 1024×14×14, 256×8×8
        x = self.layer4(x)  # 2048×7×7, 512×4×4
        x = self.avgpool(x).flatten(1)  # 2048, 512
        logits: Tensor = self.fc(x)  # classes
        return logits


def resnet(num_classes: int, in_channels: int, depth: str, pictures: str = "large", width: str = "64") -> nn.Module:
    """One member of the family; the arguments are the table's."""
    return ResNet(num_classes, in_channels, int(depth), small=pictures == "small", width=int(width))


def _conv(in_channels: int, channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Padded so that stride 1 keeps the size; without bias, which the BatchNorm behind it has."""
    return nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=False)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The identity where shapes agree, else a projection: option B of He et al. 2016, section 4.1."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    """Blocks of one size; the first strides and takes the channels of the stage before."""
    later = [block(channels * block.expansion, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(block(in_channels, channels, stride), *later)


def _start(network: ResNet) -> None:
    """He et al. 2015 by fan-out, as fb.resnet.torch and torchvision start; branches scaled by the root of their number.

    With whole branches the variance of a fresh network's answer doubles in each block while the running statistics are
    still untouched: logits of 1e7 for 152 layers. De & Smith 2020 (SkipInit) find that branches scaled so, or by zero,
    also train best. Zero (Goyal et al. 2017, section 5.1) would leave a fresh network's files with weights that do
    nothing, which no trained one has.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    blocks = [part for part in network.modules() if isinstance(part, (BasicBlock, Bottleneck))]
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        nn.init.constant_(last.weight, len(blocks) ** -0.5)
