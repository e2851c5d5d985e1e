"""What any ONNX file weighs: parameters, multiply-accumulates, bytes, peak activations, operators, precision."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact, load_model
from deploykit.files import deflated_size
from deploykit.graph.activations import peak_activation_bytes
from deploykit.graph.precision import precision_of
from deploykit.graph.products import PRODUCTS, Product
from deploykit.graph.shapes import Shapes, infer
from deploykit.graph.weights import Constant, Constants, collect, external_files, nodes_of, not_finite
from deploykit.results import LayerProfile, Profile

if TYPE_CHECKING:
    import onnx

__all__ = ["profile_onnx"]


_STRUCTURED = tuple(f"deploykit.{key}" for key in ("preprocess", "labels", "parity", "training"))
_UNCOUNTED = frozenset(
    {
        *(
            "Attention",
            "DeformConv",
            "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul",
            "Einsum",
            "GRU",
            "GroupQueryAttention",
        ),
        *(
            "LSTM",
            "MatMulIntegerToFloat",
            "MultiHeadAttention",
            "NhwcConv",
            "QAttention",
            "QLinearConvTranspose",
            "RNN",
        ),
    }
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
    counter = _Counter(shapes, constants)
    files = [source, *external_files(source)]
    warnings = (*counter.warnings(artifact), *_weight_warnings(counter.names, constants))
    return Profile(
        name=artifact.name,
        parameters=sum(layer.parameters for layer in counter.layers),
        connections=None if counter.unknown else sum(layer.connections for layer in counter.layers),
        macs=None if counter.unknown else sum(layer.macs for layer in counter.layers),
        weight_bytes=sum(constant.counted_bytes for constant in constants.stored.values()),
        file_bytes=sum(file.stat().st_size for file in files),
        download_bytes=sum(map(deflated_size, files)) if download else None,
        peak_activation_bytes=peak_activation_bytes(shapes, constants),
        precision=precision_of(model),
        layers=tuple(counter.layers),
        operators=dict(Counter(node.op_type for node in nodes_of(shapes.graph) if node.op_type != "Constant")),
        input_shape=_without_batch(shapes, artifact),
        opset=artifact.opset,
        metadata=_metadata(model),
        sha256=artifact.sha256,
        parent_sha256=artifact.parent_sha256,
        warnings=warnings,
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


class _Counter:
    """Walks the nodes once: rows, and what could not be counted."""

    def __init__(self, shapes: Shapes, constants: Constants) -> None:
        self.shapes, self.constants = shapes, constants
        self.layers: list[LayerProfile] = []
        self.names: dict[str, str] = {}  # constant -> layer that holds it
        self.unknown: list[str] = []
        self.uncounted: set[str] = set()
        self.batch = self._fixed_batch()
        for node in nodes_of(shapes.graph):
            self._visit(node)

    def _fixed_batch(self) -> int:
        inputs = [value for value in self.shapes.graph.input if not self.constants.is_constant(value.name)]
        dims = self.shapes.dims.get(inputs[0].name, ()) if inputs else ()
        return (dims[0] or 1) if len(dims) > 1 else 1

    def _visit(self, node: onnx.NodeProto) -> None:
        if all(self.constants.is_constant(name) for name in node.output):
            return
        if node.op_type in _UNCOUNTED:
            self.uncounted.add(node.op_type)
        held = [constant for constant in self.constants.weights_of(node) if constant.parameters]
        fresh = [constant for constant in held if constant.name not in self.names]
        name = _layer_name(node, held)
        self.names |= dict.fromkeys((constant.name for constant in fresh), name)
        connections, macs = self._multiplications(node, name)
        if not (fresh or macs or "Pool" in node.op_type):
            return
        shape = self.shapes.shape(node.output[0])
        self.layers.append(
            LayerProfile(
                name=name,
                op=node.op_type,
                output_shape=None if shape is None else shape[1:],
                parameters=sum(constant.parameters for constant in fresh),
                connections=connections // self.batch,
                macs=macs // self.batch,
            )
        )

    def _multiplications(self, node: onnx.NodeProto, name: str) -> tuple[int, int]:
        product = PRODUCTS.get(node.op_type)
        if product is None:
            return 0, 0
        macs = self._macs(node, product)
        outputs = self.shapes.elements(node.output[0])
        if macs is None or outputs is None:
            self.unknown.append(name)
            return 0, 0
        index = product.bias
        has_bias = index is not None and len(node.input) > index and bool(node.input[index])
        return macs + (outputs if has_bias else 0), macs

    def _macs(self, node: onnx.NodeProto, product: Product) -> int | None:
        data, outputs = self.shapes.shape(node.input[product.data]), self.shapes.elements(node.output[0])
        if data is None or outputs is None:
            return None
        if product.kind == "matmul":
            turned = {item.name: item.i for item in node.attribute}.get("transA", 0)
            return outputs * data[-2 if turned and len(data) > 1 else -1]
        weight = self.shapes.shape(node.input[product.weight])
        if weight is None:
            return None
        return (math.prod(data) if product.kind == "transposed" else outputs) * math.prod(weight[1:])

    def warnings(self, artifact: Artifact) -> Iterator[str]:
        yield from self.shapes.warnings
        for entry in artifact.inputs:
            if self.shapes.shape(entry.name) is None:
                axes = ", ".join(str(axis) for axis in entry.shape or () if not isinstance(axis, int))
                yield f"input {entry.name!r} has axes of unknown size ({axes or 'all'}); give its shape"
        if self.unknown:
            yield f"unknown shapes: {len(self.unknown)} layers without MACs, the first is {self.unknown[0]!r}"
        if self.uncounted:
            yield f"operators that are not counted in MACs: {', '.join(sorted(self.uncounted))}"
        if self.batch > 1:
            yield f"the batch is fixed at {self.batch}: peak activations are of the batch, counts of one picture"
        bodies = {node.op_type for node in self.shapes.graph.node if any(item.HasField("g") for item in node.attribute)}
        if bodies:
            yield f"bodies of {', '.join(sorted(bodies))} count once, and not towards peak activations"


def _layer_name(node: onnx.NodeProto, held: Sequence[Constant]) -> str:
    """The layer's name in the network it was exported from, as far as its weights keep it."""
    for constant in held:
        for kind in (".weight", ".bias"):
            stem, found, _ = constant.name.partition(kind)
            if found and stem:
                return stem
    return str(node.name or node.output[0])


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
