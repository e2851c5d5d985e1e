"""The weights of a model's layers as integers, with biases that make good what rounding shifts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.block_matrices import BLOCK_SIZE, BlockWeights
from deploykit.graph.quantize_linear import RoundedWeights
from deploykit.graph.weight_rows import groups_of, to_rows, weights_from_rows, weights_of
from deploykit.layer_inputs import LayerGram
from deploykit.rounding import Grid, learned_rounding, mse_steps, nearest

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["block_layer", "learn_layers", "round_layer", "round_layers"]

_NIBBLE = Grid(7)
_ROWS = 64  # of a large matrix, in float64 at a time

Float = NDArray[np.float32]


def round_layers(
    nodes: Iterable[onnx_ir.Node], grid: Grid, means: Mapping[str, NDArray[np.floating]]
) -> dict[str, RoundedWeights]:
    """Nearest rounding with the steps of least squared error.

    Args:
        nodes: Layers of the float model.
        grid: Of their weights.
        means: Of tensors, a mean a channel; a layer whose input is not among them keeps its bias.
    """
    return {str(node.name): round_layer(node, grid, means.get(_read(node))) for node in nodes}


def round_layer(node: onnx_ir.Node, grid: Grid, mean: NDArray[np.floating] | None = None) -> RoundedWeights:
    """One layer; ``mean`` is of each channel of its input."""
    weights = weights_of(node)
    rows = to_rows(node, weights)
    steps = mse_steps(rows, grid)
    expected = None if mean is None else _row_means(node, mean, rows.shape[1])
    return _made(node, weights.shape, rows, nearest(rows, steps, grid), steps, expected)


def learn_layers(
    nodes: Iterable[onnx_ir.Node], grid: Grid, passes: Iterable[Mapping[str, LayerGram]]
) -> Iterator[tuple[str, RoundedWeights]]:
    """Rounding learned from what the layers are fed, each with its name.

    Args:
        nodes: Layers of the float model.
        grid: Of their weights.
        passes: What the layers are fed, a few layers at a time.
    """
    by_name = {str(node.name): node for node in nodes}
    for grams in passes:
        for name, gram in grams.items():
            yield name, _learned(by_name[name], grid, gram)


def _learned(node: onnx_ir.Node, grid: Grid, gram: LayerGram) -> RoundedWeights:
    weights = weights_of(node)
    rows = to_rows(node, weights)
    steps = mse_steps(rows, grid)
    integers = np.empty(rows.shape, np.int8)
    height = len(rows) // gram.feed.groups
    for group in range(gram.feed.groups):
        part = slice(group * height, (group + 1) * height)
        for (start, end), block in zip(gram.feed.blocks, gram.blocks, strict=True):
            integers[part, start:end] = learned_rounding(rows[part, start:end], steps[part], grid, block[group])
    expected = np.repeat(gram.total / max(gram.count, 1), height, axis=0)
    return _made(node, weights.shape, rows, integers, steps, expected)


def block_layer(node: onnx_ir.Node, gram: LayerGram | None = None) -> BlockWeights:
    """A matrix in 4 bits with a step for every block of a row, its rounding learned where ``gram`` tells its inputs."""
    rows = to_rows(node, weights_of(node))
    steps, bias = _block_steps(rows), _bias(node)
    integers, added = np.empty(rows.shape, np.int8), np.zeros(len(rows))
    columns = [(0, rows.shape[1])] if gram is None else gram.feed.blocks
    for place, (start, end) in enumerate(columns):
        part = rows[:, start:end]
        spread = np.repeat(steps[:, start // BLOCK_SIZE : -(-end // BLOCK_SIZE)], BLOCK_SIZE, axis=1)[:, : end - start]
        if gram is None:
            integers[:, start:end] = nearest(part, spread, _NIBBLE)
            continue
        integers[:, start:end] = learned_rounding(part, spread, _NIBBLE, gram.blocks[place][0])
        added += (integers[:, start:end] * spread - part) @ (gram.total[0, start:end] / max(gram.count, 1))
    if gram is not None:
        bias = ((0.0 if bias is None else bias) - added).astype(np.float32)
    return BlockWeights(integers, steps, bias)


def _block_steps(rows: Float) -> Float:
    """(channels, blocks), each as ``mse_steps`` chooses it."""
    channels, width = rows.shape
    blocks = -(-width // BLOCK_SIZE)
    padded = np.zeros((channels, blocks * BLOCK_SIZE), np.float32)
    padded[:, :width] = rows
    return mse_steps(padded.reshape(-1, BLOCK_SIZE), _NIBBLE).reshape(channels, blocks)


def _made(
    node: onnx_ir.Node,
    shape: tuple[int, ...],
    rows: Float,
    integers: NDArray[np.int8],
    steps: Float,
    expected: NDArray[np.floating] | None,
) -> RoundedWeights:
    """With the bias corrected by what the rounded weights add to the mean of each output (Nagel et al. 2019, 4.2)."""
    bias = _bias(node)
    if expected is not None and node.op_type != "MatMul":
        bias = ((0.0 if bias is None else bias) - _added(rows, integers, steps, expected)).astype(np.float32)
    return RoundedWeights(weights_from_rows(node, integers, shape), steps[:, 0], bias)


def _added(
    rows: Float, integers: NDArray[np.int8], steps: Float, expected: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(channels,): the mean of what rounding adds to each output, a few rows at a time."""
    added = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        mean = expected if len(expected) == 1 else expected[part]
        added[part] = ((integers[part] * steps[part] - rows[part]) * mean).sum(axis=1, dtype=np.float64)
    return added


def _bias(node: onnx_ir.Node) -> Float | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _read(node: onnx_ir.Node) -> str:
    return str(node.inputs[0].name)  # type: ignore[union-attr]


def _row_means(node: onnx_ir.Node, mean: NDArray[np.floating], width: int) -> NDArray[np.floating] | None:
    """(channels, K): the mean of what each weight is multiplied with; paddings are left out of the account."""
    groups, channels = groups_of(node), int(np.prod(weights_of(node).shape[:1]))
    if node.op_type != "Conv":
        return None if len(mean) != width else mean[None, :]
    inner = len(mean) // groups
    by_group = np.tile(mean.reshape(groups, inner), (1, width // inner))  # positions of the kernel, channels within
    return np.repeat(by_group, channels // groups, axis=0)
