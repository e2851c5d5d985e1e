from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Trained
from PIL import Image

from deploykit import data
from deploykit.augment import AUGMENTATIONS, augmentation
from deploykit.checkpoint import read_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, OutputError, UnknownNameError
from deploykit.files import sha256_file
from deploykit.results import read_record
from deploykit.train import train_network
from deploykit.training_loop import _batches, _rate
from deploykit.training_recipes import AUGMENTATION_NAMES, TrainOptions

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


def test_a_diverging_loss_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    options = replace(QUICK, optimizer="sgd", learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(InputError, match=r"loss became .* --learning-rate"):
        train_network("lenet5", *small, tmp_path, options)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_bad_input(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = small
    with pytest.raises(UnknownNameError, match="did you mean 'lenet5'"):
        train_network("lenet-5", train, test, tmp_path / "a", QUICK)
    with pytest.raises(UnknownNameError, match="augmentation 'digit'; did you mean 'digits'"):
        replace(QUICK, augment="digit")
    with pytest.raises(InputError, match="differ"):
        train_network("lenet5", train, data.load("shapes-color", "test"), tmp_path / "b", QUICK)
    with pytest.raises(OutputError, match="cannot write"):
        train_network("lenet5", train, test, "/proc/nowhere", QUICK)


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}]
    + [{"label_smoothing": 1.0}, {"optimizer": "adam"}, {"device": "tpu"}, {"threads": 0}, {"warmup_epochs": -1.0}]
    + [{"seed": -1}, {"seed": 2**32}, {"threads": 10**6}, {"augment": "photo"}],
)
def test_options_validate_themselves(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        TrainOptions(**bad)  # type: ignore[arg-type]


def test_the_largest_seed_trains(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    options = replace(QUICK, epochs=1, seed=2**32 - 1)
    assert train_network("lenet1", small[0].take(60), small[1], tmp_path, options).seed == 2**32 - 1


def test_one_picture_at_a_time(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """BatchNorm has no variance there and says so; a network without it learns."""
    train, test = small
    options = replace(QUICK, epochs=1)
    cases = (("batch size 1 ", train, replace(options, batch_size=1)), (" 1 training pictures", train.take(1), options))
    for says, split, chosen in cases:
        with pytest.raises(InputError, match=f"color-shape-cnn has BatchNorm.*{says}.*allowed: 2 or more"):
            train_network("color-shape-cnn", split, test, tmp_path / "norm", chosen)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    train_network("lenet1", train.take(5), test, tmp_path / "five", replace(options, batch_size=1))
    train_network("lenet1", train.take(1), test, tmp_path / "one", options)


def test_a_test_loss_that_is_not_finite_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """The only step of the first epoch spoils the weights; the training loss was taken before it."""
    options = replace(QUICK, epochs=1, batch_size=1000, optimizer="sgd", learning_rate=1e38, warmup_epochs=1e-9)
    with pytest.raises(InputError, match=r"test loss became .* --learning-rate"):
        train_network("lenet5", *small, tmp_path, replace(options, epochs=2))


def test_the_speed_is_that_of_the_training_pass(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    record = train_network("lenet1", small[1], small[0], tmp_path, QUICK)
    training = sum(row["train_seconds"] for row in record.history)
    assert record.images_per_s == pytest.approx(90 * 2 / training, abs=0.1)
    assert record.seconds == pytest.approx(sum(row["seconds"] for row in record.history), abs=1e-3)
    assert all(0.0 < row["train_seconds"] < row["seconds"] for row in record.history)


def test_statistics_are_those_of_the_inputs(tmp_path: Path) -> None:
    """Colour to grey in whole steps, as Pillow; larger pictures resized first: a fine checkerboard is even grey."""
    targets, options = np.arange(20) % 2, replace(QUICK, epochs=1, augment="none")
    colours = np.random.default_rng(0).integers(0, 4, (20, 1, 1, 3), dtype=np.uint8).repeat(28, 1).repeat(28, 2)
    board = np.zeros((20, 56, 56, 1), np.uint8)
    board[:, ::2, ::2] = board[:, 1::2, 1::2] = 200
    greys = [np.asarray(Image.fromarray(picture).convert("L")) for picture in colours]
    for name, images, mean in (("dark", colours, np.mean(greys) / 255.0), ("board", board, 100 / 255.0)):
        pictures = Dataset.from_arrays(name, images, targets)
        train_network("color-mlp", pictures, pictures, tmp_path / name, options)
        preprocess = read_checkpoint(tmp_path / name / "checkpoint.safetensors").preprocess
        assert preprocess.mean == pytest.approx([mean], abs=1e-3 if name == "board" else 6e-5)
        assert preprocess.std[0] < 0.02


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


def test_augmentations_are_those_that_options_allow() -> None:
    assert tuple(AUGMENTATIONS) == AUGMENTATION_NAMES


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
