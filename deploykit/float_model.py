"""The float model while it is being quantized: rewritten, named throughout, and open for measurement inside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact
from deploykit.graph.equalize_channels import equalize_channels
from deploykit.graph.fold_pixels import fold_pixels
from deploykit.graph.inferred import forget_shapes, infer_values
from deploykit.graph.opset import upgraded
from deploykit.graph.rewrites import REWRITES, rewrite_model
from deploykit.runtime import Session, create_session, filled

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["FloatModel", "opened_float_model"]

_OLDEST_OPSET = 13  # the first whose DequantizeLinear takes one scale a channel
# Integer kernels exist for Gemm with its bias and for the parts of HardSwish; LRN is the slowest operator that is left.
# A chain of Concats copies runs whose bytes stay what they are.
_FOR_INTEGERS = frozenset({"matmul_to_gemm", "split_hard_swish", "split_lrn", "chain_concat"})


@dataclass(frozen=True)
class FloatModel:
    """A model that computes what the user's does, in the form that quantization starts from.

    Attributes:
        proto: With all weights; never changed.
        path: The same in a file, which lasts as long as the block it was opened in.
        changes: Places that each rewrite changed.
        size: Samples a batch: what the model fixes, or what was asked for.
        border_levels: What ``fold_pixels`` says of padded convolutions; None where it was not done.
    """

    proto: onnx.ModelProto
    path: Path
    changes: Mapping[str, int]
    size: int
    border_levels: float | None = None

    def graph(self) -> onnx_ir.Model:
        """A graph of its own to work on; its tensors are views of ``proto``'s."""
        import onnx_ir as ir

        return ir.from_proto(self.proto)

    @property
    def input(self) -> str:
        """Name of the only input."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        return next(str(value.name) for value in self.proto.graph.input if value.name not in stored)

    def session(self) -> Session:
        """Of the model as it is."""
        return create_session(self.path)

    def tapped(self, tensors: Sequence[str]) -> Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]:
        """A function from a batch of inputs to these tensors, by name."""
        source, known = self.input, {value.name for value in self.proto.graph.output}
        inner = [name for name in tensors if name != source]
        with _more_outputs(self.path, [name for name in inner if name not in known]):
            session = create_session(self.path)
        index = {value.name: place for place, value in enumerate(session.outputs)}

        def read(batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            outputs = session.run(filled(batch, session.fixed_batch or len(batch)))
            taken = {name: outputs[index[name]][: len(batch)] for name in inner}
            return taken | ({source: batch} if source in tensors else {})

        return read

    def equalized(self) -> FloatModel | None:
        """The same function with channels of like ranges, in a file beside; None where no two layers are a pair."""
        import onnx
        import onnx_ir as ir

        graph = self.graph()
        pairs = equalize_channels(graph)
        if not pairs:
            return None
        proto, path = ir.to_proto(graph), self.path.with_name("equalized.onnx")
        onnx.save(proto, path)
        return replace(self, proto=proto, path=path, changes={**self.changes, "equalize_channels": pairs})

    def reading_pixels(self) -> FloatModel:
        """The same function, its border but for ``border_levels``, whose first layer reads the pixels of a picture.

        In a file beside; itself, where the input is no picture or its normalisation does not fold.
        """
        import onnx
        import onnx_ir as ir

        graph = self.graph()
        infer_values(graph)
        folded = fold_pixels(graph)
        if folded is None:
            return self
        forget_shapes(graph)
        proto, path = ir.to_proto(graph), self.path.with_name("pixels.onnx")
        onnx.save(proto, path)
        changes = {**self.changes, "fold_pixels": 1}
        return replace(self, proto=proto, path=path, changes=changes, border_levels=folded.border)


@contextmanager
def opened_float_model(
    model: onnx.ModelProto, parent: Artifact, *, batch_size: int, without: Collection[str] = ()
) -> Iterator[FloatModel]:
    """The model raised to a new enough operator set and rewritten, in a folder that is removed afterwards.

    Args:
        model: With its weights; left as it is.
        parent: What it was read from.
        batch_size: Samples a batch, unless the model fixes it.
        without: Rewrites that are left out.

    Raises:
        ModelFileError: The operator set is too old and cannot be raised.
        UnknownNameError: No such rewrite.
    """
    import onnx

    raised = model if parent.opset >= _OLDEST_OPSET else upgraded(model, parent.path, _OLDEST_OPSET)
    wanted = [rewrite.name for rewrite in REWRITES.values() if rewrite.default or rewrite.name in _FOR_INTEGERS]
    proto, changes = rewrite_model(raised, without=without, only=wanted)
    _name_nodes(proto)
    shape = parent.inputs[0].shape
    size = shape[0] if shape and isinstance(shape[0], int) else batch_size
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        onnx.save(proto, path := Path(folder) / "float.onnx")
        yield FloatModel(proto, path, changes, size)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Every node gets a name of its own; plans speak of nodes by their names."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


@contextmanager
def _more_outputs(path: Path, names: Sequence[str]) -> Iterator[None]:
    """Within the block the file's graph has these outputs too: appended fields of a message are merged with it."""
    import onnx

    more = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in names]))
    length = path.stat().st_size
    with path.open("ab") as handle:
        handle.write(more.SerializeToString())
    try:
        yield
    finally:
        with path.open("ab") as handle:
            handle.truncate(length)
