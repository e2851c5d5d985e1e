"""What a network, a checkpoint or any ONNX file weighs: parameters, multiply-accumulates, bytes, activations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploykit import __version__, environment
from deploykit.artifact import Artifact, ModelCard
from deploykit.errors import InputError
from deploykit.extras import require
from deploykit.files import deflated_size, sha256_file
from deploykit.graph.profile import profile_onnx
from deploykit.models import names, spec
from deploykit.models.stage_rows import published, stages
from deploykit.preprocess import for_network
from deploykit.results import Comparison, Difference, Profile, StageProfile
from deploykit.sources import Source, checkpoint_path, open_source

__all__ = ["COMPARED", "compare", "weigh"]

COMPARED = (
    "parameters",
    "connections",
    "macs",
    "weight_bytes",
    "file_bytes",
    "download_bytes",
    "peak_activation_bytes",
)
"""The figures of a profile that ``compare`` sets in ratio."""
_PICKLED = (".pth", ".pt")  # PyTorch's own files, which say nothing of their network


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
        in_channels: Channels of a reference network, by default those of ``input_shape``.
        input_shape: ``(C, H, W)`` for a callable, for an ``.onnx`` with dynamic axes, or for a reference network that
            takes pictures of any size.

    Returns:
        The profile; ``file_bytes`` and ``download_bytes`` are None for what is not a file.

    Raises:
        InputError: Nothing of that name, a file that cannot be read, or a shape that the network does not take.
    """
    text = os.fspath(source)
    if _is_onnx(text):
        if options or num_classes or in_channels:
            raise InputError(f"{text} is a file; options, classes and channels are for reference networks")
        profile = _weigh_onnx(text, input_shape)
    elif text in names():
        profile = _weigh_network(text, options or {}, num_classes, in_channels, input_shape)
    else:
        opened = open_source(text, options=options, num_classes=num_classes, in_channels=in_channels)
        profile = _weigh_module(text, opened.described(input_shape=input_shape))
    return replace(profile, deploykit=__version__, environment=environment.describe())


def compare(a: Profile, b: Profile) -> Comparison:
    """Sets two profiles side by side.

    Where both have the same rows by name and order, those of the papers' tables or else their layers, the rows that
    differ are told.
    """
    pairs = _same_rows(_rows(a), _rows(b))
    return Comparison(
        deploykit=a.deploykit,
        environment=a.environment,
        a=a,
        b=b,
        ratios={figure: _ratio(getattr(a, figure), getattr(b, figure)) for figure in COMPARED},
        differences=tuple(Difference(one.name, one, two) for one, two in pairs if _differ(one, two)),
        same_rows=bool(pairs),
    )


def _ratio(above: int | None, below: int | None) -> float | None:
    return above / below if above is not None and below else None


def _rows(profile: Profile) -> tuple[StageProfile, ...]:
    """The rows of the paper's table; without one the layers themselves."""
    return profile.stages or tuple(
        StageProfile(
            name=layer.name,
            op=layer.op,
            output_shape=layer.output_shape,
            parameters=layer.parameters,
            connections=layer.connections,
            macs=layer.macs,
            layers=(layer.name,),
            precision=layer.precision,
        )
        for layer in profile.layers
    )


def _same_rows(a: Sequence[StageProfile], b: Sequence[StageProfile]) -> list[tuple[StageProfile, StageProfile]]:
    """Rows in pairs. Poolings have no names of their own in a file, and global ones are sums there: left out."""
    one, two = ([row for row in rows if row.parameters or row.macs] for rows in (a, b))
    return list(zip(one, two, strict=True)) if [row.name for row in one] == [row.name for row in two] else []


def _differ(a: StageProfile, b: StageProfile) -> bool:
    figures = ("output_shape", "parameters", "macs", "precision")
    return any(getattr(a, figure) != getattr(b, figure) for figure in figures)


def _weigh_network(
    name: str,
    options: Mapping[str, str],
    num_classes: int | None,
    in_channels: int | None,
    input_shape: tuple[int, int, int] | None,
) -> Profile:
    require("torch", extra="torch", purpose=f"profiling {name}")
    from deploykit.models.profile import profile_network

    profile = profile_network(
        name, num_classes=num_classes, in_channels=in_channels, input_shape=input_shape, **options
    )
    channels, height, width = profile.input_shape or spec(name).input
    half = (0.5,) * channels
    preprocess = for_network((channels, height, width), spec(name).content_size, mean=half, std=half)
    return replace(profile, metadata=_metadata(ModelCard(network=name, preprocess=preprocess)))


def _weigh_module(text: str, opened: Source) -> Profile:
    if opened.input_shape is None:
        raise InputError(f"the input shape of {text} is unknown; give it with --shape, such as --shape 3x224x224")
    from deploykit.models.profile import profile_module  # torch, which an .onnx does not need

    measured = profile_module(opened.module, opened.input_shape)
    return Profile(
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
        input_shape=opened.input_shape,
        metadata=_metadata(opened.card),
        sha256=sha256_file(opened.path) if opened.path else None,
        stages=stages(opened.card.network, measured.layers),
        published=published(opened.card.network, measured.layers),
    )


def _is_onnx(text: str) -> bool:
    if text.lower().endswith(".onnx"):
        return True
    if Path(text).suffix.lower() in _PICKLED:
        return False
    return Path(text).is_file() and checkpoint_path(text) is None and text not in names()


def _weigh_onnx(path: str, input_shape: tuple[int, int, int] | None) -> Profile:
    shapes = None
    if input_shape is not None:
        tensors = Artifact.read(path).inputs
        if len(tensors) != 1:
            raise InputError(f"{path} has {len(tensors)} inputs; --shape names the shape of a model's only input")
        shapes = {tensors[0].name: (1, *input_shape)}
    profile = profile_onnx(path, shape=shapes)
    network = str(profile.metadata.get("deploykit.network"))
    return replace(profile, stages=stages(network, profile.layers), published=published(network, profile.layers))


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
