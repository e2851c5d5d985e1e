"""The pictures that the parts of ``gpu.py`` learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_job import Job

from deploykit.errors import DataError


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
