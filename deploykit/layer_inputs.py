"""What layers are fed by real samples, summed up as learned rounding needs it: Σ x·xᵀ of what a row is multiplied with.

One picture feeds a convolution thousands of windows that are much alike; a few dozen of them, spread over the picture,
stand for all. A row that is longer than a block is taken as blocks that do not know of each other, which bounds the
matrices: VGG's first fully connected layer would have one of 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.weight_rows import groups_of, weights_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["BLOCK", "Feed", "LayerGram", "feed_of", "grams_in_passes"]

BLOCK = 2304
"""Columns of a block: 256 channels of 3×3."""

_WINDOWS = 64  # of a picture
_PASS_BYTES = 384 << 20  # of matrices that are summed up at a time


@dataclass(frozen=True)
class Feed:
    """How a layer reads its input.

    Attributes:
        layer: Its name.
        tensor: Name of its input.
        groups: Of a convolution.
        width: K, the length of a row.
        window: Kernel, strides, dilations and paddings (before each axis, then after); None for a matrix.
    """

    layer: str
    tensor: str
    groups: int
    width: int
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None

    @property
    def gram_bytes(self) -> int:
        """Of the layer's matrices, in float32."""
        return sum(4 * self.groups * (end - start) ** 2 for start, end in self.blocks)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First column and the one after the last of each block."""
        return [(start, min(start + BLOCK, self.width)) for start in range(0, self.width, BLOCK)]

    def rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(groups, samples, K): what the rows of each group are multiplied with."""
        if self.window is None:
            return values.reshape(1, -1, self.width)
        return self._windows(values, *self.window)

    def _windows(
        self,
        values: NDArray[np.float32],
        kernel: tuple[int, ...],
        strides: tuple[int, ...],
        dilations: tuple[int, ...],
        pads: tuple[int, ...],
    ) -> NDArray[np.float32]:
        top, left, bottom, right = pads
        values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        batch, channels, height, width = values.shape
        reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        tops = np.arange(0, height - reach[0] + 1, strides[0])
        lefts = np.arange(0, width - reach[1] + 1, strides[1])
        chosen = np.unique(np.linspace(0, len(tops) * len(lefts) - 1, _WINDOWS).astype(int))
        row, column = tops[chosen // len(lefts)], lefts[chosen % len(lefts)]
        down = row[:, None, None] + np.arange(kernel[0])[None, :, None] * dilations[0]
        across = column[:, None, None] + np.arange(kernel[1])[None, None, :] * dilations[1]
        taken = values[:, :, down, across].reshape(batch, self.groups, channels // self.groups, len(chosen), -1)
        return taken.transpose(1, 0, 3, 4, 2).reshape(self.groups, batch * len(chosen), self.width)


def feed_of(node: onnx_ir.Node) -> Feed | None:
    """How this layer reads; None for sequences, and where paddings are not numbers in the graph."""
    weights, tensor = weights_of(node), str(node.inputs[0].name)  # type: ignore[union-attr]
    if node.op_type != "Conv":
        axis = 1 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else 0
        return Feed(str(node.name), tensor, 1, weights.shape[axis], None)
    kernel = tuple(weights.shape[2:])
    if len(kernel) != 2 or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    ones, zeros = (1,) * len(kernel), (0,) * 2 * len(kernel)
    strides, dilations = node.attributes.get_ints("strides", ones), node.attributes.get_ints("dilations", ones)
    window = (kernel, tuple(strides), tuple(dilations), tuple(node.attributes.get_ints("pads", zeros)))
    return Feed(str(node.name), tensor, groups_of(node), int(np.prod(weights.shape[1:])), window)


@dataclass
class LayerGram:
    """Σ x·xᵀ and Σ x of one layer.

    Attributes:
        feed: How the layer reads.
        blocks: (groups, k, k) of each of ``feed.blocks``.
        total: (groups, K), Σ x.
        count: How many x.
    """

    feed: Feed
    blocks: list[NDArray[np.float32]]
    total: NDArray[np.float64]
    count: int = 0

    @classmethod
    def empty(cls, feed: Feed) -> LayerGram:
        """Of no samples."""
        sizes = [end - start for start, end in feed.blocks]
        blocks = [np.zeros((feed.groups, size, size), np.float32) for size in sizes]
        return cls(feed, blocks, np.zeros((feed.groups, feed.width)))

    def add(self, values: NDArray[np.float32]) -> None:
        """Takes in a batch of the layer's input, as the model has it."""
        rows = self.feed.rows(values)
        for (start, end), block in zip(self.feed.blocks, self.blocks, strict=True):
            part = rows[:, :, start:end]
            block += np.matmul(part.transpose(0, 2, 1), part)
        self.total += rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]


def grams_in_passes(
    feeds: Sequence[Feed], run: Any, batches: Any, *, pass_bytes: int = _PASS_BYTES
) -> Iterator[dict[str, LayerGram]]:
    """Layers by their names, as many at a time as the bound allows; each time the samples are read anew.

    Args:
        feeds: The layers.
        run: ``run(tensors)`` gives a function from a batch of inputs to these tensors by name.
        batches: ``batches()`` gives the samples, batch by batch.
        pass_bytes: Bound on the matrices of one pass; one layer alone may be beyond.
    """
    for group in _passes(feeds, pass_bytes):
        grams = {feed.layer: LayerGram.empty(feed) for feed in group}
        session = run(sorted({feed.tensor for feed in group}))
        for batch in batches():
            _take_in(grams.values(), session(batch))
        yield grams


def _take_in(grams: Iterable[LayerGram], tensors: Mapping[str, NDArray[np.float32]]) -> None:
    for gram in grams:
        gram.add(tensors[gram.feed.tensor])


def _passes(feeds: Sequence[Feed], bound: int) -> Iterator[list[Feed]]:
    group: list[Feed] = []
    for feed in feeds:
        if group and sum(item.gram_bytes for item in (*group, feed)) > bound:
            yield group
            group = []
        group.append(feed)
    if group:
        yield group
