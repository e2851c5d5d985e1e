"""The table of the reference networks. It needs no torch; the tests recompute its numbers.

Parameters and MACs (multiply-accumulates of convolutions and fully connected layers, biases left out) are for one
picture of the row's size and the row's number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from deploykit.models.network_spec import NetworkSpec

__all__ = ["TABLE"]


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
    head: tuple[str, ...] = ("output",),
    classifier: tuple[str, ...] = ("c5", "f6", "output"),
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
        head=head,
        classifier=classifier,
    )


def _small(
    name: str, shape: tuple[int, int, int], classes: int, parameters: int, macs: int, builder: str, summary: str
) -> NetworkSpec:
    plain = name.endswith("-mlp")
    head = "fc3" if plain else "fc2"
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
        head=(head,),
        classifier=(head,) if plain else ("fc1", "norm1", "fc2"),
    )


def _photo(
    name: str,
    family: str,
    year: int,
    parameters: int,
    macs: int,
    builder: str,
    summary: str,
    source: str,
    *,
    size: int = 224,
    head: str | tuple[str, ...],
    classifier: str | tuple[str, ...] = (),
    arguments: Mapping[str, str] | None = None,
    options: Mapping[str, tuple[str, ...]] | None = None,
    torchvision: str | None = None,
) -> NetworkSpec:
    """A network for photos: ImageNet's 1,000 classes, colour, any size of picture from its smallest on."""
    heads = (head,) if isinstance(head, str) else head
    trained = (classifier,) if isinstance(classifier, str) else classifier
    return NetworkSpec(
        name=name,
        family=family,
        year=year,
        input=(3, size, size),
        classes=1000,
        parameters=parameters,
        macs=macs,
        builder=f"deploykit.models.{builder}",
        summary=summary,
        source=source,
        arguments=arguments or {},
        options=options or {},
        any_size=True,
        head=heads,
        classifier=trained or heads,
        torchvision=torchvision,
    )


def _vgg(
    name: str,
    configuration: str,
    parameters: int,
    macs: int,
    summary: str,
    torchvision: str | None = None,
    *,
    convolution_channels: int,
) -> tuple[NetworkSpec, NetworkSpec]:
    """A configuration of VGG's table 1, and its twin with BatchNorm: a scale and a shift for each channel more."""

    def row(name: str, parameters: int, norm: str, summary: str, torchvision: str | None) -> NetworkSpec:
        return _photo(
            *(name, "vgg", 2014, parameters, macs, "vgg:vgg", summary),
            source="Simonyan & Zisserman 2015, table 1" + (" (BatchNorm after it)" if norm == "batch" else ""),
            head="classifier.6",
            classifier="classifier",
            arguments={"configuration": configuration, "norm": norm},
            options=PICTURES,
            torchvision=torchvision,
        )

    with_norm = parameters + 2 * convolution_channels
    return (
        row(name, parameters, "none", summary, torchvision),
        row(f"{name}-bn", with_norm, "batch", f"{summary}, BatchNorm", torchvision and f"{torchvision}_bn"),
    )


PICTURES = {"pictures": ("large", "small")}
"""Whether the network is for photos (as in its paper) or has the field's variant for small ones, such as 32×32."""

_RESNET_OPTIONS = PICTURES | {"width": ("64", "32", "16")}

_GREY28, _COLOR28, _COLOR32 = (1, 28, 28), (3, 28, 28), (3, 32, 32)

_LENET = (
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
    _lenet(
        *("lenet-caffe", 2014, 28, 431_080, 2_293_000, "lenet_caffe"),
        summary="20 and 50 maps, 500 units: what compression papers call LeNet-5",
        source="Jia et al. 2014, Caffe's lenet.prototxt; Han et al. 2016, section 5.1",
        head=("ip2",),
        classifier=("ip1", "ip2"),
    ),
)

_SMALL = (
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

_ALEXNET = (
    _photo(
        *("alexnet", "alexnet", 2012, 60_965_224, 724_406_816, "alexnet:alexnet"),
        summary="five convolutions, C2, C4 and C5 in two groups, LRN",
        source="Krizhevsky et al. 2012, figure 2 and section 3.5",
        size=227,
        head="f8",
        classifier=("f6", "f7", "f8"),
    ),
    _photo(
        *("alexnet-single", "alexnet", 2012, 62_378_344, 1_135_256_096, "alexnet:alexnet_single"),
        summary="AlexNet in one tower, LRN",
        source="Krizhevsky et al. 2012, both towers in one",
        size=227,
        head="f8",
        classifier=("f6", "f7", "f8"),
    ),
    _photo(
        *("alexnet-owt", "alexnet", 2014, 61_100_840, 714_188_480, "alexnet:alexnet_owt"),
        summary="AlexNet as torchvision has it, no LRN",
        source="Krizhevsky 2014, One weird trick",
        head="classifier.6",
        classifier="classifier",
        torchvision="alexnet",
    ),
)

_ZFNET = (
    _photo(
        *("zfnet", "zfnet", 2013, 62_357_608, 1_168_032_896, "zfnet:zfnet"),
        summary="AlexNet in one tower with 7×7 stride 2 at first, contrast normalisation",
        source="Zeiler & Fergus 2014, figure 3",
        head="f8",
        classifier=("f6", "f7", "f8"),
    ),
)

_VGG = (
    *_vgg(*("vgg11", "A", 132_863_336, 7_609_090_048, "8 convolutions", "vgg11"), convolution_channels=2_752),
    *_vgg(
        *("vgg11-lrn", "A-LRN", 132_863_336, 7_609_090_048, "8 convolutions, LRN after the first"),
        convolution_channels=2_752,
    ),
    *_vgg(*("vgg13", "B", 133_047_848, 11_308_466_176, "10 convolutions", "vgg13"), convolution_channels=2_944),
    *_vgg(
        *("vgg16-c", "C", 133_638_952, 11_770_888_192, "13 convolutions, three of them 1×1"),
        convolution_channels=4_224,
    ),
    *_vgg(*("vgg16", "D", 138_357_544, 15_470_264_320, "13 convolutions", "vgg16"), convolution_channels=4_224),
    *_vgg(*("vgg19", "E", 143_667_240, 19_632_062_464, "16 convolutions", "vgg19"), convolution_channels=5_504),
)

_GOOGLENET = (
    _photo(
        *("googlenet", "googlenet", 2014, 6_998_552, 1_582_671_872, "googlenet:googlenet"),
        summary="nine inception modules, LRN, 5×5 branches; two heads that only train",
        source="Szegedy et al. 2015, table 1",
        head=("linear", "aux1.linear", "aux2.linear"),
        classifier=("linear", "aux1", "aux2"),
        options=PICTURES,
    ),
    _photo(
        *("googlenet-bn", "googlenet", 2015, 6_624_904, 1_498_376_192, "googlenet:googlenet_bn"),
        summary="GoogLeNet as torchvision has it: BatchNorm, 3×3 for 5×5",
        source="after Szegedy et al. 2015; torchvision.models.googlenet",
        head=("fc", "aux1.fc2", "aux2.fc2"),
        classifier=("fc", "aux1", "aux2"),
        options=PICTURES,
        torchvision="googlenet",
    ),
)

_RESNET = tuple(
    _photo(
        *(f"resnet{depth}", "resnet", 2015, parameters, macs, "resnet:resnet", summary),
        source="He et al. 2016, table 1; stride in the 3×3 of a bottleneck",
        head="fc",
        arguments={"depth": str(depth)},
        options=_RESNET_OPTIONS,
        torchvision=f"resnet{depth}",
    )
    for depth, parameters, macs, summary in (
        (18, 11_689_512, 1_814_073_344, "8 residual blocks of two 3×3"),
        (34, 21_797_672, 3_663_761_408, "16 residual blocks of two 3×3"),
        (50, 25_557_032, 4_089_184_256, "16 bottleneck blocks"),
        (101, 44_549_160, 7_801_405_440, "33 bottleneck blocks"),
        (152, 60_192_808, 11_513_626_624, "50 bottleneck blocks"),
    )
)

_DENSENET = tuple(
    _photo(
        *(f"densenet{depth}", "densenet", 2017, parameters, macs, "densenet:densenet", summary),
        source="Huang et al. 2017, table 1; growth rate 32",
        head="classifier",
        arguments={"depth": str(depth)},
        options=PICTURES,
        torchvision=f"densenet{depth}" if depth != 264 else None,
    )
    for depth, parameters, macs, summary in (
        (121, 7_978_856, 2_834_161_664, "58 dense layers in four blocks"),
        (169, 14_149_480, 3_359_843_328, "82 dense layers in four blocks"),
        (201, 20_013_928, 4_291_365_888, "98 dense layers in four blocks"),
        (264, 33_337_704, 5_751_653_376, "130 dense layers in four blocks"),
    )
)

_MOBILE = (
    _photo(
        *("squeezenet1.1", "mobile", 2016, 1_235_496, 349_151_936, "mobile:squeezenet"),
        summary="eight fire modules, no fully connected layer",
        source="Iandola et al. 2016; version 1.1 of the authors' repository",
        head="classifier.1",
        classifier="classifier",
        torchvision="squeezenet1_1",
    ),
    _photo(
        *("mobilenet-v2", "mobile", 2018, 3_504_872, 300_774_272, "mobile:mobilenet_v2"),
        summary="17 inverted residuals",
        source="Sandler et al. 2018, table 2",
        head="classifier.1",
        classifier="classifier",
        options=PICTURES,
        torchvision="mobilenet_v2",
    ),
    _photo(
        *("mobilenet-v3-small", "mobile", 2019, 2_542_856, 56_510_400, "mobile:mobilenet_v3_small"),
        summary="11 inverted residuals, squeeze and excitation, hard swish",
        source="Howard et al. 2019, table 2",
        head="classifier.3",
        classifier="classifier",
        options=PICTURES,
        torchvision="mobilenet_v3_small",
    ),
)

TABLE = (*_LENET, *_SMALL, *_ALEXNET, *_ZFNET, *_VGG, *_GOOGLENET, *_RESNET, *_DENSENET, *_MOBILE)
