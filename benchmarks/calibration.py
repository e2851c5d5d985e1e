"""What calibration costs: time against plain float inference over the same samples, and peak memory.

    python benchmarks/calibration.py MODEL.onnx --data DATA [--samples 256] [--method minmax …] [--peer 8] [--json]

Time: in one process, each batch goes first through a plain session and then through the collection of statistics, so
that whatever else the machine does falls on both alike. Both have the same threads, which do not wait actively, and the
same batches, decoded before the clock starts. Loading the model is timed apart; choosing the ranges counts.
CPU time is what both took on all cores, which a busy machine changes less.

Memory: a fresh process for each way of collecting, once with all samples and once with a quarter of them; choosing
counts.

``--peer N`` runs ONNX Runtime's own calibrators over N samples, one by one, in fresh processes: they hold every
tensor of every sample until the end. Their time is against plain inference over these samples, run just before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.calibrate import Calibration, calibration_from_dataset
from deploykit.collect import collect_statistics
from deploykit.process_memory import peak_bytes
from deploykit.ranges import Statistics
from deploykit.runtime import create_session

METHODS = ("minmax", "percentile", "entropy", "mse")
PEER_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peer", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--tensors", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        kind, _, method = given.worker.partition(":")
        print(json.dumps(WORKERS[kind](given, method)))
        return
    given.tensors = _tensors(given.model)
    result = _measure(given)
    print(json.dumps(result, indent=2) if given.json else _table(result))


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    methods = given.method or METHODS
    ways = list(dict.fromkeys(method if method == "minmax" else "histogram" for method in methods))
    rows: dict[str, Any] = {"model": given.model, "samples": given.samples, "methods": {}, "peer": {}}
    for way in ways:
        timed = _worker(given, f"time:{way}", given.samples)
        memory = {count: _worker(given, f"memory:{way}", count) for count in (given.samples // 4, given.samples)}
        for method in methods:
            if (method == "minmax") == (way == "minmax"):
                rows["methods"][method] = _row(timed, method, memory)
    for method in [name for name in methods if given.peer and name in PEER_METHODS]:
        rows["peer"][method] = _worker(given, f"peer:{method}", given.peer)
    return rows


def _row(timed: dict[str, Any], method: str, memory: dict[int, dict[str, Any]]) -> dict[str, Any]:
    chosen = timed["choose"][method]
    return {
        "tensors": timed["tensors"],
        "plain_s": timed["plain"][0],
        "collect_s": timed["collect"][0],
        "choose_s": chosen[0],
        "load_s": timed["load"][0],
        "ratio": (timed["collect"][0] + chosen[0]) / timed["plain"][0],
        "cpu_ratio": (timed["collect"][1] + chosen[1]) / timed["plain"][1],
        "peak_bytes": {count: found["peak_bytes"] for count, found in memory.items()},
    }


def _worker(given: argparse.Namespace, task: str, samples: int) -> dict[str, Any]:
    """A fresh process; what it answers is shown at once, for those who wait."""
    command = [sys.executable, __file__, given.model, "--data", given.data, "--worker", task, "--samples", str(samples)]
    command += ["--data-dir", given.data_dir] if given.data_dir else []
    command += ["--threads", str(given.threads)] if given.threads else []
    command += ["--tensors", json.dumps(given.tensors)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    print(task, samples, said[-1], file=sys.stderr, flush=True)  # before it, ONNX Runtime's calibrators chat
    answer: dict[str, Any] = json.loads(said[-1])
    return answer


def _samples(given: argparse.Namespace) -> Calibration:
    return calibration_from_dataset(
        Artifact.read(given.model), data.load(given.data, "train", data_dir=given.data_dir), samples=given.samples
    )


def _tensors(model: str) -> list[str]:
    """Those that the recipes measure."""
    import onnx_ir

    from deploykit.graph.quantization_plan import plan_quantization

    return plan_quantization(onnx_ir.load(model)).measured


def _collected(given: argparse.Namespace, way: str, samples: Any) -> Statistics:
    return collect_statistics(given.model, given.tensors, samples, histogram=way == "histogram", threads=given.threads)


def _memory(given: argparse.Namespace, way: str) -> dict[str, Any]:
    found = _collected(given, way, _samples(given))
    for method in METHODS if way == "histogram" else ("minmax",):
        found.ranges(method)
    return {"peak_bytes": peak_bytes()}


class _Both:
    """Samples that go through a plain session before they are handed on; the clock of the others stands meanwhile."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.samples = _samples(given)
        self.plain = create_session(given.model, threads=given.threads, spinning=False)
        self.plain_time, self.away, self.loaded = np.zeros(2), np.zeros(2), np.zeros(2)

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, size: int) -> Iterator[np.ndarray[Any, Any]]:
        self.loaded = _now()
        left = self.loaded
        for index, batch in enumerate(self.samples.batches(size)):
            if not index:
                self.plain.run(batch)  # the first run of a session finds its memory
            start = _now()
            self.plain.run(batch)
            self.plain_time += _now() - start
            self.away += _now() - left
            yield batch
            left = _now()


def _time(given: argparse.Namespace, way: str) -> dict[str, Any]:
    both, start = _Both(given), _now()
    found = _collected(given, way, both)
    whole = _now() - start
    load = both.loaded - start
    chosen = {}
    for method in METHODS if way == "histogram" else ("minmax",):
        start = _now()
        found.ranges(method)
        chosen[method] = (_now() - start).tolist()
    return {
        "tensors": len(found.extremes),
        "plain": both.plain_time.tolist(),
        "collect": (whole - both.away - load).tolist(),
        "load": load.tolist(),
        "choose": chosen,
    }


def _now() -> np.ndarray[Any, Any]:
    return np.array([time.perf_counter(), time.process_time()])


def _peer(given: argparse.Namespace, method: str) -> dict[str, Any]:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: list[dict[str, Any]]) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    samples = list(_samples(given).batches(1))
    plain = create_session(given.model, threads=given.threads)
    plain.run(samples[0])
    start = _now()
    for sample in samples:
        plain.run(sample)
    alone = _now() - start
    name = plain.inputs[0].name
    del plain
    start = _now()
    kind = CalibrationMethod[PEER_METHODS[method]]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(given.model, calibrate_method=kind, augmented_model_path=f"{folder}/model.onnx")
        loaded = _now()
        calibrator.collect_data(Reader([{name: sample} for sample in samples]))
        calibrator.compute_data()
        took = _now() - loaded
    return {
        "samples": len(samples),
        "load_s": float((loaded - start)[0]),
        "ratio": float(took[0] / alone[0]),
        "cpu_ratio": float(took[1] / alone[1]),
        "peak_bytes": peak_bytes(),
    }


WORKERS = {"time": _time, "memory": _memory, "peer": _peer}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, {result['samples']} samples",
        "",
        "| method | tensors | plain fp32 | collect + choose | ratio | CPU time's ratio | peak at N/4, N samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in result["methods"].items():
        peaks = ", ".join(f"{size / 1e6:.0f} MB" for size in row["peak_bytes"].values())
        lines.append(
            f"| {method} | {row['tensors']} | {row['plain_s']:.1f} s | {row['collect_s']:.1f} + {row['choose_s']:.1f} s"
            f" | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} | {peaks} |"
        )
    for method, row in result["peer"].items():
        lines.append(
            f"| ONNX Runtime's {method}, {row['samples']} samples | all | – | – | {row['ratio']:.2f} |"
            f" {row['cpu_ratio']:.2f} | {row['peak_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
