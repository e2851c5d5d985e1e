"""The parts of ``gpu.py``, each run in a process of its own. They use deploykit's own stages, never copies of them."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu import EXPORT

from deploykit.errors import DataError, DeploykitError
from deploykit.progress import Progress

BATCHES = {
    "resnet50": (128, 256, 512),
    "vgg16": (128, 256),
    "googlenet": (256, 512),
    "alexnet": (256, 1024),
    "densenet121": (128, 256),
}
SMALL_BATCHES = {"mobilenet-v3-small": (16, 32), "cifar-cnn": (16, 32)}
"""Networks whose training is timed, and the batch sizes that are tried."""

FLOWERS = (
    *("resnet18", "resnet50", "vgg16-bn", "googlenet-bn", "densenet121", "alexnet-owt", "mobilenet-v2"),
    *("mobilenet-v3-small", "squeezenet1.1", "lenet5", "resnet34", "vgg16", "googlenet", "alexnet", "zfnet"),
    *("vgg11-bn", "resnet101", "densenet169", "vgg13-bn", "vgg19-bn", "resnet152", "densenet201", "vgg11", "vgg13"),
    *("vgg19", "alexnet-single", "vgg16-c", "vgg16-c-bn", "vgg11-lrn", "vgg11-lrn-bn", "densenet264"),
)
"""Those that a table of the papers' networks begins with; the remaining ones follow."""

FLOWERS_EPOCHS = 30
FOUR_BIT = ("alexnet", "zfnet", "vgg")  # families with large fully connected layers
PLAIN_S, PLAIN_WARM = 4.0, 5


class OutOfTimeError(Exception):
    """The part's time is over."""


@dataclass
class Job:
    """What one part runs with; ``keep`` adds a figure to the file that the parent reads."""

    device: str
    name: str
    small: bool
    data: str | None
    until: float
    work: str
    result: str
    before: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether figures are of a GPU."""
        return self.device == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds until the part's time is over."""
        return self.until - time.time()

    def keep(self, **figures: Any) -> None:
        """Adds them and writes all."""
        self.figures |= figures
        self.write("running")

    def write(self, status: str, reason: str | None = None) -> None:
        """Writes the file aside and moves it into place."""
        aside = Path(f"{self.result}.partial")
        document = {"status": status, "reason": reason, "figures": self.figures}
        aside.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        aside.replace(self.result)

    def check(self) -> None:
        """Raises OutOfTimeError once the time is over."""
        if self.left_s <= 0:
            raise OutOfTimeError

    @property
    def watch(self) -> Progress:
        """A progress callback that ends a stage when the time is over."""

        def watching(stage: str, done: int, total: int, note: str = "") -> None:
            self.check()

        return watching


def run_part(name: str, settings: dict[str, Any]) -> int:
    """Runs a part, whose figures are in its file whatever happens."""
    part, _, argument = name.partition(":")
    job = Job(**settings)
    function: Callable[..., None] = {
        "throughput": throughput,
        "lenet": lenet,
        "cifar": cifar,
        "inference": inference,
        "flowers": flowers,
        "flower": flower,
    }[part]
    job.write("running")
    try:
        function(job, *([argument] if argument else []))
    except OutOfTimeError:
        job.write("partial" if holds_number(job.figures) else "failed", "ran out of time")
    except Missing as problem:
        job.write("skipped", str(problem))
    except DeploykitError as problem:
        job.write("partial" if job.figures else "failed", str(problem))
    else:
        job.write(*ending(job.figures))
    return 0


def ending(figures: Mapping[str, Any]) -> tuple[str, str | None]:
    """``done``, or ``partial`` where some networks could not be measured, ``failed`` where none could; and why."""
    rows = [row for row in figures.values() if isinstance(row, dict)]
    faulty = [error for row in rows if (error := fault(row))]
    if not faulty:
        return "done", None
    status = "partial" if any(map(holds_number, rows)) else "failed"
    return status, f"{len(faulty)} of {len(rows)}: {faulty[0]}"


def holds_number(value: Any) -> bool:
    """Whether there is any figure within."""
    if isinstance(value, dict | list):
        return any(map(holds_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def fault(row: Mapping[str, Any]) -> str | None:
    """What went wrong in a network's row, wherever it is noted."""
    noted = [row.get("error"), row.get("latency_error"), *row.get("errors", ())]
    noted += [timed.get("error") for timed in row.get("onnxruntime", ())]
    return next((text for text in noted if text), None)


# What the parts share.


class Missing(Exception):  # noqa: N818 - a finding, not a fault
    """Pictures that are not there."""


def pictures(job: Job, *names: str) -> tuple[Any, Any]:
    """Train and test split of the first of these that is in the data folder; generated shapes in a rehearsal."""
    from deploykit import data

    reasons = []
    for name in names if job.data else ():
        try:
            source = find(name, Path(job.data or ""))
            return tuple(data.load(source, split, data_dir=job.data) for split in ("train", "test"))  # type: ignore[return-value]
        except DataError as problem:
            reasons.append(str(problem))
    if job.small:
        return data.load("shapes-color", "train"), data.load("shapes-color", "test")
    raise Missing(f"no {names[0]}: {reasons[0] if reasons else 'no --data was given'}")


def find(name: str, folder: Path) -> str | Path:
    """A dataset's name, or the archive of flowers at 128 pixels where the folder has that one."""
    if name == "flowers":
        found = sorted(folder.glob("flowers*.tar"))
        return found[0] if found else "flower-photos"
    return name


def part_of(job: Job, dataset: Any, count: int) -> Any:
    """All of it, or a few pictures in a rehearsal."""
    return dataset.take(count) if job.small and len(dataset) > count else dataset


def synthetic(count: int, side: int, classes: int) -> tuple[Any, Any]:
    """Noise, as its content is of no consequence to the speed."""
    import numpy as np

    from deploykit.data.dataset import Dataset

    random = np.random.default_rng(0)

    def split(name: str, size: int) -> Any:
        images = random.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        targets = np.arange(size) % classes
        labels = tuple(map(str, range(classes)))
        return Dataset.from_arrays("synthetic", images, targets, labels, split=name, has_splits=True)

    return split("train", count), split("test", max(8, count // 64))


def train(job: Job, network: str, splits: tuple[Any, Any], folder: str, *, size: int | None, **changes: Any) -> Any:
    """The record of a training by deploykit: the recipe of the network, but for what is given."""
    from deploykit.models import spec
    from deploykit.train import train_network
    from deploykit.training_recipes import recipe_for

    options = recipe_for(splits[0].name, network, size)
    side = size if spec(network).any_size else None
    precision = "auto" if job.cuda else "fp32"  # bf16 on GPUs that have it
    given = {"device": job.device, "precision": precision, **changes}
    return train_network(
        network,
        *splits,
        Path(job.work) / folder,
        options.changed(**given),
        size=side,
        overwrite=True,
        progress=job.watch,
    )


def settled_speed(record: Any, samples: int) -> dict[str, Any]:
    """Pictures a second of the fastest epoch after the first, in which kernels are chosen and compiled."""
    seconds = min(row["train_seconds"] for row in record.history[1:])
    speed = samples / seconds
    share = getattr(record, "mfu", None)
    return {
        "images_per_s": round(speed, 1),
        "mfu": None if share is None else round(share * speed / record.images_per_s, 4),
        "batch_size": record.options["batch_size"],
        "precision": record.precision,
        "epochs": record.epochs,
        "warnings": list(record.warnings),
    }


def release(job: Job) -> int | None:
    """Gives memory on the device back; the most that was taken since the last call, in bytes."""
    gc.collect()
    if not job.cuda:
        return None
    import torch

    most = int(torch.cuda.max_memory_allocated())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return most


# Throughput of training.


def throughput(job: Job) -> None:
    """Pictures a second, by network: ours with synthetic and real pictures, and a plain loop's."""
    side, classes, count = (32, 10, 64) if job.small else (224, 1000, 6144)
    batches = SMALL_BATCHES if job.small else BATCHES
    made = synthetic(count, side, classes)
    for network, sizes in batches.items():
        _measure(job, network, _with_synthetic, made, side, sizes)
    for network in batches:
        _measure(job, network, _with_real, side)
    for network in batches if job.cuda else ():  # compiling takes long, so it comes last
        _measure(job, network, _compiled, made, side)


def _measure(job: Job, network: str, kind: Callable[..., None], *given: Any) -> None:
    """One kind of figure of one network, or why there is none, which the others do not hang on."""
    job.check()
    row = job.figures.setdefault(network, {})
    release(job)
    try:
        kind(job, network, row, *given)
    except DeploykitError as problem:
        row.setdefault("errors", []).append(str(problem))
    job.keep()


def _with_synthetic(
    job: Job, network: str, row: dict[str, Any], made: tuple[Any, Any], side: int, sizes: tuple[int, ...]
) -> None:
    tried = []
    for batch in sizes:
        tried.append(_speed(job, network, made, side, batch, compile="off"))
        row["synthetic"] = max(tried, key=lambda found: found["images_per_s"]) | {"tried": list(tried)}
        job.keep()
    row["plain"] = plain_loop(job, network, side, len(made[0].labels), row["synthetic"]["batch_size"])
    _compare(row, "synthetic")


def _with_real(job: Job, network: str, row: dict[str, Any], side: int) -> None:
    if "synthetic" not in row:
        return
    try:
        train_split, test_split = (part_of(job, split, 64) for split in pictures(job, "flowers"))
    except Missing as problem:
        row["real"] = {"skipped": str(problem)}
        return
    found = _speed(job, network, (train_split, test_split), side, row["synthetic"]["batch_size"], compile="off")
    row["real"] = found | {"dataset": train_split.name}
    _compare(row, "real")


def _compiled(job: Job, network: str, row: dict[str, Any], made: tuple[Any, Any], side: int) -> None:
    if "synthetic" in row:
        row["compiled"] = _speed(job, network, made, side, row["synthetic"]["batch_size"], compile="on")
        _compare(row, "compiled")


def _compare(row: dict[str, Any], kind: str) -> None:
    if "plain" in row:
        row[kind]["times_plain"] = round(row[kind]["images_per_s"] / row["plain"]["images_per_s"], 3)


def _speed(job: Job, network: str, splits: tuple[Any, Any], side: int, batch: int, **changes: Any) -> dict[str, Any]:
    """Of a short training: the recipe's augmentation, average and optimizer, at a rate at which nothing diverges."""
    settings = {"epochs": 2 if job.small else 3, "warmup_epochs": 0.0, "learning_rate": 1e-3, "batch_size": batch}
    record = train(job, network, splits, "speed", size=side, **settings, **changes)
    return settled_speed(record, len(splits[0])) | {"peak_bytes": release(job)}


def plain_loop(job: Job, network: str, side: int, classes: int, batch: int) -> dict[str, Any]:
    """Eager float32 as torchvision's references/classification has it: SGD, cross entropy, cuDNN tries its algorithms.

    TF32 is left at PyTorch's default, which is on for convolutions. Pictures and targets lie on the device already, so
    that only computing is timed. The batch is ours, or halves of it where that does not fit.
    """
    import torch

    while True:
        try:
            return _plain_steps(job, network, side, classes, batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        release(job)
        batch //= 2


def _plain_steps(job: Job, network: str, side: int, classes: int, batch: int) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    from deploykit.models import build
    from deploykit.training_setup import plan_network

    options = plan_network(network, (side, side), None).options
    module = build(network, classes, 3, **options).to(job.device).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    torch.backends.cudnn.benchmark = True
    inputs = torch.randn(batch, 3, side, side, device=job.device)
    targets = torch.arange(batch, device=job.device) % classes

    def step() -> None:
        optimizer.zero_grad()
        output = module(inputs)
        heads = output if isinstance(output, tuple) else (output, ())
        loss = F.cross_entropy(heads[0], targets)
        for other in heads[1]:
            loss = loss + 0.3 * F.cross_entropy(other, targets)
        loss.backward()
        optimizer.step()

    for _ in range(1 if job.small else PLAIN_WARM):
        step()
    synchronize(job)
    began, steps = time.perf_counter(), 0
    while steps < 2 or (time.perf_counter() - began < (0.5 if job.small else PLAIN_S)):
        for _ in range(1 if job.small else 5):
            step()
            steps += 1
        synchronize(job)
    seconds = time.perf_counter() - began
    job.check()
    return {
        "images_per_s": round(steps * batch / seconds, 1),
        "batch_size": batch,
        "precision": "fp32",
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "steps": steps,
        "peak_bytes": release(job),
    }


def synchronize(job: Job) -> None:
    """Waits for the device."""
    if job.cuda:
        import torch

        torch.cuda.synchronize()


# Trainings to the end.


def lenet(job: Job) -> None:
    """LeNet-5 on MNIST by its recipe."""
    splits = tuple(part_of(job, split, 96) for split in pictures(job, "mnist"))
    began = time.perf_counter()
    record = train(job, "lenet5", splits, "lenet", size=None, **({"epochs": 2} if job.small else {}))
    job.keep(**_training(record, time.perf_counter() - began), reached=_reached(record, 0.994))


def _reached(record: Any, top1: float) -> dict[str, Any]:
    """When the test split was first answered as well as that; null where it never was."""
    seconds = 0.0
    for row in record.history:
        seconds += row["seconds"]
        if row["test_top1"] >= top1:
            return {"top1": top1, "epoch": row["epoch"], "seconds": round(seconds, 2)}
    return {"top1": top1, "epoch": None, "seconds": None}


def _training(record: Any, seconds: float) -> dict[str, Any]:
    """``seconds`` counts all: reading pictures, choosing kernels, training, measuring, writing."""
    return {
        "network": record.network,
        "dataset": record.dataset,
        "test_top1": record.test_top1,
        "test_error": round(1.0 - record.test_top1, 6),
        "epochs": record.epochs,
        "seconds": round(seconds, 2),
        "epoch_s": round(statistics.median(row["seconds"] for row in record.history), 3),
        "images_per_s": record.images_per_s,
        "mfu": getattr(record, "mfu", None),
        "precision": record.precision,
        "batch_size": record.options["batch_size"],
        "warnings": list(record.warnings),
    }


def cifar(job: Job) -> None:
    """ResNet-18 for small pictures on CIFAR-10, as many epochs of its recipe as the time allows.

    Four times the recipe's batch keeps a GPU busy, at a rate scaled with it.
    """
    from deploykit.batch_size import scaled
    from deploykit.training_recipes import recipe_for

    splits = tuple(part_of(job, split, 96) for split in pictures(job, "cifar10", "cifar10-jpeg"))
    network, size = ("cifar-cnn" if job.small else "resnet18"), 32
    recipe = recipe_for(splits[0].name, network, size)
    wanted, larger = (2, recipe) if job.small else (recipe.epochs, scaled(recipe, 4 * recipe.batch_size))
    common: dict[str, Any] = {"size": size, "batch_size": larger.batch_size, "learning_rate": larger.learning_rate}
    probe = (splits[0].take(48 if job.small else 12_800), splits[1])
    began = time.perf_counter()
    tried = train(job, network, probe, "probe", epochs=2, **common)
    epoch_s = tried.history[-1]["train_seconds"] * len(splits[0]) / len(probe[0])
    epoch_s += tried.history[-1]["seconds"] - tried.history[-1]["train_seconds"]
    overhead = time.perf_counter() - began
    epochs = max(2, min(wanted, int((job.left_s - overhead) / epoch_s)))
    job.keep(epochs_of_recipe=wanted, estimated_epoch_s=round(epoch_s, 3))
    began = time.perf_counter()
    record = train(job, network, splits, "cifar", epochs=epochs, **common)
    job.keep(**_training(record, time.perf_counter() - began))


# Inference.


def inference(job: Job) -> None:
    """Latency of a call by batch and way of running it; inputs lie on the device already."""
    side, networks = (64, ("mobilenet-v3-small",)) if job.small else (224, ("resnet50", "mobilenet-v2"))
    batches = (1, 4) if job.small else (1, 64)
    for network in networks:
        job.keep(**{network: {"torch": [], "onnxruntime": []}})
    for network in networks:
        _add(job, network, "torch", torch_timings(job, _fresh(network), batches, side, compiled=False))
    for network in networks:
        if missing := [name for module, name in EXPORT.items() if find_spec(module) is None]:
            job.figures[network]["onnxruntime"] = [{"error": f"needs pip install {' '.join(missing)}"}]
        else:
            _add(job, network, "onnxruntime", runtime_timings(job, network, batches, side))
    for network in networks:  # compiling takes long, so it comes last
        _add(job, network, "torch", torch_timings(job, _fresh(network), batches, side, compiled=True))


def _add(job: Job, network: str, kind: str, timings: Iterator[dict[str, Any]]) -> None:
    """Keeps each as it comes, and why there are no more."""
    rows = job.figures[network][kind]
    try:
        for timed in timings:
            rows.append(timed)
            job.keep()
    except DeploykitError as problem:
        rows.append({"error": str(problem)})
        job.keep()


def _fresh(network: str) -> Any:
    import torch

    from deploykit.models import build

    torch.manual_seed(0)
    return build(network).eval()


def torch_timings(
    job: Job, module: Any, batches: tuple[int, ...], side: int, *, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Eager or compiled, in float16, TF32 and float32; compiled for each batch anew, with CUDA graphs on a GPU."""
    import torch

    kinds = {"fp16": (torch.float16, True), "tf32": (torch.float32, True), "fp32": (torch.float32, False)}
    backend, mode = ("inductor", "reduce-overhead") if job.cuda else ("aot_eager", None)
    torch.backends.cudnn.benchmark = True
    for precision in kinds if job.cuda else ("fp32",):
        dtype, tf32 = kinds[precision]
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        placed = module.to(job.device, dtype).to(memory_format=torch.channels_last)
        for batch in batches:
            job.check()
            inputs = torch.randn(batch, 3, side, side, device=job.device, dtype=dtype)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            torch.compiler.reset()
            call = torch.compile(placed, backend=backend, mode=mode, dynamic=False) if compiled else placed
            with torch.inference_mode():
                timed = latency(job, lambda call=call, inputs=inputs: call(inputs))
            way = f"torch.compile ({backend})" if compiled else "eager"
            yield {"way": way, "precision": precision, "batch": batch, "device": job.name, **timed}


def latency(job: Job, call: Callable[[], object]) -> dict[str, Any]:
    """Median and 90th percentile of calls that are each waited for, in milliseconds."""
    began = time.perf_counter()
    for _ in range(3):
        call()
        synchronize(job)
    first_s = time.perf_counter() - began
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 10 or (time.perf_counter() - began < (0.2 if job.small else 1.0) and len(taken) < 1000):
        start = time.perf_counter()
        call()
        synchronize(job)
        taken.append(1000.0 * (time.perf_counter() - start))
    p90 = statistics.quantiles(taken, n=10)[-1]
    return {
        "median_ms": round(statistics.median(taken), 4),
        "p90_ms": round(p90, 4),
        "samples": len(taken),
        "first_calls_s": round(first_s, 3),
    }


def runtime_timings(job: Job, network: str, batches: tuple[int, ...], side: int) -> Iterator[dict[str, Any]]:
    """ONNX Runtime in the precisions of the provider, with and without CUDA graphs, by deploykit's bench."""
    import numpy as np

    from deploykit.bench import BenchOptions, bench_onnx
    from deploykit.export import export_onnx
    from deploykit.quantize import quantize_onnx

    folder = Path(job.work)
    example = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    plain = export_onnx(_fresh(network), folder / f"{network}.onnx", example=example, overwrite=True).path
    half = folder / f"{network}.fp16.onnx"
    quantize_onnx(plain, half, calibration=[example], recipe="fp16", overwrite=True)
    options = BenchOptions(batch=batches, samples=50, min_time_s=0.5, max_time_s=3.0, timeout_s=60.0, keep_going=True)
    if job.small:
        options = options.changed(samples=5, min_time_s=0.0)
    for provider, precisions in _providers(job):
        for tf32, models in precisions:
            for graph in (True, False) if provider == "cuda" else (False,):
                job.check()
                told = {"use_tf32": tf32} if provider == "cuda" else {}
                files = [{"fp32": plain, "fp16": half}[name] for name in models]
                chosen = options.changed(provider=provider, cuda_graph=graph, provider_options=told)
                try:
                    yield from map(_runtime_row, bench_onnx(files, chosen, progress=job.watch).results)
                except DeploykitError as problem:
                    yield {"way": f"onnxruntime {provider}", "error": str(problem)}
                    break


def _providers(job: Job) -> list[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]]:
    """What is measured: the CUDA provider with TF32 and without, TensorRT where it is, the CPU in a rehearsal."""
    from deploykit.runtime import provider_names

    if not job.cuda:
        return [("cpu", (("", ("fp32",)),))]
    listed = [name for name in ("tensorrt", "nvtensorrtrtx") if name in provider_names()]
    return [("cuda", (("1", ("fp32", "fp16")), ("0", ("fp32",)))), *((name, (("", ("fp32",)),)) for name in listed)]


def _runtime_row(timing: Any) -> dict[str, Any]:
    return {
        "way": f"onnxruntime {timing.provider}",
        "precision": timing.computed_in or timing.precision,
        "cuda_graph": timing.cuda_graph,
        "io_binding": timing.io_binding,
        "batch": timing.batch,
        "median_ms": timing.latency_ms.median,
        "p90_ms": timing.latency_ms.p90,
        "samples": timing.latency_ms.samples,
        "load_ms": timing.load_ms,
        "peak_bytes": timing.memory.peak_bytes,
        "device_bytes": timing.memory.device_bytes,
        "nodes_by_provider": dict(timing.nodes_by_provider),
        "stable": timing.stable,
        "warnings": list(timing.warnings),
    }


# The table of all networks.


def flowers(job: Job) -> None:
    """Each network in a process of its own, several at once, as one leaves most of a GPU idle; then the latency."""
    from deploykit import environment, models

    pictures(job, "flowers")
    job.figures.update({name: row for name, row in job.before.items() if not fault(row)})
    every = ("cifar-cnn", "lenet5") if job.small else tuple(dict.fromkeys((*FLOWERS, *models.names())))
    waiting = [name for name in every if name not in job.figures]
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
            job.keep(**{name: _flower_result(job, name)})
        if time.time() > until + 5.0:
            for name, process in running.items():
                process.kill()
                process.wait()
                job.keep(**{name: _flower_result(job, name) | {"error": "ran out of time"}})
            running.clear()
        time.sleep(0.05)
    for name in waiting:
        job.figures[name] = {"error": "no time was left"}
    _latencies(job)


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
    """One network: trained, exported, quantized by its recipes, each file evaluated on the CPU."""
    from deploykit.evaluate import EvaluateOptions, evaluate_onnx
    from deploykit.export import export_onnx
    from deploykit.models import spec
    from deploykit.quantize import QuantizeOptions, quantize_onnx
    from deploykit.sources import example_inputs, open_source

    splits = tuple(part_of(job, split, 64) for split in pictures(job, "flowers"))
    size = (128 if not job.small else 32) if spec(network).any_size else None
    began = time.perf_counter()
    record = train(job, network, splits, "run", size=size, epochs=2 if job.small else FLOWERS_EPOCHS)
    job.keep(**_training(record, time.perf_counter() - began), parameters=record.parameters, files=[])
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
        row: dict[str, Any] = {"recipe": recipe, "precision": found.precision, "file": str(file)}
        row |= {"sha256": found.model_sha256}
        row |= {"file_bytes": file.stat().st_size}
        job.figures["files"].append(
            row | {"top1": found.top1, "agreement": found.agreement, "provider": found.provider}
        )
        job.keep()


def _latencies(job: Job) -> None:
    """One thread, batch 1, the files of a network in turns; each network's in its place, while there is time."""
    from deploykit.bench import BenchOptions, bench_onnx

    options = BenchOptions(threads=1, samples=50, min_time_s=0.5, max_time_s=3.0, keep_going=True)
    if job.small:
        options = options.changed(samples=5, min_time_s=0.0)
    for row in job.figures.values():
        made = [file for file in row.get("files", []) if Path(file["file"]).exists()]
        if not made or job.left_s < 2.0:
            continue
        try:
            timings = bench_onnx([file["file"] for file in made], options, progress=job.watch).results
        except (DeploykitError, OutOfTimeError) as problem:
            row["latency_error"] = str(problem) or "ran out of time"
            continue
        by_digest = {timing.model_sha256: timing for timing in timings}
        for file in made:
            timing = by_digest.get(file["sha256"])
            if timing is not None:
                file |= {"cpu_latency_ms": timing.latency_ms.median, "peak_bytes": timing.memory.peak_bytes}
                file |= {"ci_low_ms": timing.latency_ms.ci_low, "ci_high_ms": timing.latency_ms.ci_high}
                file |= {"stable": timing.stable, "threads": timing.threads}
        job.keep()
    for row in job.figures.values():
        for file in row.get("files", []):
            file["file"] = Path(file["file"]).name


# The short form.


def headlines(part: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """The figures that the programme is about, a line each."""
    lines: Callable[[Mapping[str, Any]], Iterator[str]] = {
        "throughput": _throughput_lines,
        "lenet": _training_lines,
        "cifar": _training_lines,
        "inference": _inference_lines,
        "flowers": _flowers_lines,
    }[part]
    return lines(figures)


def _throughput_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        if "synthetic" not in row:
            yield f"{network}: {'; '.join(row.get('errors', ['no figure']))}"
            continue
        ours, plain, real = row["synthetic"], row.get("plain", {}), row.get("real", {})
        mfu = "" if ours["mfu"] is None else f", MFU {100 * ours['mfu']:.1f} %"
        times = f", {ours['times_plain']:.2f}× plain ({plain['images_per_s']:g})" if plain else ""
        of_real = f", real {real['images_per_s']:g}" if "images_per_s" in real else ""
        of_real += f", compiled {row['compiled']['images_per_s']:g}" if "compiled" in row else ""
        where = f"{ours['precision']}, batch {ours['batch_size']}"
        yield f"{network}: {ours['images_per_s']:g} pictures/s ({where}){mfu}{times}{of_real}"


def _training_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if "test_top1" not in figures:
        return
    named = f"{figures['network']} on {figures['dataset']}: {100 * figures['test_top1']:.2f} %"
    yield f"{named} in {figures['seconds']:.1f} s, {figures['epochs']} epochs of {figures['epoch_s']:.2f} s"
    if (reached := figures.get("reached")) and reached["seconds"] is not None:
        yield f"{100 * reached['top1']:.1f} % after {reached['seconds']:.1f} s"


def _inference_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        for timed in (*row["torch"], *row["onnxruntime"]):
            if "error" in timed:
                yield f"{network}: {timed['error']}"
                continue
            graph = " with a CUDA graph" if timed.get("cuda_graph") else ""
            way = f"{timed['way']} {timed['precision']}{graph}"
            yield f"{network}, batch {timed['batch']}, {way}: {timed['median_ms']:.3f} ms"


def _flowers_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        for file in row.get("files", []):
            took = f", {file['cpu_latency_ms']:.2f} ms" if "cpu_latency_ms" in file else ""
            yield f"{network} {file['recipe']}: {100 * file['top1']:.1f} %, {file['file_bytes'] / 1e6:.2f} MB{took}"
