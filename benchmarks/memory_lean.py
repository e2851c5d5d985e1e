"""What lean memory saves and costs: the same files with the default settings and with memory="lean".

    python benchmarks/memory_lean.py vgg16.onnx resnet50.int8.onnx … [--threads 1] [--batch 1] [--processes 3]

Every process is fresh; default and lean ones take turns, so that the ratio of the latencies is one of neighbours.
Memory is what a process holds above what it held before it made its session, as `deploykit bench` counts it: the peak
while loading, and the peak of loading and all runs. It is divided by the bytes of the file and its external data.
"Mapped" is the part of the steady memory that is pages of the weights' file (Linux), which the system may take back.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from deploykit.artifact import Artifact
from deploykit.feeds import feeds_of
from deploykit.graph.weights import external_files
from deploykit.lean_model import LeanModel, lean_copy
from deploykit.runtime import MEMORY_MODES
from deploykit.worker import Worker

COLUMNS = ("model", "memory", "load peak", "peak", "steady", "mapped", "load", "first run", "median", "lean / default")


class Running:
    """One fresh process of one model in one memory mode."""

    def __init__(self, stack, model, feeds, memory, arguments):
        self.worker = stack.enter_context(Worker(model.name, timeout_s=600.0))
        self.started = self.worker.ask(
            "start", model=str(model), feeds=feeds, seed=0, threads=arguments.threads, memory=memory
        )
        self.worker.ask("warm", min_runs=3, min_s=0.1, max_s=2.0)
        self.medians_ms = []

    def turn(self, runs):
        nanoseconds = self.worker.ask("measure", runs=runs, lead=1)["latencies_ns"]
        self.medians_ms.append(statistics.median(nanoseconds) / 1e6)

    def figures(self):
        found = self.worker.ask("memory")
        found["mapped_bytes"] = mapped_bytes(self.worker._process.pid)
        return {**self.started, **found}


def mapped_bytes(pid):
    """Resident pages of the lean copy's weights, by proc(5)."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = "weights.data" in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def measure(model, copy, arguments):
    """Figures by memory mode: a list of what each process said, and the medians of all turns."""
    artifact = Artifact.read(model)
    feeds = [asdict(feed) for feed in feeds_of(artifact, batch=arguments.batch)]
    paths = {"default": model.resolve(), "lean": copy}
    with ExitStack() as stack:
        running = [
            (memory, Running(stack, paths[memory], feeds, memory, arguments))
            for _ in range(arguments.processes)
            for memory in MEMORY_MODES
        ]
        for _ in range(arguments.turns):
            for _, process in (*running, *reversed(running)):
                process.turn(arguments.runs)
        figures = {memory: [item.figures() for name, item in running if name == memory] for memory in MEMORY_MODES}
        rounds = {memory: [item.medians_ms for name, item in running if name == memory] for memory in MEMORY_MODES}
    return figures, rounds


def ratio_text(rounds):
    """Median and quartiles of lean over default, neighbour by neighbour."""
    pairs = [
        lean / default
        for ours, theirs in zip(rounds["lean"], rounds["default"], strict=True)
        for lean, default in zip(ours, theirs, strict=True)
    ]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def row(model, memory, figures, rounds, weight_bytes):
    """One line of the table."""

    def times(key):
        value = max(item[key] for item in figures[memory])
        return f"{value / 1e6:.0f} MB ({value / weight_bytes:.2f}×)"

    def middle(key):
        return statistics.median(item[key] for item in figures[memory])

    median_ms = statistics.median(value for turns in rounds[memory] for value in turns)
    cells = [f"`{model.name}`" if memory == "default" else "", memory]
    cells += [times("load_peak_bytes"), times("peak_bytes"), times("steady_bytes")]
    cells += [f"{middle('mapped_bytes') / 1e6:.0f} MB", f"{middle('load_ms'):.0f} ms"]
    cells += [f"{middle('first_run_ms'):.0f} ms", f"{median_ms:.2f} ms"]
    return [*cells, ratio_text(rounds) if memory == "lean" else ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--turns", type=int, default=10, help="rounds of turns, each forth and back")
    parser.add_argument("--runs", type=int, default=3, help="timed calls in a turn")
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            began = time.perf_counter()
            copy = lean_copy(model, folder)
            seconds, lean = time.perf_counter() - began, LeanModel.read(copy)
            figures, rounds = measure(model, copy, arguments)
            weight_bytes = sum(file.stat().st_size for file in (model, *external_files(model)))
            for memory in MEMORY_MODES:
                print("| " + " | ".join(row(model, memory, figures, rounds, weight_bytes)) + " |", flush=True)
            packed = "packed" if lean.prepacking else "not packed"
            print(f"<!-- {model.name}: {weight_bytes / 1e6:.1f} MB; copy in {seconds:.1f} s, weights {packed} -->")


if __name__ == "__main__":
    main()
