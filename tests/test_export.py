from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Trained
from torch import nn

from deploykit.artifact import Artifact
from deploykit.errors import InputError, OutputError, ParityError, UnknownNameError
from deploykit.export import ExportOptions, export_onnx
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


class Words(Small):
    def forward(self, x: torch.Tensor) -> str:  # type: ignore[override]
        return "logits"


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (Constant(), ParityError, "differs from PyTorch"),
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
    monkeypatch.setattr("deploykit.export._ONE_FILE_BYTES", 1000)
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
