"""What ``tune`` finds beside what a user would pick instead, all in one interleaved run.

    python benchmarks/tune.py resnet50 googlenet-bn … [--threads 1] [--nncf-python VENV/bin/python] [--keep DIR]

Beside each other: the float file in ONNX Runtime, the file that its documentation advises for x86 (U8S8 per channel of
the pre-processed model), NNCF's file in ONNX Runtime, NNCF's file in OpenVINO's own runtime, and the file, provider and
session that tune names. The interpreter of --nncf-python needs nncf, openvino, onnx and onnxruntime; without it NNCF's
columns stay empty.

Networks are exported with fresh weights, whose latency is that of trained ones but whose answers mean nothing; so the
allowed drop is 100 points by default. --models DIR takes trained files, DIR/NETWORK.onnx, and then --max-drop is worth
giving.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.bench_options import BenchOptions, Setting
from deploykit.calibrate import calibration_from_dataset
from deploykit.contestant import Contestant, ModelProcess, contestants_of
from deploykit.errors import DeploykitError, InputError
from deploykit.export import export_onnx
from deploykit.feeds import feeds_of
from deploykit.race import Measured, ratio_of
from deploykit.sources import example_inputs, open_source
from deploykit.stats import median
from deploykit.tune import TuneOptions, tune_onnx
from deploykit.turns import take_turns

COLUMNS = {
    "float": "ORT fp32",
    "u8s8": "ORT U8S8",
    "nncf": "NNCF in ORT",
    "openvino": "NNCF in OpenVINO",
    "tune": "tune",
}

NNCF = """
import sys, nncf, numpy as np, onnx
model, samples = onnx.load(sys.argv[1]), np.load(sys.argv[2])
feeds = nncf.Dataset([{model.graph.input[0].name: sample[None]} for sample in samples])
onnx.save(nncf.quantize(model, feeds, subset_size=len(samples)), sys.argv[3])
"""

# Answers the questions of deploykit.worker, for OpenVINO's own runtime: one JSON line each.
OPENVINO = """
import json, os, sys, time
channel = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import numpy as np, openvino

def once():
    began = time.perf_counter_ns()
    request.infer(feeds)
    return time.perf_counter_ns() - began

def settle():
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < 0.0005:
            return

for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "start":
        options = {"INFERENCE_NUM_THREADS": asked["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(asked["model"], "CPU", options)
        request, random = model.create_infer_request(), np.random.default_rng(0)
        feeds = [random.standard_normal(shape, dtype=np.float32) for shape in asked["shapes"]]
        once()
        answer = {"threads": asked["threads"]}
    elif asked["do"] == "warm":
        until, taken = time.perf_counter() + asked["min_s"], []
        while len(taken) < asked["min_runs"] or time.perf_counter() < until:
            taken.append(once())
        settle()
        answer = {"median_ms": float(np.median(taken)) / 1e6, "levelled": True, "cpu_s": time.process_time()}
    else:
        for _ in range(asked["lead"]):
            once()
        taken = [once() for _ in range(asked["runs"])]
        settle()
        spent = {"cpu_s": time.process_time(), "energy_uj": None, "clock_khz": None}
        answer = {"latencies_ns": taken, "busy_ns": taken, **spent}
    print(json.dumps(answer), file=channel, flush=True)
"""


class Samples(CalibrationDataReader):
    """The same inputs for ONNX Runtime's quantizer as for the others."""

    def __init__(self, name, rows):
        self.feeds = iter([{name: row[None]} for row in rows])

    def get_next(self):
        return next(self.feeds, None)


class PeerProcess:
    """OpenVINO's own runtime in a process of its own; speaks as ``deploykit.worker.Worker`` does."""

    def __init__(self, python, model, shapes, threads):
        self.process = subprocess.Popen(
            [python, "-c", OPENVINO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.started = self.ask("start", model=str(model), shapes=shapes, threads=threads)
        self.warm = self.ask("warm", min_runs=3, min_s=0.5)

    def ask(self, do, **arguments):
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise InputError(f"OpenVINO's process ended with {self.process.wait()} during {do!r}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def float_file(network, folder, arguments):
    """A trained file that is given, or one with fresh weights."""
    if arguments.models:
        return Path(arguments.models) / f"{network}.onnx"
    path = folder / f"{network}.onnx"
    if not path.exists():
        source = open_source(network)
        example, pictures = example_inputs(source, "shapes")
        export_onnx(source.module, path, example=example, card=source.card, pictures=pictures)
    return path


def peer_files(model, folder, arguments):
    """What the others make of it, each once."""
    samples = calibration_from_dataset(
        Artifact.read(model), data.load(arguments.data, data_dir=arguments.data_dir), samples=arguments.samples
    )
    rows, paths = np.concatenate(list(samples.batches(16))), {"u8s8": folder / f"{model.stem}.u8s8.onnx"}
    if not paths["u8s8"].exists():
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        given = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(str(prepared), str(paths["u8s8"]), Samples(samples.taken.name, rows), **given)
        prepared.unlink()
    if arguments.nncf_python:
        paths["nncf"] = folder / f"{model.stem}.nncf.onnx"
        if not paths["nncf"].exists():
            stored = folder / "samples.npy"
            np.save(stored, rows)
            command = [arguments.nncf_python, "-c", NNCF, str(model), str(stored), str(paths["nncf"])]
            subprocess.run(command, check=True, stdout=sys.stderr)
            stored.unlink()
    return paths


def tuned(model, folder, arguments):
    """The record of a search at this number of threads."""
    options = TuneOptions(
        threads=(arguments.threads,),
        max_drop=arguments.max_drop / 100,
        samples=arguments.samples,
        held_out=arguments.held_out,
    )
    pictures = {split: data.load(arguments.data, split, data_dir=arguments.data_dir) for split in ("train", "test")}
    place = folder / f"{model.stem}.tuned"
    return place, tune_onnx(model, pictures["train"], place, options, held_out=pictures["test"])


def contestants(model, paths, place, record, arguments):
    """By column; OpenVINO's own runtime is started apart."""
    cpu = BenchOptions(threads=arguments.threads)
    found = {name: contestants_of(path, cpu)[0] for name, path in {"float": model, **paths}.items()}
    best = contestants_of(place / "best.onnx", cpu)[0]
    best.setting = Setting(record.best.provider, record.best.threads, 1, dict(record.best.session))
    return {**found, "tune": best}


def openvino_contestant(stack, path, arguments, processes):
    artifact = Artifact.read(path)
    feeds = feeds_of(artifact)
    found = Contestant(artifact, "int8", [asdict(feed) for feed in feeds])
    shapes = [list(feed.shape) for feed in feeds]
    with found.attempt(keep_going=True):
        for _ in range(processes):
            peer = stack.enter_context(PeerProcess(arguments.nncf_python, path, shapes, arguments.threads))
            found.processes.append(ModelProcess(peer, peer.started, peer.warm))
    return found


def measured(racing, paths, arguments):
    """All in one interleaved run."""
    options = BenchOptions(samples=60, min_time_s=arguments.seconds, max_time_s=120.0, processes=3)
    with ExitStack() as stack:
        for item in racing.values():
            with item.attempt(keep_going=True):
                item.start(stack, options)
        if "nncf" in paths:
            racing["openvino"] = openvino_contestant(stack, paths["nncf"], arguments, options.processes)
        running = [item for item in racing.values() if item.failure is None]

        def go_on():
            return min((item.done(options) for item in running if item.failure is None), default=1.0) < 1.0

        take_turns(running, seed=0, go_on=go_on, keep_going=True)
    return racing


def row(network, racing, record):
    """One line of the table: medians, what was named, and the ratio to the best of the others."""
    ran = {name: item for name, item in racing.items() if item.failure is None}
    cells = []
    for name in COLUMNS:
        item = racing.get(name)
        cells.append("–" if item is None else "fails" if item.failure else f"{median(item.latencies()):.2f} ms")
    turns = {name: Measured(turns_ms=item.turn_medians()) for name, item in ran.items()}
    others = [name for name in ran if name != "tune"]
    best = min(others, key=lambda name: median(ran[name].latencies()))
    ratio = ratio_of(turns["tune"], turns[best])
    named = record.best
    accuracy = f"{100 * (named.agreement or 0):.1f} %"
    text = f"{ratio.middle:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) of {COLUMNS[best]}"
    return f"| `{network}` | {' | '.join(cells)} | {named.name} | {accuracy} | {text} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default="shapes", help="pictures for calibration and agreement")
    parser.add_argument("--data-dir")
    parser.add_argument("--models", help="folder with trained files, NETWORK.onnx")
    parser.add_argument("--max-drop", type=float, default=100.0, help="points of agreement or top-1")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed calls of each, at least")
    parser.add_argument("--nncf-python", help="an interpreter with nncf, openvino, onnx and onnxruntime")
    parser.add_argument("--keep", help="folder for the files")
    arguments = parser.parse_args()
    print(f"| network | {' | '.join(COLUMNS.values())} | named | agreement | tune / best of the others |")
    print("|" + "---|" * (len(COLUMNS) + 4), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for network in arguments.networks:
            try:
                model = float_file(network, folder, arguments)
                paths = peer_files(model, folder, arguments)
                place, record = tuned(model, folder, arguments)
                racing = measured(contestants(model, paths, place, record, arguments), paths, arguments)
                print(row(network, racing, record), flush=True)
                print(f"  {network}: {record.why}", file=sys.stderr, flush=True)
            except DeploykitError as problem:
                print(f"| `{network}` | {problem} |", flush=True)


if __name__ == "__main__":
    main()
