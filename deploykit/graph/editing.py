"""How the rewrites read and change a graph without harming what others read: constants, readers, replacements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = [
    "array_of",
    "axes_of",
    "bypass",
    "constant",
    "flag_of",
    "float_arrays",
    "nodes_of_model",
    "only_reader",
    "operator",
    "opset_of",
    "rank_of",
    "remove",
    "replace_node",
    "same_kind",
    "set_weight",
    "store",
]

_FLOATS = (np.float16, np.float32, np.float64)


def nodes_of_model(model: onnx_ir.Model, *op_types: str) -> list[onnx_ir.Node]:
    """The standard operators of these types, those of subgraphs included, as they are now."""
    return [node for node in model.graph.all_nodes() if not node.domain and node.op_type in op_types]


def opset_of(model: onnx_ir.Model) -> int:
    """The version of the standard operators."""
    return int(model.graph.opset_imports.get("", 1))


def array_of(value: onnx_ir.Value | None) -> NDArray[Any] | None:
    """What a stored tensor or a Constant node holds; None for what is computed or given."""
    import onnx_ir as ir

    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value if value.is_initializer() else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return np.asarray(tensor.numpy())


def float_arrays(values: Iterable[onnx_ir.Value | None]) -> list[NDArray[np.float64]] | None:
    """Stored float tensors in float64; None if one of them is something else, or is not finite."""
    arrays = [array_of(value) for value in values]
    found = [array for array in arrays if array is not None and array.dtype in _FLOATS]
    if len(found) < len(arrays):
        return None
    doubles = [array.astype(np.float64) for array in found]
    return doubles if all(np.isfinite(array).all() for array in doubles) else None


def axes_of(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction, Squeeze or Unsqueeze, an attribute before opset 13 or 18 and an input since.

    None when they are computed or left out.
    """
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    array = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else tuple(int(axis) for axis in array.reshape(-1))


def flag_of(node: onnx_ir.Node, name: str) -> bool:
    """An attribute that is 0, which it also is where it is left out, or 1."""
    return bool(node.attributes.get_int(name, 0))


def rank_of(value: onnx_ir.Value | None) -> int | None:
    """Number of axes, None where the file does not say and it cannot be inferred."""
    return None if value is None or value.shape is None else len(value.shape)


def only_reader(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The node that alone reads a value, and reads it once; None when it is also an answer of a graph."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def same_kind(array: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any] | None:
    """``array`` in another float type; None where that overflows."""
    with np.errstate(over="ignore"):
        cast = array.astype(kind)
    return cast if np.isfinite(cast).all() else None


def constant(model: onnx_ir.Model, array: NDArray[Any], near: str) -> onnx_ir.Value:
    """A new stored tensor; its name begins with ``near`` and is no other value's."""
    name, number = near, 1
    taken = _names(model)
    while name in taken:
        name, number = f"{near}.{number}", number + 1
    return store(model, array, name)


def store(model: onnx_ir.Model, array: NDArray[Any], name: str) -> onnx_ir.Value:
    """A new stored tensor with a name that is free, or will be as soon as the node is gone whose output has it."""
    import onnx_ir as ir

    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _names(model: onnx_ir.Model) -> set[str | None]:
    inside = {value.name for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value}
    ends = {value.name for graph in (model.graph, *model.graph.subgraphs()) for value in graph.inputs}
    return inside | ends | set(model.graph.initializers)


def set_weight(model: onnx_ir.Model, node: onnx_ir.Node, index: int, array: NDArray[Any], near: str) -> None:
    """Gives a node another weight, under the old one's name where nothing else reads that."""
    import onnx_ir as ir

    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and only_reader(old) is node and not old.is_graph_input():
        old.const_value = ir.tensor(np.asarray(array, order="C"), name=old.name)
        old.shape, old.type = ir.Shape(array.shape), ir.TensorType(old.const_value.dtype)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    name = old.name if old is not None and old.name else near
    node.replace_input_with(index, constant(model, array, str(name)))


def operator(
    op_type: str,
    inputs: Sequence[onnx_ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> onnx_ir.Node:
    """A standard operator with one output."""
    import onnx_ir as ir

    return ir.Node("", op_type, inputs, ir.convenience.convert_attributes(dict(attributes or {})), name=name)


def replace_node(old: onnx_ir.Node, *new: onnx_ir.Node) -> None:
    """Puts ``new`` in the place of a node of which only the first output is read.

    The last one's output takes over, name included.
    """
    graph, (before, after) = old.graph, (old.outputs[0], new[-1].outputs[0])
    if graph is None:
        raise AssertionError(f"{old.name} is in no graph")
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(old, new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    remove(old)


def remove(node: onnx_ir.Node) -> None:
    """Takes a node that nobody reads out of its graph; what its own graphs read is read by them no more."""
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in graph.all_nodes():
                inner.resize_inputs(0)
            for holder in (graph, *graph.subgraphs()):
                holder.outputs.clear()
    if node.graph is not None:
        node.graph.remove(node, safe=True)


def _graphs(attribute: onnx_ir.Attr) -> Sequence[onnx_ir.Graph]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def bypass(node: onnx_ir.Node) -> bool:
    """Takes out a node whose first output equals its first input; False where both ends need their own names."""
    graph, source, target = node.graph, node.inputs[0], node.outputs[0]
    if graph is None or source is None:
        return False
    if not target.is_graph_output():
        target.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        return True
    maker = source.producer()
    if maker is None or maker.graph is not graph or source.is_graph_output() or maker.op_type == "Constant":
        return False
    name = target.name
    target.replace_all_uses_with(source, replace_graph_outputs=True)
    source.type, source.shape = target.type, target.shape  # what the file promises of its answer
    graph.remove(node, safe=True)
    source.name = name
    return True
