"""The parts of ``gpu.py``, each run in a process of its own. They use deploykit's own stages, never copies of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_document import ending, holds_figure
from gpu_flowers import flower, flowers
from gpu_inference import inference
from gpu_job import Job, OutOfTimeError
from gpu_pictures import Missing
from gpu_plan import PARTS
from gpu_throughput import throughput
from gpu_trainings import cifar, lenet

from deploykit.errors import DeploykitError


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
