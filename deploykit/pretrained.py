"""Weights that were trained elsewhere: torchvision's state dicts, and deploykit's own checkpoints, into a network.

The networks that torchvision has bear its names of layers, so that mapping is renaming at most. Everything is checked
before the first weight is replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import Preprocess
from deploykit.checkpoint import Checkpoint, check_finite, read_checkpoint
from deploykit.errors import CheckpointError
from deploykit.files import sha256_file
from deploykit.models import NetworkSpec, build, names, spec
from deploykit.state_dicts import holds_safetensors, read_pickled, read_safetensors

if TYPE_CHECKING:
    import torch

__all__ = ["Fit", "Loaded", "Weights", "fit_of", "load_weights", "read_weights", "statistics"]

_NEAREST = 8  # networks that are built to tell whose the weights are; another head changes the size a little
_NAMED = 5  # tensors that a message names before it only counts
_COUNTER = "num_batches_tracked"  # of BatchNorm, which files of before PyTorch 0.4.1 lack

# torchvision.transforms._presets.ImageClassification: the training pictures' statistics, scaled to 0 to 1.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# torchvision.models.googlenet sets transform_input for its weights, which turns those into (x - 0.5) / 0.5.
_SIGNED = frozenset({"googlenet"})

# torchvision.models.densenet._load_state_dict: names had a dot more before PyTorch 0.4.1, and its files still do.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
# torch.hub's convention: the beginning of the SHA-256 in the file's name.
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")


@dataclass(frozen=True)
class Weights:
    """A file of weights that was read; the tensors may map it, so copy them before it changes.

    Attributes:
        tensors: By torchvision's present names, or by deploykit's own where ``checkpoint`` says so.
        sha256: Of the file.
        notes: What reading had to change.
        checkpoint: What a deploykit checkpoint's header says; None for files of others.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    sha256: str
    notes: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Loaded:
    """What ``load_weights`` did.

    Attributes:
        sha256: Of the file.
        notes: What was changed or left fresh, a sentence each; empty when every weight fitted as it was.
        preprocess: How pictures were fed while these weights were trained, where the file says it.
    """

    sha256: str
    notes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Fit:
    """What a network must be built with so that a file fits it whole; None where the file does not say."""

    num_classes: int | None = None
    in_channels: int | None = None
    options: Mapping[str, str] | None = None


def statistics(network: str, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of pixels scaled to 0 to 1) that torchvision's weights of ``network`` expect.

    ImageNet's; 0.5 for googlenet-bn, whose weights torchvision feeds with values from -1 to 1. For grey pictures the
    means over the colours. Raises: UnknownNameError.
    """
    signed = spec(network).torchvision in _SIGNED
    mean, std = ((0.5,) * 3, (0.5,) * 3) if signed else (_IMAGENET_MEAN, _IMAGENET_STD)
    if channels == 3:
        return mean, std
    return (round(sum(mean) / 3, 6),) * channels, (round(sum(std) / 3, 6),) * channels


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Reads a ``.pth`` of PyTorch (running nothing in it), a ``.safetensors``, or a deploykit checkpoint.

    Raises:
        CheckpointError: Missing, damaged, asking for code to be run, or holding something else than weights.
    """
    source = Path(path)
    if not holds_safetensors(source):
        tensors, notes = read_pickled(source)
    else:
        tensors, metadata = read_safetensors(source)
        notes = ()
        if "deploykit" in metadata:
            checkpoint = read_checkpoint(source)
            return Weights(source, checkpoint.tensors, sha256_file(source), (), checkpoint)
    digest = sha256_file(source)
    named = _NAMED_DIGEST.search(source.name)
    if named and not digest.startswith(named[1]):
        notes += (f"its name promises a SHA-256 of {named[1]}…, it has {digest[:8]}…: damaged or saved again?",)
    return Weights(source, {_present_name(name): tensor for name, tensor in tensors.items()}, digest, notes)


def load_weights(module: torch.nn.Module, network: str, path: str | os.PathLike[str] | Weights) -> Loaded:
    """Puts a file's weights into ``module``, in its own precision; the module keeps its mode and device.

    Another number of classes leaves the head fresh; auxiliary heads that the file lacks stay fresh; for one input
    channel the first layer's kernels are summed over the colours. Each of these is a note.

    Args:
        module: What ``build(network, ...)`` made.
        network: Its name: one that torchvision has too, or the network of a deploykit checkpoint.
        path: The file, or what ``read_weights`` made of it.

    Raises:
        UnknownNameError: No such network.
        CheckpointError: The file cannot be read, is of another network (named where it is one of the table), lacks
            tensors or has others (named), or holds NaN or infinity. The module is as it was then.
    """
    weights = path if isinstance(path, Weights) else read_weights(path)
    entry = spec(network)
    _check_origin(weights, entry)
    target = module.state_dict()
    found, notes = _in_one_channel(target, weights.tensors)
    fresh, more = _fresh(target, found, entry)
    wanted = {name: tensor for name, tensor in target.items() if name not in fresh}
    found = {name: tensor for name, tensor in found.items() if name not in fresh}
    _check_fit(wanted, found, weights, entry)
    ready = {name: found[name].to(wanted[name].dtype) for name in wanted if name in found}
    converted = {_kind(found[name]) for name in ready if ready[name].is_floating_point()} - {"float32"}
    if converted:
        more += (f"{' and '.join(sorted(converted))} weights were converted to float32",)
    check_finite(ready, str(weights.path))
    for name, tensor in ready.items():
        wanted[name].copy_(tensor)  # a state dict's tensors are the module's own
    header = weights.checkpoint
    return Loaded(weights.sha256, (*weights.notes, *notes, *more), header.preprocess if header else None)


def fit_of(weights: Weights, network: str) -> Fit:
    """The classes, channels and options that ``network`` needs for these weights to fit whole.

    Raises: CheckpointError when they are of another network.
    """
    entry = spec(network)
    _check_origin(weights, entry)
    if header := weights.checkpoint:
        return Fit(header.num_classes, header.in_channels, dict(header.options))
    head = weights.tensors.get(f"{entry.head[0]}.weight")
    first = weights.tensors.get(_first_layer(_skeleton(network, {}).state_dict()))
    return Fit(
        num_classes=len(head) if head is not None and head.ndim else None,
        in_channels=first.shape[1] if first is not None and first.ndim == 4 else None,
    )


def _check_origin(weights: Weights, entry: NetworkSpec) -> None:
    """Raises CheckpointError when the file says that it is another network's, or only a checkpoint would do."""
    if header := weights.checkpoint:
        if header.network != entry.name:
            raise CheckpointError(
                f"{weights.path} holds the weights of {header.network}; allowed: those of {entry.name}"
            )
        return
    if entry.torchvision is None:
        guess = _guess(weights, entry)
        raise CheckpointError(
            f"{weights.path} is no checkpoint of deploykit, and torchvision has no {entry.name}{guess}; allowed for"
            f" {entry.name}: a checkpoint that `deploykit train {entry.name}` wrote"
        )


def _present_name(name: str) -> str:
    return "".join(match.groups()) if (match := _OLD_DENSENET.fullmatch(name)) else name


def _first_layer(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of the first convolution's kernels."""
    return next((name for name, tensor in tensors.items() if tensor.ndim == 4), "")


def _in_one_channel(
    target: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors, with the first layer's kernels summed over the colours where the network takes grey pictures.

    A grey picture in three equal channels gives the same sums, where all channels are normalised alike.
    """
    found, name = dict(tensors), _first_layer(target)
    if name not in found or found[name].ndim != 4 or (target[name].shape[1], found[name].shape[1]) != (1, 3):
        return found, ()
    found[name] = found[name].float().sum(dim=1, keepdim=True)
    return found, (
        f"the kernels of {name} were summed over the three colours: the network takes grey pictures, and answers as for"
        " grey ones in three equally normalised channels",
    )


def _fresh(
    target: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], entry: NetworkSpec
) -> tuple[set[str], tuple[str, ...]]:
    """Names of the module's tensors that keep their fresh values, and why."""
    notes: list[str] = []
    fresh: set[str] = set()
    absent = [
        prefix
        for prefix in dict.fromkeys(head.partition(".")[0] for head in entry.head[1:])
        if not any(_within(name, prefix) for name in found)
    ]
    if absent:
        fresh |= {name for name in target if any(_within(name, prefix) for prefix in absent)}
        notes.append(f"the file lacks the auxiliary heads {', '.join(absent)}: they start fresh, and only train")
    replaced = [head for head in entry.head if _has_other_classes(target, found, head)]
    if replaced:
        fresh |= {name for name in target if any(_within(name, head) for head in replaced)}
        classes = [len(tensors[f"{replaced[0]}.weight"]) for tensors in (found, target)]
        verb = "head {} ({} classes) was" if len(replaced) == 1 else "heads {} ({} classes) were"
        notes.append(f"the {verb.format(', '.join(replaced), classes[0])} replaced: the network has {classes[1]}")
    return fresh, tuple(notes)


def _within(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.")


def _has_other_classes(target: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], head: str) -> bool:
    """Whether the head's weights differ in their first axis, the classes, and in nothing else."""
    name = f"{head}.weight"
    if name not in target or name not in found or not found[name].ndim:
        return False
    wanted, got = target[name].shape, found[name].shape
    return wanted[1:] == got[1:] and wanted != got


def _check_fit(
    target: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], weights: Weights, entry: NetworkSpec
) -> None:
    """Raises CheckpointError naming what is missing, unexpected, of another shape or type, and whose they are."""
    faults = _faults(target, found)
    if faults:
        guess = "" if weights.checkpoint else _guess(weights, entry)
        raise CheckpointError(f"{weights.path} does not fit the network {entry.name}{guess}: {'; '.join(faults)}")


def _faults(target: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [name for name in target if name not in found and not name.endswith(_COUNTER)]
    unexpected = [name for name in found if name not in target and not name.endswith(_COUNTER)]
    both = [name for name in target if name in found]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(target[name].shape)}"
        for name in both
        if found[name].shape != target[name].shape
    ]
    types = [
        f"{name} {_kind(found[name])} instead of {_kind(target[name])}"
        for name in both
        if found[name].is_floating_point() != target[name].is_floating_point() and not name.endswith(_COUNTER)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes), ("other type", types))
    return [f"{what}: {_listed(items)}" for what, items in kinds if items]


def _listed(items: list[str]) -> str:
    more = f" … ({len(items)} in all)" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _guess(weights: Weights, entry: NetworkSpec) -> str:
    """``" (these are the weights of resnet50)"`` where a network of the table fits; with the options that it needs."""
    for name, options in _candidates(entry, weights):
        target = dict(_skeleton(name, options).state_dict())
        found = dict(weights.tensors)
        fresh, _ = _fresh(target, found, spec(name))
        for tensors in (target, found):
            for gone in fresh & set(tensors):
                del tensors[gone]
        if not _faults(target, found):
            chosen = "".join(f" with --option {key}={value}" for key, value in options.items())
            chosen = chosen or (" without options" if name == entry.name else "")
            return f" (these are the weights of {name}{chosen})"
    return ""


def _candidates(entry: NetworkSpec, weights: Weights) -> Iterator[tuple[str, dict[str, str]]]:
    """The network with other options, and those of torchvision that are nearest in size."""
    if entry.torchvision is not None:
        yield entry.name, {}
        yield from ((entry.name, {key: value}) for key, values in entry.options.items() for value in values[1:])
        own = _skeleton(entry.name, {}).state_dict().keys()
        if len(own ^ weights.tensors.keys()) < len(own) // 10:
            return  # it is this network's with something amiss: others differ in more names than that
    size = sum(tensor.numel() for name, tensor in weights.tensors.items() if "running_" not in name)
    rows = [row for row in map(spec, names()) if row.torchvision is not None and row.name != entry.name]
    rows.sort(key=lambda row: abs(row.parameters - size))
    yield from ((row.name, {}) for row in rows[:_NEAREST])


def _skeleton(network: str, options: Mapping[str, str]) -> torch.nn.Module:
    """The network without memory for its weights: names and shapes only."""
    import torch

    with torch.device("meta"):
        return build(network, None, None, **options)
