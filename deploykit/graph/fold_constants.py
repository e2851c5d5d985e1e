"""What depends on constants alone is computed once."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.graph.editing import array_of, constant, operator, opset_of, replace_node, store

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["fold_constants"]

_MOST_BYTES = 2**14
"""A folded tensor may be this large, or as large as what it is computed from: room for the numbers of 2,048 channels
in double precision, while a megabyte of equal weights stays the one operator that makes them."""

# What numpy computes as the standard says. Not here: what draws random numbers, what quantizes (a stored scale must
# stay beside its tensor), and products, whose sums every runtime adds up in its own order.
_ELEMENTWISE = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Sqrt"),
    *("Sub", "Where", "Xor"),
)
_MOVING = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_GROWING = ("ConstantOfShape", "Expand", "Pad", "Range", "Tile")
_REDUCING = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Size")
_FOLDED = frozenset((*_ELEMENTWISE, *_MOVING, *_GROWING, *_REDUCING))


def fold_constants(model: onnx_ir.Model) -> int:
    """Replaces nodes by what they compute; returns how many.

    1. ``Constant`` becomes a stored tensor.
    2. ``Shape``, and ``Gather`` or ``Slice`` of it, where the axes asked for are known.
    3. Arithmetic, comparisons, moves and reductions of stored tensors, if the result has at most 16 KiB or at most the
       bytes of what it is computed from: a file must not grow by megabytes of equal numbers.
    4. ``If`` whose condition is stored: the nodes of its branch take its place.

    An answer of the graph stays the output of a node.
    """
    changed = 0
    for node in list(model.graph.all_nodes()):
        if node.graph is None or node.domain:
            continue
        if node.op_type == "If":
            changed += _take_branch(model, node)
        elif not any(value.is_graph_output() for value in node.outputs):
            changed += _fold(model, node)
    return changed


def _fold(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    results = _results(model, node)
    if results is None or len(results) < len(node.outputs):
        return False
    if node.graph is None:
        raise AssertionError(f"{node.name} is in no graph")
    for value, result in zip(node.outputs, results, strict=False):
        if value.uses():
            in_main = node.graph is model.graph  # a name of a branch may also be one of another branch
            name = str(value.name)
            stored = store(model, result, name) if in_main else constant(model, result, name)
            value.replace_all_uses_with(stored)
    node.graph.remove(node, safe=True)
    return True


def _results(model: onnx_ir.Model, node: onnx_ir.Node) -> list[NDArray[Any]] | None:
    if node.op_type == "Constant":
        array = array_of(node.outputs[0])
        return None if array is None else [array]
    if node.op_type in ("Shape", "Gather", "Slice") and (known := _known_axes(node)) is not None:
        return [known]
    if node.op_type not in _FOLDED:
        return None
    given = [value for value in node.inputs if value is not None]
    arrays = [array_of(value) for value in given]
    if not arrays or any(array is None for array in arrays):
        return None
    allowed = max(_MOST_BYTES, sum(array.nbytes for array in arrays if array is not None))
    if node.op_type in _GROWING and not _is_known_below(node.outputs[0], allowed):
        return None
    if node.op_type == "Div" and any(
        np.issubdtype(a.dtype, np.integer) and (a < 0).any() for a in arrays if a is not None
    ):
        return None  # the standard cuts towards zero, numpy goes down
    feeds = {str(value.name): array for value, array in zip(given, arrays, strict=True)}
    results = _computed(node, feeds, opset_of(model))
    return results if results and sum(result.nbytes for result in results) <= allowed else None


def _is_known_below(value: onnx_ir.Value, allowed: int) -> bool:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return False
    return math.prod(value.shape.numpy()) * value.dtype.itemsize <= allowed


def _computed(node: onnx_ir.Node, feeds: dict[str, Any], opset: int) -> list[NDArray[Any]] | None:
    """What the standard's reference computes; None where it cannot, which is then the runtime's to refuse."""
    import onnx_ir as ir
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    anything = helper.make_tensor_type_proto(0, None)
    given, asked = (
        [helper.make_value_info(name, anything) for name in names]
        for names in (feeds, [str(value.name) for value in node.outputs])
    )
    graph = helper.make_graph([ir.to_proto(node)], "one", given, asked)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # what a runtime computes without a word is no warning here
            results = ReferenceEvaluator(model).run(None, feeds)
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return [np.asarray(result) for result in results]


def _known_axes(node: onnx_ir.Node) -> NDArray[Any] | None:
    """Rule 2: what Shape, or Gather or Slice of one, gives."""
    if node.op_type == "Shape":
        axes = _axes(node)
        return np.array(axes, np.int64) if axes is not None and None not in axes else None
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.domain or maker.op_type != "Shape":
        return None
    axes, settings = _axes(maker), [array_of(value) for value in node.inputs[1:]]
    if axes is None or not settings or any(array is None for array in settings):
        return None
    places = _computed_places(node, len(axes), [array for array in settings if array is not None])
    found = [axes[place] for place in places.reshape(-1)]
    return None if None in found else np.array(found, np.int64).reshape(places.shape)


def _computed_places(node: onnx_ir.Node, count: int, settings: list[NDArray[Any]]) -> NDArray[Any]:
    """Which elements of the shape a Gather or Slice takes."""
    places = np.arange(count)
    if node.op_type == "Gather":
        return np.asarray(places[settings[0]])
    starts, ends, *more = (int(array.reshape(-1)[0]) for array in settings)
    step = more[1] if len(more) > 1 else 1
    return places[slice(starts, ends, step)] if step > 0 else places[:0]


def _axes(shape: onnx_ir.Node) -> list[int | None] | None:
    """What a Shape node gives, None for axes that are free."""
    value = shape.inputs[0]
    if value is None or value.shape is None:
        return None
    sizes = [axis if isinstance(axis, int) else None for axis in value.shape]
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", len(sizes))
    return sizes[slice(start, end)]


def _take_branch(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    """Rule 4, for one answer."""
    condition, graph = array_of(node.inputs[0]), node.graph
    if condition is None or condition.size != 1 or len(node.outputs) != 1 or graph is None:
        return False
    branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
    answer, nodes = branch.outputs[0], list(branch)
    if answer.producer() not in nodes:  # a value of the outer graph, or a stored tensor
        return False
    for value in list(branch.initializers.values()):
        array = array_of(value)
        if array is None:
            return False
        value.replace_all_uses_with(constant(model, array, str(value.name)))
    names = Counter(value.name for other in model.graph.all_nodes() for value in other.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    for value in (value for moved in nodes for value in moved.outputs):
        if names[value.name] > 1:  # another branch has one of that name too
            value.name = f"{value.name}.{node.name or node.outputs[0].name}"
    graph.insert_before(node, nodes)
    replace_node(node, operator("Identity", [answer]))
    return True
