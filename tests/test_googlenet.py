"""Both GoogLeNets: the paper's table 1, the heads that only train, small pictures."""

import copy
import functools
from collections import Counter

import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit import models
from deploykit.errors import InputError
from deploykit.export import export_onnx
from deploykit.models.googlenet import HeadPool
from deploykit.models.pictures import TrainingLogits
from deploykit.models.profile import profile_module

BOTH = ("googlenet", "googlenet-bn")

# Szegedy et al. 2015, table 1: output size; millions of operations where the row's branches give what is printed.
TABLE_1 = {
    "inception3a": ((256, 28, 28), 128),
    "inception3b": ((480, 28, 28), 304),
    "maxpool3": ((480, 14, 14), None),
    "inception4a": ((512, 14, 14), None),  # 73.6, printed 73
    "inception4b": ((512, 14, 14), 88),
    "inception4c": ((512, 14, 14), 100),
    "inception4d": ((528, 14, 14), 119),
    "inception4e": ((832, 14, 14), 170),
    "maxpool4": ((832, 7, 7), None),
    "inception5a": ((832, 7, 7), None),  # 51, printed 54
    "inception5b": ((1024, 7, 7), 71),
    "avgpool": ((1024, 1, 1), None),
}


@functools.cache
def on_meta(name, *arguments, **options):
    """Shapes without memory."""
    with torch.device("meta"):
        return models.build(name, *arguments, **options).eval()


def course(module, height, width):
    """The layers that run, in order, each with the shape of its answer."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _, given, answer, part=part: seen.append((part, tuple(answer.shape[1:]))))
        for part, layer in module.named_children()
    ]
    module(torch.empty(1, 3, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", BOTH)
def test_output_sizes_are_table_1s(name):
    sizes = dict(course(on_meta(name), 224, 224))
    assert {part: sizes[part] for part in TABLE_1} == {part: size for part, (size, _) in TABLE_1.items()}
    assert sizes["maxpool1"] == (64, 56, 56)
    assert sizes["maxpool2"] == (192, 28, 28)


def test_operations_are_table_1s():
    found = Counter()
    for layer in profile_module(on_meta("googlenet"), (3, 224, 224)).layers:
        found[layer.name.split(".")[0]] += layer.macs
    printed = {part: operations for part, (_, operations) in TABLE_1.items() if operations}
    assert {part: round(found[part] / 1e6) for part in printed} == printed
    assert round((found["conv2_reduce"] + found["conv2"]) / 1e6) == 360


def test_the_stem_is_figure_3s():
    order = [part for part, _ in course(on_meta("googlenet"), 224, 224)]
    assert order[:10] == [
        *("conv1", "relu", "maxpool1", "norm1"),
        *("conv2_reduce", "relu", "conv2", "relu", "norm2", "maxpool2"),
    ]


@pytest.mark.parametrize(("name", "held"), [("googlenet", 13_378_280), ("googlenet-bn", 13_004_888)])
def test_the_heads_are_held_and_do_not_run(name, held):
    module = on_meta(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == held
    assert not {"aux1", "aux2"} & dict(course(module, 224, 224)).keys()
    assert {"aux1", "aux2"} <= dict(course(copy.deepcopy(module).train(), 224, 224)).keys()


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("options", "height", "width"), [({}, 31, 77), ({"pictures": "small"}, 9, 32)])
def test_training_answers_with_the_heads(name, options, height, width):
    module, pictures = models.build(name, 5, 1, **options), torch.randn(3, 1, height, width)
    answer = module(pictures)
    assert isinstance(answer, TrainingLogits)
    assert [logits.shape for logits in (answer.logits, *answer.auxiliary)] == [(3, 5)] * 3
    assert module.auxiliary_weight == 0.3
    logits = module.eval()(pictures)
    assert isinstance(logits, Tensor) and logits.shape == (3, 5) and logits.isfinite().all()


def test_the_heads_stand_after_4a_and_4d():
    module = models.build("googlenet", 3)
    for index, (reached, beyond) in enumerate([("inception4a", "inception4b"), ("inception4d", "inception4e")]):
        module.zero_grad()
        module(torch.randn(2, 3, 48, 48)).auxiliary[index].sum().backward()
        assert module.get_submodule(reached).conv3x3.weight.grad.abs().sum() > 0
        assert module.get_submodule(beyond).conv3x3.weight.grad is None


def test_the_heads_pool_as_section_5_says_and_fit_other_sizes():
    x = torch.randn(2, 3, 14, 14)
    expected = x[..., 3:8, 6:11].mean(dim=(2, 3))  # the window of row 1, column 2
    torch.testing.assert_close(HeadPool()(x)[..., 1, 2], expected)
    for side in (1, 2, 4, 8, 15):
        assert HeadPool()(torch.randn(1, 3, side, side + 3)).shape == (1, 3, 4, 4)


def test_dropouts():
    """Section 5 and table 1; torchvision's answer drops 20 %."""
    for name, answer in zip(BOTH, (0.4, 0.2), strict=True):
        rates = {part: layer.p for part, layer in on_meta(name).named_modules() if isinstance(layer, nn.Dropout)}
        assert rates == {"aux1.dropout": 0.7, "aux2.dropout": 0.7, "dropout": answer}


@pytest.mark.parametrize("name", BOTH)
def test_small_pictures_keep_their_sides_until_3b(name):
    small = on_meta(name, 10, pictures="small")
    sizes = dict(course(small, 32, 32))
    assert sizes["inception3b"] == (480, 32, 32)
    assert sizes["inception4e"] == (832, 16, 16)
    assert sizes["inception5b"] == (1024, 8, 8)
    large = on_meta(name, 10).state_dict()
    differing = [key for key, tensor in small.state_dict().items() if tensor.shape != large[key].shape]
    assert differing == ["conv1.weight" if name == "googlenet" else "conv1.conv.weight"]
    assert set(large) == set(small.state_dict())


@pytest.mark.parametrize(
    ("name", "pictures", "smallest"),
    [
        ("googlenet", "large", 31),
        ("googlenet", "small", 4),
        ("googlenet-bn", "large", 15),  # as torchvision's own ``min_size``
        ("googlenet-bn", "small", 2),
    ],
)
def test_the_smallest_picture(name, pictures, smallest):
    module = on_meta(name, 5, pictures=pictures)
    assert module(torch.empty(2, 3, smallest, 99, device="meta")).shape == (2, 5)
    with pytest.raises(InputError, match=f"pictures of {smallest - 1}×99; allowed: {smallest}×{smallest} or more"):
        module(torch.empty(2, 3, smallest - 1, 99, device="meta"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "height", "width", "norms"), [("googlenet", 31, 45, 2), ("googlenet-bn", 40, 15, 0)])
def test_no_head_is_exported_even_in_training_mode(name, height, width, norms, tmp_path):
    """Parity is checked by the export itself, which leaves the mode as it was."""
    module = models.build(name, 3).train()
    export_onnx(module, tmp_path / "model.onnx", example=torch.randn(2, 3, height, width))
    assert module.training
    graph = onnx.load(tmp_path / "model.onnx").graph
    found = Counter(node.op_type for node in graph.node)
    assert [output.name for output in graph.output] == ["logits"]
    assert (found["Conv"], found["LRN"], found["MaxPool"], found["Concat"], found["Gemm"]) == (57, norms, 13, 9, 1)
    assert set(found) <= {"Conv", "Relu", "MaxPool", "LRN", "Concat", "AveragePool", "Reshape", "Gemm"}
    assert not any("aux" in weight.name for weight in graph.initializer)
