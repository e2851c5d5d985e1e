"""The networks that torchvision has too: the same state dicts, and the same logits from the same weights.

torchvision has no build for torch without CUDA. Its wheel, installed by ``pip install --no-deps``, imports once two
operators of its compiled part are declared; where it is absent these tests are skipped.
"""

from __future__ import annotations

import functools
import importlib
import sys

import pytest
import torch
from lived_in import live, without_dropout

from deploykit import models
from deploykit.models.pictures import TrainingLogits

SHARED = {name: models.spec(name).torchvision for name in models.names() if models.spec(name).torchvision}
# What a default run can afford at 224 pixels: one of each family that is cheap there.
AT_224 = ["alexnet-owt", "resnet18", "squeezenet1.1", "mobilenet-v3-small"]
AT_96 = [name for name in SHARED if name not in AT_224]


@pytest.fixture(scope="module")
def theirs():
    """torchvision's constructors, with random weights."""
    torchvision = _torchvision()

    def build(name, **arguments):
        if SHARED[name] == "googlenet":
            arguments["init_weights"] = True  # otherwise it warns
        return getattr(torchvision, SHARED[name])(weights=None, **arguments)

    return build


@functools.cache
def _torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half that was imported
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # its operators live as long as it does
    return importlib.import_module("torchvision.models")


_KEPT: list[torch.library.Library] = []


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same_logits(found, expected):
    """Within a hundred-thousandth of the largest."""
    largest = expected.abs().max()
    assert largest.isfinite() and expected.std() > 0
    assert (found - expected).abs().max() <= 1e-5 * largest


@pytest.mark.parametrize("name", SHARED)
def test_the_state_dict_is_torchvisions(name, theirs):
    with torch.device("meta"):
        our, their = models.build(name), theirs(name)
    expected = {key: (tensor.shape, tensor.dtype) for key, tensor in their.state_dict().items()}
    found = {key: (tensor.shape, tensor.dtype) for key, tensor in our.state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)


def _pair(name, theirs, size):
    """Both with torchvision's weights, made to look trained on pictures of this size."""
    torch.manual_seed(5)
    pictures = torch.randn(4, 3, *size)
    their = live(theirs(name, num_classes=20), pictures)
    with torch.device("meta"):
        our = models.build(name, 20)
    our.load_state_dict(their.state_dict(), assign=True)
    return our.eval(), their


def _sizes():
    for name in AT_224:
        yield pytest.param(name, (224, 224), id=f"{name}-224")
        yield pytest.param(name, (97, 131), id=f"{name}-odd")
    for name in AT_96:
        yield pytest.param(name, (96, 96), marks=pytest.mark.slow, id=f"{name}-96")
        yield pytest.param(name, (97, 131), marks=pytest.mark.slow, id=f"{name}-odd")


@pytest.mark.parametrize(("name", "size"), [*_sizes()])
def test_the_logits_are_torchvisions(name, size, theirs):
    our, their = _pair(name, theirs, size)
    pictures = torch.randn(2, 3, *size)
    with torch.inference_mode():
        same_logits(our(pictures), their(pictures))


@pytest.mark.parametrize("size", [(224, 224), pytest.param((97, 131), marks=pytest.mark.slow)])
def test_googlenets_heads_are_torchvisions_in_training(size, theirs):
    torch.manual_seed(5)
    our, their = (
        without_dropout(part).train()
        for part in (models.build("googlenet-bn", 20), theirs("googlenet-bn", num_classes=20))
    )
    our.load_state_dict(their.state_dict())
    pictures = torch.randn(3, 3, *size)
    with torch.no_grad():
        found, expected = our(pictures), their(pictures)
    assert isinstance(found, TrainingLogits)
    same_logits(found.logits, expected.logits)
    same_logits(found.auxiliary[0], expected.aux_logits1)
    same_logits(found.auxiliary[1], expected.aux_logits2)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet-v3-small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet50", "densenet121", "mobilenet-v2", "googlenet-bn")
        ),
    ],
)
def test_a_step_of_training_is_torchvisions(name, theirs):
    """Batch statistics, the running ones that they leave behind, and the gradients."""
    torch.manual_seed(5)
    our, their = (without_dropout(part).train() for part in (models.build(name, 20), theirs(name, num_classes=20)))
    our.load_state_dict(their.state_dict())
    pictures = torch.randn(4, 3, 64, 64)
    for module in (our, their):
        answer = module(pictures)
        (answer if torch.is_tensor(answer) else answer.logits).square().mean().backward()
    gradients = dict(their.named_parameters())
    for key, tensor in our.named_parameters():
        expected = gradients[key].grad
        assert (tensor.grad is None) == (expected is None), key
        if expected is not None:
            assert (tensor.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), key
    for key, tensor in our.state_dict().items():
        torch.testing.assert_close(tensor, their.state_dict()[key], msg=key)
