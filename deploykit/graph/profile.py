"""What any ONNX file weighs: parameters, multiply-accumulates, bytes, peak activations, operators, precision."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact, load_model
from deploykit.files import deflated_size
from deploykit.graph.activations import peak_activation_bytes
from deploykit.graph.float_islands import float_islands
from deploykit.graph.layers import LayerCounter
from deploykit.graph.precision import QUANTIZED_OPERATORS, precision_of
from deploykit.graph.shapes import Shapes, infer
from deploykit.graph.weights import Constants, collect, external_files, nodes_of, not_finite
from deploykit.results import Profile

if TYPE_CHECKING:
    import onnx

__all__ = ["profile_onnx"]


_STRUCTURED = tuple(
    f"deploykit.{key}" for key in ("preprocess", "labels", "parity", "training", "graph_preprocess", "graph_parity")
)


def profile_onnx(
    path: str | os.PathLike[str], *, shape: Mapping[str, int | Sequence[int]] | None = None, download: bool = True
) -> Profile:
    """Profiles an ONNX file for one picture.

    1. Parameters: floats of at least one axis, and integers that are weights, that some operator computes with; each
       tensor once, also behind DequantizeLinear. Scales, zero points and running statistics are not parameters; they do
       belong to ``weight_bytes``.
    2. MACs: convolutions and matrix products, those of two activations included, without biases.
    3. Connections: MACs, and one for each output that has a bias (LeCun et al. 1998).
    4. Bodies of If, Loop and Scan count once, and not towards the peak of activations; functions are inlined.

    Args:
        path: The file; external data beside it counts towards file and download bytes.
        shape: For dynamic axes other than the batch: whole shapes by input name, or sizes by the axis' name. Without
            it ``deploykit.preprocess`` is asked.
        download: Whether to deflate the file for ``download_bytes``.

    Returns:
        The record; figures that need unknown shapes are None, and ``warnings`` says so.

    Raises:
        ModelFileError: Not a usable ONNX file.
        InputError: ``shape`` names no input or axis, or has another rank.
    """
    source = Path(path)
    model = load_model(source)
    artifact = Artifact.of_model(model, source)
    shapes = infer(model, _given_shapes(artifact, shape))
    constants = collect(model.graph, shapes.graph)
    counter = LayerCounter(shapes, constants)
    layers = counter.layers()
    files = [source, *external_files(source)]
    quantized = any(node.op_type in QUANTIZED_OPERATORS for node in nodes_of(shapes.graph))
    warnings = (*counter.warnings(artifact), *_weight_warnings(counter.names, constants))
    return Profile(
        name=artifact.name,
        parameters=sum(layer.parameters for layer in layers),
        connections=None if counter.unknown else sum(layer.connections for layer in layers),
        macs=None if counter.unknown else sum(layer.macs for layer in layers),
        weight_bytes=sum(constant.counted_bytes for constant in constants.stored.values()),
        file_bytes=sum(file.stat().st_size for file in files),
        download_bytes=sum(map(deflated_size, files)) if download else None,
        peak_activation_bytes=peak_activation_bytes(shapes, constants),
        precision=precision_of(model),
        layers=layers,
        operators=dict(Counter(node.op_type for node in nodes_of(shapes.graph) if node.op_type != "Constant")),
        input_shape=_without_batch(shapes, artifact),
        opset=artifact.opset,
        metadata=_metadata(model),
        sha256=artifact.sha256,
        parent_sha256=artifact.parent_sha256,
        warnings=warnings,
        float_islands=float_islands(shapes.graph, constants) if quantized else None,
    )


def _given_shapes(
    artifact: Artifact, shape: Mapping[str, int | Sequence[int]] | None
) -> Mapping[str, int | Sequence[int]]:
    if shape or artifact.preprocess is None or len(artifact.inputs) != 1 or artifact.inputs[0].rank != 4:
        return shape or {}
    (entry,), preprocess = artifact.inputs, artifact.preprocess
    if entry.shape is None or all(isinstance(size, int) for size in entry.shape[1:]):
        return {}
    channels, sides = (preprocess.depth,), preprocess.size
    first = entry.shape[0] if isinstance(entry.shape[0], int) else 1
    return {entry.name: (first, *(channels + sides if preprocess.layout == "NCHW" else sides + channels))}


def _without_batch(shapes: Shapes, artifact: Artifact) -> tuple[int, ...] | None:
    shape = shapes.shape(artifact.inputs[0].name) if artifact.inputs else None
    return None if shape is None else shape[1:]


def _weight_warnings(names: Mapping[str, str], constants: Constants) -> Iterator[str]:
    for constant, what in not_finite(constants):
        yield f"weights of {names.get(constant.name, constant.name)} hold {what}"


def _metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The ``deploykit.*`` properties; ``Artifact`` has checked those that are JSON."""
    texts = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("deploykit.")}
    return {key: json.loads(text) if key in _STRUCTURED else text for key, text in texts.items()}
