"""What a network, a checkpoint or any ONNX file weighs: parameters, multiply-accumulates, bytes, activations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploykit import __version__, environment
from deploykit.artifact import Artifact, ModelCard
from deploykit.errors import InputError
from deploykit.files import deflated_size, sha256_file
from deploykit.graph.profile import profile_onnx
from deploykit.models import names
from deploykit.results import Profile
from deploykit.sources import checkpoint_path, open_source

__all__ = ["weigh"]


def weigh(
    source: str | os.PathLike[str],
    *,
    options: Mapping[str, str] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> Profile:
    """Profiles whatever the user named.

    Args:
        source: An ``.onnx`` file, a run's folder, a checkpoint, a network's name or ``package.module:callable``.
        options: Options of a reference network.
        num_classes: Classes of a reference network.
        in_channels: Channels of a reference network.
        input_shape: ``(C, H, W)`` for a callable, or for an ``.onnx`` with dynamic axes.

    Returns:
        The profile; ``file_bytes`` and ``download_bytes`` are None for what is not a file.

    Raises:
        InputError: Nothing of that name, or a file that cannot be read.
    """
    text = os.fspath(source)
    if _is_onnx(text):
        if options or num_classes or in_channels:
            raise InputError(f"{text} is a file; options, classes and channels are for reference networks")
        return _weigh_onnx(text, input_shape)
    opened = open_source(text, options=options, num_classes=num_classes, in_channels=in_channels)
    shape = opened.described(input_shape=input_shape).input_shape
    if shape is None:
        raise InputError(f"the input shape of {text} is unknown; give it with --shape, such as --shape 3x224x224")
    from deploykit.models.profile import profile_module  # torch, which an .onnx does not need

    measured = profile_module(opened.module, shape)
    return Profile(
        deploykit=__version__,
        environment=environment.describe(),
        name=opened.name,
        parameters=measured.parameters,
        connections=measured.connections,
        macs=measured.macs,
        weight_bytes=measured.weight_bytes,
        file_bytes=opened.path.stat().st_size if opened.path else None,
        download_bytes=deflated_size(opened.path) if opened.path else None,
        peak_activation_bytes=measured.peak_activation_bytes,
        precision="fp32",
        layers=measured.layers,
        operators=measured.operators,
        input_shape=shape,
        metadata=_metadata(opened.card),
        sha256=sha256_file(opened.path) if opened.path else None,
    )


def _is_onnx(text: str) -> bool:
    if text.lower().endswith(".onnx"):
        return True
    return Path(text).is_file() and checkpoint_path(text) is None and text not in names()


def _weigh_onnx(path: str, input_shape: tuple[int, int, int] | None) -> Profile:
    shapes = None
    if input_shape is not None:
        tensors = Artifact.read(path).inputs
        if len(tensors) != 1:
            raise InputError(f"{path} has {len(tensors)} inputs; --shape names the shape of a model's only input")
        shapes = {tensors[0].name: (1, *input_shape)}
    profile = profile_onnx(path, shape=shapes)
    return replace(profile, deploykit=__version__, environment=environment.describe())


def _metadata(card: ModelCard) -> dict[str, object]:
    """What an export would write into the file, under the same keys."""
    known: dict[str, object] = {
        "network": card.network,
        "task": card.task,
        "preprocess": card.preprocess and card.preprocess.to_json(),
        "labels": list(card.labels),
        "dataset": card.dataset,
        "training": card.training,
    }
    return {f"deploykit.{key}": value for key, value in known.items() if value}
