"""What the table of networks knows of each one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["NetworkSpec"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One reference network, as it is without options.

    Attributes:
        input: Channels, height and width of the input.
        classes: Number of logits.
        parameters: Numbers that the network holds, fixed ones (LeNet-5's codes) included, running statistics and
            heads that only train not.
        macs: Multiply-accumulates of convolutions and fully connected layers for one picture, without biases.
        builder: ``module:function`` that makes the network.
        arguments: What the builder is given besides classes, channels and options; it tells the members of a family.
        options: What ``build`` takes besides, with the allowed values, the default first.
        summary: One line.
        source: Paper and table.
        content_size: Pictures are resized to this and padded with zeros to the input; None: resized to the input.
        reads_grey: Pictures are turned grey even where the dataset is coloured.
        any_size: Takes pictures of other sizes than ``input``; the module says from which size on.
        head: Name of the layer whose shape follows the number of classes.
        classifier: Prefixes of the layers that are trained when the features are frozen.
        torchvision: The constructor in ``torchvision.models`` whose state dicts fit; None where there is none.
    """

    name: str
    family: str
    year: int
    input: tuple[int, int, int]
    classes: int
    parameters: int
    macs: int
    builder: str
    summary: str
    source: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_size: int | None = None
    reads_grey: bool = False
    any_size: bool = False
    head: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    torchvision: str | None = None

    def __post_init__(self) -> None:
        for name in ("options", "arguments"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
