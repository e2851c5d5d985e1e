"""Checkpoints: safetensors files whose header holds what is needed to rebuild and feed the network.

Nothing is ever unpickled: safetensors holds raw tensors and one JSON header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__
from deploykit.artifact import Preprocess
from deploykit.errors import CheckpointError, InputError
from deploykit.extras import require
from deploykit.files import write_bytes
from deploykit.models import build

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "check_finite", "check_tensors", "load_module", "read_checkpoint", "write_checkpoint"]

_SCHEMA = "deploykit.checkpoint/1"
_PART = 1 << 20  # values looked at at once
_HEADER_KEY = "deploykit"  # one key only: safetensors does not keep the order of several


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights with everything needed to rebuild it, feed it and name its answers.

    Attributes:
        network: Name in the table of networks.
        options: Options of the network, such as ``{"activation": "tanh"}``.
        num_classes: Length of the logits.
        in_channels: 1 or 3.
        preprocess: How pictures become the network's input.
        labels: Class names in the order of the logits.
        dataset: Name of the dataset it was trained on, None for fresh weights.
        training: What the exported model tells of its training; JSON values without times, so that equal trainings
            give equal files.
        state: What ``--resume`` needs beyond the weights; empty in a finished checkpoint.
        tensors: Name to tensor.
    """

    network: str
    num_classes: int
    in_channels: int
    preprocess: Preprocess
    labels: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor]
    options: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The JSON header."""
        return {
            "schema": _SCHEMA,
            "deploykit": __version__,
            "network": self.network,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "dataset": self.dataset,
            "training": dict(self.training),
            "state": dict(self.state),
        }


def write_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Path:
    """Writes the checkpoint atomically, replacing an older one. Equal checkpoints give equal bytes.

    Raises: OutputError.
    """
    save = require("safetensors.torch", extra="torch", purpose="writing a checkpoint").save
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    header = json.dumps(checkpoint.header(), ensure_ascii=False, sort_keys=True)
    return write_bytes(path, save(tensors, metadata={_HEADER_KEY: header}))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint. Raises: CheckpointError when it is missing, cut short or not of deploykit."""
    source = Path(path)
    header, tensors = _read_tensors(source)
    if "schema" not in header:
        raise CheckpointError(
            f"{source} is no checkpoint of deploykit; another program's weights go with the name of their network:"
            " NETWORK --weights FILE"
        )
    if header["schema"] != _SCHEMA:
        raise CheckpointError(
            f"{source} has schema {header['schema']!r}; this deploykit reads {_SCHEMA!r}, which `deploykit train`"
            " writes"
        )
    try:
        return Checkpoint(
            network=str(header["network"]),
            options=dict(header["options"]),
            num_classes=int(header["num_classes"]),
            in_channels=int(header["in_channels"]),
            preprocess=Preprocess.from_json(header["preprocess"]),
            labels=tuple(header["labels"]),
            dataset=header["dataset"],
            training=dict(header["training"]),
            state=dict(header["state"]),
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError, InputError) as problem:
        raise CheckpointError(f"{source}: the header is damaged: {problem}") from problem


def _read_tensors(source: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder; expected a .safetensors file")
    if not source.exists():
        raise CheckpointError(f"no such checkpoint: {source}")
    require("safetensors.torch", extra="torch", purpose="reading a checkpoint")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as handle:
            metadata = handle.metadata() or {}
            # Cloned, since the handle maps the file: a later overwrite must not reach into these weights.
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 no iterator
        header = json.loads(metadata.get(_HEADER_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise CheckpointError(
            f"{source} is not a readable safetensors checkpoint ({reason}); the file is damaged, cut short or of"
            " another format"
        ) from problem
    if not isinstance(header, dict):
        raise CheckpointError(f"{source}: the header is a JSON {type(header).__name__}; expected an object")
    return header, tensors


def load_module(checkpoint: Checkpoint, *, source: str = "checkpoint") -> torch.nn.Module:
    """Builds the checkpoint's network with its weights, in evaluation mode.

    Raises:
        CheckpointError: Tensors are missing, unexpected or of another shape (named), or not finite.
    """
    module = build(
        checkpoint.network,
        num_classes=checkpoint.num_classes,
        in_channels=checkpoint.in_channels,
        **checkpoint.options,
    )
    check_tensors(module.state_dict(), checkpoint.tensors, source, checkpoint.network)
    module.load_state_dict(dict(checkpoint.tensors))
    check_finite(checkpoint.tensors, source)
    return module.eval()


def check_tensors(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], source: str, network: str
) -> None:
    """Raises CheckpointError naming the tensors that are missing, unexpected or of another shape."""
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if expected[name].shape != found[name].shape
    ]
    faults = [
        f"{what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        if names
    ]
    if faults:
        raise CheckpointError(f"{source} does not fit the network {network}: {'; '.join(faults)}")


def check_finite(
    tensors: Mapping[str, torch.Tensor], source: str, *, error: type[InputError] = CheckpointError
) -> None:
    """Raises ``error`` naming the first tensors that hold NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise error(
            f"{source}: the weights {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''} hold NaN or infinite values;"
            " all must be finite"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """By parts: ``isfinite`` takes more memory than what it looks at, and VGG-16 has 400 MB in one tensor."""
    flat = tensor.detach().reshape(-1)
    return all(bool(flat[start : start + _PART].isfinite().all()) for start in range(0, len(flat), _PART))
