"""Latency of int8 files: deploykit's beside the one that ONNX Runtime's documentation advises, and float.

    python benchmarks/quantization_latency.py densenet121 resnet50 … [--recipe int8] [--threads 1] [--keep DIR]

Each network is exported with fresh weights (latency does not depend on their values) and quantized by both; the float
file and both int8 files are then measured in turns, each in fresh processes. The advised recipe is U8S8 per channel of
the pre-processed model; --any-speed shows deploykit's plain form where it would otherwise take a faster one. A ratio is
the median over turns that stood next to each other, so that other work on the machine falls on both. Files that --keep
left in its folder are measured again and not made anew.
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
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.export import export_onnx
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.runtime import create_session
from deploykit.sources import example_inputs, open_source


class Samples(CalibrationDataReader):
    """Random inputs will do for a file whose answers nobody reads."""

    def __init__(self, session, count=4):
        shape = [1, *session.inputs[0].shape[1:]]
        random = np.random.default_rng(0)
        self.feeds = iter(
            [{session.inputs[0].name: random.standard_normal(shape).astype(np.float32)} for _ in range(count)]
        )

    def get_next(self):
        return next(self.feeds, None)


def files(network, folder, arguments):
    """The three files, each made once."""
    paths = {kind: folder / f"{network}.{kind}.onnx" for kind in ("float", "deploykit", "advised")}
    if not paths["float"].exists():
        source = open_source(network)
        example, pictures = example_inputs(source, "shapes")
        export_onnx(source.module, paths["float"], example=example, card=source.card, pictures=pictures)
    if not paths["deploykit"].exists():
        options = QuantizeOptions(
            recipe=arguments.recipe, effort="low", samples=16, batch_size=1, never_slower=not arguments.any_speed
        )
        quantize_onnx(paths["float"], paths["deploykit"], calibration=data.load("shapes"), options=options)
    if not paths["advised"].exists():
        advise(paths, folder)
    return paths


def advise(paths, folder):
    """What the documentation advises for x86: pre-processed, U8S8, per channel."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(paths["float"]), str(prepared), skip_symbolic_shape=True)
    u8s8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(str(prepared), str(paths["advised"]), Samples(create_session(paths["float"])), **u8s8)
    prepared.unlink()


def ratio(results, kind, other):
    """Median over the turns of all processes, and the middle half."""
    turns = [np.concatenate([np.asarray(turns) for turns in results[name].turns_ms]) for name in (kind, other)]
    count = min(map(len, turns))
    low, middle, high = np.percentile(turns[0][:count] / turns[1][:count], [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--any-speed", action="store_true")
    parser.add_argument("--keep", help="folder for the files")
    arguments = parser.parse_args()
    print("| network | float | advised U8S8 | deploykit | deploykit / advised | deploykit / float | precision | file |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for network in arguments.networks:
            paths = files(network, folder, arguments)
            options = BenchOptions(threads=arguments.threads, samples=80, min_time_s=3.0, processes=2)
            results = dict(zip(paths, bench_onnx(list(paths.values()), options).results, strict=True))
            ms = {kind: timing.latency_ms.median for kind, timing in results.items()}
            doubt = "" if all(timing.stable for timing in results.values()) else " ⚠"
            made = Artifact.read(paths["deploykit"])
            to_advised, to_float = ratio(results, "deploykit", "advised"), ratio(results, "deploykit", "float")
            print(
                f"| `{network}` | {ms['float']:.2f} ms | {ms['advised']:.2f} ms | {ms['deploykit']:.2f} ms{doubt} |"
                f" {to_advised} | {to_float} | {made.precision} | {made.file_bytes / 1e6:.1f} MB |",
                flush=True,
            )
            if not arguments.keep:
                for path in paths.values():
                    path.unlink()


if __name__ == "__main__":
    main()
