"""Deep Compression's LeNet-5 in a file that stock ONNX Runtime runs: train, prune twice, export, quantize, measure.

    python benchmarks/deep_compression.py --data-dir DATA -o FOLDER [--threads 1] [--resume]

Han et al. 2016, section 5.1: 1,720 KB become 44 KB at 0.74 % error on MNIST, decoded by a program of theirs. Here the
44,000 bytes are the int8 ``.onnx`` after deflate, as an app store or HTTP sends it. The shares are fixed below: the
paper's for all layers but the largest, of which a fourth of the paper's weights are kept; deflate codes zeros worse
than the paper's relative indices. The test split is only measured, once a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deploykit import data, environment
from deploykit.data.dataset import Dataset
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.export import export_onnx
from deploykit.graph.profile import profile_onnx
from deploykit.prune import PruneOptions, prune_checkpoint, tuning_options
from deploykit.quantize import quantize_onnx
from deploykit.results import Compression
from deploykit.sources import example_inputs, open_source
from deploykit.train import train_network
from deploykit.training_recipes import recipe_for

NETWORK, DATASET = "lenet-caffe", "mnist"
MOST_BYTES, MOST_ERROR = 44_000, 0.008
TRAINED_EPOCHS, RATE = 10, 0.002
STEPS = (
    ({"conv1": 0.34, "conv2": 0.80, "ip1": 0.95, "ip2": 0.70}, 3),
    ({"conv1": 0.34, "conv2": 0.88, "ip1": 0.98, "ip2": 0.81}, 6),
)
"""Shares that become zero, and epochs of fine-tuning after it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on in a folder of an earlier call")
    given = parser.parse_args()
    if given.output.exists() and not given.resume:
        parser.error(f"{given.output} exists; give a new folder, or --resume")
    train, test = (data.load(DATASET, split, data_dir=given.data_dir) for split in ("train", "test"))
    options = recipe_for(DATASET, NETWORK).changed(epochs=TRAINED_EPOCHS, threads=given.threads)
    runs = [given.output / "trained"]
    train_network(NETWORK, train, test, runs[0], options, resume=True)
    record = None
    for number, (shares, epochs) in enumerate(STEPS, start=1):
        runs.append(given.output / f"pruned-{number}")
        tuning = tuning_options(runs[-2], DATASET, epochs, learning_rate=RATE, threads=given.threads)
        chosen = PruneOptions(layers=shares)
        record = prune_checkpoint(runs[-2], runs[-1], chosen, tuning=tuning, train=train, test=test, resume=True)
    files = [file for run in (runs[0], runs[-1]) for file in _files(run, train, test)]
    if record is not None:
        _print_layers(record)
    _print_files(files, test, given.threads)
    print(json.dumps(environment.describe()))


def _files(run: Path, train: Dataset, test: Dataset) -> tuple[Path, Path]:
    """The run's fp32 and int8 files, made anew."""
    fp32, int8 = run.with_name(f"{run.name}.onnx"), run.with_name(f"{run.name}.int8.onnx")
    source = open_source(run)
    example, pictures = example_inputs(source, test)
    export_onnx(source.module, fp32, example=example, card=source.card, pictures=pictures, overwrite=True)
    quantize_onnx(fp32, int8, calibration=train, overwrite=True)
    return fp32, int8


def _print_layers(record: Compression) -> None:
    print("| layer | weights | kept | share |\n|---|---|---|---|")
    for layer in record.pruned:
        kept = layer.weights - layer.zeros
        print(f"| `{layer.name}` | {layer.weights:,} | {kept:,} | {100 * kept / layer.weights:.1f} % |")
    weights, zeros = (sum(getattr(layer, what) for layer in record.pruned) for what in ("weights", "zeros"))
    print(f"| together | {weights:,} | {weights - zeros:,} | {100 * (1 - zeros / weights):.1f} % |\n")


def _print_files(files: list[Path], test: Dataset, threads: int) -> None:
    how = EvaluateOptions(threads=threads)
    print("| file | error on 10,000 test pictures | agreement with the first | bytes | download (deflate) |")
    print("|---|---|---|---|---|")
    for path in files:
        accuracy = evaluate_onnx(path, test, reference=files[0], options=how)
        profile = profile_onnx(path)
        print(
            f"| `{path.name}` | {100 * (1 - accuracy.top1):.2f} % | {100 * (accuracy.agreement or 0):.2f} % |"
            f" {profile.file_bytes:,} | {profile.download_bytes:,} |"
        )
    smallest, first = profile.download_bytes or 0, 4 * profile.parameters
    held = smallest <= MOST_BYTES and round(1 - accuracy.top1, 6) <= MOST_ERROR
    print(f"\n- {first:,} bytes of float weights to {smallest:,}: {first / smallest:.1f} times")
    print(f"- at most {MOST_BYTES:,} bytes at {100 * MOST_ERROR:.1f} % error: {'yes' if held else 'NO'}")


if __name__ == "__main__":
    main()
