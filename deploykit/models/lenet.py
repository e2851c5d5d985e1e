"""The LeNets, from the first published one (1990) to LeNet-5 (1998), what is called LeNet-5 today, and Caffe's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.bitmaps import CODE_BITS, digit_codes

__all__ = [
    *("CaffeLeNet", "LeNet1", "LeNet4", "LeNet5", "LeNet5Of1998"),
    *("lenet1", "lenet4", "lenet5", "lenet5_1998", "lenet_caffe"),
]

Table = Sequence[Sequence[int]]  # one row an output map: the input maps that it sees

# LeCun et al. 1998, table I: which maps of S2 (0-5) each of the 16 maps of C3 sees.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)

# LeCun et al. 1990, table 1: 20 kernels, half of the maps on one pair of input maps, half on the other. The maps are
# numbered by how many inputs they have, which makes two convolutions of them.
H3_TABLE = ((0,), (1,), (2,), (3,), *((0, 1),) * 4, *((2, 3),) * 4)


def _ring(start: int, length: int, maps: int) -> tuple[int, ...]:
    """``length`` neighbouring maps from ``start`` on, the last being the neighbour of the first."""
    return tuple((start + step) % maps for step in range(length))


# LeNet-4's tables were never printed. These follow table I's pattern and meet the two figures that were: see LeNet4.
LENET4_C3_TABLE = (*(_ring(i, 3, 8) for i in range(8)), *(_ring(i, 4, 8) for i in range(7)), tuple(range(8)))
LENET4_C5_TABLE = (*(_ring(i, 5, 16) for i in range(80)), *(_ring(i, 4, 16) for i in range(40)))


class Squash(nn.Module):
    """A·tanh(S·x) with A = 1.7159 and S = 2/3 (LeCun et al. 1998, appendix A): f(1) = 1, f(-1) = -1."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        return 1.7159 * torch.tanh((2.0 / 3.0) * x)


class TableConv2d(nn.Module):
    """A convolution whose output maps see only some input maps, with weights for these alone.

    Neighbouring maps of equal fan-in become one grouped convolution over the gathered inputs, so that parameters and
    multiply-accumulates are the paper's, also in the exported file.
    """

    def __init__(self, table: Table, kernel_size: int) -> None:
        super().__init__()
        runs = [(fan_in, list(rows)) for fan_in, rows in itertools.groupby(table, key=len)]
        self.parts = nn.ModuleList(
            nn.Conv2d(len(rows) * fan_in, len(rows), kernel_size, groups=len(rows)) for fan_in, rows in runs
        )
        for index, (_, rows) in enumerate(runs):
            maps = torch.tensor([source for row in rows for source in row])
            self.register_buffer(f"maps{index}", maps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """N×(input maps)×H×W to N×(rows of the table)×H'×W'."""
        maps = (self.get_buffer(f"maps{index}") for index in range(len(self.parts)))
        return torch.cat([conv(x.index_select(1, seen)) for conv, seen in zip(self.parts, maps, strict=True)], dim=1)

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        """See ``deploykit.models.profile``."""
        _, height, width = output_shape
        weights = sum(part.weight.numel() for part in self.parts if isinstance(part, nn.Conv2d))
        return (weights + output_shape[0]) * height * width, weights * height * width


class TrainablePool2d(nn.Module):
    """Subsampling of 2×2 with one coefficient and one bias a map (LeCun et al. 1998, section II.B, S2).

    The coefficient multiplies the mean where the paper's multiplies the sum: four times as large, the same function.

    Args:
        maps: Number of input maps.
        copies: How many output maps each input map has, each with its own coefficient and bias.
    """

    def __init__(self, maps: int, copies: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps * copies, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps * copies, 1, 1))
        self.copies = copies
        sources = torch.tensor([source for source in range(maps) for _ in range(copies)])
        self.register_buffer("sources", sources, persistent=False)
        if copies > 1:  # equal copies would stay equal
            nn.init.normal_(self.weight, 1.0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """N×maps×H×W to N×(maps·copies)×H/2×W/2."""
        x = F.avg_pool2d(x, 2)
        if self.copies > 1:
            x = x.index_select(1, self.get_buffer("sources"))
        return x * self.weight + self.bias

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        """Four inputs and a bias for each output unit; no convolution, so no MACs."""
        maps, height, width = output_shape
        return (2 * 2 + 1) * maps * height * width, 0


class RadialBasis(nn.Module):
    """Euclidean radial basis functions on fixed codes of ±1, one a class (LeCun et al. 1998, section II.B).

    Gives logits, the negative squared distances -|x - w|² = 2x·w - |w|² - |x|², so that argmax answers. Digits have
    the 7×12 bitmaps of their characters as codes; other numbers of classes have random ones that are always the same.
    The codes (``weight``) and their negative squared lengths (``bias``) do not train.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        codes = torch.tensor(digit_codes() if num_classes == 10 else _random_codes(num_classes))
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = nn.Parameter(-codes.square().sum(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """N×84 to N×classes."""
        return F.linear(2.0 * x, self.weight, self.bias) - x.square().sum(1, keepdim=True)


def _random_codes(num_classes: int) -> list[list[float]]:
    generator = random.Random(1998)
    return [[generator.choice((-1.0, 1.0)) for _ in range(CODE_BITS)] for _ in range(num_classes)]


def _start(network: nn.Module, nonlinearity: Literal["linear", "relu", "tanh"]) -> None:
    """Weights of a spread that keeps the units' variance (LeCun et al. 1998, Efficient BackProp, 4.6); biases zero."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class LeNet1(nn.Module):
    """LeCun et al. 1990, Handwritten Digit Recognition with a Back-Propagation Network, section 4 and table 1.

    The paper's count: 2,578 independent parameters, 98,442 connections.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.h1 = nn.Conv2d(in_channels, 4, 5)
        self.h2 = TrainablePool2d(4)
        self.h3 = TableConv2d(H3_TABLE, 5)
        self.h4 = TrainablePool2d(12)
        self.output = nn.Linear(12 * 4 * 4, num_classes)
        self.squash = Squash()
        _start(self, "linear")

    def forward(self, x: Tensor) -> Tensor:
        """N×1×28×28 to N×classes."""
        x = self.squash(self.h1(x))  # 4×24×24
        x = self.squash(self.h2(x))  # 4×12×12
        x = self.squash(self.h3(x))  # 12×8×8
        x = self.squash(self.h4(x))  # 12×4×4
        logits: Tensor = self.output(x.flatten(1))  # classes
        return logits


class LeNet4(nn.Module):
    """LeCun et al. 1995, Comparison of Learning Algorithms for Handwritten Digit Recognition, "LeNet 4".

    The paper says: 4 first-level maps, 8 subsampling maps connected in pairs to each of them, 16 maps, 16 subsampling
    maps, 120 units, 10 outputs; about 260,000 connections and about 17,000 free parameters on 32×32 inputs. The 120
    units cannot see all 16 maps then (48,120 parameters), and neither table was printed. Here C3 has 60 kernels as
    LeNet-5's, and each of the 120 units sees 5 (80 units) or 4 (40 units) neighbouring maps: 16,998 parameters and
    258,306 connections.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 4, 5)
        self.s2 = TrainablePool2d(4, copies=2)
        self.c3 = TableConv2d(LENET4_C3_TABLE, 5)
        self.s4 = TrainablePool2d(16)
        self.c5 = TableConv2d(LENET4_C5_TABLE, 5)
        self.output = nn.Linear(120, num_classes)
        self.squash = Squash()
        _start(self, "linear")

    def forward(self, x: Tensor) -> Tensor:
        """N×1×32×32 to N×classes."""
        x = self.squash(self.c1(x))  # 4×28×28
        x = self.squash(self.s2(x))  # 8×14×14
        x = self.squash(self.c3(x))  # 16×10×10
        x = self.squash(self.s4(x))  # 16×5×5
        x = self.squash(self.c5(x))  # 120×1×1
        logits: Tensor = self.output(x.flatten(1))  # classes
        return logits


class LeNet5Of1998(nn.Module):
    """LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, section II.B and table I.

    60,850 parameters and 340,918 connections, the output's (84 + 1)·10 counted as the lecture notes do. The paper
    counts 60,000 trainable parameters and 340,908 connections: the output's codes are fixed and have no bias there.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = TrainablePool2d(6)
        self.c3 = TableConv2d(C3_TABLE, 5)
        self.s4 = TrainablePool2d(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, CODE_BITS)
        self.output = RadialBasis(num_classes)
        self.squash = Squash()
        _start(self, "linear")

    def forward(self, x: Tensor) -> Tensor:
        """N×1×32×32 to N×classes."""
        x = self.squash(self.c1(x))  # 6×28×28
        x = self.squash(self.s2(x))  # 6×14×14
        x = self.squash(self.c3(x))  # 16×10×10
        x = self.squash(self.s4(x))  # 16×5×5
        x = self.squash(self.c5(x))  # 120×1×1
        x = self.squash(self.f6(x.flatten(1)))  # 84
        logits: Tensor = self.output(x)  # classes
        return logits


class LeNet5(nn.Module):
    """LeNet-5 as it is built today: every map of C3 sees all of S2, plain pooling, a fully connected output.

    After LeCun et al. 1998, figure 2: 156 + 2,416 + 48,120 + 10,164 + 850 = 61,706 parameters.
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str, pooling: str) -> None:
        super().__init__()
        pool = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[pooling]
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = pool(2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.s4 = pool(2)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)
        self.activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()
        _start(self, "relu" if activation == "relu" else "tanh")

    def forward(self, x: Tensor) -> Tensor:
        """N×1×32×32 to N×classes."""
        x = self.s2(self.activation(self.c1(x)))  # 6×14×14
        x = self.s4(self.activation(self.c3(x)))  # 16×5×5
        x = self.activation(self.c5(x))  # 120×1×1
        x = self.activation(self.f6(x.flatten(1)))  # 84
        logits: Tensor = self.output(x)  # classes
        return logits


class CaffeLeNet(nn.Module):
    """Jia et al. 2014, Caffe, ``examples/mnist/lenet.prototxt``: the "LeNet-5" of the papers on compression.

    520 + 25,050 + 400,500 + 5,010 = 431,080 parameters, the 431 K of Han et al. 2016, section 5.1; no activation
    follows the convolutions.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.ip1 = nn.Linear(50 * 4 * 4, 500)
        self.ip2 = nn.Linear(500, num_classes)
        _start(self, "relu")

    def forward(self, x: Tensor) -> Tensor:
        """N×1×28×28 to N×classes."""
        x = self.pool1(self.conv1(x))  # 20×12×12
        x = self.pool2(self.conv2(x))  # 50×4×4
        x = F.relu(self.ip1(x.flatten(1)))  # 500
        logits: Tensor = self.ip2(x)  # classes
        return logits


def lenet1(num_classes: int, in_channels: int) -> nn.Module:
    """LeNet-1."""
    return LeNet1(num_classes, in_channels)


def lenet4(num_classes: int, in_channels: int) -> nn.Module:
    """LeNet-4."""
    return LeNet4(num_classes, in_channels)


def lenet5_1998(num_classes: int, in_channels: int) -> nn.Module:
    """LeNet-5 as in the paper."""
    return LeNet5Of1998(num_classes, in_channels)


def lenet5(num_classes: int, in_channels: int, activation: str = "relu", pooling: str = "max") -> nn.Module:
    """LeNet-5 as built today."""
    return LeNet5(num_classes, in_channels, activation, pooling)


def lenet_caffe(num_classes: int, in_channels: int) -> nn.Module:
    """Caffe's LeNet."""
    return CaffeLeNet(num_classes, in_channels)
