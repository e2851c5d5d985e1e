from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Trained

from deploykit import data
from deploykit.augment import AUGMENTATIONS, augmentation
from deploykit.checkpoint import read_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError, UnknownNameError
from deploykit.files import read_json, sha256_file
from deploykit.results import Training, read_record
from deploykit.train import CHECKPOINT, train_network
from deploykit.training_loop import _batches, _rate
from deploykit.training_recipes import TrainOptions, recipe_for

QUICK = TrainOptions(epochs=2, batch_size=64, augment="shapes", threads=1, device="cpu")


@pytest.fixture(scope="module")
def small() -> tuple[Dataset, Dataset]:
    return data.load("shapes", "train").take(450), data.load("shapes", "test").take(90)


def test_learns_and_writes_what_it_promises(trained: Trained) -> None:
    record = trained.training
    assert record.test_top1 > 0.85  # nine classes; four epochs
    assert read_record(trained.folder / "train.json") == record
    assert record.parameters == sum(
        t.numel()
        for n, t in read_checkpoint(trained.folder / "checkpoint.safetensors").tensors.items()
        if "running" not in n and "num_batches" not in n
    )
    assert record.checkpoint_sha256 == sha256_file(trained.folder / "checkpoint.safetensors")
    rows = list(csv.DictReader((trained.folder / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["test_top1"]) == record.test_top1
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert (trained.folder / "curves.svg").read_text().startswith("<svg")
    assert not (trained.folder / "state.safetensors").exists()


def test_same_seed_same_bits_other_seed_other_bits(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    digests = [
        train_network("lenet1", *small, tmp_path / str(index), replace(QUICK, seed=seed)).checkpoint_sha256
        for index, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]


class _Stop(Exception):
    pass


def test_resume_after_an_interruption_gives_the_same_bits(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Interrupted in the first, in a middle and in the last epoch, with dropout, BatchNorm and both optimizers."""
    small = small[0].take(150), small[1].take(30)
    cases = (("mnist-cnn", "adamw", (1, 2, 3)), ("cifar-cnn", "sgd", (2,)))
    for network, optimizer, stops in cases:
        options = replace(QUICK, epochs=3, optimizer=optimizer, learning_rate=0.01, batch_size=50)
        straight = train_network(network, *small, tmp_path / network / "straight", options)
        for stop_at in (f"epoch {epoch}/3" for epoch in stops):
            folder = tmp_path / network / stop_at.replace("/", "-")

            def interrupt(stage: str, done: int, total: int, note: str = "", at: str = stop_at) -> None:
                if stage == at and done > 50:
                    raise _Stop

            with pytest.raises(_Stop):
                train_network(network, *small, folder, options, progress=interrupt)
            resumed = train_network(network, *small, folder, options, resume=True)
            assert resumed.checkpoint_sha256 == straight.checkpoint_sha256
            assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in straight.history]


def _kill_and_resume(folder: Path, epochs: int, kills: int) -> None:
    """Kills a real training at random moments of its work; what the last one writes equals an undisturbed run's."""
    options = recipe_for("shapes-color-shape").changed(epochs=epochs, threads=1)
    splits = data.load("shapes", "train"), data.load("shapes", "test")
    command = [sys.executable, "-m", "deploykit", "train", "color-shape-mlp", "--data", "shapes", "--resume"]
    command += ["--threads", "1", "--epochs", str(epochs), "-o", str(folder / "killed")]
    state, moments = folder / "killed" / "state.safetensors", random.Random(5)
    for _ in range(kills):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            os.sched_yield()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0.0, 0.8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it came to its end before its moment: give it more epochs"
    resumed = train_network("color-shape-mlp", *splits, folder / "killed", options, resume=True)
    straight = train_network("color-shape-mlp", *splits, folder / "straight", options)
    assert resumed.epochs == epochs == len(resumed.history)
    assert sha256_file(folder / "killed" / CHECKPOINT) == straight.checkpoint_sha256
    assert not [path for path in (folder / "killed").iterdir() if "partial" in path.name]


def test_sigkill_and_resume(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, epochs=4, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_sigkills_and_resume(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, epochs=40, kills=10)


def test_a_finished_training_is_not_repeated_and_not_overwritten(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    first = train_network("lenet1", *small, tmp_path / "run", QUICK)
    with pytest.raises(OutputError, match=r"--resume or --overwrite"):
        train_network("lenet1", *small, tmp_path / "run", QUICK)
    assert train_network("lenet1", *small, tmp_path / "run", QUICK, resume=True) == first
    other = train_network("lenet1", *small, tmp_path / "run", replace(QUICK, seed=9), overwrite=True)
    assert other.checkpoint_sha256 != first.checkpoint_sha256
    assert Training.from_document(read_json(tmp_path / "run" / "train.json")) == other


@pytest.mark.parametrize(
    ("change", "says"), [({"seed": 7}, "option seed"), ({"epochs": 5}, "option epochs"), ({"threads": 2}, "threads")]
)
def test_resuming_with_other_options_names_the_difference(
    small: tuple[Dataset, Dataset], tmp_path: Path, change: dict[str, int], says: str
) -> None:
    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "epoch 2/2":
            raise _Stop

    with pytest.raises(_Stop):
        train_network("lenet1", *small, tmp_path, QUICK, progress=interrupt)
    with pytest.raises(CheckpointError, match=f"{says} was"):
        train_network("lenet1", *small, tmp_path, replace(QUICK, **change), resume=True)


def test_a_diverging_loss_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    options = replace(QUICK, optimizer="sgd", learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(InputError, match=r"loss became .* --learning-rate"):
        train_network("lenet5", *small, tmp_path, options)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_bad_input(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = small
    with pytest.raises(UnknownNameError, match="did you mean 'lenet5'"):
        train_network("lenet-5", train, test, tmp_path / "a", QUICK)
    with pytest.raises(UnknownNameError, match="augmentation 'digit'"):
        train_network("lenet5", train, test, tmp_path / "a", replace(QUICK, augment="digit"))
    with pytest.raises(InputError, match="differ"):
        train_network("lenet5", train, data.load("shapes-color", "test"), tmp_path / "b", QUICK)
    with pytest.raises(OutputError, match="cannot write"):
        train_network("lenet5", train, test, "/proc/nowhere", QUICK)


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}]
    + [{"label_smoothing": 1.0}, {"optimizer": "adam"}, {"device": "tpu"}, {"threads": 0}, {"warmup_epochs": -1.0}],
)
def test_options_validate_themselves(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        TrainOptions(**bad)  # type: ignore[arg-type]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainOptions(epochs=10, learning_rate=0.2, warmup_epochs=2.0)
    rates = [_rate(options, epoch) for epoch in np.linspace(0, 10, 101)]
    assert rates[0] == 0.0
    assert rates[20] == pytest.approx(0.2) == max(rates)
    assert rates[60] == pytest.approx(0.1)  # half way down the cosine
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_batches_hold_every_picture_once_and_never_one_alone() -> None:
    for total, size in ((129, 64), (128, 64), (5, 64), (1, 64), (65, 64)):
        slices = [chosen for _, chosen in _batches(torch.randperm(total), size)]
        assert sorted(torch.cat(slices).tolist()) == list(range(total))
        assert total == 1 or min(len(chosen) for chosen in slices) > 1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_keeps_shape_range_and_follows_the_seed(name: str) -> None:
    pictures = torch.randint(0, 256, (32, 3, 28, 28), dtype=torch.uint8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augmentation(name)(pictures))
    assert results[0].shape == pictures.shape
    assert results[0].dtype == torch.float32
    assert float(results[0].min()) >= 0.0 and float(results[0].max()) <= 255.001
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2]) == (name == "none")


def test_shift_and_flip_only_move_pixels() -> None:
    """A single bright pixel in the middle stays one pixel, somewhere near."""
    pictures = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    pictures[:, :, 14, 14] = 200
    moved = augmentation("photos")(pictures)
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((64,), 200.0))
    places = {tuple(place[2:].tolist()) for place in moved.nonzero()}
    assert len(places) > 20
    assert all(abs(y - 14) <= 4 and abs(x - 14) <= 4 for y, x in places)
