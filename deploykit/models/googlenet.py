"""GoogLeNet: inception modules, which look at several scales at once. As in its paper, and as torchvision has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploykit.models.pictures import FitPool, PictureNetwork, TrainingLogits
from deploykit.models.response_norm import LocalResponseNorm
from deploykit.models.start import start

__all__ = ["GoogLeNet", "GoogLeNetBN", "googlenet", "googlenet_bn"]


class Inceptions(PictureNetwork):
    """What both have in common: table 1 of Szegedy et al. 2015 from its third row on, and where the heads stand.

    In training mode the answer comes with those of two heads, after 4a and 4d, which help the gradients on their way
    down (section 5); in evaluation mode they do not run.
    """

    def add_inceptions(self, inception: Callable[..., nn.Module], pool4: nn.Module) -> None:
        """Adds the nine modules and their poolings.

        Args:
            inception: Makes a module from its number of input maps and the six numbers of its row.
            pool4: The pooling between 4e and 5a.
        """
        # Table 1: #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = _halving()
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = pool4
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        self.avgpool = FitPool(1)

    def stem(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×192×H/8×W/8, of small pictures N×192×H×W."""
        raise NotImplementedError

    def answer(self, x: Tensor) -> Tensor:
        """N×1024 to N×classes."""
        raise NotImplementedError

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """The two that only train, from 512 and from 528 maps to N×classes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | TrainingLogits:
        """N×C×H×W to N×classes; the sizes are of 224×224."""
        self.check(x)
        x = self.stem(x)  # 192×28×28
        x = self.inception3a(x)  # 256×28×28
        x = self.inception3b(x)  # 480×28×28
        x = self.maxpool3(x)  # 480×14×14
        x = after_4a = self.inception4a(x)  # 512×14×14
        x = self.inception4b(x)  # 512×14×14
        x = self.inception4c(x)  # 512×14×14
        x = after_4d = self.inception4d(x)  # 528×14×14
        x = self.inception4e(x)  # 832×14×14
        x = self.maxpool4(x)  # 832×7×7
        x = self.inception5a(x)  # 832×7×7
        x = self.inception5b(x)  # 1024×7×7
        x = self.avgpool(x)  # 1024×1×1
        logits = self.answer(x.flatten(1))  # classes
        if not self.training:
            return logits
        first, second = self.heads()
        return TrainingLogits(logits, (first(after_4a), second(after_4d)))


def _halving() -> nn.MaxPool2d:
    """112 to 56 to 28 to 14 to 7 (table 1) takes poolings that round up."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


# --- The paper's ------------------------------------------------------------------------------------------------------


class GoogLeNet(Inceptions):
    """Szegedy et al. 2015, Going Deeper with Convolutions, table 1, figure 3 and section 5.

    The paper does not give the numbers of its two response normalisations: they are AlexNet's. Its table counts weights
    and no biases, and 2.7K for the first row, which has 7·7·3·64 = 9,408.

    Args:
        num_classes: Number of logits.
        in_channels: Of the pictures.
        small: Pictures of about 32×32: the stem is a 3×3 with stride 1, and nothing is pooled before 3b's output.
    """

    def __init__(self, num_classes: int, in_channels: int, small: bool) -> None:
        # 31 → 16 → 8 → 4 → 2 → 1: conv1 and the four poolings, of which small pictures have the last two
        super().__init__(in_channels, smallest=4 if small else 31)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1) if small else _stride_2(in_channels, 64)
        self.maxpool1, self.norm1 = nn.Identity() if small else _halving(), LocalResponseNorm()
        self.conv2_reduce = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.norm2, self.maxpool2 = LocalResponseNorm(), nn.Identity() if small else _halving()
        self.add_inceptions(Inception, pool4=_halving())
        self.aux1, self.aux2 = Head(512, num_classes), Head(528, num_classes)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(1024, num_classes)
        self.relu = nn.ReLU()
        start(self, self.linear, self.aux1.linear, self.aux2.linear)

    def stem(self, x: Tensor) -> Tensor:
        """Figure 3, from below; the sizes are of 224×224."""
        x = self.relu(self.conv1(x))  # 64×112×112
        x = self.norm1(self.maxpool1(x))  # 64×56×56
        x = self.relu(self.conv2_reduce(x))  # 64×56×56
        x = self.norm2(self.relu(self.conv2(x)))  # 192×56×56
        pooled: Tensor = self.maxpool2(x)  # 192×28×28
        return pooled

    def answer(self, x: Tensor) -> Tensor:
        """N×1024 to N×classes."""
        logits: Tensor = self.linear(self.dropout(x))
        return logits

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """The two that only train."""
        return self.aux1, self.aux2


def _stride_2(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 7, stride=2, padding=3)


class Inception(nn.Module):
    """Figure 2b: 1×1, 3×3 and 5×5 side by side, the larger ones after 1×1 that reduce the maps, and a pooling.

    Args:
        maps: Of the input.
        ones: #1×1.
        reduce3: #3×3 reduce.
        threes: #3×3.
        reduce5: #5×5 reduce.
        fives: #5×5.
        project: Pool proj.
    """

    def __init__(self, maps: int, ones: int, reduce3: int, threes: int, reduce5: int, fives: int, project: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(maps, ones, 1)
        self.reduce3x3 = nn.Conv2d(maps, reduce3, 1)
        self.conv3x3 = nn.Conv2d(reduce3, threes, 3, padding=1)
        self.reduce5x5 = nn.Conv2d(maps, reduce5, 1)
        self.conv5x5 = nn.Conv2d(reduce5, fives, 5, padding=2)
        self.maxpool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = nn.Conv2d(maps, project, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×(ones + threes + fives + project)×H×W."""
        one = self.relu(self.conv1x1(x))
        three = self.relu(self.conv3x3(self.relu(self.reduce3x3(x))))
        five = self.relu(self.conv5x5(self.relu(self.reduce5x5(x))))
        pooled = self.relu(self.project(self.maxpool(x)))
        return torch.cat((one, three, five, pooled), dim=1)


class HeadPool(nn.Module):
    """The heads' average pooling: 5×5 with stride 3 takes 14×14 to 4×4 (section 5); other sizes are fitted to 4×4."""

    def __init__(self) -> None:
        super().__init__()
        self.fit = FitPool(4)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×C×4×4."""
        if x.shape[2:] == (14, 14):
            return F.avg_pool2d(x, 5, stride=3)
        fitted: Tensor = self.fit(x)
        return fitted


class Head(nn.Module):
    """Section 5: pooling, 128 1×1 convolutions, 1024 units, 70 % dropout, the classes."""

    def __init__(self, maps: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = HeadPool()
        self.conv = nn.Conv2d(maps, 128, 1)
        self.fc = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(1024, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×classes."""
        x = self.relu(self.conv(self.avgpool(x)))  # 128×4×4
        x = self.dropout(self.relu(self.fc(x.flatten(1))))  # 1024
        logits: Tensor = self.linear(x)  # classes
        return logits


# --- torchvision's ----------------------------------------------------------------------------------------------------


class GoogLeNetBN(Inceptions):
    """``torchvision.models.googlenet``: Szegedy et al. 2015 with BatchNorm, and without LRN and biases.

    It has 3×3 where the paper has 5×5 (pytorch/vision #906), a fourth pooling of 2×2, and 20 % dropout before the
    answer. The names of the layers are torchvision's. Its pretrained weights want pictures of mean 0.5 and deviation
    0.5 in every channel: torchvision converts from ImageNet's within the network (``transform_input``), this does not.
    """

    def __init__(self, num_classes: int, in_channels: int, small: bool) -> None:
        # 15 → 8 → 4 → 2 → 1 → 1: the last pooling takes one pixel as it is
        super().__init__(in_channels, smallest=2 if small else 15)
        self.conv1 = BasicConv2d(in_channels, 64, 3) if small else BasicConv2d(in_channels, 64, 7, stride=2)
        self.maxpool1 = nn.Identity() if small else _halving()
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3)
        self.maxpool2 = nn.Identity() if small else _halving()
        self.add_inceptions(InceptionBN, pool4=nn.MaxPool2d(2, stride=2, ceil_mode=True))
        self.aux1, self.aux2 = HeadBN(512, num_classes), HeadBN(528, num_classes)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, num_classes)
        start(self, self.fc, self.aux1.fc2, self.aux2.fc2)

    def stem(self, x: Tensor) -> Tensor:
        """The sizes are of 224×224."""
        x = self.maxpool1(self.conv1(x))  # 64×56×56
        x = self.conv3(self.conv2(x))  # 192×56×56
        pooled: Tensor = self.maxpool2(x)  # 192×28×28
        return pooled

    def answer(self, x: Tensor) -> Tensor:
        """N×1024 to N×classes."""
        logits: Tensor = self.fc(self.dropout(x))
        return logits

    def heads(self) -> tuple[nn.Module, nn.Module]:
        """The two that only train."""
        return self.aux1, self.aux2


class BasicConv2d(nn.Module):
    """Convolution that keeps the sides, but for its stride, BatchNorm, ReLU."""

    def __init__(self, maps: int, channels: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(maps, channels, size, stride=stride, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)  # as the TensorFlow model that torchvision's weights come from
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×channels×H/stride×W/stride, rounded up."""
        activated: Tensor = self.relu(self.bn(self.conv(x)))
        return activated


class InceptionBN(nn.Module):
    """The arguments are those of ``Inception``; "fives" are 3×3."""

    def __init__(self, maps: int, ones: int, reduce3: int, threes: int, reduce5: int, fives: int, project: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(maps, ones, 1)
        self.branch2 = nn.Sequential(BasicConv2d(maps, reduce3, 1), BasicConv2d(reduce3, threes, 3))
        self.branch3 = nn.Sequential(BasicConv2d(maps, reduce5, 1), BasicConv2d(reduce5, fives, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(maps, project, 1))

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×(ones + threes + fives + project)×H×W."""
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)


class HeadBN(nn.Module):
    """The head of section 5, with BatchNorm; its pooling is fitted to 4×4 at every size."""

    def __init__(self, maps: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = FitPool(4)
        self.conv = BasicConv2d(maps, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×classes."""
        x = self.conv(self.avgpool(x))  # 128×4×4
        x = self.dropout(self.relu(self.fc1(x.flatten(1))))  # 1024
        logits: Tensor = self.fc2(x)  # classes
        return logits


def googlenet(num_classes: int, in_channels: int, pictures: str = "large") -> nn.Module:
    """The paper's; ``pictures`` is ``large`` or ``small``."""
    return GoogLeNet(num_classes, in_channels, pictures == "small")


def googlenet_bn(num_classes: int, in_channels: int, pictures: str = "large") -> nn.Module:
    """torchvision's; ``pictures`` is ``large`` or ``small``."""
    return GoogLeNetBN(num_classes, in_channels, pictures == "small")
