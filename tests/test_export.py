from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Trained
from torch import nn

from deploykit.artifact import Artifact, Preprocess
from deploykit.checkpoint import Checkpoint, write_checkpoint
from deploykit.data.label_file import read_labels
from deploykit.errors import CheckpointError, InputError, OutputError, ParityError, UnknownNameError
from deploykit.export import ExportOptions, export_onnx
from deploykit.files import sha256_file
from deploykit.models import build
from deploykit.sources import example_inputs, open_source

PICTURES = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def test_exported_run_equals_pytorch_in_a_bare_session(trained: Trained) -> None:
    """Independent of our own parity check: a plain session, batch sizes that were never traced."""
    source = open_source(trained.folder)
    session = onnxruntime.InferenceSession(str(trained.onnx), providers=["CPUExecutionProvider"])
    example, _ = example_inputs(source, "shapes")
    for batch in (1, 3, 16):
        wanted = source.module(torch.from_numpy(example[:batch])).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"input": example[:batch]})[0], wanted, atol=1e-4, rtol=1e-4)


def test_the_file_knows_itself(trained: Trained) -> None:
    artifact = Artifact.read(trained.onnx)
    assert artifact.network == "color-shape-cnn"
    assert artifact.dataset == "shapes-color-shape"
    assert artifact.labels[0] == "red-circle" and len(artifact.labels) == 9
    assert artifact.parent_sha256 == trained.training.checkpoint_sha256
    assert artifact.preprocess is not None and artifact.preprocess.size == (28, 28)
    assert artifact.inputs[0].shape == ("batch", 3, 28, 28)
    assert isinstance(artifact.outputs[0].shape[0], str)  # type: ignore[index]
    assert artifact.parity is not None
    assert artifact.parity["batch_sizes"] == [1, 2, 7]
    assert artifact.parity["samples"] == 10
    assert artifact.parity["top1_agreement"] == 1.0
    assert 0.0 < artifact.parity["max_abs"] < 1e-4
    assert (artifact.opset, artifact.ir_version) == (20, 10)
    assert trained.training.test_top1 == artifact.training["test_top1"]  # type: ignore[index]
    model = onnx.load(trained.onnx)
    assert not any(node.metadata_props for node in model.graph.node)  # the exporter's stack traces are gone
    assert sorted(path.name for path in trained.folder.glob("*.data")) == []


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    module = Small().train()
    artifact = export_onnx(module, tmp_path / "m.onnx", example=PICTURES)
    assert module.training  # left as it was
    assert artifact.outputs[0].shape == ("batch", 5)
    assert artifact.network is None and artifact.preprocess is None
    export_onnx(module, tmp_path / "n.onnx", example=PICTURES[:1].numpy())  # fewer pictures than the batches need


class Constant(nn.Module):
    """Becomes a different function when traced: what a wrong exporter or a .item() in the module does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x.flatten(1))
        return y * 2.0 if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() else y


class Specialised(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 192)[:, :5] if len(x) == 2 else x.flatten(1)[:, :5]


class Nan(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 0.0 * 0.0


class Fails(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\nsecond line")


class Whisper(Constant):
    """Answers of millionths: a fixed absolute tolerance would let pass whatever stands in their place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e-6 * super().forward(x)


class Words(Small):
    def forward(self, x: torch.Tensor) -> str:  # type: ignore[override]
        return "logits"


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (Constant(), ParityError, "differs from PyTorch"),
        (Whisper(), ParityError, "differs from PyTorch"),
        (Specialised(), (ParityError, InputError), "batch"),
        (Nan(), InputError, "NaN"),
        (Fails(), InputError, "first line"),
        (Words(), InputError, "returns str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_must_not_be_written_is_not(module: nn.Module, error: type, says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says) as caught:
        export_onnx(module, tmp_path / "m.onnx", example=PICTURES)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_small_answers_that_are_right_are_written(tmp_path: Path) -> None:
    class Quiet(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1e-12 * super().forward(x)

    class Silent(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.0 * super().forward(x)

    for module in (Quiet(), Silent()):
        artifact = export_onnx(module, tmp_path / "m.onnx", example=PICTURES, overwrite=True)
        assert artifact.parity is not None and artifact.parity["max_abs"] < 1e-15


def test_parity_failure_keeps_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(Small(), path, example=PICTURES)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        export_onnx(Small(), path, example=PICTURES)
    with pytest.raises(ParityError):
        export_onnx(Constant(), path, example=PICTURES, overwrite=True)
    assert path.read_bytes() == before


def test_two_outputs_and_a_dict(tmp_path: Path) -> None:
    class Two(Small):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            y = super().forward(x)
            return {"logits": y, "probabilities": y.softmax(1)}

    artifact = export_onnx(Two(), tmp_path / "m.onnx", example=PICTURES)
    assert [output.shape for output in artifact.outputs] == [("batch", 5), ("batch", 5)]


def test_batch_norm_with_used_statistics_survives(tmp_path: Path) -> None:
    """Fresh BatchNorm is the identity and would hide a wrong fold (pytorch #166797)."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    norm = module[1]
    generator = torch.Generator().manual_seed(1)
    for tensor, low, high in (
        (norm.running_mean, -1, 1),
        (norm.running_var, 0.2, 3),
        (norm.weight.data, -2, 2),
        (norm.bias.data, -1, 1),
    ):
        tensor.copy_(torch.rand(8, generator=generator) * (high - low) + low)
    artifact = export_onnx(module, tmp_path / "m.onnx", example=PICTURES)
    assert artifact.parity is not None and artifact.parity["max_abs"] < 1e-4


def test_sources(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\ndef tiny():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n"
        "def wrong():\n    return 3\n"
    )
    opened = open_source("own_models:tiny").described(input_shape=(3, 2, 2))
    example, _ = example_inputs(opened, None)
    assert example.shape == (16, 3, 2, 2)
    assert export_onnx(opened.module, "tiny.onnx", example=example, card=opened.card).preprocess is None
    assert open_source(trained.folder / "checkpoint.safetensors").input_shape == (3, 28, 28)
    fresh = open_source("lenet5", num_classes=3, in_channels=3, options={"pooling": "average"})
    assert fresh.module(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert torch.equal(
        fresh.module(torch.ones(1, 3, 32, 32)),
        open_source("lenet5", num_classes=3, in_channels=3, options={"pooling": "average"}).module(
            torch.ones(1, 3, 32, 32)
        ),
    )
    for text, error, says in (
        ("own_models:wrong", InputError, "returned int"),
        ("own_models:absent", InputError, "no 'absent'"),
        ("no.such.module:x", InputError, "cannot import"),
        ("lenet55", UnknownNameError, "did you mean 'lenet5'"),
        (str(tmp_path), InputError, r"holds no checkpoint\.safetensors"),
        (str(tmp_path / "own_models.py"), InputError, "neither a run's folder .* NETWORK --weights FILE"),
        (str(tmp_path / "absent.pth"), InputError, "no such folder or checkpoint"),
    ):
        with pytest.raises(error, match=says):
            open_source(text)
    with pytest.raises(InputError, match="--shape"):
        example_inputs(open_source("own_models:tiny"), None)


@pytest.mark.parametrize(
    "bad", [{"opset": 11}, {"opset": 99}, {"atol": -1.0}, {"batch_sizes": ()}, {"batch_sizes": (0,)}]
)
def test_options_validate_themselves(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        ExportOptions(**bad)  # type: ignore[arg-type]


def test_weights_above_the_limit_of_one_file_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered instead of a model of 2 GiB being made; everything else is the real path."""
    monkeypatch.setattr("deploykit.onnx_writer._ONE_FILE_BYTES", 1000)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 40))
    artifact = export_onnx(module, tmp_path / "big.onnx", example=PICTURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert artifact.parity is not None and artifact.parity["max_abs"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "big.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": PICTURES[:3].numpy()})[0]
    np.testing.assert_allclose(got, module(PICTURES[:3]).detach().numpy(), atol=1e-4)
    with pytest.raises(OutputError, match="--overwrite"):
        export_onnx(module, tmp_path / "big.onnx", example=PICTURES)
    with pytest.raises(ParityError):
        export_onnx(Constant(), tmp_path / "other.onnx", example=PICTURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def made(needed): pass", "raised TypeError"),
        ("def made(): raise KeyError('x')", "raised KeyError"),
        ("def made(): return None", "returned NoneType"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("import no_such_package", "cannot import"),
    ],
)
def test_a_users_own_code_that_fails_is_said_to_be_theirs(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"theirs_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body + "\n")
    with pytest.raises(InputError, match=says):
        open_source(f"{name}:made")


def test_fresh_networks_have_used_normalisation() -> None:
    """A fresh BatchNorm is the identity and would hide a wrong fold from the parity check."""
    module = open_source("mnist-cnn").module
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm1d)]
    assert norms and all(norm.running_mean.abs().max() > 0 for norm in norms)
    assert not module.training


def test_the_returned_artifact_is_what_the_file_says(tmp_path: Path) -> None:
    """The file is written piece by piece: protobuf's own reading of it must find all of them."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 300), nn.ReLU(), nn.Linear(300, 5, bias=False))
    artifact = export_onnx(module, tmp_path / "m.onnx", example=PICTURES)
    assert artifact == Artifact.read(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    np.testing.assert_array_equal(weights["3.weight"], module[3].weight.detach().numpy())
    assert len({prop.key for prop in model.metadata_props}) == len(model.metadata_props)
    again = export_onnx(module, tmp_path / "n.onnx", example=PICTURES)
    assert (tmp_path / "n.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert again.sha256 == artifact.sha256


def test_deep_networks_start_in_a_range_that_parity_can_check() -> None:
    """Statistics that fit too little let the values grow from layer to layer until rounding alone fails the check."""
    source = open_source("densenet121")
    with torch.inference_mode():
        logits = source.module(torch.from_numpy(example_inputs(source, "shapes")[0][:2]))
    assert 1e-3 < float(logits.std()) < 10
    norms = [child for child in source.module.modules() if isinstance(child, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision's users have it, of four classes."""
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(build("squeezenet1.1", num_classes=4).state_dict(), path)
    return path


def test_a_network_with_weights_from_a_file(weights: Path) -> None:
    source = open_source("squeezenet1.1", weights=weights).described(input_shape=(3, 70, 64), labels=tuple("abcd"))
    state = torch.load(weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.module.state_dict().items())
    assert not source.module.training and source.notes == () and source.input_shape == (3, 70, 64)
    assert source.card.parent_sha256 == sha256_file(weights)
    assert source.card.labels == tuple("abcd") and source.card.dataset is None
    assert source.card.preprocess == Preprocess(
        size=(70, 64), resize=80, crop="center", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def test_other_classes_replace_the_head_of_a_state_dict_and_it_is_said(weights: Path) -> None:
    source, again = (open_source("squeezenet1.1", weights=weights, num_classes=9) for _ in range(2))
    assert source.notes[0] == "the head classifier.1 (4 classes) was replaced: the network has 9"
    assert "answers are chance until it is trained" in source.notes[1] and len(source.notes) == 2
    state, found = torch.load(weights), source.module.state_dict()
    same = {name for name, tensor in found.items() if torch.equal(tensor, state[name])}
    assert set(found) - same == {"classifier.1.weight", "classifier.1.bias"}
    assert len(found["classifier.1.weight"]) == 9
    assert torch.equal(found["classifier.1.weight"], again.module.state_dict()["classifier.1.weight"])


def test_weights_say_what_is_built(weights: Path, tmp_path: Path) -> None:
    unlabelled = open_source("squeezenet1.1", weights=weights).card
    assert unlabelled.labels == () and unlabelled.preprocess is not None
    assert (unlabelled.preprocess.resize, unlabelled.preprocess.size) == (256, (224, 224))
    grey = open_source("squeezenet1.1", weights=weights, in_channels=1)
    assert grey.input_shape == (1, 224, 224) and "summed over the three colours" in grey.notes[0]
    torch.save(build("googlenet-bn", num_classes=2, pictures="small").state_dict(), tmp_path / "g.pth")
    signed = open_source("googlenet-bn", weights=tmp_path / "g.pth", options={"pictures": "small"})
    assert signed.card.preprocess is not None and signed.card.preprocess.mean == (0.5, 0.5, 0.5)
    assert signed.input_shape == (3, 32, 32) and "from -1 to 1" in signed.notes[0]
    with pytest.raises(InputError, match="allowed: the name of a network"):
        open_source("os.path:join", weights=weights)
    torch.manual_seed(9)
    path = write_checkpoint(
        Checkpoint(
            "lenet5", 3, 1, Preprocess(size=(32, 32), channels="L"), tuple("abc"),
            build("lenet5", num_classes=3, activation="tanh").state_dict(), {"activation": "tanh"}, "mine",
        ),
        tmp_path / "c.safetensors",
    )  # fmt: skip
    own = open_source("lenet5", weights=path)
    assert own.kind == "checkpoint" and own.card.labels == tuple("abc") and own.card.dataset == "mine"
    with pytest.raises(CheckpointError, match="trained with activation=tanh, received --option activation=relu"):
        open_source("lenet5", weights=path, options={"activation": "relu"})
    with pytest.raises(CheckpointError, match="is for 1 channels, received --channels 3"):
        open_source("lenet5", weights=path, in_channels=3)
    with pytest.raises(CheckpointError, match="is for 3 classes, received --classes 9; that layer would be fresh"):
        open_source("lenet5", weights=path, num_classes=9)
    with pytest.raises(InputError, match="knows its 3 labels"):
        own.described(labels=tuple("xyz"))
    with pytest.raises(InputError, match="leave out --shape"):
        own.described(input_shape=(1, 64, 64))


def test_other_sizes_of_pictures() -> None:
    source = open_source("squeezenet1.1", num_classes=3)
    assert source.input_shape == (3, 224, 224)
    smaller = source.described(input_shape=(3, 96, 160))
    assert smaller.card.preprocess is not None and smaller.card.preprocess.size == (96, 160)
    assert example_inputs(smaller, "shapes")[0].shape == (16, 3, 96, 160)
    assert open_source("resnet18", options={"pictures": "small", "width": "16"}).input_shape == (3, 32, 32)
    with pytest.raises(InputError, match="received --shape 3x16x99; allowed: pictures of 17x17 or more"):
        source.described(input_shape=(3, 16, 99))
    with pytest.raises(InputError, match="built for 3 channels, received --shape 1x96x96; give --channels 1"):
        source.described(input_shape=(1, 96, 96))
    with pytest.raises(InputError, match=r"received --shape 4x96x96; allowed: 1 \(grey\) or 3 \(colour\) channels"):
        source.described(input_shape=(4, 96, 96))
    with pytest.raises(InputError, match="lenet5 takes 1x32x32, received --shape 1x64x64"):
        open_source("lenet5").described(input_shape=(1, 64, 64))


def test_labels_are_counted(tmp_path: Path) -> None:
    source = open_source("mnist-cnn").described(labels=("one", "two"))
    with pytest.raises(InputError, match="2 labels for a module with 10 classes"):
        export_onnx(source.module, tmp_path / "m.onnx", example=torch.rand(4, 1, 28, 28), card=source.card)
    assert list(tmp_path.iterdir()) == []


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufefftench\r\ncrane\r\nübel\r\ncrane\r\n", encoding="utf-8")
    assert read_labels(path) == ("tench", "crane (1)", "übel", "crane (3)")  # ImageNet has cranes of two kinds
    path.write_text(json.dumps(["a", " b"]))
    assert read_labels(path) == ("a", "b")
    for text, says in (
        ("", "empty name"),
        ("a\n\nb\n", "empty name"),
        ('{"0": "a"}', "other JSON"),
        ("[1, 2]", "other JSON"),
        ('["a"', "begins as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_labels(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_labels(path)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "absent.txt")


@pytest.mark.slow
def test_the_command_takes_weights_and_labels(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    output = tmp_path / "m.onnx"
    run = _deploykit(
        *("export", "squeezenet1.1", "--weights", str(weights), "--labels", str(tmp_path / "labels.txt")),
        *("--channels", "1", "--shape", "1x48x48", "-o", str(output)),
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("\n") == 1 and "summed over the three colours" in run.stderr
    artifact = Artifact.read(output)
    assert artifact.labels == tuple("abcd") and artifact.parent_sha256 == sha256_file(weights)
    assert artifact.inputs[0].shape == ("batch", 1, 48, 48) and artifact.outputs[0].shape == ("batch", 4)
    assert artifact.preprocess is not None
    assert (artifact.preprocess.mean, artifact.preprocess.resize) == ((0.449,), 55)


def _deploykit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "deploykit", *arguments], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB")
def test_vgg16_is_exported_in_little_memory(tmp_path: Path) -> None:
    """553 MB of weights, which the module and ONNX Runtime must each hold; nothing else may copy them whole."""
    program = f"""
import json, resource, runpy, sys, time
began = time.perf_counter()
sys.argv = ["deploykit", "export", "vgg16", "-o", {str(tmp_path / "vgg16.onnx")!r}]
try:
    runpy.run_module("deploykit", run_name="__main__")
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = [usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, time.perf_counter() - began]
    sys.stderr.write(json.dumps(used))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    wall = time.perf_counter() - began
    assert run.returncode == 0, run.stderr
    peak_bytes, processor_s, _ = json.loads(run.stderr)
    print(f"VGG-16: {peak_bytes / 1e9:.2f} GB at most, {processor_s:.0f} s of processor, {wall:.0f} s")
    assert peak_bytes < 3e9
    assert processor_s < 120  # on two free cores 60 s of time; a loaded machine makes both worse
    assert (tmp_path / "vgg16.onnx").stat().st_size > 553e6
