"""Local response normalisation as one operator instead of the chain that exporters write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.graph.editing import array_of, axes_of, flag_of, nodes_of_model, operator, replace_node

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["lrn_chain"]

_CHANNELS = 2  # their axis while the squares are (N, 1, C, H, W)
Sizes = list[int | str]  # of a tensor: the first may be free, as "N"; others too where nothing asks for their number


def lrn_chain(model: onnx_ir.Model) -> int:
    """Replaces the chain of PyTorch's ``LocalResponseNorm`` by ``LRN``; returns how many.

    1. ``x / (k + alpha * mean) ** beta``, or ``x`` times the power with ``-beta``, with stored alpha, beta and k.
    2. The mean is of ``x²``, made (N, 1, C, H, W), padded with zeros along the channels and averaged over n of them
       by a pooling with a window of (n, 1, 1), and brought back to (N, C, H, W) by Squeeze, Reshape or both.
    3. n is odd and the padding is n // 2 on both sides: for an even n PyTorch begins one channel earlier than ONNX, and
       ONNX Runtime has no kernel.

    torch/nn/functional.py, ``local_response_norm``; onnx/docs/Operators.md, LRN: both divide alpha by n.
    """
    return sum(_convert(node) for node in nodes_of_model(model, "Div", "Mul"))


@dataclass(frozen=True)
class _Norm:
    alpha: float
    beta: float
    bias: float
    size: int


def _convert(node: onnx_ir.Node) -> bool:
    pairs = [tuple(node.inputs), tuple(reversed(node.inputs))][: 1 if node.op_type == "Div" else 2]
    for x, power in pairs:
        norm = _match(x, power, -1.0 if node.op_type == "Mul" else 1.0)
        if norm is not None:
            attributes = {"alpha": norm.alpha, "beta": norm.beta, "bias": norm.bias, "size": norm.size}
            replace_node(node, operator("LRN", [x], attributes, name=node.name))
            return True
    return False


def _match(x: onnx_ir.Value | None, power: onnx_ir.Value | None, sign: float) -> _Norm | None:
    """Rule 1."""
    raised = _made_by(power, "Pow")
    if x is None or raised is None:
        return None
    beta = _number(raised.inputs[1])
    total, bias = _with_number(_made_by(raised.inputs[0], "Add"))
    mean, alpha = _with_number(_made_by(total, "Mul"))
    if beta is None or bias is None or alpha is None or beta * sign <= 0:
        return None
    size = _window(x, mean)
    return None if size is None else _Norm(alpha, beta * sign, bias, size)


def _made_by(value: onnx_ir.Value | None, *op_types: str) -> onnx_ir.Node | None:
    maker = None if value is None else value.producer()
    return maker if maker is not None and not maker.domain and maker.op_type in op_types else None


def _number(value: onnx_ir.Value | None) -> float | None:
    array = array_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _with_number(node: onnx_ir.Node | None) -> tuple[onnx_ir.Value | None, float | None]:
    """What a commutative operator reads beside a stored number, and that number."""
    if node is None:
        return None, None
    for first, second in ((0, 1), (1, 0)):
        number = _number(node.inputs[second])
        if number is not None:
            return node.inputs[first], number
    return None, None


def _window(x: onnx_ir.Value, mean: onnx_ir.Value | None) -> int | None:
    """Rules 2 and 3: the n of the mean."""
    if x.shape is None or len(x.shape) != 4:
        return None
    nodes = _steps(mean)
    if not nodes or not _is_square(nodes[0].inputs[0], x):
        return None
    start: Sizes = [axis if isinstance(axis, int) else str(axis) for axis in x.shape]
    sizes: Sizes | None = list(start)
    padding, window = (0, 0), 0
    for node in nodes:
        if node.op_type in ("Pad", "AveragePool"):
            added, width = _padded(node, sizes), _averaged(node)
            if added is None or width is None:
                return None
            padding, window = (padding[0] + added[0], padding[1] + added[1]), window + width
        else:
            sizes = _viewed(node, sizes)
    reach = window // 2
    return window if sizes == start and window % 2 and padding == (reach, reach) else None


def _steps(mean: onnx_ir.Value | None) -> list[onnx_ir.Node]:
    """The nodes from the squares to their mean, which hold exactly one pooling."""
    nodes: list[onnx_ir.Node] = []
    while (node := _made_by(mean, "Squeeze", "Unsqueeze", "Reshape", "AveragePool", "Pad")) is not None:
        nodes.insert(0, node)
        mean = node.inputs[0]
    return nodes if sum(node.op_type == "AveragePool" for node in nodes) == 1 else []


def _is_square(value: onnx_ir.Value | None, x: onnx_ir.Value) -> bool:
    maker = _made_by(value, "Mul", "Pow")
    if maker is None or maker.inputs[0] is not x:
        return False
    return maker.inputs[1] is x if maker.op_type == "Mul" else _number(maker.inputs[1]) == 2.0


def _viewed(node: onnx_ir.Node, sizes: Sizes | None) -> Sizes | None:
    """The sizes after Squeeze, Unsqueeze or Reshape; None where the first axis is not the batch for certain."""
    if sizes is None:
        return None
    axes = axes_of(node) if node.op_type != "Reshape" else None
    if node.op_type == "Unsqueeze" and axes == (1,):
        return [sizes[0], 1, *sizes[1:]]
    if node.op_type == "Squeeze" and axes == (1,) and sizes[1] == 1:
        return [sizes[0], *sizes[2:]]
    return _reshaped(node, sizes) if node.op_type == "Reshape" else None


def _reshaped(node: onnx_ir.Node, sizes: Sizes) -> Sizes | None:
    target = array_of(node.inputs[1])
    if target is None or target.ndim != 1 or len(target) < 2 or not all(isinstance(size, int) for size in sizes[1:]):
        return None
    of_one = [int(size) for size in sizes[1:]]
    first, *new = (int(size) for size in target)
    if 0 in (first, *new) and flag_of(node, "allowzero"):
        return None
    if any(size == 0 and index >= len(of_one) for index, size in enumerate(new)):
        return None
    new = [of_one[index] if size == 0 else size for index, size in enumerate(new)]
    if new.count(-1) == 1 and first != -1:
        known = -math.prod(new)
        new = [math.prod(of_one) // max(1, known) if size == -1 else size for size in new]
    same = min(new) > 0 and math.prod(new) == math.prod(of_one)
    return [sizes[0], *new] if same and first in (0, -1, sizes[0]) else None


def _padded(node: onnx_ir.Node, sizes: Sizes | None) -> tuple[int, int] | None:
    """Zeros before and behind the channels of (N, 1, C, H, W); None for any other padding."""
    if sizes is None or len(sizes) != 5 or sizes[1] != 1:
        return None
    if node.op_type == "AveragePool":
        sides = [0, *(node.attributes.get_ints("pads") or [0] * 6)]
        sides = [0, *sides[:4], 0, *sides[4:]]
        if any(sides) and not flag_of(node, "count_include_pad"):
            return None
    else:
        found = _zeros_of(node)
        if found is None or len(found) != 10:
            return None
        sides = found
    other = [side for index, side in enumerate(sides) if index % 5 != _CHANNELS]
    return None if any(other) or min(sides) < 0 else (sides[_CHANNELS], sides[5 + _CHANNELS])


def _zeros_of(node: onnx_ir.Node) -> list[int] | None:
    """The paddings of a Pad with zeros: attributes before opset 11, inputs since."""
    value: float = node.attributes.get_float("value", 0.0)
    if node.attributes.get_string("mode", "constant") != "constant" or value != 0.0:
        return None
    if "pads" in node.attributes:
        return list(node.attributes["pads"].as_ints())
    array = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    filler = node.inputs[2] if len(node.inputs) > 2 else None
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if array is None or axes is not None or (filler is not None and _number(filler) != 0.0):
        return None
    return [int(side) for side in array]


def _averaged(node: onnx_ir.Node) -> int | None:
    """Channels in the window of a pooling, 0 of a Pad; None for any other window."""
    if node.op_type == "Pad":
        return 0
    kernel = list(node.attributes.get_ints("kernel_shape") or ())
    strides = list(node.attributes.get_ints("strides") or ())
    dilations = list(node.attributes.get_ints("dilations") or ())
    plain = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if not plain or any(step != 1 for step in (*strides, *dilations)) or len(kernel) != 3 or kernel[1:] != [1, 1]:
        return None
    return int(kernel[0])
