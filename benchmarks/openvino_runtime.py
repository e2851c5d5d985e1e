"""Latency in OpenVINO's own runtime: deploykit's int8-openvino file beside NNCF's and float.

    python benchmarks/openvino_runtime.py densenet121 resnet50 … --python VENV/bin/python [--samples 16] [--keep DIR]

The interpreter named needs nncf, openvino, onnx and onnxruntime. Each network is exported with fresh weights and
quantized by both from the same samples; all three files are then timed in one process, in turns of 20 calls, one
thread, batch 1.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.calibrate import calibration_from_dataset
from deploykit.export import export_onnx
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.sources import example_inputs, open_source

NNCF = """
import sys, nncf, numpy as np, onnx
model, samples = onnx.load(sys.argv[1]), np.load(sys.argv[2])
feeds = nncf.Dataset([{model.graph.input[0].name: sample[None]} for sample in samples])
onnx.save(nncf.quantize(model, feeds, subset_size=len(samples)), sys.argv[3])
"""

TIME = """
import sys, time, random, numpy as np, openvino
core, sample = openvino.Core(), np.load(sys.argv[1])[:1]
options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
requests = [core.compile_model(path, "CPU", options).create_infer_request() for path in sys.argv[2:]]
for request in requests:
    for _ in range(5): request.infer([sample])
times = [[] for _ in requests]
order = list(range(len(requests)))
for _ in range(8):
    random.shuffle(order)
    for which in order + order[::-1]:
        turn = []
        for _ in range(20):
            began = time.perf_counter(); requests[which].infer([sample]); turn.append(time.perf_counter() - began)
        times[which].append(np.median(turn))
print(*(1000 * np.median(turns) for turns in times))
"""


def files(network, folder, arguments):
    """Float, deploykit's, NNCF's, and the samples."""
    float_, ours, theirs, stored = (folder / f"{network}.{kind}" for kind in ("onnx", "ov.onnx", "nncf.onnx", "npy"))
    if not float_.exists():
        source = open_source(network)
        example, pictures = example_inputs(source, "shapes")
        export_onnx(source.module, float_, example=example, card=source.card, pictures=pictures)
    pictures = data.load("shapes")
    samples = calibration_from_dataset(Artifact.read(float_), pictures, samples=arguments.samples)
    np.save(stored, np.concatenate(list(samples.batches(8))))
    options = QuantizeOptions(recipe="int8-openvino", effort="low", samples=arguments.samples)
    quantize_onnx(float_, ours, calibration=pictures, options=options, overwrite=True)
    if not theirs.exists():
        run(arguments.python, NNCF, float_, stored, theirs)
    return stored, float_, ours, theirs


def run(python, program, *words):
    done = subprocess.run([python, "-c", program, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--python", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--keep")
    arguments = parser.parse_args()
    print("| network | float | NNCF | deploykit int8-openvino | deploykit / NNCF |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for network in arguments.networks:
            plain, ours, theirs = map(
                float, run(arguments.python, TIME, *files(network, folder, arguments)).split()[-3:]
            )
            print(
                f"| `{network}` | {plain:.2f} ms | {theirs:.2f} ms | {ours:.2f} ms | {ours / theirs:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
