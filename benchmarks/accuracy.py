"""Accuracy on real and generated data: trains, exports, quantizes and evaluates, and prints one table in Markdown.

    python benchmarks/accuracy.py --data-dir DATA -o NEW_FOLDER [--only mnist …] [--resume]

DATA holds MNIST and Fashion-MNIST (``deploykit data list`` shows where they are looked for). Accuracies come from ONNX
Runtime over the whole test split, with the weights of the last epoch; training times are those of the loop. Each
claim below is checked and answered with yes or NO.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deploykit import environment
from deploykit.bench import BenchOptions
from deploykit.files import read_json
from deploykit.pipeline import PipelineOptions, run_pipeline

# Dataset; network and the accuracy of the lecture notes that it has to pass; the plain network it is compared with.
RUNS: dict[str, tuple[str, dict[str, float | None], str]] = {
    "mnist": ("mnist", {"lenet5": 0.9920, "mnist-cnn": 0.9844}, "mnist-mlp"),
    "fashion": ("fashion-mnist", {"fashion-cnn": None}, "fashion-mlp"),
    "color": ("shapes-color", {"color-cnn": 0.963}, "color-mlp"),
    "shape": ("shapes-shape", {"shape-cnn": 0.96}, "shape-mlp"),
    "both": ("shapes-color-shape", {"color-shape-cnn": 0.97}, "color-shape-mlp"),
}
MOST_SECONDS = 20 * 60
MOST_DROP = 0.0010


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--resume", action="store_true", help="go on in a folder of an earlier call")
    given = parser.parse_args()
    if given.output.exists() and not given.resume:
        parser.error(f"{given.output} exists; give a new folder, or --resume")
    options = PipelineOptions(threads=given.threads, bench=BenchOptions(threads=1))
    rows, claims = [], []
    for name in given.only or RUNS:
        dataset, targets, plain = RUNS[name]
        run_pipeline([*targets, plain], dataset, given.output / name, options, data_dir=given.data_dir)
        figures = {network: _figures(given.output / name / network, network) for network in (*targets, plain)}
        rows += [_row(network, dataset, figures[network]) for network in figures]
        claims += [claim for network, target in targets.items() for claim in _claims(figures, network, target, plain)]
    print("| network | dataset | fp32 top-1 | int8 top-1 | agreement | int8 / fp32 bytes | training |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join([*rows, "", *claims, "", json.dumps(environment.describe())]))


def _figures(folder: Path, network: str) -> dict[str, Any]:
    fp32, int8 = (read_json(folder / f"{network}{suffix}.accuracy.json") for suffix in ("", ".int8"))
    return {"fp32": fp32, "int8": int8, "training": read_json(folder / "train.json")}


def _row(network: str, dataset: str, figures: dict[str, Any]) -> str:
    fp32, int8, training = figures["fp32"], figures["int8"], figures["training"]
    return (
        f"| `{network}` | {dataset} | {100 * fp32['top1']:.2f} % | {100 * int8['top1']:.2f} % |"
        f" {100 * int8['agreement']:.2f} % | {int8['file_bytes'] / fp32['file_bytes']:.3f} |"
        f" {training['epochs']} epochs, {training['seconds']:.0f} s, {training['threads']} threads |"
    )


def _claims(figures: dict[str, Any], network: str, target: float | None, plain: str) -> list[str]:
    fp32, int8, training = (figures[network][key] for key in ("fp32", "int8", "training"))
    claims = {f"{network} above {plain}": fp32["top1"] > figures[plain]["fp32"]["top1"]}
    if network == "lenet5":
        claims |= {
            f"{network} int8 within {100 * MOST_DROP:.2f} points": abs(fp32["top1"] - int8["top1"]) <= MOST_DROP,
            f"{network} int8 file at most 0.35 of fp32": int8["file_bytes"] <= 0.35 * fp32["file_bytes"],
            f"{network} trained in at most {MOST_SECONDS // 60} minutes": training["seconds"] <= MOST_SECONDS,
        }
    if target is not None:
        claims |= {f"{network} fp32 at least {100 * target:.2f} %": fp32["top1"] >= target}
    return [f"- {claim}: {'yes' if held else 'NO'}" for claim, held in claims.items()]


if __name__ == "__main__":
    main()
