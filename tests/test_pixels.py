"""Pictures in memory and streamed: the same bits; broken pictures, dead processes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from deploykit import data
from deploykit.errors import DataError, InputError
from deploykit.picture_worker import PictureWorker
from deploykit.pixels import InMemory, Streamed, load_pixels
from deploykit.preprocess import fit_pictures, for_network
from deploykit.train import train_network
from deploykit.training_recipes import TrainOptions
from deploykit.training_setup import training_view

CPU = torch.device("cpu")
PLAIN = for_network((3, 24, 24), None, (0.0,) * 3, (1.0,) * 3, margin=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noisy photos of many sizes, 60 for training and 14 for testing."""
    root, random = tmp_path_factory.mktemp("pictures") / "über photos", np.random.default_rng(0)
    for index in range(74):
        split, colour = ("test" if index % 5 == 4 and index < 70 else "train"), index % 2
        picture = random.integers(0, 90, (*random.integers(30, 90, 2), 3))
        picture[..., colour] += 100
        path = root / split / ("red", "green")[colour] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)
    return root


def _rows(count: int, size: int) -> list[torch.Tensor]:
    return list(torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(size))


def test_streamed_by_any_number_of_processes_the_same_as_in_memory(photos: Path) -> None:
    train = data.load(photos, "train")
    view, chosen = training_view(PLAIN, "crops"), _rows(len(train), 7)
    held = load_pixels(train, view, CPU)
    assert isinstance(held, InMemory) and held.held_bytes == len(train) * 3 * 27 * 27
    expected = list(held.batches(chosen))
    by_hand = fit_pictures(view, train.pictures(chosen[2].numpy())).transpose(0, 3, 1, 2)
    assert np.array_equal(expected[2].numpy(), by_hand)
    for workers in (0, 1, 3):
        with load_pixels(train, view, CPU, cap=0, workers=workers) as streamed:  # type: ignore[attr-defined]
            assert isinstance(streamed, Streamed) and streamed.held_bytes == 0
            for _ in range(2):  # two epochs
                assert all(map(torch.equal, expected, list(streamed.batches(chosen))))
            assert torch.equal(streamed.targets, held.targets)


@pytest.mark.parametrize("augment", ["crops", pytest.param("photos", marks=pytest.mark.slow)])
def test_a_training_has_the_same_bits_streamed_and_in_memory(photos: Path, tmp_path: Path, augment: str) -> None:
    splits = data.load(photos, "train").take(24), data.load(photos, "test").take(8)
    options = TrainOptions(
        epochs=2, batch_size=8, augment=augment, cutmix=1.0, mixup=0.2, ema=0.9, threads=1, device="cpu"
    )
    small = {"width": "16", "pictures": "small"}
    digests = {
        train_network(
            "resnet18", *splits, tmp_path / str(cap), options, network_options=small, size=12, memory_cap=cap, workers=2
        ).checkpoint_sha256
        for cap in (0, 3 * 12 * 12 * 8, None)  # nothing, the test split alone, and both fit
    }
    assert len(digests) == 1


def test_the_middle_of_the_training_view_is_what_is_tested() -> None:
    """Pieces are cut out of the resized picture, whose middle is the test's."""
    view = training_view(PLAIN, "crops")
    assert (PLAIN.resize, PLAIN.size, view.resize, view.size) == (27, (24, 24), 27, (27, 27))
    assert training_view(PLAIN, "photos") == PLAIN
    same = for_network((3, 24, 24), None, (0.0,) * 3, (1.0,) * 3, picture_size=(24, 24), margin=True)
    assert same.resize == (24, 24) and same.crop is None and training_view(same, "crops") == same


def test_a_picture_that_cannot_be_read_is_named(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for index in range(8):
        path = broken / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 30, 3), index * 9, np.uint8)).save(path)
    train = data.load(broken, "train")
    for path in (broken / "class1").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    for workers in (0, 2):
        with Streamed(train, PLAIN, CPU, workers) as streamed:
            with pytest.raises(
                DataError, match=r"class1/\d\.png is not a readable picture.*replace or remove it"
            ) as said:
                list(streamed.batches(_rows(len(train), 2)))
            assert "\n" not in str(said.value)
            good = torch.from_numpy(np.flatnonzero(train.targets == 0))  # the processes go on
            assert len(list(streamed.batches([good]))) == 1


def test_a_process_that_dies_is_said(photos: Path) -> None:
    train = data.load(photos, "train")
    worker = PictureWorker(train, PLAIN)
    into = np.empty((1, 3, 24, 24), np.uint8)
    worker.read(train.rows[:1], into)
    worker._process.kill()
    with pytest.raises(DataError, match="a process that reads pictures was killed by signal 9"):
        worker.read(train.rows[:1], into)
    worker.close()


def test_bad_numbers(photos: Path) -> None:
    for bad in ({"cap": -1}, {"workers": -1}):
        with pytest.raises(InputError, match="allowed: 0 or more"):
            load_pixels(data.load(photos, "test"), PLAIN, CPU, **bad)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("number", ["SIGINT", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_no_process_outlives_the_training(photos: Path, tmp_path: Path, number: str) -> None:
    command = [sys.executable, "-m", "deploykit", "train", "resnet18", "--data", str(photos), "--size", "12"]
    command += ["--option", "width=16", "--epochs", "100000", "--memory-cap", "0", "--workers", "2", "--threads", "1"]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not (tmp_path / "run" / "state.safetensors").exists() and process.poll() is None:
            time.sleep(0.02)  # until it has an epoch
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 4  # two for each split
        if number == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == (130 if number == "SIGINT" else -signal.SIGKILL), said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert "Traceback" not in said and "Error" not in said
