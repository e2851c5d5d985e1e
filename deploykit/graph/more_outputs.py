"""A model that also gives tensors from within, made without copying its weights.

Rule: outputs, and the nodes that make them, are appended to the model's bytes. A file that another message is appended
to reads as both merged (protobuf.dev/programming-guides/encoding), and a large file is copied by the system.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploykit.errors import InputError, ModelFileError, OutputError
from deploykit.figures import byte_text

if TYPE_CHECKING:
    import onnx

    _Model: TypeAlias = str | os.PathLike[str] | onnx.ModelProto

__all__ = ["addition", "check_tensors", "float_tensors", "with_addition"]

_MOST_BYTES = 2**31 - 2**20  # protobuf's limit of 2 GiB, with room for the addition
_IN_MEMORY_BYTES = 64 * 2**20  # a larger model goes by a temporary file: the runtime would hold its bytes twice


def addition(graph: onnx.GraphProto, names: Sequence[str], nodes: Sequence[onnx.NodeProto] = ()) -> onnx.ModelProto:
    """What makes ``names``, inner tensors of ``graph`` or outputs of the new ``nodes``, outputs of the model."""
    import onnx

    given = {value.name for value in (*graph.output, *graph.input)}
    extra = onnx.ModelProto()
    extra.graph.node.extend(nodes)
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return extra


def check_tensors(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Raises: InputError for a name that is neither an input of the graph nor an output of its nodes."""
    weights = {tensor.name for tensor in graph.initializer}
    known = {value.name for value in graph.input if value.name not in weights}
    known |= {name for node in graph.node for name in node.output if name}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"no tensor {unknown[0]!r} in the model; allowed: its inputs and the outputs of its nodes")


def float_tensors(graph: onnx.GraphProto, types: dict[str, int]) -> tuple[str, ...]:
    """The float32 inputs and outputs of nodes that may change from sample to sample, in the order of the graph."""
    import onnx

    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    varies = set(inputs)
    for node in graph.node:
        if varies.intersection(node.input) or any(attribute.HasField("g") for attribute in node.attribute):
            varies.update(filter(None, node.output))
    made = [name for node in graph.node for name in node.output if name in varies]
    return tuple(name for name in (*inputs, *made) if types.get(name) == onnx.TensorProto.FLOAT)


@contextmanager
def with_addition(
    model: _Model, extra: onnx.ModelProto, *, weights_beside: bool = False
) -> Iterator[tuple[bytes | Path, Path | None]]:
    """The two merged, as bytes or a file, and the folder with the model's weights where they lie beside it.

    Args:
        model: Left as it is.
        extra: From ``addition``.
        weights_beside: Whether the model's file names others that hold its weights.

    Raises:
        ModelFileError: A message of more than 2 GiB.
        OutputError: No room for the temporary file.
    """
    more: bytes = extra.SerializeToString()
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if weights_beside or _size(model) <= _IN_MEMORY_BYTES:
        yield _content(model) + more, path.parent if path else None
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        yield _file(model, more, Path(folder)), None


def _size(model: _Model) -> int:
    if isinstance(model, (str, os.PathLike)):
        return Path(model).stat().st_size
    size: int = model.ByteSize()
    if size > _MOST_BYTES:
        raise ModelFileError(f"the model has {byte_text(size)} with its weights; allowed: below 2 GiB")
    return size


def _content(model: _Model) -> bytes:
    if isinstance(model, (str, os.PathLike)):
        return Path(model).read_bytes()
    content: bytes = model.SerializeToString()
    return content


def _file(model: _Model, more: bytes, folder: Path) -> Path:
    path = folder / "model.onnx"
    try:
        if isinstance(model, (str, os.PathLike)):
            shutil.copyfile(model, path)
        else:
            path.write_bytes(_content(model))
        with path.open("ab") as handle:
            handle.write(more)
    except OSError as problem:
        raise OutputError(
            f"cannot copy the model to {folder}: {problem.strerror}; free some space there, or let TMPDIR name another"
            " folder"
        ) from problem
    return path
