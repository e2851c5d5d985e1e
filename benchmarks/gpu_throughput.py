"""Throughput of training: pictures a second of deploykit's own loop, and of a plain one beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_device import release, synchronize
from gpu_job import Job, said
from gpu_pictures import Missing, part_of, pictures, synthetic
from gpu_trainings import train

from deploykit.errors import DeploykitError


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

PLAIN_S, PLAIN_WARM = 4.0, 5


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
