"""The small networks of the lecture notes (chapter 18), and the plain networks that they are compared with.

The notes print the tables of colour, shape and MNIST; "the same pattern" is all they say of Fashion-MNIST and of colour
and shape at once.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = [
    "CifarCNN",
    "Plain",
    "SmallCNN",
    "cifar_cnn",
    "cifar_mlp",
    "color_cnn",
    "digit_cnn",
    "shape_cnn",
    "small_mlp",
]


def _start(network: nn.Module) -> None:
    """He et al. 2015: weights for ReLU; biases zero."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SmallCNN(nn.Module):
    """Two convolutions, each with ReLU and 2×2 max pooling, 32 units with BatchNorm, the classes.

    Args:
        num_classes: Number of logits.
        conv1: The first convolution.
        conv2: The second convolution.
        features: Units after the second pooling, 28×28 inputs.
    """

    def __init__(self, num_classes: int, conv1: nn.Conv2d, conv2: nn.Conv2d, features: int) -> None:
        super().__init__()
        self.conv1, self.pool1 = conv1, nn.MaxPool2d(2)
        self.conv2, self.pool2 = conv2, nn.MaxPool2d(2)
        self.fc1, self.norm1 = nn.Linear(features, 32), nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, num_classes)
        self.relu = nn.ReLU()
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×28×28 to N×classes; the sizes are of color-cnn, shape-cnn, mnist-cnn."""
        x = self.relu(self.conv1(x))  # 2×28×28, 8×28×28, 8×24×24
        x = self.pool1(x)  # 2×14×14, 8×14×14, 8×12×12
        x = self.relu(self.conv2(x))  # 3×12×12, 16×12×12, 16×8×8
        x = self.pool2(x)  # 3×6×6, 16×6×6, 16×4×4
        x = self.relu(self.norm1(self.fc1(x.flatten(1))))  # 32
        logits: Tensor = self.fc2(x)  # classes
        return logits


class CifarCNN(nn.Module):
    """Two groups of two convolutions with dropout, 512 units: the notes' section 18.5, Keras' CIFAR-10 example.

    The first convolution of a group is padded, the second is not: 1,250,858 parameters, as Keras reports.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 32, 3, padding=1), nn.Conv2d(32, 32, 3)
        self.pool1, self.drop1 = nn.MaxPool2d(2), nn.Dropout(0.25)
        self.conv3, self.conv4 = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3)
        self.pool2, self.drop2 = nn.MaxPool2d(2), nn.Dropout(0.25)
        self.fc1, self.drop3 = nn.Linear(64 * 6 * 6, 512), nn.Dropout(0.5)
        self.fc2 = nn.Linear(512, num_classes)
        self.relu = nn.ReLU()
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×3×32×32 to N×classes."""
        x = self.relu(self.conv1(x))  # 32×32×32
        x = self.relu(self.conv2(x))  # 32×30×30
        x = self.drop1(self.pool1(x))  # 32×15×15
        x = self.relu(self.conv3(x))  # 64×15×15
        x = self.relu(self.conv4(x))  # 64×13×13
        x = self.drop2(self.pool2(x))  # 64×6×6
        x = self.drop3(self.relu(self.fc1(x.flatten(1))))  # 512
        logits: Tensor = self.fc2(x)  # classes
        return logits


class Plain(nn.Module):
    """A fully connected network on the flattened picture: two hidden layers with BatchNorm, no convolution.

    The notes give its accuracy only; the sizes are ours, larger than the convolutional networks they lose to.
    """

    def __init__(self, num_classes: int, pixels: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        first, second = hidden
        self.fc1, self.norm1 = nn.Linear(pixels, first), nn.BatchNorm1d(first)
        self.fc2, self.norm2 = nn.Linear(first, second), nn.BatchNorm1d(second)
        self.fc3 = nn.Linear(second, num_classes)
        self.relu = nn.ReLU()
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes."""
        x = self.relu(self.norm1(self.fc1(x.flatten(1))))  # first
        x = self.relu(self.norm2(self.fc2(x)))  # second
        logits: Tensor = self.fc3(x)  # classes
        return logits


def color_cnn(num_classes: int, in_channels: int) -> nn.Module:
    """Colours: 1×1 kernels that mix the channels, then 3×3."""
    network = SmallCNN(num_classes, nn.Conv2d(in_channels, 2, 1), nn.Conv2d(2, 3, 3), 3 * 6 * 6)
    # Of two kernels none may start dead: a positive bias keeps ReLU alive (Krizhevsky et al. 2012, section 5).
    nn.init.constant_(network.conv1.bias, 0.5)  # type: ignore[arg-type]
    nn.init.constant_(network.conv2.bias, 0.1)  # type: ignore[arg-type]
    return network


def shape_cnn(num_classes: int, in_channels: int) -> nn.Module:
    """Shapes, also shapes with colours: 3×3 kernels, the first padded."""
    return SmallCNN(num_classes, nn.Conv2d(in_channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3), 16 * 6 * 6)


def digit_cnn(num_classes: int, in_channels: int) -> nn.Module:
    """MNIST and Fashion-MNIST: 5×5 kernels."""
    return SmallCNN(num_classes, nn.Conv2d(in_channels, 8, 5), nn.Conv2d(8, 16, 5), 16 * 4 * 4)


def cifar_cnn(num_classes: int, in_channels: int) -> nn.Module:
    """CIFAR-10."""
    return CifarCNN(num_classes, in_channels)


def small_mlp(num_classes: int, in_channels: int) -> nn.Module:
    """Pictures of 28×28: 128 and 64 hidden units."""
    return Plain(num_classes, in_channels * 28 * 28, (128, 64))


def cifar_mlp(num_classes: int, in_channels: int) -> nn.Module:
    """Pictures of 32×32: 512 and 128 hidden units."""
    return Plain(num_classes, in_channels * 32 * 32, (512, 128))
