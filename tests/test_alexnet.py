"""AlexNet and ZFNet against what their papers say, layer by layer."""

import copy
import functools
from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.errors import InputError
from deploykit.export import export_onnx
from deploykit.models.response_norm import LocalResponseNorm


@functools.cache
def on_meta(name, *arguments):
    """Shapes without memory."""
    with torch.device("meta"):
        return models.build(name, *arguments).eval()


def course(name, height, width):
    """The layers in the order in which they run, each with the shape of its answer."""
    module, seen = on_meta(name), []
    hooks = [
        layer.register_forward_hook(lambda _, given, answer, part=part: seen.append((part, tuple(answer.shape[1:]))))
        for part, layer in module.named_children()
    ]
    module(torch.empty(1, 3, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


def test_alexnets_kernels_are_those_of_section_3_5():
    """96 of 11×11×3, 256 of 5×5×48, 384 of 3×3×256, 384 of 3×3×192, 256 of 3×3×192."""
    kernels = {"c1": (96, 3, 11), "c2": (256, 48, 5), "c3": (384, 256, 3), "c4": (384, 192, 3), "c5": (256, 192, 3)}
    module = on_meta("alexnet")
    assert {name: tuple(module.get_submodule(name).weight.shape[:3]) for name in kernels} == kernels
    assert [module.get_submodule(name).groups for name in kernels] == [1, 2, 1, 2, 2]
    assert [layer.groups for layer in on_meta("alexnet-single").children() if isinstance(layer, nn.Conv2d)] == [1] * 5


def test_alexnets_neurons_are_those_of_section_3_5():
    """Its first number, 253,440, is not 55·55·96 = 290,400, which the paper's own figure 2 shows."""
    sizes = {name: torch.Size(shape).numel() for name, shape in course("alexnet", 227, 227)}
    counted = [sizes[name] for name in ("c1", "c2", "c3", "c4", "c5", "f6", "f7", "f8")]
    assert counted == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


def test_alexnets_parameters_are_the_lecture_notes_and_c1s_biases():
    assert models.spec("alexnet").parameters == 60_965_128 + 96


def test_alexnet_normalises_before_it_pools():
    order = [name for name, _ in course("alexnet", 227, 227)]
    assert order[:8] == ["c1", "relu", "norm1", "pool1", "c2", "relu", "norm2", "pool2"]
    assert order[8:] == ["c3", "relu", "c4", "relu", "c5", "relu", "pool5", "fit"] + [
        *("f6", "relu", "drop6", "f7", "relu", "drop7", "f8")
    ]
    norm = on_meta("alexnet").norm2
    assert (norm.n, norm.alpha, norm.beta, norm.k) == (5, 1e-4, 0.75, 2.0)  # section 3.3


def test_a_tower_does_not_see_the_other_before_c3():
    c2 = copy.deepcopy(on_meta("alexnet").c2).to_empty(device="cpu")
    nn.init.normal_(c2.weight)
    x = torch.randn(1, 96, 27, 27, requires_grad=True)
    (first,) = torch.autograd.grad(c2(x)[:, :128].sum(), x)
    assert first[:, :48].abs().min() > 0
    assert first[:, 48:].abs().max() == 0


def test_zfnets_sides_are_those_of_figure_3():
    seen = dict(course("zfnet", 224, 224))
    sides = [seen[name] for name in ("c1", "pool1", "c2", "pool2", "c3", "c4", "c5", "pool5")]
    assert sides == [
        *((96, 110, 110), (96, 55, 55), (256, 26, 26), (256, 13, 13)),
        *((384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)),
    ]


def test_zfnet_normalises_after_it_pools():
    order = [name for name, _ in course("zfnet", 224, 224)]
    assert order[:8] == ["c1", "relu", "pool1", "norm1", "c2", "relu", "pool2", "norm2"]


def test_the_one_tower_of_2014_has_no_normalisation():
    module = on_meta("alexnet-owt")
    assert not any(isinstance(layer, LocalResponseNorm) for layer in module.modules())
    assert [layer.out_channels for layer in module.features if isinstance(layer, nn.Conv2d)] == [64, 192, 384, 256, 256]


@pytest.mark.parametrize(
    ("name", "smallest"), [("alexnet", 67), ("alexnet-single", 67), ("alexnet-owt", 63), ("zfnet", 47)]
)
def test_the_smallest_picture(name, smallest):
    module = on_meta(name, 5, 1)
    assert module(torch.empty(2, 1, smallest, 301, device="meta")).shape == (2, 5)
    with pytest.raises(InputError, match=f"pictures of 301×{smallest - 1}; allowed: {smallest}×{smallest} or more"):
        module(torch.empty(2, 1, 301, smallest - 1, device="meta"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "height", "width", "operators"),
    [
        ("alexnet", 67, 100, {"Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "MatMul": 2, "Gemm": 3}),
        ("zfnet", 47, 47, {"Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "MatMul": 2, "Gemm": 3}),
    ],
)
def test_the_exported_operators(name, height, width, operators, tmp_path):
    """Parity is checked by the export itself."""
    module = models.build(name, 3)
    export_onnx(module, tmp_path / "model.onnx", example=torch.randn(2, 3, height, width))
    found = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert {op: found[op] for op in operators} == operators
    assert set(found) - set(operators) <= {"Reshape"}
