"""ZFNet: AlexNet, mended by looking at what its first layers had learned."""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.pictures import FitPool, PictureNetwork
from deploykit.models.response_norm import LocalResponseNorm
from deploykit.models.start import start

__all__ = ["ZFNet", "zfnet"]


class ZFNet(PictureNetwork):
    """Zeiler & Fergus 2014, Visualizing and Understanding Convolutional Networks, figure 3 and section 4.1.

    Against AlexNet the first layer is finer (7×7 with stride 2 instead of 11×11 with stride 4), the second strides by 2
    and there is one tower. Maps are "(i) passed through a rectified linear function, (ii) pooled (max within 3×3
    regions, using stride 2) and (iii) contrast normalized across feature maps" (figure 3), which is AlexNet's
    normalisation, after the pooling. The paper gives no padding: 1 pixel at C1, none at C2 and poolings that round up
    give the figure's sides of 110, 55, 26, 13 and 6.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels, smallest=47)  # 47 → 22 → 11 → 4 → 2 → 1: C1, pooling, C2, pooling, pooling
        self.c1 = nn.Conv2d(in_channels, 96, 7, stride=2, padding=1)
        self.pool1, self.norm1 = nn.MaxPool2d(3, stride=2, ceil_mode=True), LocalResponseNorm()
        self.c2 = nn.Conv2d(96, 256, 5, stride=2)
        self.pool2, self.norm2 = nn.MaxPool2d(3, stride=2, ceil_mode=True), LocalResponseNorm()
        self.c3 = nn.Conv2d(256, 384, 3, padding=1)
        self.c4 = nn.Conv2d(384, 384, 3, padding=1)
        self.c5 = nn.Conv2d(384, 256, 3, padding=1)
        self.pool5, self.fit = nn.MaxPool2d(3, stride=2, ceil_mode=True), FitPool(6)
        self.f6 = nn.Linear(256 * 6 * 6, 4096)
        self.f7 = nn.Linear(4096, 4096)
        self.f8 = nn.Linear(4096, num_classes)
        self.relu = nn.ReLU()
        self.drop6, self.drop7 = nn.Dropout(0.5), nn.Dropout(0.5)
        start(self, self.f8)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of 224×224."""
        self.check(x)
        x = self.relu(self.c1(x))  # 96×110×110
        x = self.norm1(self.pool1(x))  # 96×55×55
        x = self.relu(self.c2(x))  # 256×26×26
        x = self.norm2(self.pool2(x))  # 256×13×13
        x = self.relu(self.c3(x))  # 384×13×13
        x = self.relu(self.c4(x))  # 384×13×13
        x = self.relu(self.c5(x))  # 256×13×13
        x = self.fit(self.pool5(x))  # 256×6×6
        x = self.drop6(self.relu(self.f6(x.flatten(1))))  # 4096
        x = self.drop7(self.relu(self.f7(x)))  # 4096
        logits: Tensor = self.f8(x)  # classes
        return logits


def zfnet(num_classes: int, in_channels: int) -> nn.Module:
    """ZFNet."""
    return ZFNet(num_classes, in_channels)
