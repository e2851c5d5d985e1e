"""Weights of others: what fits, what is mapped, and what is refused in one line."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_torchvision
import torch
from safetensors.torch import save_file
from torch import nn

from deploykit.artifact import Preprocess
from deploykit.checkpoint import Checkpoint, write_checkpoint
from deploykit.errors import CheckpointError, UnknownNameError
from deploykit.files import sha256_file
from deploykit.models import build
from deploykit.pretrained import Fit, fit_of, load_weights, read_weights, statistics

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def squeezenet() -> State:
    torch.manual_seed(3)
    return build("squeezenet1.1").state_dict()


@pytest.fixture(scope="module")
def resnet() -> State:
    torch.manual_seed(3)
    return build("resnet18").state_dict()


def same(module: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_all_formats_give_the_same_weights(squeezenet: State, tmp_path: Path) -> None:
    """The zip that torch writes today, the pickle of before 1.6, and safetensors, whatever the file is called."""
    torch.save(squeezenet, tmp_path / "new.pth")
    torch.save(squeezenet, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(squeezenet, tmp_path / "model_best.pth.tar")
    save_file(squeezenet, tmp_path / "plain.safetensors")
    (tmp_path / "misnamed.pth").write_bytes((tmp_path / "plain.safetensors").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        module = build("squeezenet1.1")
        loaded = load_weights(module, "squeezenet1.1", path)
        assert same(module, squeezenet), path.name
        assert loaded.notes == () and loaded.sha256 == sha256_file(path)
        assert module.training  # left as it was


def test_weights_do_not_follow_the_file(squeezenet: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(squeezenet, path)
    module = build("squeezenet1.1")
    load_weights(module, "squeezenet1.1", path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same(module, squeezenet)


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda state: {"state_dict": state, "epoch": 3, "best_acc1": torch.tensor(0.5)}, ["'state_dict'"]),
        (lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}, ["'model'"]),
        (lambda state: {"module." + name: tensor for name, tensor in state.items()}, ["'module.' was dropped"]),
        (lambda state: {"model": {"module._orig_mod." + k: v for k, v in state.items()}}, ["'model'", "_orig_mod"]),
        # PyTorch's ImageNet example puts DataParallel around the features only
        (lambda state: {k.replace("features.", "features.module."): v for k, v in state.items()}, ["'module.'"]),
        # torch.optim.swa_utils.AveragedModel
        (lambda state: {"n_averaged": torch.tensor(9)} | {"module." + k: v for k, v in state.items()}, ["'module.'"]),
        (lambda state: {"state_dict": {"model." + k: v for k, v in state.items()}}, ["'model.' was dropped"]),
    ],
    ids=["state_dict", "torchvision's script", "parallel", "compiled", "parallel features", "averaged", "lightning"],
)
def test_wrapped_state_dicts_are_unwrapped_and_said_to_be(
    wrap: Callable[[State], Any], says: list[str], squeezenet: State, tmp_path: Path
) -> None:
    torch.save(wrap(squeezenet), tmp_path / "w.pth")
    module = build("squeezenet1.1")
    notes = load_weights(module, "squeezenet1.1", tmp_path / "w.pth").notes
    assert same(module, squeezenet)
    assert all(any(text in remark for remark in notes) for text in says), notes


def test_another_number_of_classes_leaves_the_head_fresh(resnet: State, tmp_path: Path) -> None:
    torch.save(resnet, tmp_path / "w.pth")
    module = build("resnet18", num_classes=5)
    fresh = module.get_parameter("fc.weight").clone()
    assert load_weights(module, "resnet18", tmp_path / "w.pth").notes == (
        "the head fc (1000 classes) was replaced: the network has 5",
    )
    assert torch.equal(module.get_parameter("fc.weight"), fresh)
    assert torch.equal(module.get_parameter("layer4.1.conv2.weight"), resnet["layer4.1.conv2.weight"])
    assert fit_of(read_weights(tmp_path / "w.pth"), "resnet18") == Fit(1000, 3)


def test_grey_networks_sum_over_the_colours(squeezenet: State, tmp_path: Path) -> None:
    torch.save(squeezenet, tmp_path / "w.pth")
    colour, grey = build("squeezenet1.1").eval(), build("squeezenet1.1", in_channels=1).eval()
    load_weights(colour, "squeezenet1.1", tmp_path / "w.pth")
    notes = load_weights(grey, "squeezenet1.1", tmp_path / "w.pth").notes
    assert len(notes) == 1 and "summed over the three colours" in notes[0]
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey(x), colour(x.expand(2, 3, 64, 64)), rtol=1e-4, atol=1e-4)


def test_half_precision_becomes_single(squeezenet: State, tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in squeezenet.items()}, tmp_path / "w.pth")
    module = build("squeezenet1.1")
    assert load_weights(module, "squeezenet1.1", tmp_path / "w.pth").notes == (
        "float16 weights were converted to float32",
    )
    assert same(module, {name: tensor.half().float() for name, tensor in squeezenet.items()})


def quickly_built(network: str, **arguments: int) -> nn.Module:
    """With normal weights; drawing torchvision's truncated ones takes seconds."""
    with torch.device("meta"):
        module = build(network, **arguments)
    module.to_empty(device="cpu")
    for tensor in module.state_dict().values():
        torch.nn.init.normal_(tensor) if tensor.is_floating_point() else tensor.zero_()
    return module


def test_auxiliary_heads_may_be_absent(tmp_path: Path) -> None:
    state = quickly_built("googlenet-bn", num_classes=6).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("aux")}, tmp_path / "w.pth")
    module = quickly_built("googlenet-bn", num_classes=6)
    assert load_weights(module, "googlenet-bn", tmp_path / "w.pth").notes == (
        "the file lacks the auxiliary heads aux1, aux2: they start fresh, and only train",
    )
    assert torch.equal(module.get_parameter("fc.weight"), state["fc.weight"])
    del state["aux1.fc1.bias"]  # half a head is no head
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing: aux1\.fc1\.bias"):
        load_weights(module, "googlenet-bn", tmp_path / "w.pth")
    state["aux1.fc1.bias"] = torch.zeros(1024)
    for head in ("fc", "aux1.fc2", "aux2.fc2"):
        for name in (f"{head}.weight", f"{head}.bias"):
            state[name] = state[name][:4]
    torch.save(state, tmp_path / "w.pth")
    assert load_weights(module, "googlenet-bn", tmp_path / "w.pth").notes == (
        "the heads fc, aux1.fc2, aux2.fc2 (4 classes) were replaced: the network has 6",
    )


def old_names(state: State) -> State:
    """As torchvision's densenet files have them: a dot more, and no counters of batches."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def test_old_names_of_densenets(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = build("densenet121", num_classes=3).state_dict()
    torch.save(old_names(state), tmp_path / "w.pth")
    module = build("densenet121", num_classes=3)
    assert load_weights(module, "densenet121", tmp_path / "w.pth").notes == ()
    assert same(module, state)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("kind", ["zip", "old", "raw", "beside weights"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(kind: str, tmp_path: Path, squeezenet: State) -> None:
    target, path = tmp_path / "created", tmp_path / "evil.pth"
    evil = {"a": Malicious(target)}
    if kind == "raw":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        content = squeezenet | evil if kind == "beside weights" else evil
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old")
    with pytest.raises(CheckpointError, match=r"nothing in it was run: .* (posix|nt)\.system") as caught:
        load_weights(build("squeezenet1.1"), "squeezenet1.1", path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not target.exists()
    if kind == "zip":  # the file does what this test fears
        torch.load(path, weights_only=False)
        assert target.exists()


def write_odd_files(folder: Path, state: State) -> dict[str, str]:
    """Files that are no state dict, and what is said of each."""
    torch.save(nn.Linear(2, 2), folder / "module.pth")
    torch.save([torch.zeros(2)], folder / "list.pth")
    torch.save(torch.zeros(2), folder / "tensor.pth")
    torch.save({}, folder / "nothing.pth")
    torch.save({"epoch": 3, **state}, folder / "mixed.pth")
    torch.save({"loss": np.float64(1.0), "state_dict": state}, folder / "numpy.pth")
    (folder / "script.pt").write_bytes(torch_script())
    torch.save(state, folder / "good.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "good.safetensors")
    for name, good in (("cut.pth", "good.pth"), ("cut_old.pth", "old.pth"), ("cut.safetensors", "good.safetensors")):
        (folder / name).write_bytes((folder / good).read_bytes()[:-1000])
    (folder / "page.pth").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "words.pth").write_text("hello")
    (folder / "noise.pth").write_bytes(np.random.default_rng(0).bytes(5000))
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    (folder / "folder.pth").mkdir()
    return {
        "module.pth": r"asks for torch\.nn\.modules\.linear\.Linear",
        "list.pth": "holds a list",
        "tensor.pth": "holds a single tensor",
        "nothing.pth": "holds a dict without tensors",
        "mixed.pth": "no tensors: epoch",
        "numpy.pth": "asks for numpy",
        "script.pt": "TorchScript archive",
        "cut.pth": "cut short",
        "cut_old.pth": "not readable",
        "cut.safetensors": "not a readable safetensors file",
        "page.pth": "is a web page",
        "pointer.pth": "Git LFS pointer",
        "empty.pth": "is empty",
        "words.pth": r"not readable \(not a pickle of tensors\)",
        "noise.pth": "not readable",
        "arrays.npz": "zip archive without",
        "folder.pth": "is a folder",
        "absent.pth": "no such file of weights",
        "x" * 5000: "cannot read",
    }


def torch_script() -> bytes:
    """An archive as ``torch.jit.save`` writes it; that function is on its way out and warns."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"script/{name}", b"3\n")
    return buffer.getvalue()


def test_files_that_are_no_state_dict(squeezenet: State, tmp_path: Path) -> None:
    says = write_odd_files(tmp_path, squeezenet)
    module = build("squeezenet1.1")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for name, text in says.items():
        with pytest.raises(CheckpointError, match=text) as caught:
            load_weights(module, "squeezenet1.1", tmp_path / name)
        assert "\n" not in str(caught.value), name
    assert same(module, before)


def test_damaged_files_never_raise_anything_else(squeezenet: State, tmp_path: Path) -> None:
    """Bytes of the pickles, not of the weights, are changed one at a time."""
    small = {name: tensor for name, tensor in squeezenet.items() if name.startswith("features.3.squeeze")}
    torch.save(small, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    good, random = (tmp_path / "w.pth").read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        bad = bytearray(good)
        bad[random.integers(0, 700)] = random.integers(0, 256)
        (tmp_path / "bad.pth").write_bytes(bad)
        try:
            read_weights(tmp_path / "bad.pth")
        except CheckpointError as problem:
            assert "\n" not in str(problem)


def test_another_networks_weights_are_refused_by_name(resnet: State, squeezenet: State, tmp_path: Path) -> None:
    torch.save(resnet, tmp_path / "r.pth")
    for network, says in (
        ("squeezenet1.1", r"\(these are the weights of resnet18\): missing: features\.0.* in all\); unexpected: conv1"),
        ("lenet5", r"torchvision has no lenet5 \(these are the weights of resnet18\); allowed for lenet5"),
    ):
        with pytest.raises(CheckpointError, match=says) as caught:
            load_weights(build(network), network, tmp_path / "r.pth")
        assert "\n" not in str(caught.value)
    small = build("resnet18", pictures="small")
    with pytest.raises(CheckpointError, match=r"weights of resnet18 without options.*other shape: conv1\.weight"):
        load_weights(small, "resnet18", tmp_path / "r.pth")
    torch.save(small.state_dict(), tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match="weights of resnet18 with --option pictures=small"):
        load_weights(build("resnet18"), "resnet18", tmp_path / "s.pth")
    with pytest.raises(UnknownNameError, match="did you mean"):
        load_weights(small, "resnet81", tmp_path / "r.pth")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), float("nan")), "NaN or infinite"),
        (lambda tensor: tensor.double() * 1e300, "NaN or infinite"),  # beyond what single precision holds
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: torch.empty_like(tensor, device="meta"), "no values"),
        (lambda tensor: (tensor * 100).to(torch.int8), "other type: .*int8 instead of float32"),
        (lambda tensor: tensor[:, :2], r"other shape: .*\(64, 2, 3, 3\) instead of \(64, 3, 3, 3\)"),
    ],
)
def test_values_that_cannot_be_weights(
    change: Callable[[torch.Tensor], torch.Tensor], says: str, squeezenet: State, tmp_path: Path
) -> None:
    name = "features.0.weight"
    torch.save(squeezenet | {name: change(squeezenet[name])}, tmp_path / "w.pth")
    module = build("squeezenet1.1")
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_weights(module, "squeezenet1.1", tmp_path / "w.pth")
    assert same(module, before)


def test_own_checkpoints(tmp_path: Path) -> None:
    torch.manual_seed(6)
    state = build("lenet5", num_classes=7).state_dict()
    preprocess = Preprocess(size=(32, 32), channels="L")
    path = write_checkpoint(
        Checkpoint("lenet5", 7, 1, preprocess, tuple("abcdefg"), state, dataset="mine"), tmp_path / "c.safetensors"
    )
    module = build("lenet5", num_classes=7)
    loaded = load_weights(module, "lenet5", path)
    assert same(module, state) and loaded.notes == () and loaded.preprocess == preprocess
    assert load_weights(build("lenet5", num_classes=3), "lenet5", path).notes == (
        "the head output (7 classes) was replaced: the network has 3",
    )
    assert fit_of(read_weights(path), "lenet5") == Fit(7, 1, {})
    with pytest.raises(CheckpointError, match="holds the weights of lenet5; allowed: those of resnet18"):
        load_weights(build("resnet18"), "resnet18", path)


def test_a_digest_in_the_name_is_checked(squeezenet: State, tmp_path: Path) -> None:
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    torch.save(squeezenet, path)
    assert "promises a SHA-256 of b8a52dc0" in read_weights(path).notes[0]
    right = path.rename(tmp_path / f"squeezenet1_1-{sha256_file(path)[:8]}.pth")
    assert read_weights(right).notes == ()


def test_statistics() -> None:
    assert statistics("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert statistics("vgg16", 1) == ((0.449,), (0.226,))
    assert statistics("googlenet-bn") == ((0.5,) * 3, (0.5,) * 3)


def test_torchvisions_own_transform_of_googlenets_input() -> None:
    """Its published weights see (x - 0.5) / 0.5: torchvision undoes ImageNet's statistics inside the network."""
    theirs = test_torchvision._torchvision().googlenet(weights=None, init_weights=False, transform_input=True)
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics("resnet18"))
    own_mean, own_std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics("googlenet-bn"))
    torch.testing.assert_close(theirs._transform_input((pixels - mean) / std), (pixels - own_mean) / own_std)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("resnet18", {}),
        ("mobilenet-v3-small", {"num_classes": 4}),
        pytest.param("googlenet-bn", {"init_weights": True, "aux_logits": False}, marks=pytest.mark.slow),
        pytest.param("densenet121", {}, marks=pytest.mark.slow),
    ],
)
def test_torchvisions_files_give_torchvisions_answers(network: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    names = {"mobilenet-v3-small": "mobilenet_v3_small", "googlenet-bn": "googlenet"}
    torch.manual_seed(7)
    theirs = getattr(test_torchvision._torchvision(), names.get(network, network))(weights=None, **arguments)
    state = old_names(theirs.state_dict()) if network == "densenet121" else theirs.state_dict()
    torch.save(state, tmp_path / "w.pth")
    ours = build(network, num_classes=arguments.get("num_classes", 1000))
    load_weights(ours, network, tmp_path / "w.pth")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-6)
