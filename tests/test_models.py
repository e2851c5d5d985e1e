"""The small networks against their papers, against the built modules, and against what ONNX Runtime computes.

What holds for every network, those for photos too, stands in ``test_zoo.py``.
"""

import contextlib
import io
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.errors import InputError, UnknownNameError
from deploykit.graph.profile import profile_onnx
from deploykit.models.bitmaps import digit_codes
from deploykit.models.lenet import C3_TABLE, H3_TABLE, LENET4_C3_TABLE, LENET4_C5_TABLE, TableConv2d, TrainablePool2d
from deploykit.models.profile import profile_module, profile_network

# LeCun et al. 1998, section II.B, as the lecture notes print it: parameters and connections.
LENET5_1998_ROWS = {
    "c1": (156, 122_304),
    "s2": (12, 5_880),
    "c3": (1_516, 151_600),
    "s4": (32, 2_000),
    "c5": (48_120, 48_120),
    "f6": (10_164, 10_164),
    "output": (850, 850),
}


SMALL = [name for name in models.names() if not models.spec(name).any_size]


def distinct():
    """The networks, those that have another's builder among the slow tests."""
    seen = set()
    for name in SMALL:
        builder = models.spec(name).builder
        yield pytest.param(name, marks=[pytest.mark.slow] if builder in seen else [])
        seen.add(builder)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lived_in(module):
    """Random biases and running statistics, which fresh networks do not show."""
    generator = torch.Generator().manual_seed(3)
    trains = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name, tensor in module.state_dict().items():
        if name.endswith("bias") and name in trains:  # the exporter drops a bias of zeros
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif "running_mean" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        elif "running_var" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def export(module, shape, path):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            module, (torch.randn(2, *shape),), path, dynamo=True, external_data=False, dynamic_shapes=({0: batch},)
        )
    return path


def test_listing_imports_no_torch():
    code = (
        "import sys; from deploykit import models; assert len(models.names()) == 47; models.spec('lenet5');"
        "bad = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_building_without_torch_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from deploykit import errors, models\n"
        "try: models.build('lenet5')\n"
        "except errors.MissingDependencyError as problem: assert problem.extra == 'torch', problem\n"
        "else: raise SystemExit('built')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_by_family_then_year():
    found = [(models.spec(name).family, models.spec(name).year) for name in models.names()]
    assert found == sorted(found)
    assert [name for name in models.names() if name.startswith("lenet")] == [
        "lenet1",
        "lenet4",
        "lenet5-1998",
        "lenet5",
        "lenet-caffe",
    ]


def test_a_mistyped_name_gets_the_near_match():
    with pytest.raises(UnknownNameError, match="did you mean 'lenet5'") as caught:
        models.build("lenet-5")
    assert caught.value.near_match == "lenet5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "1 classes; allowed: 2 or more"),
        ({"num_classes": 0}, "0 classes"),
        ({"in_channels": 2}, "2 input channels; allowed: 1"),
        ({"activation": "gelu"}, "activation='gelu'; allowed: relu, tanh"),
        ({"activations": "relu"}, "no option 'activations'; allowed: activation, pooling"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        models.build("lenet5", **arguments)


def test_a_network_without_options_says_none():
    with pytest.raises(InputError, match="no option 'pooling'; allowed: none"):
        models.build("lenet1", pooling="max")


@pytest.mark.parametrize("name", SMALL)
def test_the_table_is_what_is_built(name):
    entry = models.spec(name)
    module = models.build(name)
    found = profile_module(module, entry.input)
    held = sum(parameter.numel() for parameter in module.parameters())
    assert (entry.parameters, entry.macs) == (held, found.macs) == (found.parameters, found.macs)
    profile = profile_network(name)
    assert (profile.parameters, profile.macs, profile.connections) == (held, found.macs, found.connections)
    assert profile.layers == found.layers
    assert module(torch.zeros(2, *entry.input)).shape == (2, entry.classes)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("classes", "channels"), [(2, 3), (37, 1)])
def test_any_classes_and_channels(name, classes, channels):
    _, height, width = models.spec(name).input
    module = models.build(name, classes, channels)
    logits = module(torch.randn(3, channels, height, width))
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lenet5_options_change_the_function_and_not_the_count(activation, pooling):
    profile = profile_network("lenet5", activation=activation, pooling=pooling)
    rows = {layer.name: layer.parameters for layer in profile.layers}
    assert {key: rows[key] for key in ("c1", "c3", "c5", "f6", "output")} == {
        "c1": 156,
        "c3": 2_416,
        "c5": 48_120,
        "f6": 10_164,
        "output": 850,
    }
    assert profile.parameters == 61_706
    assert profile.operators["MaxPool2d" if pooling == "max" else "AvgPool2d"] == 2
    assert profile.operators["ReLU" if activation == "relu" else "Tanh"] == 4


def test_lenet5_1998_is_the_papers_table():
    profile = profile_network("lenet5-1998")
    assert {layer.name: (layer.parameters, layer.connections) for layer in profile.layers} == LENET5_1998_ROWS
    assert (profile.parameters, profile.connections) == (60_850, 340_918)


def test_lenet1_has_the_papers_counts():
    profile = profile_network("lenet1")  # LeCun et al. 1990, end of section 4
    assert (profile.parameters, profile.connections) == (2_578, 98_442)


def test_lenet4_has_about_the_papers_counts():
    profile = profile_network("lenet4")  # LeCun et al. 1995: about 17,000 and about 260,000
    assert profile.parameters == pytest.approx(17_000, rel=0.005)
    assert profile.connections == pytest.approx(260_000, rel=0.01)


def test_caffes_lenet_is_the_prototxt():
    """Kernels, units and the only activation of ``examples/mnist/lenet.prototxt``, computed with plain functions."""
    profile = profile_network("lenet-caffe")
    rows = {layer.name: (layer.parameters, layer.macs) for layer in profile.layers if layer.parameters}
    assert rows == {
        "conv1": (20 * 25 + 20, 24 * 24 * 20 * 25),
        "conv2": (50 * 20 * 25 + 50, 8 * 8 * 50 * 20 * 25),
        "ip1": (800 * 500 + 500, 800 * 500),
        "ip2": (500 * 10 + 10, 500 * 10),
    }
    assert profile.parameters == 431_080
    module, pictures = lived_in(models.build("lenet-caffe")), torch.randn(3, 1, 28, 28)
    held = module.state_dict()
    maps = pictures
    for name in ("conv1", "conv2"):
        maps = nn.functional.conv2d(maps, held[f"{name}.weight"], held[f"{name}.bias"])
        maps = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))  # 2×2
    units = (maps.flatten(1) @ held["ip1.weight"].T + held["ip1.bias"]).clamp(min=0)
    torch.testing.assert_close(module(pictures), units @ held["ip2.weight"].T + held["ip2.bias"])


def test_cifar_cnn_is_keras_example():
    assert models.spec("cifar-cnn").parameters == 1_250_858


def test_small_networks_by_hand():
    rows = {layer.name: layer.parameters for layer in profile_network("mnist-cnn").layers}
    assert {key: rows[key] for key in ("conv1", "conv2", "fc1", "fc2")} == {
        "conv1": 200 + 8,
        "conv2": 16 * 8 * 25 + 16,
        "fc1": 8192 + 32,
        "fc2": 320 + 10,
    }
    shapes = {layer.name: layer.output_shape for layer in profile_network("color-cnn").layers}
    assert [shapes[key] for key in ("conv1", "pool1", "conv2", "pool2")] == [
        (2, 28, 28),
        (2, 14, 14),
        (3, 12, 12),
        (3, 6, 6),
    ]


def test_connection_tables():
    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    # Table I of the paper, read by rows: how many maps of C3 each map of S2 feeds.
    assert [sum(source in row for row in C3_TABLE) for source in range(6)] == [10] * 6
    for table, inputs, maps in (
        (C3_TABLE, 6, 16),
        (H3_TABLE, 4, 12),
        (LENET4_C3_TABLE, 8, 16),
        (LENET4_C5_TABLE, 16, 120),
    ):
        assert len(table) == maps
        assert all(len(set(row)) == len(row) and set(row) <= set(range(inputs)) for row in table)
        assert set().union(*table) == set(range(inputs))


def test_table_convolution_is_a_masked_dense_one():
    torch.manual_seed(0)
    sparse, x = TableConv2d(C3_TABLE, 5), torch.randn(2, 6, 14, 14)
    dense = torch.zeros(16, 6, 5, 5)
    weights = [kernel for part in sparse.parts for kernel in part.weight]
    for row, (sources, kernel) in enumerate(zip(C3_TABLE, weights, strict=True)):
        dense[row, list(sources)] = kernel.detach()
    bias = torch.cat([part.bias for part in sparse.parts])
    torch.testing.assert_close(sparse(x), nn.functional.conv2d(x, dense, bias), rtol=1e-4, atol=1e-5)


def test_trainable_pooling_by_hand():
    pool = TrainablePool2d(1)
    pool.weight.data.fill_(2.0)
    pool.bias.data.fill_(0.5)
    assert pool(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).item() == 2.0 * 3.0 + 0.5


def test_radial_basis_answers_minus_the_squared_distance():
    output = models.build("lenet5-1998").output
    codes = torch.tensor(digit_codes())
    x = torch.randn(5, 84, generator=torch.Generator().manual_seed(1))
    expected = -torch.cdist(x.double(), codes.double()).square()
    torch.testing.assert_close(output(x).double(), expected, rtol=1e-4, atol=1e-3)
    assert output(codes).argmax(1).tolist() == list(range(10))
    assert not any(parameter.requires_grad for parameter in output.parameters())


def test_random_codes_are_always_the_same_and_apart():
    first, second = (models.build("lenet5-1998", 26).output.weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.cdist(first, first).add(torch.eye(26) * 99).min() > 2
    assert set(first.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", [*distinct()])
def test_a_network_learns_a_batch(name):
    """Initialisation and gradients are sound: a few steps fit 16 random pictures better than chance."""
    torch.manual_seed(0)
    entry = models.spec(name)
    module = models.build(name, 4)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x, y = torch.randn(16, *entry.input), torch.arange(16) % 4
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(40 if name != "cifar-cnn" else 12):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (module(x).argmax(1) == y).float().mean() >= 0.75


@pytest.mark.parametrize("name", SMALL)
def test_traceable_by_fx(name):
    module, shape = lived_in(models.build(name)), models.spec(name).input
    x = torch.randn(3, *shape)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))


@pytest.mark.parametrize("name", [*distinct()])
def test_exported_file_answers_and_weighs_the_same(name, tmp_path):
    import onnxruntime as ort

    entry = models.spec(name)
    module = lived_in(models.build(name))
    path = export(module, entry.input, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        x = torch.randn(batch, *entry.input)
        with torch.no_grad():
            expected = module(x).numpy()
        answer = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))
    found, own = profile_onnx(path), profile_network(name)
    assert found.macs == own.macs
    assert found.peak_activation_bytes == own.peak_activation_bytes
    # The exporter folds BatchNorm into the layer before it: scale and shift are no parameters any more.
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    assert found.parameters == own.parameters - sum(2 * norm.num_features for norm in norms)
    assert found.weight_bytes == 4 * found.parameters
    assert found.precision == "fp32"
    assert found.input_shape == entry.input
    assert found.warnings == ()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.spare = nn.Linear(1000, 1000)  # never runs
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return torch.relu(self.conv(self.conv(x)) * self.scale + x)


def test_profile_of_a_users_module_with_sharing_and_functional_calls():
    found = profile_module(Residual(), (4, 8, 8))
    size = 4 * 8 * 8 * 4
    assert found.parameters == 4 * 4 * 9 + 4  # the shared convolution once, the spare layer not
    assert found.macs == 2 * 4 * 64 * 36
    assert found.weight_bytes == 4 * found.parameters
    assert found.peak_activation_bytes == 3 * size  # x, and both sides of the second convolution
    assert [(layer.name, layer.macs) for layer in found.layers][:2] == [("conv", 9216), ("conv", 9216)]
    assert found.operators == {"Conv2d": 2, "mul": 1, "add": 1, "relu": 1}


def test_profile_leaves_the_module_alone():
    module = models.build("mnist-cnn").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    profile_module(module, (1, 28, 28))
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not module.conv1._forward_hooks


def test_profile_of_other_layers():
    module = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Flatten(2), nn.MultiheadAttention(16, 2))
    found = profile_module(nn.Sequential(*module[:2]), (2, 2, 2))
    assert (found.macs, found.connections) == (2 * 4 * 3 * 4, 2 * 4 * 3 * 4 + 3 * 16)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module[2]

        def forward(self, x):
            x = x.flatten(0, 2).reshape(4, 1, 16)
            return self.attention(x, x, x, need_weights=False)[0]

    found = profile_module(Attends(), (1, 4, 16))
    assert found.parameters == sum(parameter.numel() for parameter in module[2].parameters())


def test_an_input_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="LeNet5 cannot be profiled on an input of 1×8×8"):
        profile_module(models.build("lenet5"), (1, 8, 8))


def test_a_large_module_is_profiled_without_its_weights():
    """VGG-16's classifier and most expensive layers, 0.5 GB of weights, held on meta; the copy must not allocate."""
    with torch.device("meta"):
        module = nn.Sequential(
            nn.Conv2d(3, 512, 3, padding=1),
            *(nn.Conv2d(512, 512, 3, padding=1) for _ in range(8)),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(25088, 4096),
            nn.Linear(4096, 4096),
        )
    started = time.perf_counter()
    found = profile_module(module, (3, 224, 224))
    assert time.perf_counter() - started < 5
    assert found.weight_bytes == sum(parameter.nbytes for parameter in module.parameters())


class Gate(nn.Module):
    """A layer with its own rule, as a user would write it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x * self.inner(x).sigmoid()

    def count_connections(self, output_shape):
        return 1_000 + output_shape[-1], 77


def test_a_users_layer_counts_for_itself():
    (row,) = profile_module(nn.Sequential(Gate()), (1, 1, 6)).layers
    assert (row.name, row.op, row.parameters, row.connections, row.macs) == ("0", "Gate", 42, 1_006, 77)


def test_no_kernel_of_the_smallest_network_starts_dead() -> None:
    """With two 1×1 kernels, one that never fires costs a sixth of the accuracy (82 % instead of 99 %)."""
    from deploykit import data
    from deploykit.preprocess import apply, for_network

    pictures = data.load("shapes-color", "test").take(60)
    preprocess = for_network((3, 28, 28), None, mean=(0.05,) * 3, std=(0.16,) * 3)
    inputs = torch.from_numpy(apply(preprocess, pictures.pictures(np.arange(60))))
    for seed in range(10):
        torch.manual_seed(seed)
        network = models.build("color-cnn")
        assert (network.conv1(inputs).amax(dim=(0, 2, 3)) > 0).all()
