"""What can be exported or inspected: a run's folder, a checkpoint, a network's name, or a user's own callable."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import data
from deploykit.artifact import ModelCard, Preprocess
from deploykit.checkpoint import Checkpoint, load_module, read_checkpoint
from deploykit.errors import InputError, UnknownNameError
from deploykit.extras import require
from deploykit.files import sha256_file
from deploykit.models import build, names, spec
from deploykit.preprocess import apply, for_network, preset

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "checkpoint_path", "example_inputs", "open_source"]

_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Source:
    """A module in evaluation mode, with what is known of it.

    Attributes:
        kind: ``"checkpoint"``, ``"network"`` or ``"callable"``.
        name: What to call it: the network's name, or the callable's.
        input_shape: ``(C, H, W)``, None where a callable does not say.
        path: The checkpoint's file, None for the others.
    """

    kind: str
    name: str
    module: torch.nn.Module
    card: ModelCard
    input_shape: tuple[int, int, int] | None
    path: Path | None = None

    def described(
        self, *, input_shape: tuple[int, int, int] | None = None, preprocess: Preprocess | str | None = None
    ) -> Source:
        """A copy with what the user says of a callable.

        Raises: InputError when it contradicts what a checkpoint or network knows of itself.
        """
        if self.kind == "checkpoint" and (input_shape or preprocess):
            raise InputError(f"{self.path} knows its shape and preprocessing; leave out --shape and --preprocess")
        if self.kind == "network" and input_shape not in (None, self.input_shape):
            raise InputError(f"{self.name} takes {self.input_shape}, received --shape {input_shape}")
        shape = input_shape or self.input_shape
        if preprocess is None:
            return replace(self, input_shape=shape)
        if isinstance(preprocess, str):
            if shape is None:
                raise InputError(f"preprocess {preprocess!r} needs the input shape; give --shape, such as 3x224x224")
            preprocess = preset(preprocess, size=shape[1:], depth=shape[0], layout="NCHW", dtype="float32")
        shape = shape or (preprocess.depth, *preprocess.size)
        return replace(self, input_shape=shape, card=replace(self.card, preprocess=preprocess))


def open_source(
    source: str | os.PathLike[str],
    *,
    options: Mapping[str, str] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> Source:
    """Opens what the user named.

    Args:
        source: A folder that ``train`` wrote, a ``.safetensors`` checkpoint, a reference network's name (fresh
            weights), or ``package.module:callable`` returning an ``nn.Module``, found on the path or in the current
            folder.
        options: Options of a reference network.
        num_classes: Classes of a reference network, by default those of its paper.
        in_channels: 1 or 3 channels of a reference network.

    Raises:
        UnknownNameError: No such network; offers the near match.
        CheckpointError: The checkpoint is missing, damaged or of another network.
        InputError: The callable cannot be imported or does not return a module.
    """
    text = os.fspath(source)
    if not text or text.lower().endswith(".onnx"):
        raise InputError(f"{text!r} cannot be exported; expected a folder, a checkpoint, a network or module:callable")
    path = checkpoint_path(text)
    if path is not None:
        return _from_checkpoint(path)
    if text in names():
        return _from_name(text, options or {}, num_classes, in_channels)
    if ":" in text and os.sep not in text:
        return _from_callable(text)
    if os.sep in text or Path(text).suffix:
        raise InputError(f"no such folder or checkpoint: {text[:200]}")
    raise UnknownNameError("network", text[:200], names())


def checkpoint_path(source: str | os.PathLike[str]) -> Path | None:
    """The checkpoint that a folder or path names; None when it is a network's name or a callable."""
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    try:
        folder = path.is_dir()
    except OSError as problem:  # such as a name that is too long
        raise InputError(f"cannot read {os.fspath(source)[:100]}…: {problem.strerror}") from problem
    if folder and os.fspath(source) not in names():
        if not (path / _CHECKPOINT).exists():
            raise InputError(f"{path} holds no {_CHECKPOINT}; give a folder that `deploykit train` has finished")
        return path / _CHECKPOINT
    return None


def _from_checkpoint(path: Path) -> Source:
    checkpoint = read_checkpoint(path)
    module = load_module(checkpoint, source=str(path))
    shape = (checkpoint.in_channels, *checkpoint.preprocess.size)
    return Source("checkpoint", checkpoint.network, module, _card(checkpoint, path), shape, path)


def _card(checkpoint: Checkpoint, path: Path) -> ModelCard:
    return ModelCard(
        network=checkpoint.network,
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        dataset=checkpoint.dataset,
        parent_sha256=sha256_file(path),
        training=dict(checkpoint.training) | {"network_options": dict(checkpoint.options)},
    )


def _from_name(name: str, options: Mapping[str, str], classes: int | None, channels: int | None) -> Source:
    torch = require("torch", extra="torch", purpose="building a network")
    entry = spec(name)
    shape = (channels or entry.input[0], entry.input[1], entry.input[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same fresh weights each time
        module = build(name, num_classes=classes, in_channels=channels, **options)
        _use_normalisation(module, shape)
    half = (0.5,) * shape[0]
    preprocess = for_network(shape, entry.content_size, mean=half, std=half)
    return Source("network", name, module.eval(), ModelCard(network=name, preprocess=preprocess), shape)


def _use_normalisation(module: torch.nn.Module, shape: tuple[int, int, int]) -> None:
    """Gives BatchNorm the statistics of some noise: fresh ones are the identity, and would hide a wrong fold."""
    import torch

    if not any(isinstance(child, torch.nn.modules.batchnorm._BatchNorm) for child in module.modules()):
        return
    with torch.no_grad():
        module.train()(torch.randn(8, *shape))


def _from_callable(text: str) -> Source:
    torch = require("torch", extra="torch", purpose="exporting a module")
    module_name, _, attribute = text.partition(":")
    made = _made(text, _import(module_name, attribute))
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"{text} returned {type(made).__name__}; expected a torch.nn.Module")
    return Source("callable", attribute, made.eval(), ModelCard(task=None), None)


def _made(text: str, target: Any) -> Any:
    import torch

    if isinstance(target, torch.nn.Module) or not callable(target):
        return target
    try:
        with redirect_stdout(sys.stderr):  # what it prints is not our answer
            return target()
    except (
        Exception,
        SystemExit,
    ) as problem:  # the user's own code may raise anything; it must not look like a bug of ours
        raise InputError(f"{text} raised {type(problem).__name__}: {problem}; expected a torch.nn.Module") from problem


def _import(module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: a user's file beside the shell
    try:
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except ImportError as problem:
        raise InputError(f"cannot import {module_name!r}: {problem}; expected package.module:callable") from problem
    except (Exception, SystemExit) as problem:  # the user's own code, as above
        raise InputError(f"importing {module_name!r} raised {type(problem).__name__}: {problem}") from problem
    if not hasattr(module, attribute):
        raise InputError(f"module {module_name!r} has no {attribute!r}; expected package.module:callable")
    return getattr(module, attribute)


def example_inputs(
    source: Source,
    dataset: data.Dataset | str | os.PathLike[str] | None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[NDArray[Any], str]:
    """Sixteen real inputs (16, C, H, W) for the parity check, and where they come from.

    Args:
        source: What is exported; ``input_shape`` must be known.
        dataset: A dataset, its name or path; None takes the one that the network was trained on where it is found, and
            generated shapes otherwise.
        data_dir: Where named datasets lie.

    Raises:
        InputError: The input shape is unknown or has neither one nor three channels.
        DataError: ``dataset`` was given and cannot be read.
    """
    if source.input_shape is None:
        raise InputError(
            f"the input shape of {source.name} is unknown; give it with --shape, such as --shape 3x224x224"
        )
    if source.input_shape[0] not in (1, 3):
        raise InputError(f"{source.input_shape[0]} input channels; pictures have 1 or 3")
    half = (0.5,) * source.input_shape[0]
    preprocess = source.card.preprocess or for_network(source.input_shape, None, mean=half, std=half)
    pictures = _pictures(dataset, source.card.dataset, data_dir).take(16)
    inputs = np.concatenate([apply(preprocess, batch) for batch, _ in pictures.batches(16)])
    return inputs, f"{pictures.name}/{pictures.split}"


def _pictures(given: Any, trained_on: str | None, data_dir: Any) -> data.Dataset:
    if isinstance(given, data.Dataset):
        return given
    if given is not None:
        return data.load(given, "test", data_dir=data_dir)
    if trained_on and trained_on.startswith("shapes"):
        return data.load(trained_on, "test")
    # Not on this machine: parity needs real pictures, not exactly these ones, and the record names which.
    there = any(entry["name"] == trained_on and entry["found"] for entry in data.describe(data_dir))
    return data.load(str(trained_on) if there else "shapes", "test", data_dir=data_dir)
