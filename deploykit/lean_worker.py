"""The process that makes a lean copy of a model (``lean_model``): its argument is a JSON job, its last line the answer.

It ends when its standard input does, that is, when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import environment
from deploykit.artifact import load_model
from deploykit.errors import DeploykitError
from deploykit.files import atomic_folder, sha256_file, sha256_json
from deploykit.graph.weights import external_files
from deploykit.lean_model import LeanModel
from deploykit.runtime import save_optimized

if TYPE_CHECKING:
    import onnx

__all__ = ["make_lean"]

_WEIGHTS = "weights.data"
_INLINE_BYTES = 1024  # weights up to this size stay in the graph
_LARGE_BYTES = 64 * 1024
# Kernels of the CPU provider that are about as fast on weights as they lie in the file (``benchmarks/memory_lean.py``);
# those in 8 bits take more than twice the time.
_FAST_UNPACKED = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def make_lean(source: Path, folder: Path, *, optimised: bool) -> Path:
    """Makes the copy below ``folder``, or finds it there; returns its path. Raises: as ``lean_model.lean_copy``."""
    import onnxruntime

    load_model(source, external_data=False)
    identity = {
        "sha256": [sha256_file(file) for file in (source, *external_files(source))],
        "optimised": optimised,
        "onnxruntime": onnxruntime.__version__,
        "cpu_features": environment.cpu_features(),
    }
    target = folder / sha256_json(identity)[:16] / source.name
    if LeanModel.read(target) is not None:
        return target
    began = time.perf_counter()
    with atomic_folder(target) as aside:
        _write(source, aside / source.name, optimised)
        prepacking = not optimised or _needs_packing(load_model(aside / source.name, external_data=False))
        seconds = round(time.perf_counter() - began, 3)
        versions = (onnxruntime.__version__, environment.cpu_features())
        LeanModel(source.name, optimised, prepacking, *versions, seconds).write(aside)
    return target


def _write(source: Path, target: Path, optimised: bool) -> None:
    if not optimised:
        _save(load_model(source), target)
        return
    save_optimized(source, target, weights=_WEIGHTS, inline_bytes=_INLINE_BYTES)
    if _transposed_matrices(load_model(target, external_data=False).graph):
        model = load_model(target)
        _untranspose(model.graph)
        target.with_name(_WEIGHTS).unlink()  # it would be appended to
        _save(model, target)


def _save(model: onnx.ModelProto, target: Path) -> None:
    import onnx

    onnx.save_model(model, str(target), save_as_external_data=True, location=_WEIGHTS, size_threshold=_INLINE_BYTES)


def _transposed_matrices(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Weights that only one ``QGemm`` reads, with ``transB``: their node by their name."""
    weights = {tensor.name for tensor in graph.initializer if _bytes_of(tensor) >= _LARGE_BYTES}
    readers = Counter(name for node in graph.node for name in node.input)
    return {
        node.input[3]: node
        for node in graph.node
        if node.op_type == "QGemm" and node.input[3] in weights and readers[node.input[3]] == 1
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    }


def _untranspose(graph: onnx.GraphProto) -> None:
    """Lays 8-bit matrices out as their kernel packs them; it would transpose them in one more buffer of their size."""
    import numpy as np
    from onnx import numpy_helper

    nodes = _transposed_matrices(graph)
    for tensor in graph.initializer:
        if (node := nodes.get(tensor.name)) is not None:
            matrix = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(matrix, tensor.name))
            next(attribute for attribute in node.attribute if attribute.name == "transB").i = 0


def _needs_packing(model: onnx.ModelProto) -> bool:
    """Whether a large weight is read by a kernel that is not known to be fast without packing."""
    for graph in _graphs(model.graph):
        large = {tensor.name for tensor in graph.initializer if _bytes_of(tensor) >= _LARGE_BYTES}
        if any(large & set(node.input) and node.op_type not in _FAST_UNPACKED for node in graph.node):
            return True
    return False


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _graphs(inner)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
    return lengths[0] if lengths else tensor.ByteSize()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _main(job: str) -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what ONNX Runtime prints must not mix with the answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = json.loads(job)
    try:
        answer = {"path": str(make_lean(Path(asked["source"]), Path(asked["folder"]), optimised=asked["optimised"]))}
    except DeploykitError as problem:
        answer = {"error": type(problem).__name__, "message": str(problem)}
    channel.write(json.dumps(answer) + "\n")
    channel.flush()
    os._exit(0)  # the other thread is still reading


if __name__ == "__main__":
    _main(sys.argv[1])
