"""VGG against its paper's tables; fitting to 7×7; what small pictures get."""

import functools
from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.errors import InputError
from deploykit.export import export_onnx
from deploykit.models.pictures import FitPool
from deploykit.models.response_norm import LocalResponseNorm

# Simonyan & Zisserman 2015, tables 1 and 2: weight layers, parameters in millions.
PUBLISHED = {
    "vgg11": (11, 133),
    "vgg11-lrn": (11, 133),
    "vgg13": (13, 133),
    "vgg16-c": (16, 134),
    "vgg16": (16, 138),
    "vgg19": (19, 144),
}


@functools.cache
def on_meta(name, *arguments, **options):
    """Shapes without memory."""
    with torch.device("meta"):
        return models.build(name, *arguments, **options).eval()


def weighted(module):
    return [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_and_parameters_are_the_papers(name):
    layers, millions = PUBLISHED[name]
    module = on_meta(name)
    assert len(weighted(module)) == layers
    assert round(sum(parameter.numel() for parameter in module.parameters()) / 1e6) == millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_twin_has_a_batch_norm_after_each_convolution(name):
    plain, twin = on_meta(name), on_meta(f"{name}-bn")
    layers = list(twin.features)
    norms = [index for index, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm2d)]
    assert all(isinstance(layers[index - 1], nn.Conv2d) for index in norms)
    without = [str(layer) for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
    assert without == [str(layer) for layer in plain.features]
    assert len(norms) == len(weighted(plain)) - 3


def test_configuration_c_has_a_1x1_at_the_end_of_the_last_three_blocks():
    sizes = [layer.kernel_size[0] for layer in on_meta("vgg16-c").features if isinstance(layer, nn.Conv2d)]
    assert sizes == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


def test_a_lrn_normalises_after_the_first_relu():
    layers = list(on_meta("vgg11-lrn").features)
    assert [type(layer) for layer in layers[:4]] == [nn.Conv2d, nn.ReLU, LocalResponseNorm, nn.MaxPool2d]
    assert sum(isinstance(layer, LocalResponseNorm) for layer in layers) == 1


def test_small_pictures_have_a_small_head_of_the_same_names():
    small, large = (on_meta("vgg16", 10, pictures=pictures) for pictures in ("small", "large"))
    assert set(small.state_dict()) == set(large.state_dict())
    assert [tuple(layer.weight.shape) for layer in weighted(small)[-3:]] == [(512, 512), (512, 512), (10, 512)]
    assert sum(parameter.numel() for parameter in small.parameters()) == 14_714_688 + 2 * 262_656 + 5_130
    sides = []
    small.features.register_forward_hook(lambda layer, given, answer: sides.append(answer.shape[2:]))
    small(torch.empty(1, 3, 32, 32, device="meta"))
    assert sides == [(1, 1)]


@pytest.mark.parametrize("pictures", ["large", "small"])
def test_the_smallest_picture(pictures):
    module = on_meta("vgg11", 5, 1, pictures=pictures)
    assert module(torch.empty(2, 1, 32, 200, device="meta")).shape == (2, 5)
    with pytest.raises(InputError, match="pictures of 31×200; allowed: 32×32 or more"):
        module(torch.empty(2, 1, 31, 200, device="meta"))


@pytest.mark.parametrize("size", [1, 4, 6, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 7), (7, 8), (14, 21), (3, 2), (12, 24), (13, 40)])
def test_fitting_is_adaptive_average_pooling(size, height, width):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(FitPool(size)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "options", "operators"),
    [
        ("vgg11", (3, 50, 70), {}, {"Conv": 8, "Relu": 10, "MaxPool": 5, "MatMul": 2, "Gemm": 3}),
        (
            "vgg11-lrn-bn",
            (1, 45, 64),
            {"pictures": "small"},
            {"Conv": 8, "Relu": 10, "LRN": 1, "MaxPool": 5, "Gemm": 3},
        ),
    ],
)
def test_the_exported_operators(name, shape, options, operators, tmp_path):
    """Parity is checked by the export itself; at odd sizes the last pixels are fitted by two matrix products."""
    module = models.build(name, 3, shape[0], **options)
    export_onnx(module, tmp_path / "model.onnx", example=torch.randn(2, *shape))
    found = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert {op: found[op] for op in operators} == operators
    assert set(found) - set(operators) <= {"Reshape", "AveragePool"}
