"""The main line on real digits: short, but from the IDX files to the int8 model's accuracy on all test pictures."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from deploykit import data
from deploykit.evaluate import evaluate_onnx
from deploykit.export import export_onnx
from deploykit.quantize import quantize_onnx
from deploykit.sources import example_inputs, open_source
from deploykit.train import train_network
from deploykit.training_recipes import recipe_for


@pytest.mark.realdata
@pytest.mark.timeout(600)
def test_mnist_from_files_to_int8(real_data: Path, tmp_path: Path) -> None:
    train, test = (data.load("mnist", split, data_dir=real_data) for split in ("train", "test"))
    options = recipe_for("mnist").changed(epochs=2, augment="none")
    record = train_network("mnist-cnn", train.take(20_000), test, tmp_path / "run", options)
    source = open_source(tmp_path / "run")
    example, pictures = example_inputs(source, test)
    artifact = export_onnx(source.module, tmp_path / "m.onnx", example=example, card=source.card, pictures=pictures)
    assert artifact.parity is not None and artifact.parity["pictures"] == "mnist/test"
    quantization = quantize_onnx(tmp_path / "m.onnx", tmp_path / "m.int8.onnx", calibration=train)
    assert quantization.unoptimised_agreement is not None and quantization.unoptimised_agreement > 0.99
    fp32 = evaluate_onnx(tmp_path / "m.onnx", test)
    int8 = evaluate_onnx(tmp_path / "m.int8.onnx", test, reference=tmp_path / "m.onnx")
    assert fp32.samples == int8.samples == 10_000
    assert fp32.top1 == pytest.approx(record.test_top1, abs=1e-4)  # PyTorch said the same
    assert fp32.top1 > 0.96
    assert abs(int8.top1 - fp32.top1) < 0.005
    assert int8.agreement is not None and int8.agreement > 0.99


@pytest.mark.realdata
def test_cifar10_as_jpeg_is_read_from_its_archive_under_its_own_name(real_data: Path) -> None:
    train, test = (data.load("cifar10-jpeg", split, data_dir=real_data) for split in ("train", "test"))
    assert np.bincount(train.targets).tolist() == [5000] * 10 and np.bincount(test.targets).tolist() == [1000] * 10
    assert train.name == "cifar10-jpeg" and train.notes[0].startswith("CIFAR-10 (JPEG)")
    pixels = np.asarray(train.pictures(range(0, 50_000, 10)), dtype=np.float32) / 255
    # Means and deviations of the originals that all CIFAR-10 examples use; JPEG loses detail, not the mean.
    assert pixels.mean((0, 1, 2)) == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    assert pixels.std((0, 1, 2)) == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.012)


@pytest.mark.realdata
def test_flowers_read_the_same_from_the_archive_and_unpacked(real_data: Path, tmp_path: Path) -> None:
    archive = real_data / "flowers5_128px.tar"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    here, there = data.load(archive, "all"), data.load(tmp_path / "flowers", "all")
    assert len(here) == len(there) == 4317 and here.size == there.size == (128, 128)
    assert here.labels == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert here.notes == there.notes == ("passed over 1 file that is not a picture: .DS_Store",)
    assert here.digest == there.digest
    train, test = data.load(archive, "train"), data.load(archive, "test")
    assert sorted([*train.rows.tolist(), *test.rows.tolist()]) == list(range(4317))
    assert len(test) == 864 and sum(len(targets) for _, targets in test.batches(100)) == 864
