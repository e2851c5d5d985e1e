"""The reference networks: a table that needs no torch, and the function that builds one of them.

A family is one file; its networks are the rows of ``_TABLE``. Parameters and MACs (multiply-accumulates of convolutions
and fully connected layers, biases left out, for one picture) are literal numbers that the tests recompute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from deploykit.errors import InputError, MissingDependencyError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NetworkSpec", "build", "names", "spec"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One reference network, as it is without options.

    Attributes:
        input: Channels, height and width of the input.
        classes: Number of logits.
        parameters: Numbers that the network holds, fixed ones (LeNet-5's codes) included, running statistics not.
        macs: Multiply-accumulates of convolutions and fully connected layers for one picture, without biases.
        builder: ``module:function`` that makes the network.
        options: What ``build`` takes besides, with the allowed values, the default first.
        summary: One line.
        source: Paper and table.
        content_size: Pictures are resized to this and padded with zeros to the input; None: resized to the input.
        reads_grey: Pictures are turned grey even where the dataset is coloured.
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
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_size: int | None = None
    reads_grey: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


def _lenet(
    name: str,
    year: int,
    size: int,
    parameters: int,
    macs: int,
    builder: str,
    summary: str,
    source: str,
    options: Mapping[str, tuple[str, ...]] | None = None,
) -> NetworkSpec:
    return NetworkSpec(
        name=name,
        family="lenet",
        year=year,
        input=(1, size, size),
        classes=10,
        parameters=parameters,
        macs=macs,
        builder=f"deploykit.models.lenet:{builder}",
        summary=summary,
        source=source,
        options=options or {},
        content_size=28 if size == 32 else None,  # LeCun et al. 1998: digits of 20×20, centred by mass in 28×28
    )


def _small(
    name: str, shape: tuple[int, int, int], classes: int, parameters: int, macs: int, builder: str, summary: str
) -> NetworkSpec:
    plain = name.endswith("-mlp")
    return NetworkSpec(
        name=name,
        family="small",
        year=2020,
        input=shape,
        classes=classes,
        parameters=parameters,
        macs=macs,
        builder=f"deploykit.models.small:{builder}",
        summary=summary,
        source="lecture notes, chapter 18" + (" (sizes chosen here)" if plain else ""),
        reads_grey=name == "color-mlp",
    )


_GREY28, _COLOR28, _COLOR32 = (1, 28, 28), (3, 28, 28), (3, 32, 32)

_TABLE = (
    _lenet(
        *("lenet1", 1990, 28, 2_578, 91_520, "lenet1", "two convolutions, two trainable poolings, output"),
        source="LeCun et al. 1990, section 4 and table 1",
    ),
    _lenet(
        *("lenet4", 1995, 32, 16_998, 243_600, "lenet4", "LeNet-1, wider, plus one fully connected layer"),
        source="LeCun et al. 1995, section on LeNet 4",
    ),
    _lenet(
        *("lenet5-1998", 1998, 32, 60_850, 326_520, "lenet5_1998"),
        summary="sparse C3, trainable pooling, radial basis output",
        source="LeCun et al. 1998, section II.B and table I",
    ),
    _lenet(
        *("lenet5", 1998, 32, 61_706, 416_520, "lenet5", "LeNet-5 as it is built today"),
        source="after LeCun et al. 1998, figure 2",
        options={"activation": ("relu", "tanh"), "pooling": ("max", "average")},
    ),
    _small("color-cnn", _COLOR28, 6, 3_815, 16_128, "color_cnn", "six colours; 1×1 and 3×3 kernels"),
    # The notes' plain colour network reads 1×784: from grey values it must guess the colour.
    _small("color-mlp", _GREY28, 6, 109_510, 108_928, "small_mlp", "six colours from grey, fully connected"),
    _small("shape-cnn", _GREY28, 5, 19_941, 240_928, "shape_cnn", "five shapes; 3×3 kernels"),
    _small("shape-mlp", _GREY28, 5, 109_445, 108_864, "small_mlp", "five shapes, fully connected"),
    _small("color-shape-cnn", _COLOR28, 9, 20_217, 353_952, "shape_cnn", "three shapes in three colours; 3×3 kernels"),
    _small(
        "color-shape-mlp", _COLOR28, 9, 310_409, 309_824, "small_mlp", "three shapes in three colours, fully connected"
    ),
    _small("mnist-cnn", _GREY28, 10, 12_042, 328_512, "digit_cnn", "digits; 5×5 kernels"),
    _small("mnist-mlp", _GREY28, 10, 109_770, 109_184, "small_mlp", "digits, fully connected"),
    _small("fashion-cnn", _GREY28, 10, 12_042, 328_512, "digit_cnn", "clothes; mnist-cnn's pattern"),
    _small("fashion-mlp", _GREY28, 10, 109_770, 109_184, "small_mlp", "clothes, fully connected"),
    _small(
        "cifar-cnn", _COLOR32, 10, 1_250_858, 20_741_120, "cifar_cnn", "photos; two groups of two convolutions, dropout"
    ),
    _small("cifar-mlp", _COLOR32, 10, 1_641_610, 1_639_680, "cifar_mlp", "photos, fully connected"),
)

_SPECS = {entry.name: entry for entry in sorted(_TABLE, key=lambda entry: (entry.family, entry.year))}


def names() -> list[str]:
    """The networks' names, by family, then year."""
    return list(_SPECS)


def spec(name: str) -> NetworkSpec:
    """The row of one network. Raises: UnknownNameError, with the near match."""
    if name not in _SPECS:
        raise UnknownNameError("network", name, _SPECS)
    return _SPECS[name]


def build(name: str, num_classes: int | None = None, in_channels: int | None = None, **options: str) -> nn.Module:
    """Builds a network with fresh weights, drawn from torch's default generator, in training mode.

    Args:
        name: One of ``names()``.
        num_classes: Number of logits, 2 or more; the table's when None.
        in_channels: 1 (grey) or 3 (colour); the table's when None.
        options: See ``NetworkSpec.options``.

    Returns:
        A module from N×in_channels×H×W to logits of N×num_classes, H and W being the table's.

    Raises:
        UnknownNameError: No such network.
        InputError: An option, a value, a number of classes or of channels that is not allowed.
        MissingDependencyError: torch is not installed.
    """
    entry = spec(name)
    classes = entry.classes if num_classes is None else num_classes
    channels = entry.input[0] if in_channels is None else in_channels
    if classes < 2:
        raise InputError(f"{name} with {classes} classes; allowed: 2 or more")
    if channels not in (1, 3):
        raise InputError(f"{name} with {channels} input channels; allowed: 1 (grey) or 3 (colour)")
    _check_options(entry, options)
    module, function = entry.builder.split(":")
    try:
        builder = getattr(import_module(module), function)
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.split(".")[0] != "torch":
            raise
        raise MissingDependencyError("torch", "torch", f"building {name}") from problem
    network: nn.Module = builder(num_classes=classes, in_channels=channels, **options)
    return network


def _check_options(entry: NetworkSpec, options: Mapping[str, str]) -> None:
    for key, value in options.items():
        if key not in entry.options:
            allowed = ", ".join(entry.options) or "none"
            raise InputError(f"{entry.name} has no option {key!r}; allowed: {allowed}")
        if value not in entry.options[key]:
            raise InputError(f"{entry.name} option {key}={value!r}; allowed: {', '.join(entry.options[key])}")
