"""How often the gate is right: a model against its own copy, and against itself with planted slowdowns.

    python benchmarks/gate.py --aa 60 --ab 40 --network squeezenet1.1 --max-slowdown 2% --load bursts

Every gate is a run of the command line, `deploykit gate --json`; its seconds include the start of Python. A planted
slowdown is made of operators that the runtime neither folds nor skips, as many as it takes until the lower bound of
what they cost lies above what is asked for. Beside each gate stands what most CI jobs do: 100 runs of one model, then
100 of the other, each in a fresh process, and the ratio of the medians against the same limit. With --load bursts
another process loads one core for 0.1 to 2 seconds, rests as long, and so on.

Results are appended to --results as they come; what is there already is not measured again. On two cores with a load
average of 5 to 10 a gate took 16 to 30 s (medians) and what stands beside it 4 s, so that 60 + 2 × 40 take an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploykit.bench import bench_onnx
from deploykit.gate import GateOptions, gate_onnx
from deploykit.limits import parse_share

RUNS = 100  # of each side, of the comparison one after the other
FIRST_UNITS = 32  # planted operators, to see what one costs


def plant(source, target, units):
    """Adds ``units`` convolutions of the input, whose means, times 1e-30, are added to the output."""
    model = onnx.load(source)
    graph = model.graph
    inputs, output = graph.input[0], graph.output[0]
    channels = inputs.type.tensor_type.shape.dim[1].dim_value
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == output.name:
                node.output[place] = "planted_before"
    generator = np.random.default_rng(0)
    means = []
    for unit in range(units):
        weights = generator.standard_normal((8, channels, 3, 3)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f"planted_w{unit}"))
        conv, pool = f"planted_c{unit}", f"planted_p{unit}"
        graph.node.append(helper.make_node("Conv", [inputs.name, f"planted_w{unit}"], [conv], strides=[4, 4]))
        graph.node.append(helper.make_node("GlobalAveragePool", [conv], [pool]))
        means.append(pool)
    constants = {"planted_tiny": np.full((1, 1), 1e-30, np.float32), "planted_axis": np.array([1], np.int64)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Concat", means, ["planted_all"], axis=1),
            helper.make_node("Flatten", ["planted_all"], ["planted_flat"]),
            helper.make_node("ReduceMean", ["planted_flat", "planted_axis"], ["planted_mean"], keepdims=1),
            helper.make_node("Mul", ["planted_mean", "planted_tiny"], ["planted_nothing"]),
            helper.make_node("Add", ["planted_before", "planted_nothing"], [output.name]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, target)


def planted(source, share, folder, arguments):
    """A copy that a gate with the limit ``share`` calls a regression: it is slower by more than that for sure.

    Returns the path and a row for the results.
    """
    target = folder / f"{source.stem}.plus{round(100 * share)}.onnx"
    options = GateOptions(threads=arguments.threads, budget_s=arguments.calibration)
    plant(source, target, FIRST_UNITS)
    found = gate_onnx(target, baseline=source, options=options, max_slowdown=0.0).checks[0].measured
    units = max(1, round(FIRST_UNITS * share * 1.1 / max(found, 0.01)))
    while True:
        plant(source, target, units)
        check = gate_onnx(target, baseline=source, options=options, max_slowdown=share).checks[0]
        figures = {"units": units, "measured": check.measured, "ci_low": check.ci_low, "ci_high": check.ci_high}
        print(f"planted {share:.0%}: {figures}: {check.verdict}", file=sys.stderr, flush=True)
        if check.verdict == "regression":
            return target, {"kind": "calibration", "share": share, **figures}
        units += max(1, round(0.05 * units))


def export(network, folder):
    """The network with fresh weights, as latency does not depend on them."""
    path = folder / f"{network}.onnx"
    if not path.exists():
        subprocess.run([deploykit(), "export", network, "-o", path], check=True, stdout=subprocess.DEVNULL)
    return path


def deploykit():
    return Path(sys.executable).with_name("deploykit")


def gate(candidate, baseline, seed, arguments):
    """One gate on the command line, and what it cost."""
    command = [deploykit(), "gate", candidate, "--baseline", baseline, "--max-slowdown", arguments.max_slowdown]
    command += ["--budget", str(arguments.budget), "--threads", str(arguments.threads), "--seed", str(seed), "--json"]
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{command}: exit code {done.returncode}: {done.stderr}")
    record = json.loads(done.stdout)
    check = record["checks"][0]
    return {
        "verdict": record["verdict"],
        "seconds": round(seconds, 2),
        "pairs": record["pairs"],
        "measured": check["measured"],
        "ci_low": check["ci_low"],
        "ci_high": check["ci_high"],
    }


def one_after_the_other(candidate, baseline, arguments):
    """The ratio of the medians less one, of 100 runs of each in sequence."""
    both = [
        bench_onnx(path, threads=arguments.threads, samples=RUNS, min_time_s=0.0).results[0].latency_ms.median
        for path in (baseline, candidate)
    ]
    return both[1] / both[0] - 1.0


@contextmanager
def load(kind):
    """Another process that loads one core in bursts, or nothing."""
    if kind == "none":
        yield
        return
    process = subprocess.Popen([sys.executable, __file__, "--burst"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def burst():
    generator = random.Random(0)
    while True:
        end = time.monotonic() + generator.uniform(0.1, 2.0)
        while time.monotonic() < end:
            sum(range(10_000))
        time.sleep(generator.uniform(0.1, 2.0))


def table(rows, limit):
    """Markdown: what was said of each kind of pair."""
    titles = ("pair", "gates", "pass", "regression", "inconclusive", "seconds, median", "90 %")
    yield f"| {' | '.join(titles)} | one after the other: above the limit |"
    yield f"|---{'|---:' * len(titles)}|"
    for kind in dict.fromkeys(row["kind"] for row in rows if "verdict" in row):
        of_kind = [row for row in rows if row["kind"] == kind]
        counts = [sum(row["verdict"] == name for row in of_kind) for name in ("pass", "regression", "inconclusive")]
        seconds = [row["seconds"] for row in of_kind]
        sequential = [row["sequential"] for row in of_kind]
        above = sum(ratio > limit for ratio in sequential)
        cells = [kind, len(of_kind), *counts, f"{statistics.median(seconds):.0f}", f"{np.percentile(seconds, 90):.0f}"]
        yield f"| {' | '.join(map(str, cells))} | {above} of {len(sequential)} |"
    same = [row["sequential"] for row in rows if row["kind"] == "A/A"]
    if len(same) > 1:
        yield ""
        spread, most = statistics.stdev(same), max(map(abs, same))
        yield f"One after the other, A/A: standard deviation {spread:.1%}, largest {most:.1%}."
    for row in rows:
        if row["kind"] == "calibration":
            bounds = f"{row['ci_low']:.2%} to {row['ci_high']:.2%}"
            yield f"Planted +{row['share']:.0%}: {row['units']} operators, measured {row['measured']:.2%} ({bounds})."


def run(arguments, folder):
    """Everything that is not in the results yet, in turns of all kinds; prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(line) for line in arguments.results.read_text().splitlines()] if arguments.results.exists() else []
    )

    def add(row):
        rows.append(row)
        with arguments.results.open("a") as handle:
            handle.write(json.dumps(row) + "\n")

    source = export(arguments.network, folder)
    shutil.copy(source, folder / "copy.onnx")
    candidates = {"A/A": (folder / "copy.onnx", arguments.aa)}
    for share in [parse_share(text, "--planted") for text in arguments.planted.split(",")]:
        known = [row["units"] for row in rows if row["kind"] == "calibration" and row["share"] == share]
        target = folder / f"{source.stem}.plus{round(100 * share)}.onnx"
        if known:
            plant(source, target, known[-1])
        elif arguments.ab:
            target, row = planted(source, share, folder, arguments)
            add(row)
        candidates[f"A/B +{share:.0%}"] = (target, arguments.ab)
    with load(arguments.load):
        for turn in range(max(count for _, count in candidates.values())):
            for kind, (candidate, count) in candidates.items():
                done = sum(row["kind"] == kind for row in rows)
                if turn < count and done <= turn:
                    row = {"kind": kind, **gate(candidate, source, done, arguments)}
                    sequential = one_after_the_other(candidate, source, arguments)
                    add({**row, "sequential": sequential, "load_average": os.getloadavg()[0]})
                    print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows, parse_share(arguments.max_slowdown, "--max-slowdown"))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aa", type=int, default=60, help="gates of the model against its copy")
    parser.add_argument("--ab", type=int, default=40, help="gates against each planted slowdown")
    parser.add_argument("--planted", default="5%,10%")
    parser.add_argument("--network", default="squeezenet1.1")
    parser.add_argument("--max-slowdown", default="2%")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", choices=("bursts", "none"), default="bursts")
    parser.add_argument("--calibration", type=float, default=60.0, help="seconds of each calibrating measurement")
    parser.add_argument("--results", type=Path, default=Path("gate.jsonl"))
    parser.add_argument("--keep", type=Path, help="folder for the models")
    parser.add_argument("--burst", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.burst:
        burst()
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.keep or Path(temporary))


if __name__ == "__main__":
    main()
