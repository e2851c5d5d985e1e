"""The state of a training after an epoch, from which it goes on to the same bits: written, read, checked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.checkpoint import Checkpoint, check_tensors, write_checkpoint
from deploykit.errors import CheckpointError
from deploykit.training_run import HISTORY_KEYS, Run

if TYPE_CHECKING:
    import torch

__all__ = ["check_same", "restore", "save_state"]

_MOMENTS = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
_SCHEMA = "training_schema"
_UNSAID = {
    "precision": "fp32",
    "compile": "off",
    "accumulate": 1,
    "sync_batchnorm": False,
}  # how states were trained that do not say it


def check_same(found: Checkpoint, header: Checkpoint, path: Path) -> None:
    """Refuses to go on with a training that was started otherwise, naming what differs.

    The version of deploykit may differ: ``training_schema`` in the header's training says whether the bits do.

    Raises: CheckpointError.
    """

    def flat(item: Checkpoint) -> dict[str, Any]:
        head = item.header()
        training, _, _ = dict(head.pop("training")), head.pop("state"), head.pop("deploykit")
        options = _UNSAID | dict(training.pop("options", {}))
        training.pop("test_top1", None)
        return head | training | {f"option {key}": value for key, value in options.items()}

    before, now = flat(found), flat(header)
    # The schema first: where it is another, everything else may be called otherwise too.
    for key in sorted(set(before) | set(now), key=lambda key: (key != _SCHEMA, key)):
        if before.get(key) != now.get(key):
            advice = "another deploykit wrote it: give" if key == _SCHEMA else "give the same options,"
            raise CheckpointError(
                f"cannot resume {path}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; {advice} another"
                " folder, or --overwrite"
            )


def save_state(run: Run, header: Checkpoint, path: Path) -> None:
    """Writes what ``restore`` needs. Raises: OutputError."""
    tensors = {f"model.{name}": tensor for name, tensor in run.module.state_dict().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in run.average.state_dict().items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items() if value is not None}
    halved = {"part": run.part} if run.halved else {}
    state = {"history": run.history, "warnings": run.warnings, "world": run.team.ranks.world, **halved}
    write_checkpoint(replace(header, tensors=tensors, state=state), path)


def restore(run: Run, state: Checkpoint, path: Path) -> None:
    """Puts weights, moments and history of a saved state, which lies at ``path``, into ``run``.

    Raises: CheckpointError when tensors or history do not fit the network and the options.
    """
    history, (part, warnings) = _history(state, run.options.epochs, path), _course(state, run, path)
    modules = {"model": run.module} | ({"average": run.average} if run.average is not None else {})
    weights = {kind: _part(state, kind) for kind in modules}
    for kind, module in modules.items():
        check_tensors(module.state_dict(), weights[kind], str(path), state.network)
    moments = _moments(run, state, path)
    for kind, module in modules.items():
        module.load_state_dict(weights[kind])
    run.optimizer.load_state_dict({"state": moments, "param_groups": run.optimizer.state_dict()["param_groups"]})
    run.history.extend(history)
    run.part, run.halved = part, "part" in state.state and not run.synchronised
    run.warnings.extend(warnings)
    before = state.state.get("world", 1)
    if before != run.team.ranks.world:
        run.peak = None  # speeds of different devices have no share of one peak
        run.warnings.append(f"{len(run.history)} epochs were trained by {before} processes, and later ones by others")


def _part(state: Checkpoint, kind: str) -> dict[str, torch.Tensor]:
    start = f"{kind}."
    return {name.removeprefix(start): tensor for name, tensor in state.tensors.items() if name.startswith(start)}


def _history(state: Checkpoint, epochs: int, path: Path) -> list[dict[str, Any]]:
    rows = state.state.get("history")
    if not (isinstance(rows, list) and 1 <= len(rows) <= epochs and all(map(_is_row, rows, range(1, epochs + 1)))):
        raise CheckpointError(
            f"{path}: the state's history is damaged; expected 1 to {epochs} epochs in order, each with"
            f" {', '.join(HISTORY_KEYS)}"
        )
    return [{name: row[name] for name in HISTORY_KEYS} for row in rows]  # a JSON header does not keep their order


def _course(state: Checkpoint, run: Run, path: Path) -> tuple[int, list[str]]:
    """In what parts steps were computed at last, and what was noted; earlier versions keep neither.

    Only after memory had run out are they kept; they may have been larger where fewer processes shared a step. Where
    BatchNorm is synchronised, every process has to compute as many parts.
    """
    found, warnings, most = state.state.get("part", run.part), state.state.get("warnings", []), run.options.batch_size
    noted = isinstance(warnings, list) and all(isinstance(text, str) for text in warnings)
    if not (noted and isinstance(found, int) and 1 <= found <= most):
        raise CheckpointError(f"{path}: the state is damaged: part {found!r} of {most}, warnings {warnings!r}")
    return run.part if run.synchronised else min(found, run.part), warnings


def _is_row(row: Any, epoch: int) -> bool:
    whole = isinstance(row, dict) and set(row) == set(HISTORY_KEYS)
    return whole and all(map(_is_number, row.values())) and row["epoch"] == epoch


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _moments(run: Run, state: Checkpoint, path: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The optimizer's tensors by parameter; each a number, or shaped as its parameter."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    keys = _MOMENTS[run.options.optimizer]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _part(state, "optimizer").items():
        index, _, key = name.partition(".")
        known = index.isdecimal() and int(index) < len(parameters) and key in keys
        if not known or tuple(tensor.shape) != (() if key == "step" else tuple(parameters[int(index)].shape)):
            raise CheckpointError(
                f"{path}: the optimizer's tensor optimizer.{name} {tuple(tensor.shape)} does not fit the network"
                f" {state.network}; the state is damaged"
            )
        moments.setdefault(int(index), {})[key] = tensor
    lacking = [index for index in range(len(parameters)) if set(moments.get(index, keys)) != keys]
    if lacking or not moments:
        raise CheckpointError(f"{path}: the optimizer's tensors of parameters {lacking or 'all'} are missing")
    return moments
