"""Fully connected layers with 4-bit weights: Gemm and MatMul become ONNX Runtime's MatMulNBits.

Each block of neighbouring weights of a row has a step of its own, so a layer takes half a byte a weight and a float a
block. The operator stands in the domain com.microsoft; other runtimes do not have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["BLOCK_SIZE", "BlockWeights", "insert_block_matrices", "packed_nibbles"]

BLOCK_SIZE = 64
"""Weights that share a step: 32 would take VGG-16 beyond 85 MB, 128 rounds coarser."""

_ZERO = 8  # where 0 lies in a nibble when no zero points are given (ONNX Runtime, ContribOperators.md)
_INT8_INPUT = 4  # accuracy_level: the input is rounded to int8, block by block, within the operator


@dataclass(frozen=True)
class BlockWeights:
    """A matrix in 4 bits.

    Attributes:
        integers: (channels, K), from −8 to 7.
        steps: (channels, ⌈K / BLOCK_SIZE⌉).
        bias: One a channel, or None.
    """

    integers: NDArray[np.int8]
    steps: NDArray[np.float32]
    bias: NDArray[np.float32] | None


def packed_nibbles(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(channels, blocks, BLOCK_SIZE / 2): two weights a byte, the first in the lower half; what is missing is zero."""
    channels, width = integers.shape
    blocks = -(-width // BLOCK_SIZE)
    levels = np.full((channels, blocks * BLOCK_SIZE), _ZERO, np.uint8)
    levels[:, :width] = (integers + _ZERO).astype(np.uint8)
    packed: NDArray[np.uint8] = levels[:, 0::2] | levels[:, 1::2] << 4
    return packed.reshape(channels, blocks, BLOCK_SIZE // 2)


def insert_block_matrices(model: onnx_ir.Model, weights: dict[str, BlockWeights]) -> None:
    """Replaces the layers named in ``weights``; changes ``model``. They read matrices, (N, K)."""
    for node in [node for node in model.graph if node.name in weights]:
        _replace(model.graph, node, weights[str(node.name)])
    model.graph.opset_imports["com.microsoft"] = 1


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node, given: BlockWeights) -> None:
    import onnx_ir as ir

    def stored(kind: str, array: NDArray[np.generic]) -> onnx_ir.Value:
        name = f"{node.name}_{kind}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
        return value

    channels, width = given.integers.shape
    inputs = [node.inputs[0], stored("nibbles", packed_nibbles(given.integers)), stored("steps", given.steps)]
    if given.bias is not None:
        inputs += [None, None, stored("bias", given.bias)]
    numbers = {"K": width, "N": channels, "bits": 4, "block_size": BLOCK_SIZE, "accuracy_level": _INT8_INPUT}
    made = ir.node("MatMulNBits", inputs, numbers, domain="com.microsoft", name=node.name)
    before, after = node.outputs[0], made.outputs[0]
    after.shape, after.type, name = before.shape, before.type, before.name
    graph.insert_after(node, made)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    read = [value for value in node.inputs[1:] if value is not None]
    graph.remove(node, safe=True)
    after.name = name
    for value in read:
        if value.is_initializer() and not value.uses():
            graph.initializers.pop(str(value.name), None)
