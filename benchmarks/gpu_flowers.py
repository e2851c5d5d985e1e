"""The table of all networks: trained on flowers, quantized, evaluated, and timed on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_document import fault, holds_figure
from gpu_job import Job, OutOfTimeError
from gpu_pictures import part_of, pictures
from gpu_trainings import train, training_row

from deploykit.errors import DeploykitError

FLOWERS = (
    *("resnet18", "resnet50", "vgg16-bn", "googlenet-bn", "densenet121", "alexnet-owt", "mobilenet-v2"),
    *("mobilenet-v3-small", "squeezenet1.1", "lenet5", "resnet34", "vgg16", "googlenet", "alexnet", "zfnet"),
    *("vgg11-bn", "resnet101", "densenet169", "vgg13-bn", "vgg19-bn", "resnet152", "densenet201", "vgg11", "vgg13"),
    *("vgg19", "alexnet-single", "vgg16-c", "vgg16-c-bn", "vgg11-lrn", "vgg11-lrn-bn", "densenet264"),
)
"""Those that a table of the papers' networks begins with; the remaining ones follow."""

FLOWERS_EPOCHS = 30
NO_LATENCY = "not timed on the CPU yet"
FOUR_BIT = ("alexnet", "zfnet", "vgg")  # families with large fully connected layers


def flowers(job: Job) -> None:
    """Each network in a process of its own, several at once, as one leaves most of a GPU idle; then the latency."""
    from deploykit import environment, models

    pictures(job, "flowers")
    every = ("cifar-cnn", "lenet5") if job.small else tuple(dict.fromkeys((*FLOWERS, *models.names())))
    waiting = still_waiting(every, job.figures)
    cpus = environment.available_cpus()
    jobs = min(4, max(1, cpus // 4)) if job.cuda else 1
    until = time.time() + 0.75 * job.left_s  # the rest is for the latency, on a machine that does nothing else
    running: dict[str, subprocess.Popen[bytes]] = {}
    places = dict.fromkeys(range(jobs), "")  # of the processors, each with the network that has it
    while running or (waiting and time.time() < until):
        while waiting and len(running) < jobs and time.time() < until:
            name = waiting.pop(0)
            place = next(number for number, owner in places.items() if owner not in running)
            places[place] = name
            running[name] = _begin_flower(job, name, until, (place, jobs))
        for name in [name for name, process in running.items() if process.poll() is not None]:
            del running[name]
            _take(job, name, _flower_result(job, name))
        if time.time() > until + 5.0:
            for name, process in running.items():
                process.kill()
                process.wait()
                _take(job, name, _flower_result(job, name) | {"error": "ran out of time"})
            running.clear()
        time.sleep(0.05)
    for name in waiting:
        _take(job, name, {"error": "no time was left"})
    latencies(job)


def still_waiting(every: tuple[str, ...], figures: Mapping[str, Any]) -> list[str]:
    """Networks to train, in order: those without any figure, then those that lack some."""
    without = [name for name in every if not holds_figure(figures.get(name, {}))]
    return without + [name for name in every if name not in without and fault(figures[name])]


def _take(job: Job, name: str, row: dict[str, Any]) -> None:
    """Keeps a network's row, unless it has failed and an earlier run has figures."""
    if "error" in row and holds_figure(job.figures.get(name, {})):
        return
    job.keep(**{name: row | ({"latency_error": NO_LATENCY} if row.get("files") else {})})


def _begin_flower(job: Job, name: str, until: float, place: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Starts one network on its share of the processors, so that several are not in each other's way."""
    folder = Path(job.work) / name
    folder.mkdir()
    settings = {
        "device": job.device,
        "name": job.name,
        "small": job.small,
        "data": job.data,
        "until": until,
        "work": str(folder),
        "result": str(folder / "result.json"),
        "trainings_at_once": place[1],
    }
    told = folder / "settings.json"
    told.write_text(json.dumps(settings), encoding="utf-8")
    script = str(Path(__file__).with_name("gpu.py"))
    command = [sys.executable, script, "--run", f"flower:{name}", "--settings", str(told)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    if hasattr(os, "sched_setaffinity"):
        number, count = place
        allowed = sorted(os.sched_getaffinity(0))
        share = max(1, len(allowed) // count)
        os.sched_setaffinity(process.pid, allowed[number * share : (number + 1) * share])
    return process


def _flower_result(job: Job, name: str) -> dict[str, Any]:
    file = Path(job.work) / name / "result.json"
    if not file.exists():
        return {"error": "its process ended without a result"}
    found = json.loads(file.read_text(encoding="utf-8"))
    row: dict[str, Any] = found["figures"]
    if found["status"] == "done":
        return row
    said = (Path(job.work) / name / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return row | {"error": found["reason"] or f"its process died: {said[-1][:300] if said else 'it said nothing'}"}


def flower(job: Job, network: str) -> None:
    """One network: trained, exported, quantized by its recipes, each file evaluated on the CPU.

    ``trainings_at_once`` is how many, this one counted, may have shared the device: its seconds, pictures a second and
    MFU are not those of a training that has the device for itself.
    """
    from deploykit.evaluate import EvaluateOptions, evaluate_onnx
    from deploykit.export import export_onnx
    from deploykit.models import spec
    from deploykit.quantize import QuantizeOptions, quantize_onnx
    from deploykit.sources import example_inputs, open_source

    splits = tuple(part_of(job, split, 64) for split in pictures(job, "flowers"))
    size = (128 if not job.small else 32) if spec(network).any_size else None
    began = time.perf_counter()
    record = train(job, network, splits, "run", size=size, epochs=2 if job.small else FLOWERS_EPOCHS)
    taken = training_row(record, time.perf_counter() - began) | {"trainings_at_once": job.trainings_at_once}
    job.keep(**taken, parameters=record.parameters, files=[])
    folder = Path(job.work)
    source = open_source(folder / "run")
    example, name = example_inputs(source, splits[1].take(16))
    plain = export_onnx(
        source.module.cpu(), folder / f"{network}.onnx", example=example, card=source.card, pictures=name
    )
    files = {"fp32": plain.path}
    for recipe in ("int8", "int8-int4fc") if spec(network).family in FOUR_BIT else ("int8",):
        job.check()
        files[recipe] = folder / f"{network}.{recipe}.onnx"
        options = QuantizeOptions(recipe=recipe, samples=32 if job.small else 256, effort="low")
        quantize_onnx(plain.path, files[recipe], calibration=splits[0], options=options, progress=job.watch)
    for recipe, file in files.items():
        reference = None if recipe == "fp32" else plain.path
        found = evaluate_onnx(file, splits[1], reference=reference, options=EvaluateOptions(), progress=job.watch)
        row: dict[str, Any] = {"recipe": recipe, "precision": found.precision, "file": file.name}
        row |= {"sha256": found.model_sha256}
        row |= {"file_bytes": file.stat().st_size}
        job.figures["files"].append(
            row | {"top1": found.top1, "agreement": found.agreement, "provider": found.provider}
        )
        job.keep()


def latencies(job: Job) -> None:
    """One thread, batch 1, the files of a network in turns; each network's in its place, while there is time."""
    for network, row in job.figures.items():
        folder = Path(job.work) / network
        made = [file for file in row.get("files", ()) if (folder / file["file"]).exists()]
        if not made:  # none, or of an earlier run
            continue
        row["latency_error"] = _time_on_cpu(job, folder, made) if job.left_s >= 2.0 else "no time was left"
        if row["latency_error"] is None:
            del row["latency_error"]
        job.keep()


def _time_on_cpu(job: Job, folder: Path, files: list[dict[str, Any]]) -> str | None:
    """Puts the latency of each file beside it; why some have none."""
    from deploykit import environment
    from deploykit.bench import BenchOptions, bench_onnx

    options = BenchOptions(threads=1, samples=50, min_time_s=0.5, max_time_s=3.0, keep_going=True)
    if job.small:
        options = options.changed(samples=5, min_time_s=0.0)
    try:
        found = bench_onnx([folder / file["file"] for file in files], options, progress=job.watch)
    except (DeploykitError, OutOfTimeError) as problem:
        return str(problem) or "ran out of time"
    by_digest = {timing.model_sha256: timing for timing in found.results}
    for file in files:
        if (timing := by_digest.get(file["sha256"])) is None:
            continue
        file["cpu"] = {
            "name": environment.describe()["cpu"],
            "threads": timing.threads,
            "median_ms": timing.latency_ms.median,
            "ci_low_ms": timing.latency_ms.ci_low,
            "ci_high_ms": timing.latency_ms.ci_high,
            "peak_bytes": timing.memory.peak_bytes,
            "stable": timing.stable,
        }
    return "; ".join(f"{failure.model}: {failure.error}" for failure in found.failures) or None
