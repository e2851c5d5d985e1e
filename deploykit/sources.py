"""What can be exported or inspected: a run's folder, a checkpoint, a network's name, or a user's own callable.

A network's name alone gives fresh weights; with a file of weights it is what torchvision's users call pretrained.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import data
from deploykit.artifact import ModelCard
from deploykit.callables import module_of
from deploykit.checkpoint import Checkpoint, load_module, read_checkpoint
from deploykit.errors import CheckpointError, InputError, UnknownNameError
from deploykit.exportable import Source
from deploykit.extras import require
from deploykit.files import sha256_file
from deploykit.models import NetworkSpec, build, names, spec
from deploykit.preprocess import apply, for_network
from deploykit.pretrained import Fit, Weights, fit_of, load_weights, read_weights, statistics

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "checkpoint_path", "example_inputs", "example_pictures", "open_source"]

_CHECKPOINT = "checkpoint.safetensors"
_SMALL_PICTURE = 32  # pixels of the sides that the networks' variants for small pictures are made for
_OWN_STATISTICS = (
    "pictures are fed as values from -1 to 1, as torchvision's published weights of this network expect; for weights"
    " that were trained with ImageNet's statistics (transform_input=False) add --preprocess imagenet"
)
_FRESH_HEAD = "the new head is fresh: its answers are chance until it is trained (`deploykit train --weights`)"
_FEW_PIXELS = 64  # of the sides of what BatchNorm is shown


def open_source(
    source: str | os.PathLike[str],
    *,
    options: Mapping[str, str] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens what the user named.

    Args:
        source: A folder that ``train`` wrote, a ``.safetensors`` checkpoint, a reference network's name (fresh
            weights), or ``package.module:callable`` returning an ``nn.Module``, found on the path or in the current
            folder.
        options: Options of a reference network.
        num_classes: Classes of a reference network, by default those of its paper.
        in_channels: 1 or 3 channels of a reference network.
        weights: A file of weights for a reference network, in place of fresh ones: torchvision's ``.pth`` or
            ``.safetensors``, or a checkpoint. Classes and channels are the file's then; other classes replace the head
            of a state dict, and a note says so.

    Raises:
        UnknownNameError: No such network; offers the near match.
        CheckpointError: The checkpoint or the file of weights is missing, damaged or of another network.
        InputError: The callable cannot be imported or does not return a module.
    """
    text = os.fspath(source)
    if not text or text.lower().endswith(".onnx"):
        raise InputError(f"{text!r} cannot be exported; expected a folder, a checkpoint, a network or module:callable")
    path = checkpoint_path(text)
    if weights is not None and text not in names():
        raise InputError(
            f"{text[:200]} with --weights; allowed: the name of a network, which has no weights of its own"
        )
    if path is not None:
        return _from_checkpoint(path)
    if text in names() and weights is not None:
        return _from_weights(text, read_weights(weights), Fit(num_classes, in_channels, options))
    if text in names():
        return _from_name(text, options or {}, num_classes, in_channels)
    if ":" in text and os.sep not in text:
        return _from_callable(text)
    if Path(text).is_file():
        raise InputError(
            f"{text} is neither a run's folder nor a .safetensors checkpoint; another program's weights go with the"
            " name of their network: NETWORK --weights FILE"
        )
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
    require("torch", extra="torch", purpose="building a network")
    entry = spec(name)
    shape = _input_shape(entry, channels, options)
    with _same_start():
        module = build(name, num_classes=classes, in_channels=channels, **options)
        _use_normalisation(module, shape, entry.any_size)
    half = (0.5,) * shape[0]
    preprocess = for_network(shape, entry.content_size, mean=half, std=half)
    return Source("network", name, module.eval(), ModelCard(network=name, preprocess=preprocess), shape)


@contextmanager
def _same_start() -> Iterator[None]:
    """The same fresh weights each time, and the caller's random numbers untouched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _input_shape(entry: NetworkSpec, channels: int | None, options: Mapping[str, str]) -> tuple[int, int, int]:
    depth, height, width = entry.input
    if options.get("pictures") == "small":
        height = width = _SMALL_PICTURE
    return channels or depth, height, width


def _use_normalisation(module: torch.nn.Module, shape: tuple[int, int, int], any_size: bool) -> None:
    """Moves BatchNorm half of the way to the statistics of a few pictures: fresh, it is the identity, and a wrong fold
    would not show.

    The pictures are smooth as photos are: at those of white noise, which averages itself away from layer to layer, the
    deep layers would learn to enlarge what they see a thousandfold.
    """
    import torch

    norms = [child for child in module.modules() if isinstance(child, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.5
    with torch.no_grad():
        module.train()(_smooth_pictures(module, shape, any_size))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _smooth_pictures(module: torch.nn.Module, shape: tuple[int, int, int], any_size: bool) -> torch.Tensor:
    """8×C×H×W, small where the network allows it: large spots of random colours, and some noise."""
    import torch

    few = max(_FEW_PIXELS, int(getattr(module, "smallest", 1)))
    size = [min(few, side) for side in shape[1:]] if any_size else list(shape[1:])
    spots = torch.nn.functional.interpolate(torch.randn(8, shape[0], 4, 4), size=size, mode="bilinear")
    return spots + 0.3 * torch.randn_like(spots)


def _from_weights(name: str, weights: Weights, asked: Fit) -> Source:
    """The network with the file's weights; only a state dict's head and colours give way to what is asked."""
    fit = fit_of(weights, name)
    if weights.checkpoint is not None:
        _check_asked(weights.path, "classes", asked.num_classes, fit.num_classes)
        _check_asked(weights.path, "channels", asked.in_channels, fit.in_channels)
        _check_options(name, asked.options or {}, fit.options or {}, weights.path)
        return _from_checkpoint(weights.path)
    if (asked.in_channels, fit.in_channels) != (1, 3):  # colours can be summed
        _check_asked(weights.path, "channels", asked.in_channels, fit.in_channels)
    classes, channels = asked.num_classes or fit.num_classes, asked.in_channels or fit.in_channels
    source = _from_state_dict(name, weights, channels, classes, asked.options or {})
    return source if classes == fit.num_classes else replace(source, notes=(*source.notes, _FRESH_HEAD))


def _check_asked(path: Path, what: str, asked: int | None, found: int | None) -> None:
    if None not in (asked, found) and asked != found:
        raise CheckpointError(
            f"{path} is for {found} {what}, received --{what} {asked}; that layer would be fresh and the answers"
            f" chance: leave --{what} out, or train from these weights first"
        )


def _from_state_dict(
    name: str, weights: Weights, channels: int | None, classes: int | None, options: Mapping[str, str]
) -> Source:
    entry = spec(name)
    with _same_start():
        module = build(name, num_classes=classes, in_channels=channels, **options)
    loaded = load_weights(module, name, weights)
    shape = _input_shape(entry, channels, options)
    mean, std = statistics(name, shape[0])
    card = ModelCard(
        network=name,
        preprocess=for_network(shape, entry.content_size, mean, std, margin=True),
        parent_sha256=loaded.sha256,
        training={"weights": weights.path.name, "network_options": dict(options)},
    )
    fed = () if statistics(name) == statistics("resnet18") else (_OWN_STATISTICS,)
    return Source("network", name, module.eval(), card, shape, notes=(*loaded.notes, *fed))


def _check_options(name: str, asked: Mapping[str, str], known: Mapping[str, str], path: Path) -> None:
    """Raises CheckpointError when an option that the user gave is not the checkpoint's."""
    defaults = {key: values[0] for key, values in spec(name).options.items()}
    has = defaults | dict(known)
    for key, value in asked.items():
        if has.get(key) != value:
            raise CheckpointError(f"{path} was trained with {key}={has.get(key)}, received --option {key}={value}")


def _from_callable(text: str) -> Source:
    module = module_of(text)
    return Source("callable", text.partition(":")[2], module.eval(), ModelCard(task=None), None)


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
    pictures = example_pictures(source, dataset, data_dir=data_dir)
    inputs = np.concatenate([apply(preprocess, batch) for batch, _ in pictures.batches(16)])
    return inputs, f"{pictures.name}/{pictures.split}"


def example_pictures(
    source: Source,
    dataset: data.Dataset | str | os.PathLike[str] | None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> data.Dataset:
    """The sixteen pictures that ``example_inputs`` are made of. Raises: DataError."""
    return _pictures(dataset, source.card.dataset, data_dir).take(16)


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
