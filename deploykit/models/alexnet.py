"""AlexNet: as it won in 2012, in one tower, and as torchvision has it."""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.pictures import FitPool, PictureNetwork
from deploykit.models.response_norm import LocalResponseNorm
from deploykit.models.start import start

__all__ = ["AlexNet", "AlexNetOWT", "alexnet", "alexnet_owt", "alexnet_single"]


class AlexNet(PictureNetwork):
    """Krizhevsky, Sutskever & Hinton 2012, figure 2 and sections 3.3 to 3.5.

    ReLU, then normalisation, then pooling: "response-normalization layers follow the first and second convolutional
    layers. Max-pooling layers [...] follow both response-normalization layers as well as the fifth convolutional layer.
    The ReLU non-linearity is applied to the output of every convolutional and fully-connected layer" (section 3.5).
    The paper says 224 pixels; its 55 units a side need 227, unpadded.

    Args:
        num_classes: Number of logits.
        in_channels: Of the pictures.
        towers: 2 as on the paper's two GPUs, where C2, C4 and C5 see the maps of their own GPU only; or 1.
    """

    def __init__(self, num_classes: int, in_channels: int, towers: int) -> None:
        super().__init__(in_channels, smallest=67)  # 67 → 15 → 7 → 3 → 1: C1 and the three poolings
        self.c1 = nn.Conv2d(in_channels, 96, 11, stride=4)
        self.norm1, self.pool1 = LocalResponseNorm(), nn.MaxPool2d(3, stride=2)
        self.c2 = nn.Conv2d(96, 256, 5, padding=2, groups=towers)
        self.norm2, self.pool2 = LocalResponseNorm(), nn.MaxPool2d(3, stride=2)
        self.c3 = nn.Conv2d(256, 384, 3, padding=1)
        self.c4 = nn.Conv2d(384, 384, 3, padding=1, groups=towers)
        self.c5 = nn.Conv2d(384, 256, 3, padding=1, groups=towers)
        self.pool5, self.fit = nn.MaxPool2d(3, stride=2), FitPool(6)
        self.f6 = nn.Linear(256 * 6 * 6, 4096)
        self.f7 = nn.Linear(4096, 4096)
        self.f8 = nn.Linear(4096, num_classes)
        self.relu = nn.ReLU()
        self.drop6, self.drop7 = nn.Dropout(0.5), nn.Dropout(0.5)  # section 4.2
        start(self, self.f8)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of 227×227."""
        self.check(x)
        x = self.norm1(self.relu(self.c1(x)))  # 96×55×55
        x = self.pool1(x)  # 96×27×27
        x = self.norm2(self.relu(self.c2(x)))  # 256×27×27
        x = self.pool2(x)  # 256×13×13
        x = self.relu(self.c3(x))  # 384×13×13
        x = self.relu(self.c4(x))  # 384×13×13
        x = self.relu(self.c5(x))  # 256×13×13
        x = self.fit(self.pool5(x))  # 256×6×6
        x = self.drop6(self.relu(self.f6(x.flatten(1))))  # 4096
        x = self.drop7(self.relu(self.f7(x)))  # 4096
        logits: Tensor = self.f8(x)  # classes
        return logits


class AlexNetOWT(PictureNetwork):
    """Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, section 5, footnote 1.

    One tower, fewer kernels, no normalisation. The names of the layers are torchvision's, so that its state dicts fit.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels, smallest=63)  # 63 → 15 → 7 → 3 → 1, the first being padded by 2
        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, 64, 11, stride=4, padding=2), nn.ReLU()),  # 64×55×55
            nn.MaxPool2d(3, stride=2),  # 64×27×27
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),  # 192×27×27
            nn.MaxPool2d(3, stride=2),  # 192×13×13
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),  # 384×13×13
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),  # 256×13×13
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),  # 256×13×13
            nn.MaxPool2d(3, stride=2),  # 256×6×6
        )
        self.avgpool = FitPool(6)
        head = nn.Linear(4096, num_classes)
        self.classifier = nn.Sequential(
            *(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU()),
            head,
        )
        start(self, head)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes above are of 224×224."""
        self.check(x)
        x = self.avgpool(self.features(x))  # 256×6×6
        logits: Tensor = self.classifier(x.flatten(1))  # classes
        return logits


def alexnet(num_classes: int, in_channels: int) -> nn.Module:
    """AlexNet of 2012, in two towers."""
    return AlexNet(num_classes, in_channels, towers=2)


def alexnet_single(num_classes: int, in_channels: int) -> nn.Module:
    """AlexNet of 2012 in one tower."""
    return AlexNet(num_classes, in_channels, towers=1)


def alexnet_owt(num_classes: int, in_channels: int) -> nn.Module:
    """AlexNet as torchvision has it."""
    return AlexNetOWT(num_classes, in_channels)
