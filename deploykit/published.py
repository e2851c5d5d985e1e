"""What papers and the lecture notes say of the reference networks, and how each figure is found in their profiles.

A statement never holds its own answer: ``measured`` computes it from profiles of the networks as they are built here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from deploykit.results import Profile, Statement

__all__ = ["NETWORKS_NEEDED", "SAID_OF", "published_statements"]

Profiles = Mapping[str, Profile]


@dataclass(frozen=True)
class _Published:
    """One statement before it is measured; ``measured`` is None for what takes ImageNet and trained weights."""

    says: str
    source: str
    said: float
    unit: str
    measured: Callable[[Profiles], float] | None
    remark: Callable[[Profiles], str] = lambda _: ""


def _parameters(network: str) -> Callable[[Profiles], float]:
    return lambda profiles: profiles[network].parameters


def _giga_macs(network: str) -> Callable[[Profiles], float]:
    return lambda profiles: (profiles[network].macs or 0) / 1e9


def _ratio(above: str, below: str) -> Callable[[Profiles], float]:
    return lambda profiles: profiles[above].parameters / profiles[below].parameters


def _share_of_layer(network: str, layer: str) -> Callable[[Profiles], float]:
    def share(profiles: Profiles) -> float:
        profile = profiles[network]
        return sum(item.parameters for item in profile.layers if item.name == layer) / profile.parameters

    return share


def _neurons(network: str) -> Callable[[Profiles], float]:
    """Outputs of the layers that hold weights."""
    return lambda profiles: sum(prod(item.output_shape or ()) for item in profiles[network].layers if item.parameters)


def _kernel_share(small: int, times: int, large: int) -> Callable[[Profiles], float]:
    """Weights of ``times`` small kernels over those of the large one with the same view; channels cancel out."""
    return lambda _: times * small**2 / large**2


def _bottleneck(profiles: Profiles) -> float:
    """Two 3×3 of 256 channels over ResNet-50's block layer1.1; a bias a kernel is counted, as the notes do."""
    block = [item for item in profiles["resnet50"].layers if item.name.startswith("layer1.1.conv")]
    channels = [(item.output_shape or (0,))[0] for item in block]
    plain = 2 * (9 * 256 * 256 + 256)
    return plain / (sum(item.parameters for item in block) + sum(channels))


def _without_classifier(profiles: Profiles) -> str:
    googlenet = profiles["googlenet"]
    linear = sum(item.parameters for item in googlenet.layers if item.name == "linear")
    less = profiles["alexnet"].parameters / (googlenet.parameters - linear)
    return f"60 M over 5 M, both rounded; {less:.1f} without GoogLeNet's classifier"


def _googlenet_size(profiles: Profiles) -> str:
    linear = sum(item.parameters for item in profiles["googlenet"].layers if item.name == "linear")
    return f"{(profiles['googlenet'].parameters - linear) / 1e6:.2f} M without the classifier"


def _alexnet_difference(profiles: Profiles) -> str:
    return f"the notes leave out {profiles['alexnet'].parameters - 60_965_128} numbers: the biases of C1"


def _vgg_bytes(profiles: Profiles) -> str:
    weights = profiles["vgg16"].weight_bytes
    return f"140 M is the number of parameters; in float32 they are {weights / 1e6:.0f} MB ({weights / 2**20:.0f} MiB)"


_NOTES, _KRIZHEVSKY, _SZEGEDY = "lecture notes", "Krizhevsky et al. 2012", "Szegedy et al. 2015"
_SIMONYAN, _HE, _HUANG = "Simonyan & Zisserman 2015", "He et al. 2016", "Huang et al. 2017"
_STRIDE = "the paper strides in the first 1×1 of a bottleneck, here it is in the 3×3, as torchvision has it"

_STATEMENTS = (
    _Published("LeNet-5 has 60,850 parameters", _NOTES, 60_850, "parameters", _parameters("lenet5-1998")),
    _Published(
        "LeNet-5 has 340,918 connections",
        _NOTES,
        340_918,
        "connections",
        lambda profiles: profiles["lenet5-1998"].connections or 0,
    ),
    _Published(
        "AlexNet has 60,965,128 parameters",
        _NOTES,
        60_965_128,
        "parameters",
        _parameters("alexnet"),
        _alexnet_difference,
    ),
    _Published("AlexNet has 1,000 times LeNet-5's parameters", _NOTES, 1000, "×", _ratio("alexnet", "lenet5-1998")),
    _Published(
        "AlexNet has 650,000 neurons",
        _KRIZHEVSKY,
        650_000,
        "neurons",
        _neurons("alexnet"),
        lambda _: "the paper's 253,440 of C1 are 96·48·55; 55×55×96 are 290,400",
    ),
    _Published(
        "AlexNet has 630 million connections",
        _NOTES,
        630e6,
        "connections",
        lambda profiles: profiles["alexnet"].connections or 0,
    ),
    _Published(
        "GoogLeNet has 12 times fewer parameters than AlexNet",
        _SZEGEDY,
        12,
        "×",
        _ratio("alexnet", "googlenet"),
        _without_classifier,
    ),
    _Published("GoogLeNet has 5 M parameters", _NOTES, 5e6, "parameters", _parameters("googlenet"), _googlenet_size),
    _Published(
        "GoogLeNet takes 1.5 billion multiply-adds", _SZEGEDY + ", section 1", 1.5, "GMACs", _giga_macs("googlenet")
    ),
    *(
        _Published(f"VGG {letter} has {said} M parameters", f"{_SIMONYAN}, table 2", said * 1e6, "parameters", found)
        for letter, said, found in (
            ("A (and A-LRN)", 133, _parameters("vgg11")),
            ("B", 133, _parameters("vgg13")),
            ("C", 134, _parameters("vgg16-c")),
            ("D", 138, _parameters("vgg16")),
            ("E", 144, _parameters("vgg19")),
        )
    ),
    _Published("VGG takes much memory (140M)", _NOTES, 140e6, "parameters", _parameters("vgg16"), _vgg_bytes),
    _Published(
        "most of VGG-16's parameters are in its first fully connected layer",
        _NOTES,
        0.5,
        "of all, at least",
        _share_of_layer("vgg16", "classifier.0"),
    ),
    _Published("three 3×3 have 55 % of one 7×7's weights", _SIMONYAN, 0.55, "of the weights", _kernel_share(3, 3, 7)),
    _Published(
        "a bottleneck has 16.86 times fewer parameters than two 3×3 of 256 channels", _NOTES, 16.86, "×", _bottleneck
    ),
    *(
        _Published(
            f"ResNet-{depth} takes {said}·10⁹ FLOPs",
            f"{_HE}, table 1",
            said,
            "GMACs",
            _giga_macs(f"resnet{depth}"),
            lambda _, deep=depth >= 50: _STRIDE if deep else "",  # type: ignore[misc]
        )
        for depth, said in ((18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3))
    ),
    _Published(
        "DenseNet has a third of ResNet-152's parameters at like accuracy",
        f"{_HUANG}; {_NOTES}",
        1 / 3,
        "of the parameters",
        _ratio("densenet201", "resnet152"),
        lambda profiles: (
            "DenseNet-201; DenseNet-264 has"
            f" {profiles['densenet264'].parameters / profiles['resnet152'].parameters:.2f};"
            " accuracy was not measured, that takes ImageNet"
        ),
    ),
    *(
        _Published(f"{network}: {said} % top-5 error in ILSVRC", _NOTES, said / 100, "top-5 error", None)
        for network, said in (("AlexNet", 15.3), ("VGG", 7.32), ("GoogLeNet", 6.67), ("ResNet", 3.57))
    ),
)

NETWORKS_NEEDED = (
    *("lenet5-1998", "alexnet", "googlenet", "vgg11", "vgg13", "vgg16-c", "vgg16", "vgg19"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet201", "densenet264"),
)
"""Networks whose profiles the statements are measured on."""

SAID_OF: Mapping[str, str] = {
    "lenet1": "about 2,600 parameters",
    "lenet4": "about 17,000 parameters",
    "lenet5-1998": "60,850 parameters, 340,918 connections",
    "alexnet": "60 M parameters (60,965,128)",
    "vgg11": "133 M parameters",
    "vgg11-lrn": "133 M parameters",
    "vgg13": "133 M parameters",
    "vgg16-c": "134 M parameters",
    "vgg16": "138 M parameters; “140M”",
    "vgg19": "144 M parameters",
    "googlenet": "5 M parameters, 12 times fewer than AlexNet; 1.5·10⁹ operations",
    "resnet18": "1.8·10⁹ FLOPs",
    "resnet34": "3.6·10⁹ FLOPs",
    "resnet50": "3.8·10⁹ FLOPs",
    "resnet101": "7.6·10⁹ FLOPs",
    "resnet152": "11.3·10⁹ FLOPs",
    "densenet201": "about a third of ResNet-152's parameters",
}
"""What is said of a network as a whole, for its row in the table of costs."""


def published_statements(profiles: Profiles) -> tuple[Statement, ...]:
    """All statements, measured. Raises: KeyError when ``profiles`` lacks one of ``NETWORKS_NEEDED``."""
    return tuple(
        Statement(
            says=item.says,
            source=item.source,
            said=item.said,
            measured=None if item.measured is None else float(item.measured(profiles)),
            unit=item.unit,
            remark=item.remark(profiles) or ("" if item.measured else "takes ImageNet and trained weights"),
        )
        for item in _STATEMENTS
    )
