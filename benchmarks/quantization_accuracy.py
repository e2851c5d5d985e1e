"""Top-1 and agreement of int8 files: deploykit's efforts beside what ONNX Runtime's own quantizer gives.

    python benchmarks/quantization_accuracy.py NET.onnx=DATA … [--data-dir DIR] [--samples 256]

Every file is made from the same calibration samples and judged on all test pictures (or the held-out fifth) by the same
runtime. A file that was made elsewhere, by NNCF for instance, joins the comparison as ``--also NET=LABEL=FILE``;
``--save-samples DIR`` writes the calibration samples as .npy for such a tool.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.calibrate import calibration_from_dataset
from deploykit.evaluate import evaluate_onnx
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.runtime import create_session


class Samples(CalibrationDataReader):
    """One sample after another, as most examples feed the quantizer."""

    def __init__(self, name, samples):
        self.feeds = iter([{name: row[None]} for batch in samples.batches(32) for row in batch])

    def get_next(self):
        return next(self.feeds, None)


PEERS = {
    "ONNX Runtime, defaults": {},
    "ONNX Runtime, U8S8 per channel": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "ONNX Runtime, U8S8 per channel, reduced range": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": True,
    },
}


def peers(model, samples, folder):
    """Files by label, each made anew from the pre-processed model."""
    prepared, name = folder / "prepared.onnx", create_session(model).inputs[0].name
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    for label, options in PEERS.items():
        made = folder / f"peer{len(list(folder.iterdir()))}.onnx"
        quantize_static(str(prepared), str(made), Samples(name, samples), **options)
        yield label, made


def ours(model, train, folder, arguments):
    """Files by label, one an effort."""
    for effort in arguments.efforts.split(","):
        made = folder / f"{effort}.onnx"
        options = QuantizeOptions(recipe=arguments.recipe, samples=arguments.samples, effort=effort)
        record = quantize_onnx(model, made, calibration=train, options=options)
        yield f"deploykit {arguments.recipe}, {effort} ({record.ranges}, {record.seconds:.0f} s)", made


def compare(model, dataset, arguments):
    artifact = Artifact.read(model)
    classes = len(artifact.labels) or None
    train = data.load(dataset, "train", data_dir=arguments.data_dir, classes=classes)
    test = data.load(dataset, "test", data_dir=arguments.data_dir, classes=classes)
    samples = calibration_from_dataset(artifact, train, samples=arguments.samples)
    if arguments.save_samples:
        np.save(Path(arguments.save_samples) / f"{model.stem}.npy", np.concatenate(list(samples.batches(32))))
    base = evaluate_onnx(model, test)
    print(f"\n{model.stem} on {dataset}: {base.samples} pictures, float {100 * base.top1:.2f} %\n")
    print("| file | top-1 | against float | agreement | without optimisations |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = [*ours(model, train, Path(folder), arguments), *peers(model, samples, Path(folder))]
        for also in arguments.also:
            net, label, file = also.split("=")
            files += [(label, Path(file))] if net == model.stem else []
        for label, file in files:
            row = evaluate_onnx(file, test, reference=model, preprocess=artifact.preprocess)
            plain = same_without_optimisations(file, samples)
            print(
                f"| {label} | {100 * row.top1:.2f} % | {100 * (row.top1 - base.top1):+.2f} |"
                f" {100 * row.agreement:.2f} % | {100 * plain:.2f} % |",
                flush=True,
            )


def same_without_optimisations(file, samples):
    """Share of the calibration samples with the same top-1 in a session that keeps float arithmetic."""
    fast, plain, same, count = create_session(file), create_session(file, optimize=False), 0, 0
    for batch in samples.batches(32):
        same += int((fast.run_rows(batch).argmax(1) == plain.run_rows(batch).argmax(1)).sum())
        count += len(batch)
    return same / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", help="NET.onnx=DATA")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--efforts", default="low,medium,high")
    parser.add_argument("--also", action="append", default=[], help="NET=LABEL=FILE")
    parser.add_argument("--save-samples")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        model, _, dataset = pair.partition("=")
        compare(Path(model), dataset, arguments)


if __name__ == "__main__":
    main()
