"""ONNX files written with each weight going from where it lies straight to the disk.

Protobuf's own way holds every weight three times: in the module, in the message, and in the message's bytes. But a
message in a file is only its fields, one after the other in any order, and a file that another message is appended to
reads as both merged (protobuf.dev/programming-guides/encoding). So the graph without its weights is made by protobuf,
the weights are added behind it as they are, and metadata can follow later.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["append_metadata", "write_model"]

_ONE_FILE_BYTES = 2**31 - 2**20  # protobuf's limit of 2 GiB, with room for the metadata
_INLINE_BYTES = 1024  # weights up to this size stay in the graph

# Field numbers of onnx.proto, shifted by three; 2 stands for "a length and so many bytes".
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = (field << 3 | 2 for field in (7, 5, 9))


def write_model(model: onnx_ir.Model, path: Path) -> onnx.ModelProto:
    """Writes the model; weights above 2 GiB in all go to ``path + ".data"``.

    Args:
        model: Left as it was.
        path: Replaced where it exists.

    Returns:
        The model without its larger weights: its graph, inputs and outputs.
    """
    import onnx_ir

    large = _large_weights(model)
    bare = _without(model, large)
    if bare.ByteSize() + sum(tensor.nbytes for tensor in large.values()) <= _ONE_FILE_BYTES:
        with path.open("wb") as handle:
            _write_one(bare, large, handle)
    else:
        onnx_ir.save(model, path, external_data=path.name + ".data")
    return bare


def append_metadata(path: Path, model: onnx.ModelProto) -> None:
    """Adds the metadata of ``model`` to that of the file."""
    from onnx import ModelProto

    with path.open("ab") as handle:
        handle.write(ModelProto(metadata_props=model.metadata_props).SerializeToString(deterministic=True))


def _large_weights(model: onnx_ir.Model) -> dict[str, onnx_ir.TensorProtocol]:
    import onnx_ir

    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes > _INLINE_BYTES
        and value.const_value.dtype != onnx_ir.DataType.STRING  # its elements have no fixed size
    }


def _without(model: onnx_ir.Model, weights: dict[str, onnx_ir.TensorProtocol]) -> onnx.ModelProto:
    """The message of ``model`` without these weights."""
    import onnx_ir

    initializers = model.graph.initializers
    taken = {name: initializers.pop(name) for name in weights}
    try:
        return onnx_ir.to_proto(model)
    finally:
        initializers.update(taken)


def _write_one(bare: onnx.ModelProto, weights: dict[str, onnx_ir.TensorProtocol], handle: BinaryIO) -> None:
    from onnx import ModelProto

    rest = ModelProto()
    rest.CopyFrom(bare)
    rest.ClearField("graph")
    graph = bare.graph.SerializeToString(deterministic=True)
    heads = {name: _tensor_head(name, tensor) for name, tensor in weights.items()}
    lengths = {name: len(head) + weights[name].nbytes for name, head in heads.items()}
    total = len(graph) + sum(len(_field(_GRAPH_INITIALIZER, length)) + length for length in lengths.values())
    handle.write(rest.SerializeToString(deterministic=True))
    handle.write(_field(_MODEL_GRAPH, total) + graph)
    for name, tensor in weights.items():
        handle.write(_field(_GRAPH_INITIALIZER, lengths[name]) + heads[name])
        _write_values(tensor, handle)


def _write_values(tensor: onnx_ir.TensorProtocol, handle: BinaryIO) -> None:
    try:
        tensor.tofile(handle)  # type: ignore[attr-defined]  # every tensor of onnx_ir and of torch has it
    except OSError as problem:
        if problem.errno is not None:
            raise
        # numpy only says how much it wrote; fewer bytes than asked are a full disk.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from problem


def _tensor_head(name: str, tensor: onnx_ir.TensorProtocol) -> bytes:
    """A ``TensorProto`` up to where its values begin."""
    from onnx import TensorProto

    dims = [int(axis) for axis in tensor.shape.numpy()]
    head: bytes = TensorProto(name=name, data_type=tensor.dtype.value, dims=dims).SerializeToString(deterministic=True)
    return head + _field(_TENSOR_RAW_DATA, tensor.nbytes)


def _field(tag: int, length: int) -> bytes:
    return _varint(tag) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
