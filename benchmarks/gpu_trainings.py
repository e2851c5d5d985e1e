"""Trainings to the end: LeNet-5 on MNIST, ResNet-18 on CIFAR-10; and ``train``, by which all parts do it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from gpu_job import Job
from gpu_pictures import part_of, pictures


def lenet(job: Job) -> None:
    """LeNet-5 on MNIST by its recipe."""
    splits = tuple(part_of(job, split, 96) for split in pictures(job, "mnist"))
    began = time.perf_counter()
    record = train(job, "lenet5", splits, "lenet", size=None, **({"epochs": 2} if job.small else {}))
    job.keep(**training_row(record, time.perf_counter() - began), reached=_reached(record, 0.994))


def _reached(record: Any, top1: float) -> dict[str, Any]:
    """When the test split was first answered as well as that; null where it never was."""
    seconds = 0.0
    for row in record.history:
        seconds += row["seconds"]
        if row["test_top1"] >= top1:
            return {"top1": top1, "epoch": row["epoch"], "seconds": round(seconds, 2)}
    return {"top1": top1, "epoch": None, "seconds": None}


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
    job.keep(**training_row(record, time.perf_counter() - began))


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


def training_row(record: Any, seconds: float) -> dict[str, Any]:
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
