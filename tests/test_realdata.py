"""The main line on real digits: short, but from the IDX files to the int8 model's accuracy on all test pictures."""

from __future__ import annotations

from pathlib import Path

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
