"""Wrapping: an ONNX file whose input takes pixels, written only if it answers as Python's preprocessing and it did."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, data, environment
from deploykit.artifact import Artifact, Preprocess, check_model, load_model
from deploykit.classifier import ends_in_softmax
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, ModelFileError
from deploykit.figures import byte_text
from deploykit.files import atomic_path, check_writable
from deploykit.graph.class_outputs import CLASS_OUTPUTS, add_class_outputs
from deploykit.graph.fold_quantized_pixels import fold_quantized_pixels
from deploykit.graph.normalisation import FoldedPixels
from deploykit.graph.opset import opset_of_proto, upgraded
from deploykit.graph.picture_input import PictureInput, insert_picture_input
from deploykit.graph.plain_weights import dense_weights, freeze_weights
from deploykit.graph.weights import stored_bytes
from deploykit.pixel_parity import PixelTolerance, compare_pixels, kinds_of_pictures
from deploykit.preprocess import preprocess_for
from deploykit.wrappings import PixelParity, Wrapping

if TYPE_CHECKING:
    import onnx

__all__ = ["WrapOptions", "wrap_onnx"]

_MOST_BYTES = 2**31  # of one protobuf message
_SHOWN = 16  # pictures of a dataset that are compared as they are
_FLOATS = ("float32", "float16")
_RESIZE = "Resize: linear, antialias 1, half_pixel, exclude_outside 1, uint8"
_FOLDED = 0.1  # of the largest answer: rounding of the input is gone, so that an integer model answers differently
_HALF = 0.01  # of it too: runtimes leave rounding to half precision out where they compute in float32 again


@dataclass(frozen=True)
class WrapOptions:
    """How to wrap, validated.

    Attributes:
        fixed_size: Take pictures of one size, which the graph does not resize; the batch stays free.
        topk: How many of the best classes to add as outputs, with the probabilities of all; None adds nothing.
        tolerance: Largest difference of an answer where the pixels are equal, over the largest answer; at least 0.01
            for inputs in half precision, and 0.1 where an integer model reads the pixels without rounding them first.
    """

    fixed_size: bool = False
    topk: int | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.topk is not None and self.topk < 1:
            raise InputError(f"topk={self.topk}; allowed: 1 or more")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise InputError(f"tolerance {self.tolerance}; allowed: finite numbers of 0 or more")


def wrap_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    preprocess: Preprocess | str | None = None,
    options: WrapOptions | None = None,
    samples: Dataset | None = None,
    passing: bool = False,
    overwrite: bool = False,
) -> Wrapping:
    """Puts preprocessing before a model, so that its input is uint8 pixels (N, H, W, C), and compares both.

    Resize, crop, order of axes and channels and normalisation become standard operators (``graph.picture_input``). Of a
    model that is quantized already the normalisation is folded into the first layer, where that leaves the rounded
    weights as they are (``graph.fold_pixels``); a float model is folded when it is quantized.

    Args:
        model: Any ``.onnx`` with one float picture input, below 2 GiB; never changed.
        output: The ``.onnx`` to write.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        options: One size or any, further outputs.
        samples: Real pictures for the comparison; generated ones otherwise. Both also in odd sizes, turned and grey.
        passing: The model is a step on the way to ``output`` and is not kept: lineage stays that of ``model``.
        overwrite: Replace an existing file.

    Returns:
        The record, with the largest differences.

    Raises:
        ParityError: Pixels or answers differ beyond the tolerance; nothing is written.
        InputError: Unknown preprocessing, several inputs, no picture input, or pixels are taken already.
        ModelFileError: Unreadable, or its operator set cannot be raised.
        OutputError: ``output`` exists or cannot be written.
    """
    options, start, target = options or WrapOptions(), time.perf_counter(), Path(output)
    if target.resolve() == Path(model).resolve():
        raise InputError(f"{target} is the model itself, which is never changed; give another output path")
    check_writable(target, overwrite=overwrite)
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    picture = PictureInput.of(_network(parent, preprocess), fixed_size=options.fixed_size)
    made, folded = _wrapped(source, parent, picture, options)
    opset = opset_of_proto(source)
    del source  # its weights are not needed while two sessions hold theirs
    tolerance = _tolerance(options.tolerance, picture.network, folded)
    pictures, name = _pictures(samples)
    kinds = kinds_of_pictures(pictures, picture.network)
    with atomic_path(target, overwrite=overwrite) as aside:
        aside.write_bytes(made.SerializeToString(deterministic=True))
        parity = compare_pixels(parent.path, aside, picture, kinds, tolerance)
        _stamp(made, parent, picture, _overall(parity) | {"pictures": name}, passing=passing, folded=folded is not None)
        aside.write_bytes(made.SerializeToString(deterministic=True))
        check_model(made, aside)
        child = replace(Artifact.of_model(made, aside), path=target)
    return Wrapping(
        deploykit=__version__,
        environment=environment.describe(),
        model=target.name,
        model_sha256=child.sha256,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        file_bytes=child.file_bytes,
        parent_bytes=stored_bytes(parent.path),
        opset_before=opset,
        opset_after=child.opset,
        input=child.inputs[0].name,
        input_shape=child.inputs[0].shape or (),
        any_size=picture.any_size,
        outputs=tuple(tensor.name for tensor in child.outputs),
        graph_preprocess=picture.network.to_json(),
        resize=_RESIZE if picture.any_size and picture.network.resize is not None else None,
        reads_pixels=folded is not None,
        border_levels=None if folded is None else folded.border,
        samples_name=name,
        parity=tuple(parity),
        seconds=round(time.perf_counter() - start, 3),
        **_overall(parity),
    )


def _network(parent: Artifact, given: Preprocess | str | None) -> Preprocess:
    """What the model's input has to be fed with. Raises: InputError when it cannot be fed with one picture."""
    if parent.graph_preprocess is not None:
        raise InputError(f"{parent.path} is wrapped already: its input {parent.inputs[0].name!r} takes pixels")
    if len(parent.inputs) != 1:
        raise InputError(
            f"{parent.path} has {len(parent.inputs)} inputs; wrapping is for models with one picture input"
        )
    tensor = parent.inputs[0]
    if tensor.dtype not in _FLOATS or tensor.rank != 4:
        raise InputError(
            f"{parent.path}: input {tensor.name!r} is {tensor.dtype} of shape {tensor.shape}; wrapping is for pictures"
            " (N, C, H, W) or (N, H, W, C) in float32 or float16"
        )
    pre = preprocess_for(parent, given)
    depth_and_size = (pre.depth, *pre.size) if pre.layout == "NCHW" else (*pre.size, pre.depth)
    axes = (tensor.shape or ())[1:]
    fits = all(not isinstance(axis, int) or axis == size for axis, size in zip(axes, depth_and_size, strict=True))
    if not fits or pre.dtype != tensor.dtype:
        raise InputError(
            f"{parent.path}: its preprocessing gives {pre.dtype} of shape (N, {', '.join(map(str, depth_and_size))})"
            f" ({pre.layout}), its input {tensor.name!r} takes {tensor.dtype} of shape {tensor.shape}"
        )
    return pre


def _wrapped(
    source: onnx.ModelProto, parent: Artifact, picture: PictureInput, options: WrapOptions
) -> tuple[onnx.ModelProto, FoldedPixels | None]:
    import onnx_ir as ir

    if (size := source.ByteSize()) >= _MOST_BYTES:
        raise ModelFileError(f"{parent.path} has {byte_text(size)} with its weights; allowed: below 2 GiB")
    raised = upgraded(source, parent.path, picture.opset)
    graph = ir.from_proto(raised)
    dense_weights(graph, list(raised.graph.sparse_initializer))
    freeze_weights(graph)
    if options.topk is not None:
        distribution = ends_in_softmax(source.graph)
        add_class_outputs(graph, _at_most(options.topk, parent), distribution=distribution)
    insert_picture_input(graph, picture)
    folded = fold_quantized_pixels(graph)
    return ir.to_proto(graph), folded


def _tolerance(asked: float, network: Preprocess, folded: FoldedPixels | None) -> PixelTolerance:
    least = _FOLDED if folded is not None else _HALF if network.dtype == "float16" else 0.0
    return PixelTolerance(max(asked, least))


def _at_most(count: int, parent: Artifact) -> int:
    """Raises: InputError where the model has fewer classes, or its first output is not one number a class."""
    first = parent.outputs[0]
    shape = first.shape or ()
    if set(CLASS_OUTPUTS) & {tensor.name for tensor in parent.outputs}:
        raise InputError(f"{parent.path} has an output named like one of {', '.join(CLASS_OUTPUTS)} already")
    if len(shape) < 2 or any(axis != 1 for axis in shape[2:]):
        raise InputError(f"{parent.path}: output {first.name!r} has shape {first.shape}; topk is for (N, classes)")
    classes = shape[1] if isinstance(shape[1], int) else len(parent.labels) or None
    if classes is not None and count > classes:
        raise InputError(f"topk={count} of {classes} classes; allowed: 1 to {classes}")
    return count


def _pictures(samples: Dataset | None) -> tuple[Sequence[NDArray[np.uint8]], str]:
    chosen = (data.load("shapes", "test") if samples is None else samples).take(_SHOWN)
    return list(chosen.pictures(range(len(chosen)))), f"{chosen.name}/{chosen.split}"


def _overall(parity: Sequence[PixelParity]) -> dict[str, Any]:
    samples = sum(item.samples for item in parity)
    return {
        "samples": samples,
        "max_levels": max(item.max_levels for item in parity),
        "mean_levels": sum(item.mean_levels * item.samples for item in parity) / samples,
        "max_abs": max(item.max_abs for item in parity),
        "max_rel": max(item.max_rel for item in parity),
        "top1_agreement": sum(item.top1_agreement * item.samples for item in parity) / samples,
    }


def _stamp(
    made: onnx.ModelProto,
    parent: Artifact,
    picture: PictureInput,
    parity: dict[str, Any],
    *,
    passing: bool,
    folded: bool,
) -> None:
    child = replace(parent, version=__version__, preprocess=picture.fed, graph_preprocess=picture.network)
    child = replace(child, graph_parity=parity, parity=None if folded else parent.parity)
    (child if passing else replace(child, parent_sha256=parent.sha256)).stamp(made)
