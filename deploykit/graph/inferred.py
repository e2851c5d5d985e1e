"""Types and shapes for every value of a graph that is being rewritten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["forget_shapes", "infer_values", "inferred"]

_SMALL_BYTES = 1024  # a tensor up to this size may be a shape, and its numbers count


def infer_values(model: onnx_ir.Model) -> None:
    """Sets type and shape of the inner values, as far as ONNX can tell them; dynamic axes keep their names.

    What was said of them before is dropped: a file's word may be of another batch than its input's, and an axis that
    was once unknown would stay so.
    """
    forget_shapes(model)
    known = {info.name: info for info in inferred(model).value_info}
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output() and value.name in known:
                _set(value, known[value.name])


def inferred(model: onnx_ir.Model) -> onnx.GraphProto:
    """The graph without the numbers of larger tensors, and with what ONNX can tell of its values."""
    import onnx
    import onnx_ir as ir

    with _without_data(model):
        proto = ir.to_proto(model)
    # Not strict: what cannot be told stays unknown, and a wrong promise of the file is the runtime's to refuse.
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return proto.graph


def forget_shapes(model: onnx_ir.Model) -> None:
    """Drops what is said of inner values; inputs and outputs keep theirs."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if not (value.is_graph_input() or value.is_graph_output()):
                value.type, value.shape = None, None


def _set(value: onnx_ir.Value, info: onnx.ValueInfoProto) -> None:
    import onnx_ir as ir

    value.type = ir.serde.deserialize_type_proto_for_type(info.type)
    value.shape = ir.serde.deserialize_type_proto_for_shape(info.type)


@contextlib.contextmanager
def _without_data(model: onnx_ir.Model) -> Iterator[None]:
    """Within the block, larger stored tensors have a type and a shape but no numbers."""
    import onnx
    import onnx_ir as ir

    whole = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _SMALL_BYTES:
            continue
        dims = [int(axis) for axis in tensor.shape.numpy()]
        whole[value] = tensor
        value.const_value = ir.serde.deserialize_tensor(
            onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=dims)
        )
    try:
        yield
    finally:
        for value, tensor in whole.items():
            value.const_value = tensor
