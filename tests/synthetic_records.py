"""Records as a real run writes them, three networks in float32 and int8, with figures chosen by hand."""

import base64
import hashlib
import io
import math

from PIL import Image, ImageDraw

from deploykit.files import write_json
from deploykit.results import Accuracy, Bench, Example, Latency, Memory, Profile, Quantization, Timing, Training

ENVIRONMENT = {
    "os": "Linux 6.1",
    "machine": "x86_64",
    "cpu": "Intel(R) Xeon(R) Platinum 8488C",
    "cpu_features": ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
    "physical_cores": 1,
    "logical_cores": 2,
    "available_cpus": 2,
    "memory_bytes": 8_000_000_000,
    "memory_limit_bytes": None,
    "gpus": [],
    "python": "3.11.2",
    "versions": {"numpy": "2.4.1", "onnx": "1.23.0", "onnxruntime-gpu": "1.31.1"},
}
EDGE = ENVIRONMENT | {
    "machine": "aarch64",
    "cpu": "Cortex-A76",
    "cpu_features": ["asimd", "asimddp"],
    "available_cpus": 4,
    "memory_bytes": 4_000_000_000,
}
DIGITS = [str(digit) for digit in range(10)]

# network, precision, file bytes, download bytes, top-1, median ms, peak bytes, parameters, MACs
FIGURES = [
    ("lenet5", "fp32", 250_871, 228_400, 0.9921, 0.0731, 1_410_000, 61_706, 416_520),
    ("lenet5", "int8", 70_112, 52_300, 0.9918, 0.0522, 1_120_000, 61_706, 416_520),
    ("mnist-cnn", "fp32", 61_240, 54_800, 0.9853, 0.0418, 1_050_000, 14_122, 284_960),
    ("mnist-cnn", "int8", 24_913, 17_420, 0.9850, 0.0437, 1_010_000, 14_122, 284_960),
    ("plain-mnist", "fp32", 1_594_300, 1_480_000, 0.9712, 0.0394, 4_870_000, 397_510, 397_000),
    ("plain-mnist", "int8", 404_100, 371_000, 0.9706, 0.0251, 2_310_000, 397_510, 397_000),
]


def digest(name):
    return hashlib.sha256(name.encode()).hexdigest()


def picture(seed):
    canvas = Image.new("L", (28, 28), 0)
    ImageDraw.Draw(canvas).ellipse((4 + seed % 5, 5, 20, 15 + seed % 9), outline=255, width=2)
    packed = io.BytesIO()
    canvas.save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


def profile(network, precision, size, download, parameters, macs, /, **changes):
    values = {
        "name": f"{network}.{precision}.onnx",
        "parameters": parameters,
        "connections": macs + 1000,
        "macs": macs,
        "weight_bytes": size - 4000,
        "file_bytes": size,
        "download_bytes": download,
        "peak_activation_bytes": 37_632,
        "precision": precision,
        "layers": (),
        "metadata": {"deploykit.network": network},
        "sha256": digest(f"{network}.{precision}"),
        "parent_sha256": digest(f"{network}.fp32") if precision != "fp32" else None,
        "environment": ENVIRONMENT,
        "deploykit": "0.1.0",
    }
    return Profile(**(values | changes))


def accuracy(network, precision, size, top1, /, **changes):
    values = {
        "model": f"runs/{network}/{network}.{precision}.onnx",
        "model_sha256": digest(f"{network}.{precision}"),
        "dataset": "mnist",
        "split": "test",
        "dataset_digest": digest("mnist"),
        "samples": 10_000,
        "top1": top1,
        "top5": min(1.0, top1 + 0.0075),
        "per_class": {name: top1 - 0.004 * math.sin(index + len(network)) for index, name in enumerate(DIGITS)},
        "agreement": None if precision == "fp32" else 0.9986,
        "reference": None if precision == "fp32" else f"{network}.fp32.onnx",
        "provider": "cpu",
        "precision": precision,
        "network": network,
        "file_bytes": size,
        "examples": tuple(
            Example(picture(index), str(index % 10), str(index % 10) if index % 6 else "8", 0.97 - 0.04 * (index % 7))
            for index in range(12)
        ),
        "environment": ENVIRONMENT,
        "deploykit": "0.1.0",
    }
    return Accuracy(**(values | changes))


def timing(network, precision, size, median, peak, /, **changes):
    values = {
        "model": f"runs/{network}/{network}.{precision}.onnx",
        "model_sha256": digest(f"{network}.{precision}"),
        "precision": precision,
        "provider": "cpu",
        "nodes_by_provider": {"cpu": 12},
        "threads": 1,
        "batch": 1,
        "latency_ms": Latency(
            median=median,
            mean=median * 1.02,
            p50=median,
            p90=median * 1.1,
            p99=median * 1.4,
            min=median * 0.95,
            ci_low=median * 0.99,
            ci_high=median * 1.01,
            samples=2000,
        ),
        "throughput_per_s": 1000.0 / median,
        "load_ms": 9.13,
        "first_run_ms": 0.412,
        "memory": Memory(weights_bytes=size, after_load_bytes=peak - 100_000, peak_bytes=peak),
        "stable": True,
        "network": network,
        "file_bytes": size,
    }
    return Timing(**(values | changes))


def bench(*timings, **changes):
    return Bench(results=timings, **({"environment": ENVIRONMENT, "deploykit": "0.1.0"} | changes))


def training(network, epochs=12, /, **changes):
    history = tuple(
        {
            "epoch": epoch,
            "train_loss": 0.5 + 1.6 * math.exp(-epoch / 3),
            "train_top1": 0.99 - 0.5 * math.exp(-epoch / 2),
            "test_loss": 0.52 + 1.5 * math.exp(-epoch / 2.6),
            "test_top1": 0.992 - 0.42 * math.exp(-epoch / 1.9),
            "learning_rate": 0.003 * (1 - epoch / epochs),
            "seconds": 11.2,
        }
        for epoch in range(1, epochs + 1)
    )
    values = {
        "network": network,
        "dataset": "mnist",
        "dataset_digest": digest("mnist"),
        "epochs": epochs,
        "seconds": 134.4,
        "images_per_s": 5357.0,
        "device": "cpu",
        "precision": "fp32",
        "test_top1": history[-1]["test_top1"],
        "parameters": 61_706,
        "checkpoint": "checkpoint.safetensors",
        "checkpoint_sha256": digest(f"{network} checkpoint"),
        "seed": 0,
        "threads": 2,
        "history": history,
        "environment": ENVIRONMENT,
        "deploykit": "0.1.0",
    }
    return Training(**(values | changes))


def quantization(network, size, parent_size):
    return Quantization(
        model=f"{network}.int8.onnx",
        model_sha256=digest(f"{network}.int8"),
        parent=f"{network}.fp32.onnx",
        parent_sha256=digest(f"{network}.fp32"),
        recipe="int8",
        calibration="mnist",
        calibration_digest=digest("mnist train"),
        calibration_samples=256,
        file_bytes=size,
        parent_bytes=parent_size,
        compared_samples=256,
        agreement=0.996,
        max_abs=0.31,
        snr_db=31.2,
        seconds=2.2,
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def all_records():
    """By file name, what ``run`` leaves for the networks of ``FIGURES``."""
    records, timings, sizes = {}, [], {}
    for network, precision, size, download, top1, median, peak, parameters, macs in FIGURES:
        sizes[network, precision] = size
        name = f"{network}.{precision}"
        records[f"{name}.profile.json"] = profile(network, precision, size, download, parameters, macs)
        records[f"{name}.accuracy.json"] = accuracy(network, precision, size, top1)
        noisy = {"stable": False, "warnings": ("the runs spread by 14 %",)} if name == "plain-mnist.int8" else {}
        timings.append(timing(network, precision, size, median, peak, **noisy))
    for network in ("lenet5", "mnist-cnn", "plain-mnist"):
        sizes_of = (sizes[network, "int8"], sizes[network, "fp32"])
        records[f"{network}.int8.quantization.json"] = quantization(network, *sizes_of)
        records[f"{network}.train.json"] = training(network)
    records["bench.json"] = bench(*timings)
    return records


def write_records(folder, records):
    for name, record in records.items():
        write_json(folder / name, record.to_document())
    return folder
