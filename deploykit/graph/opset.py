"""Foreign models in the operator set that rewrites and recipes are written for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ModelFileError
from deploykit.figures import byte_text

if TYPE_CHECKING:
    import onnx

__all__ = ["LEAST_OPSET", "OLDEST_OPSET", "opset_of_proto", "upgraded"]

LEAST_OPSET = 7
"""The oldest that can be raised: before it, operators broadcast by attributes that later ones do not have."""
OLDEST_OPSET = 13
"""What older models are raised to: the first whose DequantizeLinear takes one scale a channel."""

_OLDEST_IR = 4  # below, every weight has to be an input of the graph
_MOST_BYTES = 2**31  # of one protobuf message
_SMALL_BYTES = 1024  # a tensor up to this size may be axes or a shape, which the converter reads


def opset_of_proto(model: onnx.ModelProto) -> int | None:
    """The version of the standard operators; None for a model that has none of them."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None)


def upgraded(model: onnx.ModelProto, path: Path, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """The model in at least this operator set; operators of other domains stay as they are.

    Args:
        model: Left as it is, and returned where it is new enough. Weights in files beside it must have been loaded.
        path: Its file, for messages.
        opset: Version of the standard operators.

    Returns:
        A copy that computes the same; its weights are no inputs of the graph, as they had to be before IR 4.

    Raises:
        ModelFileError: The operator set is older than ``LEAST_OPSET``, or ONNX cannot convert it.
    """
    own = opset_of_proto(model)
    if own is None or own >= opset:
        return model
    if own < LEAST_OPSET:
        raise ModelFileError(
            f"{path} has opset {own}; allowed: {LEAST_OPSET} or later; export it again with one of them"
        )
    if model.ByteSize() >= _MOST_BYTES:
        raise ModelFileError(
            f"{path} has opset {own} and {byte_text(model.ByteSize())} with its weights; one below opset {opset} must"
            " be below 2 GiB"
        )
    bare = _without_weights(model)
    converted = _converted(bare, path, own, opset)
    _restore(converted, model)
    return converted


def _converted(model: onnx.ModelProto, path: Path, own: int, opset: int) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as problem:
        raise ModelFileError(
            f"{path} has opset {own}, which ONNX cannot raise to the {opset} that is needed"
            f" ({' '.join(str(problem).split())[:300]}); export it with opset {opset} or later"
        ) from problem


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.ByteSize() > _SMALL_BYTES]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose larger weights are inputs, so that the converter does not carry them through its own graph."""
    import onnx

    large = {tensor.name: tensor for tensor in _large(model)}
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name not in ("initializer", "input"):
            _copy_field(copy.graph, field.name, value)
    stored = {tensor.name for tensor in model.graph.initializer}
    copy.graph.input.extend(value for value in model.graph.input if value.name not in stored)
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in large)
    for tensor in large.values():
        copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    copy.ir_version = max(copy.ir_version, _OLDEST_IR)
    return copy


def _copy_field(target: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    current = getattr(target, name)
    if hasattr(current, "MergeFrom"):
        current.MergeFrom(value)
    else:
        setattr(target, name, value)


def _restore(converted: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Gives the larger weights back, and what the converter does not carry over."""
    large = _large(model)
    names = {tensor.name for tensor in large}
    for value in [value for value in converted.graph.input if value.name in names]:
        converted.graph.input.remove(value)
    converted.graph.initializer.extend(large)
    if not converted.metadata_props:
        converted.metadata_props.extend(model.metadata_props)
