"""Whether bench says what a plain loop of InferenceSession.run and /usr/bin/time say, and what a quick one takes.

    python benchmarks/bench_agreement.py squeezenet1.1.onnx resnet18.onnx [--pairs 8] [--min-time 2] [--repeat 3]

Latency: one interleaved run of bench with the model twice, whose ratio is the noise floor, and of a script without
deploykit that takes a turn between bench's rounds. The ratio of the medians is bootstrapped over rounds.
Memory: the largest of `--repeat` processes of bench against the largest of as many runs of the same script under
`/usr/bin/time -v` (Debian's package time); left out where that is not installed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from deploykit.bench import BenchOptions, bench_onnx

TIME = Path("/usr/bin/time")

# The script: it imports numpy and ONNX Runtime, and for each number that it reads makes so many timed calls.
LOOP = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 1 for size in given.shape]
feeds = {given.name: numpy.linspace(-1, 1, int(numpy.prod(shape)), dtype=numpy.float32).reshape(shape)}
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    print(" ".join(map(repr, times)), flush=True)
"""


class Loop:
    """The script in a process of its own, with a turn between bench's rounds."""

    def __init__(self, model, threads, turn_s=0.03):
        command = [sys.executable, "-c", LOOP, str(model), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.medians_ms, self.all_ms = [], []
        self.calls = max(1, round(turn_s * 1000.0 / statistics.median(self.ask(20))))

    def ask(self, calls):
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return [1000.0 * float(text) for text in self.process.stdout.readline().split()]

    def turn(self, stage, done, total, note=""):
        if stage == "bench" and done < total:
            lead = max(1, self.calls // 10)  # caches are cold after another's turn, as bench has it
            for _ in range(2):  # as many turns a round as bench's processes have
                times = self.ask(lead + self.calls)[lead:]
                self.medians_ms.append(statistics.median(times))
                self.all_ms += times

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def latency(model, arguments):
    """Of every pair of fresh processes the ratios of the medians; over the pairs their mean with a 95 % interval."""
    pairs = [pair(model, arguments, seed) for seed in range(arguments.pairs)]
    return {
        "bench_ms": [round(item["bench_ms"], 4) for item in pairs],
        "loop_ms": [round(item["loop_ms"], 4) for item in pairs],
        "bench_over_bench": over_pairs([item["again"] for item in pairs]),
        "bench_over_loop": over_pairs([item["ratio"] for item in pairs]),
        "warnings": sorted({warning for item in pairs for warning in item["warnings"]}),
    }


def pair(model, arguments, seed):
    """One interleaved run: bench with the model twice, and the loop; ratios are medians over the rounds."""
    loop = Loop(model, arguments.threads)
    options = BenchOptions(
        threads=arguments.threads, samples=60, min_time_s=arguments.min_time, max_time_s=600.0, seed=seed
    )
    one, two = bench_onnx([model, model], options, progress=loop.turn).results
    loop.close()
    first, second = (np.reshape(timing.turns_ms[0], (-1, 2)).mean(axis=1) for timing in (one, two))
    between = np.reshape(loop.medians_ms, (-1, 2)).mean(axis=1)
    return {
        "bench_ms": one.latency_ms.median,
        "loop_ms": statistics.median(loop.all_ms),
        "again": float(np.median(second / first)),
        "ratio": float(np.median(first / between)),
        "warnings": one.warnings,
    }


def over_pairs(ratios):
    generator = np.random.default_rng(0)
    means = np.exp(np.log(ratios)[generator.integers(0, len(ratios), (2000, len(ratios)))].mean(axis=1))
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "pairs": [round(value, 4) for value in ratios],
        "mean": round(float(np.exp(np.mean(np.log(ratios)))), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def memory(model, arguments):
    """Peak bytes of whole processes: bench's, and those of the loop as the system counts them."""
    if not TIME.exists():
        return {"skipped": f"{TIME} is not installed"}
    counted = []
    for _ in range(arguments.repeat):
        command = [str(TIME), "-v", sys.executable, "-c", LOOP, str(model), str(arguments.threads)]
        done = subprocess.run(command, input="50\n", capture_output=True, text=True, check=True)
        counted.append(1024 * int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)[1]))
    options = BenchOptions(threads=arguments.threads, samples=50, min_time_s=0.0, processes=arguments.repeat)
    (timing,) = bench_onnx(model, options).results
    peak = timing.memory.process_peak_bytes
    return {"bench_bytes": peak, "time_bytes": counted, "ratio": peak / max(counted)}


def quick(model):
    """Seconds of `deploykit bench --preset quick`, from start to end of the process."""
    began = time.monotonic()
    command = [sys.executable, "-m", "deploykit", "bench", str(model), "--preset", "quick", "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-time", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    for model in arguments.models:
        figures = {
            "model": model.name,
            "latency": latency(model, arguments),
            "memory": memory(model, arguments),
            "quick_s": quick(model),
        }
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
