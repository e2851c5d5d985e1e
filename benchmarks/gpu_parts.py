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

from gpu import EXPORT, PARTS, holds_figure

from deploykit.errors import DataError, DeploykitError, ProviderError
from deploykit.progress import Progress


@dataclass(frozen=True)
class Sizes:
    """Batch sizes that a training's speed is measured at, and epochs of each: the first one is not counted."""

    batches: tuple[int, ...]
    epochs: int


SIZES = {  # epochs so that some seconds are counted on a large GPU
    "resnet50": Sizes((256, 512), 4),
    "vgg16": Sizes((128, 256), 4),
    "googlenet": Sizes((256, 512), 6),
    "alexnet": Sizes((512, 1024), 8),
    "densenet121": Sizes((128, 256), 4),
}
SMALL_SIZES = {"mobilenet-v3-small": Sizes((16, 32), 2), "cifar-cnn": Sizes((16, 32), 2)}
"""Networks whose training is timed."""

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
    trainings_at_once: int = 1
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
    if part in PARTS and PARTS[part].goes_on:
        job.figures.update(job.before)
    job.write("running")
    try:
        function(job, *([argument] if argument else []))
    except OutOfTimeError:
        job.write(_less(job, "failed"), "ran out of time")
    except Missing as problem:
        job.write(_less(job, "skipped"), str(problem))
    except DeploykitError as problem:
        job.write(_less(job, "failed"), str(problem))
    else:
        job.write(*ending(job.figures))
    return 0


def _less(job: Job, nothing: str) -> str:
    """The status of a part that was cut short: ``partial``, or another where it has no figure."""
    return "partial" if holds_figure(job.figures) else nothing


def ending(figures: Mapping[str, Any]) -> tuple[str, str | None]:
    """``done``, or ``partial`` where some networks could not be measured, ``failed`` where none could; and why."""
    rows = [row for row in figures.values() if isinstance(row, dict)]
    faulty = [error for row in rows if (error := fault(row))]
    if not faulty:
        return "done", None
    status = "partial" if any(map(holds_figure, rows)) else "failed"
    return status, f"{len(faulty)} of {len(rows)}: {faulty[0]}"


def fault(row: Mapping[str, Any]) -> str | None:
    """What went wrong in a network's row or is missing from it, wherever it is noted."""
    noted = [row.get("error"), row.get("latency_error"), *row.get("errors", ()), row.get("real", {}).get("skipped")]
    noted += [timed.get("error") for kind in ("torch", "onnxruntime") for timed in row.get(kind, ())]
    return next((text for text in noted if text), None)


def said(problem: Exception) -> str:
    """A problem in one line; those that are not deploykit's also with their kind."""
    text = " ".join(str(problem).split())[:300]
    return text if isinstance(problem, DeploykitError) else f"{type(problem).__name__}: {text}"


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
    """Pictures a second of the median epoch after the first, in which kernels are chosen and compiled."""
    seconds = statistics.median(row["train_seconds"] for row in record.history[1:])
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
    """Pictures a second, by network: ours with synthetic and real pictures, and a plain loop's.

    Every network has its ratio to the plain loop at one batch size before any is measured at a second one.
    """
    side, classes, count = (32, 10, 64) if job.small else (224, 1000, 6144)
    sizes = SMALL_SIZES if job.small else SIZES
    for row in job.figures.values():  # of an earlier run; what failed is tried anew
        row.pop("errors", None)
    made = synthetic(count, side, classes)
    for turn in range(max(len(size.batches) for size in sizes.values())):
        for network, size in sizes.items():
            if turn < len(size.batches):
                _measure(job, network, _with_synthetic, made, side, size.batches[turn], size.epochs)
    for network, size in sizes.items():
        _measure(job, network, _with_real, side, size.epochs)
    for network, size in sizes.items() if job.cuda else ():  # compiling takes long, so it comes last
        _measure(job, network, _compiled, made, side, size.epochs)


def _measure(job: Job, network: str, kind: Callable[..., None], *given: Any) -> None:
    """One kind of figure of one network, or why there is none, which the others do not hang on.

    torch tells with RuntimeError what CUDA, cuDNN and its compiler cannot do.
    """
    job.check()
    row = job.figures.setdefault(network, {})
    try:
        release(job)
        kind(job, network, row, *given)
    except (DeploykitError, RuntimeError) as problem:
        row.setdefault("errors", []).append(said(problem))
    job.keep()


def _with_synthetic(
    job: Job, network: str, row: dict[str, Any], made: tuple[Any, Any], side: int, batch: int, epochs: int
) -> None:
    _try(job, row, "synthetic", batch, lambda: _speed(job, network, made, side, batch, epochs, compile="off"))
    _try(job, row, "plain", batch, lambda: plain_loop(job, network, side, len(made[0].labels), batch))


def _try(job: Job, row: dict[str, Any], kind: str, batch: int, measure: Callable[[], dict[str, Any]]) -> None:
    """Measures at one batch size, where an earlier run has not, and keeps the fastest of all beside all."""
    tried = row.get(kind, {}).get("tried", [])
    if any(found["asked_batch_size"] == batch for found in tried):
        return
    tried = [*tried, {"asked_batch_size": batch} | measure()]
    row[kind] = max(tried, key=lambda found: found["images_per_s"]) | {"tried": tried}
    compare(row)
    job.keep()


def _with_real(job: Job, network: str, row: dict[str, Any], side: int, epochs: int) -> None:
    if "synthetic" not in row or "images_per_s" in row.get("real", {}):
        return
    try:
        splits = tuple(part_of(job, split, 64) for split in pictures(job, "flowers"))
    except Missing as problem:
        row["real"] = {"skipped": str(problem)}
        return
    batch = row["synthetic"]["batch_size"]
    found = _speed(job, network, (splits[0], splits[1]), side, batch, epochs, compile="off")
    row["real"] = found | {"dataset": splits[0].name}
    compare(row)


def _compiled(job: Job, network: str, row: dict[str, Any], made: tuple[Any, Any], side: int, epochs: int) -> None:
    if "synthetic" in row and "compiled" not in row:
        row["compiled"] = _speed(job, network, made, side, row["synthetic"]["batch_size"], epochs, compile="on")
        compare(row)


def compare(row: dict[str, Any]) -> None:
    """Puts the ratios to the plain loop into a network's row.

    That of synthetic pictures is the best of ours over the best of the plain loop, among the batch sizes at which both
    were measured, so that neither has more tries; the others are over the plain loop's best.
    """
    ours, plain = (
        {tried["asked_batch_size"]: tried["images_per_s"] for tried in row.get(kind, {}).get("tried", ())}
        for kind in ("synthetic", "plain")
    )
    if both := sorted(ours.keys() & plain.keys()):
        ratio = max(ours[batch] for batch in both) / max(plain[batch] for batch in both)
        row["synthetic"] |= {"times_plain": round(ratio, 3), "compared_batch_sizes": both}
    for kind in ("real", "compiled"):
        if plain and "images_per_s" in row.get(kind, {}):
            row[kind]["times_plain"] = round(row[kind]["images_per_s"] / row["plain"]["images_per_s"], 3)


def _speed(
    job: Job, network: str, splits: tuple[Any, Any], side: int, batch: int, epochs: int, **changes: Any
) -> dict[str, Any]:
    """Of a short training: the recipe's augmentation, average and optimizer, at a rate at which nothing diverges."""
    settings = {"epochs": epochs, "warmup_epochs": 0.0, "learning_rate": 1e-3, "batch_size": batch}
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


KINDS = ("fp16", "tf32", "fp32")
"""What PyTorch computes in on a GPU, in the order of their worth."""


def inference(job: Job) -> None:
    """Latency of a call by batch and way of running it; inputs lie on the device already.

    One network has all that takes seconds and one precision compiled before the next one is measured; compiling for
    the other precisions comes last.
    """
    side, networks = (64, ("mobilenet-v3-small",)) if job.small else (224, ("resnet50", "mobilenet-v2"))
    batches, kinds = ((1, 4) if job.small else (1, 64)), _kinds(job)
    for network in networks:
        rows = job.figures.setdefault(network, {"torch": [], "onnxruntime": []})
        for kind in rows:  # of an earlier run; what failed is tried anew
            rows[kind] = [timed for timed in rows[kind] if "error" not in timed]
    for network in networks:
        _add(job, network, "torch", torch_timings(job, network, kinds, batches, side, compiled=False))
        _add(job, network, "torch", torch_timings(job, network, kinds[:1], batches, side, compiled=True))
        if missing := [name for module, name in EXPORT.items() if find_spec(module) is None]:
            job.figures[network]["onnxruntime"].append({"error": f"needs pip install {' '.join(missing)}"})
        else:
            _add(job, network, "onnxruntime", runtime_timings(job, network, batches, side))
    for network in networks:
        _add(job, network, "torch", torch_timings(job, network, kinds[1:], batches, side, compiled=True))


def _kinds(job: Job) -> tuple[str, ...]:
    """Ampere, of compute capability 8, is the first generation with TF32; before it, that would be float32 again."""
    if not job.cuda:
        return ("fp32",)
    import torch

    return KINDS if torch.cuda.get_device_capability()[0] >= 8 else tuple(kind for kind in KINDS if kind != "tf32")


def _add(job: Job, network: str, kind: str, timings: Iterator[dict[str, Any]]) -> None:
    """Keeps each as it comes, and why there are no more."""
    rows = job.figures[network][kind]
    try:
        for timed in timings:
            rows.append(timed)
            job.keep()
    except (DeploykitError, RuntimeError) as problem:
        rows.append({"error": said(problem)})
        job.keep()


def _has(job: Job, network: str, kind: str, wanted: Mapping[str, Any]) -> bool:
    """Whether there is a row with those settings."""
    return any(wanted.items() <= timed.items() for timed in job.figures[network][kind] if "error" not in timed)


def _fresh(network: str) -> Any:
    import torch

    from deploykit.models import build

    torch.manual_seed(0)
    return build(network).eval()


def torch_timings(
    job: Job, network: str, kinds: tuple[str, ...], batches: tuple[int, ...], side: int, *, compiled: bool
) -> Iterator[dict[str, Any]]:
    """What is missing of eager or compiled calls; compiled for each batch anew, with CUDA graphs on a GPU."""
    backend = "inductor" if job.cuda else "aot_eager"
    way = f"torch.compile ({backend})" if compiled else "eager"
    settings: list[dict[str, Any]]
    settings = [{"way": way, "computed_in": kind, "batch": batch} for kind in kinds for batch in batches]
    waiting = [setting for setting in settings if not _has(job, network, "torch", setting)]
    module = _fresh(network) if waiting else None
    for setting in waiting:
        job.check()
        try:
            release(job)
            timed = _called(job, module, setting["computed_in"], setting["batch"], side, backend if compiled else None)
        except RuntimeError as problem:  # of CUDA, cuDNN or the compiler; the next setting may work
            yield setting | {"error": said(problem)}
        else:
            yield setting | {"device": job.name, **timed}


def _called(job: Job, module: Any, kind: str, batch: int, side: int, backend: str | None) -> dict[str, Any]:
    """The latency of one module in one precision at one batch size."""
    import torch

    dtype = torch.float16 if kind == "fp16" else torch.float32
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind != "fp32"
    call = module.to(job.device, dtype).to(memory_format=torch.channels_last)
    inputs = torch.randn(batch, 3, side, side, device=job.device, dtype=dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    torch.compiler.reset()
    if backend is not None:
        mode = "reduce-overhead" if job.cuda else None
        call = torch.compile(call, backend=backend, mode=mode, dynamic=False)
    with torch.inference_mode():
        return latency(job, lambda: call(inputs))


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
    """What is missing of ONNX Runtime's calls, by deploykit's bench.

    Each setting is measured by itself, as memory may be that of the whole board (``device_counted``).
    """
    waiting = [setting for setting in _settings(job, batches) if not _has(job, network, "onnxruntime", setting)]
    if not waiting:
        return
    files = _files(job, network, side)
    release(job)  # so that what PyTorch held is neither in the way nor counted
    gone: set[str] = set()  # providers that cannot start
    for setting in waiting:
        job.check()
        if setting["way"] in gone:
            continue
        try:
            if isinstance(file := files[setting["file"]], Exception):
                raise file
            yield from _benched(job, file, setting)
        except (DeploykitError, RuntimeError) as problem:
            yield setting | {"error": said(problem)}
            gone |= {setting["way"]} if isinstance(problem, ProviderError) else set()


def _settings(job: Job, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """The CUDA provider in fp16, TF32 and fp32, with a CUDA graph and without; TensorRT where it is; else the CPU."""
    from deploykit.runtime import provider_names

    if job.cuda:
        kinds: list[tuple[str, str, bool | None]] = [("cuda", "fp16", True), ("cuda", "fp32", True)]
        kinds += [("cuda", "fp32", False)]
        listed = [(name, "fp32", None) for name in ("tensorrt", "nvtensorrtrtx") if name in provider_names()]
        ways = [(*kind, graph) for graph in (True, False) for kind in kinds] + [(*kind, False) for kind in listed]
    else:
        ways = [("cpu", "fp32", None, False)]
    return [
        {"way": f"onnxruntime {name}", "file": file, "use_tf32": tf32, "cuda_graph_asked": graph, "batch": batch}
        for name, file, tf32, graph in ways
        for batch in batches
    ]


def _files(job: Job, network: str, side: int) -> dict[str, Path | Exception]:
    """The network in float32 and float16, or why the latter could not be made."""
    import numpy as np

    from deploykit.export import export_onnx
    from deploykit.quantize import quantize_onnx

    folder = Path(job.work)
    example = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    plain = export_onnx(_fresh(network), folder / f"{network}.onnx", example=example, overwrite=True).path
    files: dict[str, Path | Exception] = {"fp32": plain, "fp16": folder / f"{network}.fp16.onnx"}
    if not job.cuda:
        return files
    try:
        quantize_onnx(plain, folder / f"{network}.fp16.onnx", calibration=[example], recipe="fp16", overwrite=True)
    except DeploykitError as problem:
        files["fp16"] = problem
    return files


def _benched(job: Job, file: Path, setting: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One file in one setting; also what bench notes as a failure."""
    from deploykit.bench import BenchOptions, bench_onnx

    tf32 = setting["use_tf32"]
    options = BenchOptions(
        provider=setting["way"].split()[1],
        batch=setting["batch"],
        samples=5 if job.small else 50,
        min_time_s=0.0 if job.small else 0.5,
        max_time_s=3.0,
        timeout_s=60.0,
        cuda_graph=setting["cuda_graph_asked"],
        provider_options={} if tf32 is None else {"use_tf32": str(int(tf32))},
        keep_going=True,
    )
    found = bench_onnx(file, options, progress=job.watch)
    yield from ({**setting, **_runtime_row(timing)} for timing in found.results)
    yield from ({**setting, "error": failure.error} for failure in found.failures)


def _runtime_row(timing: Any) -> dict[str, Any]:
    """``computed_in`` is null where it is not known: a file in fp32 may then have been computed in TF32."""
    return {
        "file_precision": timing.precision,
        "computed_in": timing.computed_in,
        "cuda_graph": timing.cuda_graph,
        "io_binding": timing.io_binding,
        "median_ms": timing.latency_ms.median,
        "p90_ms": timing.latency_ms.p90,
        "samples": timing.latency_ms.samples,
        "load_ms": timing.load_ms,
        "peak_bytes": timing.memory.peak_bytes,
        "device_bytes": timing.memory.device_bytes,
        "device_counted": timing.memory.device_counted,
        "nodes_by_provider": dict(timing.nodes_by_provider),
        "stable": timing.stable,
        "warnings": list(timing.warnings),
    }


# The table of all networks.


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
    taken = _training(record, time.perf_counter() - began) | {"trainings_at_once": job.trainings_at_once}
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
        times = f", {ours['times_plain']:.2f}× plain ({plain['images_per_s']:g})" if "times_plain" in ours else ""
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
            computed = timed["computed_in"] or f"{timed['file_precision']} file, computed in an unknown precision"
            way = f"{timed['way']} {computed}{graph}"
            yield f"{network}, batch {timed['batch']}, {way}: {timed['median_ms']:.3f} ms"


def _flowers_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        for file in row.get("files", []):
            took = ""
            if cpu := file.get("cpu"):
                threads = "1 thread" if cpu["threads"] == 1 else f"{cpu['threads']} threads"
                took = f", {cpu['median_ms']:.2f} ms on the CPU, {threads}"
            yield f"{network} {file['recipe']}: {100 * file['top1']:.1f} %, {file['file_bytes'] / 1e6:.2f} MB{took}"
