"""One small network, trained, exported and quantized once for all tests that need a real model."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploykit import data
from deploykit.results import Quantization, Training
from deploykit.training_recipes import recipe_for

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and the processes that the tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so nohup


@dataclass(frozen=True)
class Trained:
    folder: Path
    onnx: Path
    int8: Path
    training: Training
    quantization: Quantization


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``color-shape-cnn`` after 4 epochs on generated pictures, with its fp32 and int8 files."""
    from deploykit.export import export_onnx
    from deploykit.quantize import quantize_onnx
    from deploykit.sources import example_inputs, open_source
    from deploykit.train import train_network

    folder = tmp_path_factory.mktemp("trained") / "über trained"  # a space and a letter beyond ASCII, everywhere
    train, test = data.load("shapes", "train"), data.load("shapes", "test")
    training = train_network(
        "color-shape-cnn", train, test, folder, recipe_for(train.name).changed(epochs=4, threads=1)
    )
    source = open_source(folder)
    example, pictures = example_inputs(source, test)
    onnx, int8 = folder / "net.onnx", folder / "net.int8.onnx"
    export_onnx(source.module, onnx, example=example, card=source.card, pictures=pictures)
    quantization = quantize_onnx(onnx, int8, calibration=train)
    return Trained(folder, onnx, int8, training, quantization)


@pytest.fixture
def real_data() -> Path:
    """The folder with MNIST and others, for tests marked ``realdata``."""
    folder = os.environ.get("DEPLOYKIT_DATA")
    if not folder:
        pytest.skip("DEPLOYKIT_DATA does not name a folder with real data")
    return Path(folder)
