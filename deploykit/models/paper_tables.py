"""The tables of the networks' papers as data: which modules make one row, what it is called, and what is printed there.

``stage_rows`` turns the layers of a profile into these rows. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PUBLISHED", "PUBLISHED_ROWS", "SEQUENCES", "TABLES", "Row", "Sequence"]


@dataclass(frozen=True)
class Row:
    """The layers of one row.

    Attributes:
        pattern: Matches the start of the layers' names, whole parts of them.
        name: Of the row; ``\\1`` is the pattern's first group.
        op: What it is made of; see ``stage_rows`` for what stands in braces. Empty: the first layer's operator.
        block: Matches what the names of one block of the row begin with.
    """

    pattern: str
    name: str
    op: str = ""
    block: str = ""


@dataclass(frozen=True)
class Sequence:
    """The names of the rows of a network that is one layer after the other; ``{n}`` counts, ``{side}`` and ``{out}``
    are the kernel's side and the channels or units.
    """

    convolution: str
    pooling: str
    linear: str


# LeCun et al. 1990, 1995 and 1998 name the layers as the modules are named.
_LENET = tuple(
    Row(name, name.upper() if name != "output" else name)
    for name in ("h1", "h2", "h3", "h4", "c1", "s2", "c3", "s4", "c5", "f6", "output")
)

# Jia et al. 2014, lenet.prototxt; fc1 and fc2 as Han et al. 2016, section 5.1, call them.
_LENET_CAFFE = (
    Row("conv1", "conv1", "convolution {kernel}"),
    Row("conv2", "conv2", "convolution {kernel}"),
    Row("pool[12]", "max pool", "{kernel}"),
    Row("ip1", "fc1", "inner product"),
    Row("ip2", "fc2", "inner product"),
)

# Szegedy et al. 2015, table 1: the 3×3 convolution and its 1×1 reduction are one row of depth 2.
_GOOGLENET = (
    Row("conv1", "conv1", "convolution {kernel}"),
    Row(r"conv[23]\w*", "conv2", "convolution {kernel}"),
    Row(r"inception(\d\w)", r"inception (\1)", "inception {branches}"),
    Row(r"maxpool\d?|pool\d", "max pool", "{kernel}"),
    Row("avgpool", "avg pool"),
    Row("linear|fc", "linear"),
)

# He et al. 2016, table 1.
_RESNET = (
    Row("conv1|bn1", "conv1", "{blocks}"),
    Row("maxpool", "max pool", "{kernel}"),
    *(Row(f"layer{n}", f"conv{n + 1}_x", "{blocks}", block=rf"layer{n}\.\d+") for n in (1, 2, 3, 4)),
    Row("avgpool", "average pool"),
    Row("fc", "fc"),
)

# Huang et al. 2017, table 1.
_DENSENET = (
    Row(r"features\.(?:conv0|norm0)", "convolution", "{blocks}"),
    Row(r"features\.pool0", "pooling", "{kernel}"),
    Row(
        r"features\.denseblock(\d)",
        r"dense block (\1)",
        "{blocks}",
        block=r"features\.denseblock\d\.denselayer\d+",
    ),
    Row(r"features\.transition(\d)", r"transition (\1)", "1×1 conv, 2×2 average pool"),
    Row(r"features\.norm5|avgpool|classifier", "classification", "global average pool, fully connected"),
)

# Iandola et al. 2016, table 1; the modules of version 1.1 are counted from fire2 as there.
_SQUEEZENET = (
    Row(r"features\.0", "conv1", "{blocks}"),
    Row(r"features\.(?:2|5|8)", "max pool", "{kernel}"),
    *(
        Row(rf"features\.{index}", f"fire{number}", "fire {fire}")
        for number, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
    ),
    Row(r"classifier\.1", "conv10", "{blocks}"),
    Row(r"classifier\.3", "avg pool"),
)

# Sandler et al. 2018, table 2: expansion t, channels c, repeated n times, stride s.
_MOBILENET_V2 = (
    Row(r"features\.0", "conv2d", "{kernel}"),
    *(
        Row(
            rf"features\.(?:{blocks})",
            f"bottleneck {number}",
            f"t={t}, c={{out}}, n={{count}}, s={{stride}}",
            block=r"features\.\d+",
        )
        for number, (t, blocks) in enumerate(
            ((1, "1"), (6, "2|3"), (6, "4|5|6"), (6, "7|8|9|10"), (6, "11|12|13"), (6, "14|15|16"), (6, "17")), start=1
        )
    ),
    Row(r"features\.18", "conv2d 1×1", "{kernel}"),
    Row("avgpool", "avgpool"),
    Row(r"classifier\.1", "linear"),
)

# Howard et al. 2019, table 2: RE is ReLU, HS hard swish, SE squeeze and excitation.
_MOBILENET_V3 = (
    Row(r"features\.0", "conv2d", "{kernel}, HS"),
    *(
        Row(rf"features\.{number}", f"bneck {number}", f"{{bneck}}, {'RE' if number <= 3 else 'HS'}, s={{stride}}")
        for number in range(1, 12)
    ),
    Row(r"features\.12", "conv2d 1×1", "{kernel}, HS"),
    Row("avgpool", "pool"),
    Row(r"classifier\.0", "fc 1", "HS"),
    Row(r"classifier\.3", "fc 2"),
)

TABLES: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {
        "lenet": _LENET,
        "lenet-caffe": _LENET_CAFFE,
        "googlenet": _GOOGLENET,
        "resnet": _RESNET,
        "densenet": _DENSENET,
        "squeezenet1.1": _SQUEEZENET,
        "mobilenet-v2": _MOBILENET_V2,
        "mobilenet-v3-small": _MOBILENET_V3,
    }
)
"""Rows by a network's name, or by its family where its members share them."""

SEQUENCES: Mapping[str, Sequence] = MappingProxyType(
    {
        # Krizhevsky et al. 2012 and Zeiler & Fergus 2014 number the layers; the lecture notes call them C1 to F8.
        "alexnet": Sequence("C{n}", "max pool", "F{n}"),
        "zfnet": Sequence("C{n}", "max pool", "F{n}"),
        # Simonyan & Zisserman 2015, table 1.
        "vgg": Sequence("conv{side}-{out}", "maxpool", "FC-{out}"),
    }
)
"""Names of rows by family, for networks whose rows follow from the order of their layers."""

# Szegedy et al. 2015, table 1, columns "params" (K is 1,024) and "ops" (M is 10⁶).
_GOOGLENET_PRINTED = {
    "conv1": "2.7K 34M",
    "conv2": "112K 360M",
    "inception (3a)": "159K 128M",
    "inception (3b)": "380K 304M",
    "inception (4a)": "364K 73M",
    "inception (4b)": "437K 88M",
    "inception (4c)": "463K 100M",
    "inception (4d)": "580K 119M",
    "inception (4e)": "840K 170M",
    "inception (5a)": "1072K 54M",
    "inception (5b)": "1388K 71M",
    "linear": "1000K 1M",
}

PUBLISHED_ROWS: Mapping[str, Mapping[str, str]] = MappingProxyType({"googlenet": MappingProxyType(_GOOGLENET_PRINTED)})
"""What the paper prints beside a row, as it stands there, by the network and the row's name."""

_SIMONYAN = "Simonyan & Zisserman 2015, table 2: {} M parameters"
_HE = "He et al. 2016, table 1: {} ×10⁹ FLOPs"
_STRIDE = _HE + ", with the stride in a bottleneck's first 1×1; here it is in the 3×3, 0.23 ×10⁹ more"

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "lenet5-1998": "LeCun et al. 1998: 340,908 connections, 60,000 trainable parameters; the output's codes do not"
        " train and have no bias there (lecture notes: 340,918 and 60,850, as here)",
        "alexnet": "lecture notes: 60,965,128 parameters, without the 96 biases of C1",
        **{name: _SIMONYAN.format(133) for name in ("vgg11", "vgg11-lrn", "vgg13")},
        **{"vgg16-c": _SIMONYAN.format(134), "vgg16": _SIMONYAN.format(138), "vgg19": _SIMONYAN.format(144)},
        "googlenet": "Szegedy et al. 2015, table 1, K being 1,024: its first row counts 7×1 and 1×7 for 7×7 (2,688"
        " weights and 34M; there are 9,408 and 118M); 4a and 4c to 5b are 1 to 7 % off what its own columns"
        " give",
        "resnet18": _HE.format(1.8),
        "resnet34": _HE.format(3.6),
        "resnet50": _STRIDE.format(3.8),
        "resnet101": _STRIDE.format(7.6),
        "resnet152": _STRIDE.format(11.3),
    }
)
"""What the paper prints of the whole network as built without options, and why ours differs, by the network's name."""
