"""Every registered network: the table's numbers recomputed, what it takes and refuses, and its ONNX file."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import onnx
import pytest
import torch
from lived_in import live
from torch import nn

from deploykit import models
from deploykit.errors import InputError
from deploykit.export import ExportOptions, export_onnx
from deploykit.graph.profile import profile_onnx
from deploykit.models.pictures import PictureNetwork
from deploykit.models.profile import profile_module

NAMES = models.names()
PHOTOS = [name for name in NAMES if models.spec(name).any_size]
# What takes a second or more even without arithmetic.
DEEP = {"resnet101", "resnet152", "densenet169", "densenet201", "densenet264"}
# Tracing takes seconds a network, tens of seconds for a DenseNet: by default only what is shallow.
QUICK_EXPORTS = {"squeezenet1.1"}
# Only D and E as they are: the other members differ by a few layers, and half a gigabyte of the same fully connected
# layers would be written and read ten times more.
SMALLER = {name: 64 for name in NAMES if name.startswith("vgg") and name not in ("vgg16", "vgg19")}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def on_meta(name, classes=None, channels=None, **options):
    """Shapes without memory: VGG-19 as well as LeNet-1, in milliseconds."""
    with torch.device("meta"):
        return models.build(name, classes, channels, **options).eval()


def one_a_family(names):
    """The others only slowly: what is tested does not depend on how deep a network is."""
    seen = set()
    for name in names:
        builder = models.spec(name).builder
        yield pytest.param(name, marks=[pytest.mark.slow] if builder in seen else [], id=name)
        seen.add(builder)


def variants(names):
    """Each network with each combination of its options."""
    for parameters in one_a_family(names):
        (name,), options = parameters.values, models.spec(parameters.values[0]).options
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values, strict=True))
            yield pytest.param(name, chosen, marks=parameters.marks, id="-".join((name, *values)))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_layers_are_the_rows(name):
    """``head`` and ``classifier`` are names of layers; the heads give the classes and belong to the classifier."""
    entry, module = models.spec(name), on_meta(name)
    training = [part for part, _ in module.named_children() if part.startswith("aux")]
    held = sum(tensor.numel() for part, tensor in module.named_parameters() if part.split(".")[0] not in training)
    assert held == entry.parameters

    layers = dict(module.named_modules())
    assert set(entry.classifier) <= set(layers) or not entry.any_size  # the old families share one list
    assert entry.head
    for head in entry.head:
        assert layers[head].weight.shape[0] == entry.classes
        assert any(head == part or head.startswith(part + ".") for part in entry.classifier)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEEP else []) for n in NAMES])
def test_macs_and_shapes_are_the_rows(name):
    entry, module, shapes = models.spec(name), on_meta(name), []
    hook = module.register_forward_hook(lambda part, given, answer: shapes.append(answer.shape))
    found = profile_module(module, entry.input)
    hook.remove()
    assert (found.parameters, found.macs) == (entry.parameters, entry.macs)
    assert shapes == [(1, entry.classes)]


@pytest.mark.parametrize("name", [*one_a_family(PHOTOS)])
@pytest.mark.parametrize(("classes", "channels", "height", "width"), [(2, 3, 300, 75), (37, 1, 97, 131)])
def test_any_classes_channels_and_size(name, classes, channels, height, width):
    logits = on_meta(name, classes, channels)(torch.empty(3, channels, height, width, device="meta"))
    assert logits.shape == (3, classes)


@pytest.mark.parametrize(("name", "options"), [*variants(PHOTOS)])
def test_the_smallest_picture_is_the_smallest(name, options):
    """One pixel less does not come through the layers, and is refused before it tries."""
    module = on_meta(name, 5, **options)
    assert isinstance(module, PictureNetwork)
    smallest = module.smallest
    assert smallest <= 32 or options.get("pictures") != "small"
    assert module(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 5)
    if "googlenet" in name:  # the heads that only train must not ask for more
        answers = module.train()(torch.empty(2, 3, smallest, smallest, device="meta"))
        module.eval()
        assert [answer.shape for answer in answers.auxiliary] == [(2, 5), (2, 5)]
    for height, width in ((smallest - 1, smallest), (smallest, smallest - 1), (smallest - 1, 300)):
        with pytest.raises(InputError, match=f"of {height}×{width}; allowed: {smallest}×{smallest} or more"):
            module(torch.empty(2, 3, height, width, device="meta"))
    if smallest > 1:
        module.smallest = 1
        try:
            with pytest.raises(RuntimeError):
                module(torch.empty(2, 3, smallest - 1, smallest, device="meta"))
        finally:
            module.smallest = smallest


@pytest.mark.parametrize("name", [*one_a_family(PHOTOS)])
def test_other_channels_and_shapes_are_refused(name):
    with pytest.raises(InputError, match="received an input of 2×1×224×224; allowed: N×3×H×W"):
        on_meta(name)(torch.empty(2, 1, 224, 224, device="meta"))
    with pytest.raises(InputError, match="received an input of 2×3×224×224; allowed: N×1×H×W"):
        on_meta(name, 37, 1)(torch.empty(2, 3, 224, 224, device="meta"))
    with pytest.raises(InputError, match="received an input of 3×224×224; allowed: N×3×H×W"):
        on_meta(name)(torch.empty(3, 224, 224, device="meta"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_a_fresh_network_answers_within_reason(name):
    """It can be exported and measured before it is trained: answers neither vanish nor explode."""
    torch.manual_seed(0)
    module = models.build(name, 10).eval()
    side = max(64, module.smallest)
    with torch.inference_mode():
        spread = module(torch.randn(2, 3, side, side)).std().item()
    assert 1e-4 < spread < 10


def exported():
    for name in NAMES:
        quick = name in QUICK_EXPORTS
        size = 64 if quick else SMALLER.get(name)  # None: the row's
        yield pytest.param(name, size, marks=[] if quick else [pytest.mark.slow], id=name)
    for name in QUICK_EXPORTS:
        yield pytest.param(name, None, marks=[pytest.mark.slow], id=f"{name}-full")


@pytest.mark.timeout(900)  # the deepest takes a minute on a core of its own
@pytest.mark.parametrize(("name", "size"), [*exported()])
def test_the_exported_file_computes_the_same(name, size, tmp_path):
    entry = models.spec(name)
    shape = (entry.input[0], size, size) if size else entry.input
    torch.manual_seed(0)
    pictures = torch.randn(4, *shape)
    module = models.build(name, 10)
    if name in SMALLER:
        thin = {"0": nn.Linear(25_088, 64), "3": nn.Linear(64, 64), "6": nn.Linear(64, 10)}
        for index, layer in thin.items():
            setattr(module.classifier, index, layer)
    live(module, pictures)
    path = tmp_path / "model.onnx"
    artifact = export_onnx(module, path, example=pictures, options=ExportOptions(batch_sizes=(1, 3)))
    onnx.checker.check_model(path, full_check=True)
    assert artifact.parity["samples"] == 4 and artifact.parity["batch_sizes"] == [1, 3]

    others = torch.randn(5, *shape)  # neither the pictures nor the batch that were compared on the way
    with torch.inference_mode():
        expected = module(others).numpy()
    spread = float(expected.std())
    assert math.isfinite(spread) and spread > 0
    np.testing.assert_allclose(_answers(path, others.numpy()), expected, atol=1e-3 * spread, rtol=1e-4)
    found = profile_onnx(path, download=False)
    if shape == entry.input:  # at others, pooling to a fixed size may be written as products
        assert found.macs == profile_module(module, shape).macs  # no head that only trains, nothing twice
    # Averages over all places are one operator each, and nothing computes shapes or takes turns.
    averages = sum(isinstance(part, nn.AdaptiveAvgPool2d) for part in module.modules())
    assert found.operators.get("ReduceMean", 0) + found.operators.get("GlobalAveragePool", 0) == averages
    assert not found.operators.keys() & {"Shape", "Loop", "If", "Scan", "Range", "Expand", "Identity", "Cast"}
    path.unlink()  # up to half a gigabyte


def _answers(path, inputs):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]
