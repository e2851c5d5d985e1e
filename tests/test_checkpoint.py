from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploykit.artifact import Preprocess
from deploykit.checkpoint import Checkpoint, load_module, read_checkpoint, write_checkpoint
from deploykit.errors import CheckpointError
from deploykit.models import build


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(1)
    module = build("lenet5", num_classes=7, in_channels=3, activation="tanh")
    return Checkpoint(
        network="lenet5",
        options={"activation": "tanh"},
        num_classes=7,
        in_channels=3,
        preprocess=Preprocess(size=(32, 32)),
        labels=tuple("abcdefü"),
        dataset="mine",
        training={"test_top1": 0.5},
        tensors=module.state_dict(),
    )


def test_round_trip_gives_the_same_logits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_checkpoint(checkpoint, tmp_path / "c.safetensors")
    again = read_checkpoint(path)
    assert replace(again, tensors={}) == replace(checkpoint, tensors={})
    first, second = load_module(checkpoint), load_module(again)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(x), second(x))
    assert not second.training


def test_equal_checkpoints_are_equal_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = write_checkpoint(checkpoint, tmp_path / "a.safetensors").read_bytes()
    assert write_checkpoint(checkpoint, tmp_path / "b.safetensors").read_bytes() == first


def test_damaged_and_foreign_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    good = write_checkpoint(checkpoint, tmp_path / "good.safetensors").read_bytes()
    bad = {
        "cut in the header": good[:100],
        "cut in the weights": good[: len(good) // 2],
        "one byte short": good[:-1],
        "empty": b"",
        "text": b"hello " * 100,
        "pickle": pickle.dumps({"a": 1}),
    }
    for name, content in bad.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable safetensors") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of deploykit; another program's weights go with the name"):
        read_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_weights_of_another_network_are_named(checkpoint: Checkpoint) -> None:
    tensors = dict(checkpoint.tensors)
    first = next(iter(tensors))
    tensors["stranger"] = tensors.pop(first)
    with pytest.raises(CheckpointError, match=f"missing: {first}; unexpected: stranger"):
        load_module(replace(checkpoint, tensors=tensors))
    with pytest.raises(CheckpointError, match=r"other shape: .* instead of"):
        load_module(replace(checkpoint, num_classes=8))


def test_nan_weights_are_named(checkpoint: Checkpoint) -> None:
    name = "c1.weight" if "c1.weight" in checkpoint.tensors else next(iter(checkpoint.tensors))
    tensors = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    tensors[name].view(-1)[3] = float("nan")
    with pytest.raises(CheckpointError, match=f"{name} hold NaN"):
        load_module(replace(checkpoint, tensors=tensors))


def test_reading_survives_a_later_overwrite(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The weights are copies, not a map of a file that ``train`` replaces each epoch."""
    path = write_checkpoint(checkpoint, tmp_path / "c.safetensors")
    again = read_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
