"""VGG: nothing but 3×3 convolutions and poolings, deeper and deeper."""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.pictures import FitPool, PictureNetwork
from deploykit.models.response_norm import LocalResponseNorm
from deploykit.models.start import start

__all__ = ["CONFIGURATIONS", "VGG", "vgg"]

# Simonyan & Zisserman 2015, table 1: five blocks of convolutions, each followed by pooling. A number is the channels of
# a 3×3, "1×" those of a 1×1.
CONFIGURATIONS = {
    "A": ("64", "128", "256 256", "512 512", "512 512"),
    "A-LRN": ("64 LRN", "128", "256 256", "512 512", "512 512"),
    "B": ("64 64", "128 128", "256 256", "512 512", "512 512"),
    "C": ("64 64", "128 128", "256 256 1×256", "512 512 1×512", "512 512 1×512"),
    "D": ("64 64", "128 128", "256 256 256", "512 512 512", "512 512 512"),
    "E": ("64 64", "128 128", "256 256 256 256", "512 512 512 512", "512 512 512 512"),
}


class VGG(PictureNetwork):
    """Simonyan & Zisserman 2015, section 2.1 and table 1. The names of the layers are torchvision's.

    The paper trains the large pictures' classifier on 7×7 units. For small pictures, whose five poolings leave one
    pixel of 32×32, two layers of 512 units do (Liu & Deng 2015 have one; two keep the names of the layers).

    Args:
        num_classes: Number of logits.
        in_channels: Of the pictures.
        configuration: A column of table 1.
        batch_norm: BatchNorm between each convolution and its ReLU, which the paper does not have.
        small: Pictures of about 32×32.
    """

    def __init__(self, num_classes: int, in_channels: int, configuration: str, batch_norm: bool, small: bool) -> None:
        super().__init__(in_channels, smallest=32)  # five poolings by 2
        self.features = nn.Sequential(*_features(in_channels, CONFIGURATIONS[configuration], batch_norm))
        side, units = (1, 512) if small else (7, 4096)
        self.avgpool = FitPool(side)
        head = nn.Linear(units, num_classes)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * side * side, units), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(units, units), nn.ReLU(), nn.Dropout(0.5)),
            head,
        )
        start(self, head)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×classes; the sizes are of large 224×224 and of small 32×32."""
        self.check(x)
        x = self.features(x)  # 512×7×7, 512×1×1
        x = self.avgpool(x)  # the same
        logits: Tensor = self.classifier(x.flatten(1))  # classes
        return logits


def _features(channels: int, blocks: tuple[str, ...], batch_norm: bool) -> list[nn.Module]:
    """The layers of the blocks; a block keeps the sides, and the pooling at its end halves them, rounding down."""
    layers: list[nn.Module] = []
    for block in blocks:
        for word in block.split():
            if word == "LRN":
                layers.append(LocalResponseNorm())  # "the parameters [...] are those of Krizhevsky et al. 2012"
                continue
            size, width = (1, int(word[2:])) if word.startswith("1×") else (3, int(word))
            layers.append(nn.Conv2d(channels, width, size, padding=size // 2))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def vgg(num_classes: int, in_channels: int, configuration: str, norm: str, pictures: str = "large") -> nn.Module:
    """A column of table 1, ``norm`` being ``none`` or ``batch``, ``pictures`` ``large`` or ``small``."""
    return VGG(num_classes, in_channels, configuration, norm == "batch", pictures == "small")
