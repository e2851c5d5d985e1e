"""What a finished training leaves: checkpoint, history, curves and record."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, charts, environment
from deploykit.checkpoint import Checkpoint, write_checkpoint
from deploykit.errors import MissingDependencyError
from deploykit.files import sha256_file, write_json, write_text
from deploykit.models import spec
from deploykit.results import Training
from deploykit.training_run import Run

if TYPE_CHECKING:
    import torch

__all__ = ["CHECKPOINT", "CURVES", "HISTORY", "RECORD", "RESULTS", "write_results"]

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.csv"
CURVES = "curves.svg"
RECORD = "train.json"
RESULTS = (RECORD, CHECKPOINT, HISTORY, CURVES)
"""The record first, since it says that the others are complete."""


def write_results(run: Run, header: Checkpoint, folder: Path, notes: tuple[str, ...]) -> Training:
    """Writes the results; the record comes last and says that all others are complete.

    Args:
        run: Finished.
        header: The checkpoint without tensors.
        folder: Is there already.
        notes: Of what was chosen without being asked for.

    Raises: OutputError.
    """
    last = run.history[-1]
    seconds, train_seconds = (sum(row[name] for row in run.history) for name in ("seconds", "train_seconds"))
    images_per_s = header.training["samples"] * run.options.epochs / train_seconds
    training = dict(header.training) | {"test_top1": last["test_top1"]}
    tensors = dict(run.result.state_dict())
    write_checkpoint(replace(header, tensors=tensors, training=training), folder / CHECKPOINT)
    write_text(folder / HISTORY, _history_csv(run.history))
    warnings = notes + tuple(run.warnings) + _write_curves(run.history, header, folder / CURVES)
    record = Training(
        deploykit=__version__,
        environment=environment.describe(),
        network=header.network,
        dataset=str(header.dataset),
        dataset_digest=header.training["dataset_digest"],
        epochs=run.options.epochs,
        seconds=round(seconds, 3),
        images_per_s=round(images_per_s, 1),
        device=header.training["device"],
        precision=run.options.precision,
        test_top1=last["test_top1"],
        parameters=_count_parameters(run.module, header.network),
        checkpoint=CHECKPOINT,
        checkpoint_sha256=sha256_file(folder / CHECKPOINT),
        seed=run.options.seed,
        threads=header.training["threads"],
        options=run.options.to_json() | {"network_options": dict(header.options), "size": run.size[0]},
        history=tuple(run.history),
        warnings=warnings,
        mfu=run.mfu(images_per_s),
    )
    write_json(folder / RECORD, record.to_document())
    return record


def _count_parameters(module: torch.nn.Module, network: str) -> int:
    """Those that a deployed network holds: heads that only train do not count."""
    only_train = tuple(f"{head.partition('.')[0]}." for head in spec(network).head[1:])
    return sum(tensor.numel() for name, tensor in module.named_parameters() if not name.startswith(only_train))


def _history_csv(history: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _write_curves(history: Sequence[Mapping[str, Any]], header: Checkpoint, path: Path) -> tuple[str, ...]:
    try:
        charts.save_chart(charts.training_curves(history, f"{header.network} on {header.dataset}"), path)
    except MissingDependencyError as problem:
        path.unlink(missing_ok=True)  # of an earlier training
        return (f"{path.name} was not drawn: {problem}",)
    return ()
