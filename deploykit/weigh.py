"""What a network, a checkpoint or any ONNX file weighs: parameters, multiply-accumulates, bytes, activations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploykit import __version__, environment
from deploykit.errors import InputError
from deploykit.files import deflated_size, sha256_file
from deploykit.graph.profile import profile_onnx
from deploykit.models import names
from deploykit.models.profile import profile_module
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
        input_shape: ``(C, H, W)`` for a callable.

    Returns:
        The profile; ``file_bytes`` and ``download_bytes`` are None for what is not a file.

    Raises:
        InputError: Nothing of that name, or a file that cannot be read.
    """
    text = os.fspath(source)
    if text.lower().endswith(".onnx") or (
        Path(text).is_file() and checkpoint_path(text) is None and text not in names()
    ):
        profile = profile_onnx(text)
        return replace(profile, deploykit=__version__, environment=environment.describe())
    opened = open_source(text, options=options, num_classes=num_classes, in_channels=in_channels)
    shape = opened.input_shape or input_shape
    if shape is None:
        raise InputError(f"the input shape of {text} is unknown; give it with --shape, such as --shape 3x224x224")
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
        metadata=_metadata(opened.card.dataset, opened.card.labels),
        sha256=sha256_file(opened.path) if opened.path else None,
    )


def _metadata(dataset: str | None, labels: tuple[str, ...]) -> Mapping[str, object]:
    known = {"deploykit.dataset": dataset, "deploykit.labels": list(labels)}
    return {key: value for key, value in known.items() if value}
