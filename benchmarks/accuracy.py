"""Accuracy on real data: trains, exports, quantizes and evaluates, and prints one table in Markdown.

    python benchmarks/accuracy.py --data-dir DATA -o OUT [--only mnist|fashion|shapes]

DATA holds MNIST and Fashion-MNIST (``deploykit data list`` shows where they are looked for). Figures come from ONNX
Runtime over the whole test split; training times are those of the loop, as `train.json` has them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deploykit import environment
from deploykit.bench import BenchOptions
from deploykit.files import read_json
from deploykit.pipeline import PipelineOptions, run_pipeline

# Dataset, networks, and the figure of the lecture notes that the first network has to pass.
RUNS = {
    "mnist": ("mnist", ["lenet5", "mnist-cnn", "mnist-mlp"], {"lenet5": 0.9920, "mnist-cnn": 0.9844}),
    "fashion": ("fashion-mnist", ["fashion-cnn", "fashion-mlp"], {}),
    "color": ("shapes-color", ["color-cnn", "color-mlp"], {"color-cnn": 0.963}),
    "shape": ("shapes-shape", ["shape-cnn", "shape-mlp"], {"shape-cnn": 0.96}),
    "both": ("shapes-color-shape", ["color-shape-cnn", "color-shape-mlp"], {"color-shape-cnn": 0.97}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    options = PipelineOptions(threads=given.threads, bench=BenchOptions(threads=1))
    lines = [
        "| network | dataset | fp32 top-1 | int8 top-1 | to pass | int8/fp32 bytes | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in given.only or RUNS:
        dataset, networks, targets = RUNS[name]
        folder = given.output / name
        run_pipeline(networks, dataset, folder, options, data_dir=given.data_dir)
        for network in networks:
            lines.append(_line(folder / network, network, dataset, targets.get(network)))
            print(lines[-1], flush=True)
    print("\n".join(["", *lines, "", json.dumps(environment.describe())]))


def _line(folder: Path, network: str, dataset: str, target: float | None) -> str:
    fp32, int8 = (read_json(folder / f"{network}{suffix}.accuracy.json") for suffix in ("", ".int8"))
    training = read_json(folder / "train.json")
    passed = "–" if target is None else f"{100 * target:.2f} % {'yes' if fp32['top1'] >= target else 'NO'}"
    return (
        f"| `{network}` | {dataset} | {100 * fp32['top1']:.2f} % | {100 * int8['top1']:.2f} % | {passed} |"
        f" {int8['file_bytes'] / fp32['file_bytes']:.3f} | {training['epochs']} epochs, {training['seconds']:.0f} s |"
    )


if __name__ == "__main__":
    main()
