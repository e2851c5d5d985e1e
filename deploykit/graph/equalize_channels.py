"""Cross-layer equalisation: channels of about the same range between two layers, so that one step serves them all.

Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.weight_rows import groups_of, quantizable_product, weights_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["equalize_channels"]

_ROUNDS = 8  # a layer in the middle of a chain belongs to two pairs
_MOST = 1e3  # a channel is scaled by no more, either way
_BETWEEN = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool"})  # f(s·x) = s·f(x) for s > 0, by channel


def equalize_channels(model: onnx_ir.Model) -> int:
    """Divides each output channel of a convolution by s and multiplies what reads it by s; changes ``model``.

    1. A pair is two convolutions with nothing but Relu and pooling between them, and no other reader on the way.
    2. s = √(r₁ / r₂), r₁ being the largest weight of the channel in the first, r₂ in the second: both become √(r₁·r₂).
       A channel without weights on one side keeps its own.
    3. Repeated, as a layer's outputs and inputs are equalised in turn.

    Returns:
        Number of pairs.
    """
    pairs = list(_pairs(model))
    arrays = {id(node): weights_of(node).astype(np.float64) for pair in pairs for node in pair}
    biases = {id(first): _bias(first) for first, _ in pairs}
    for _ in range(_ROUNDS):
        for first, second in pairs:
            scale = _scale(first, second, arrays)
            arrays[id(first)] /= scale.reshape(-1, *[1] * (arrays[id(first)].ndim - 1))
            if (bias := biases[id(first)]) is not None:
                bias /= scale
            arrays[id(second)] *= _of_inputs(second, scale, arrays[id(second)])
    for node in {id(node): node for pair in pairs for node in pair}.values():
        _store(node, 1, arrays[id(node)])
    for first, _ in pairs:
        if (bias := biases[id(first)]) is not None:
            _store(first, 2, bias)
    return len(pairs)


def _pairs(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Node, onnx_ir.Node]]:
    for node in model.graph:
        if not _own_weights(node):
            continue
        reader = _only_reader(node.outputs[0])
        while reader is not None and reader.op_type in _BETWEEN and not reader.domain:
            reader = _only_reader(reader.outputs[0])
        if reader is not None and _own_weights(reader):
            yield node, reader


def _own_weights(node: onnx_ir.Node) -> bool:
    """A convolution whose weights and bias no other operator reads."""
    if node.op_type != "Conv" or not quantizable_product(node):
        return False
    return all(value is None or len(value.uses()) == 1 for value in node.inputs[1:])


def _only_reader(value: onnx_ir.Value) -> onnx_ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def _scale(first: onnx_ir.Node, second: onnx_ir.Node, arrays: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    one, two = arrays[id(first)], arrays[id(second)]
    ahead = np.abs(one).reshape(len(one), -1).max(axis=1)
    behind = _input_ranges(second, two)
    known = (ahead > 0) & (behind > 0)
    scale = np.sqrt(np.divide(ahead, behind, out=np.ones_like(ahead), where=known))
    bounded: NDArray[np.float64] = np.clip(scale, 1 / _MOST, _MOST)
    return bounded


def _input_ranges(node: onnx_ir.Node, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(inputs,): the largest weight that reads each channel."""
    grouped = np.abs(weights).reshape(groups_of(node), -1, weights.shape[1], int(np.prod(weights.shape[2:])))
    ranges: NDArray[np.float64] = grouped.max(axis=(1, 3)).reshape(-1)
    return ranges


def _of_inputs(node: onnx_ir.Node, scale: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each weight is multiplied with, in a shape that broadcasts over the weights."""
    groups = groups_of(node)
    by_group = np.repeat(scale.reshape(groups, -1), len(weights) // groups, axis=0)
    return by_group.reshape(*by_group.shape, *[1] * (weights.ndim - 2))


def _bias(node: onnx_ir.Node) -> NDArray[np.float64] | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return None if value is None or value.const_value is None else value.const_value.numpy().astype(np.float64)


def _store(node: onnx_ir.Node, index: int, array: NDArray[np.float64]) -> None:
    import onnx_ir as ir

    value = node.inputs[index]
    if value is None:
        raise AssertionError(f"{node.name} has no input {index}")
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
