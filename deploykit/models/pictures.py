"""What the networks for photos share: the check of their input, and pooling to a fixed size."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from deploykit.errors import InputError

__all__ = ["FitPool", "PictureNetwork", "TrainingLogits"]


class TrainingLogits(NamedTuple):
    """What a network with auxiliary heads gives in training mode; in evaluation mode it gives the logits alone.

    Attributes:
        logits: N×classes.
        auxiliary: Each N×classes; their losses are added with the module's ``auxiliary_weight``.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


class PictureNetwork(nn.Module):
    """A network that takes N×C×H×W of any H and W from ``smallest`` on.

    Attributes:
        in_channels: C.
        smallest: Pixels of the shortest side at which every layer still gives one pixel.
        auxiliary_weight: Of the losses of heads that only train (Szegedy et al. 2015, section 5).
    """

    auxiliary_weight: ClassVar[float] = 0.3

    def __init__(self, in_channels: int, smallest: int) -> None:
        super().__init__()
        self.in_channels, self.smallest = in_channels, smallest

    def check(self, x: Tensor) -> None:
        """Raises: InputError when ``x`` has other channels, or is smaller than the strides allow."""
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            shape = "×".join(str(side) for side in x.shape)
            raise InputError(f"{name} received an input of {shape}; allowed: N×{self.in_channels}×H×W")
        height, width = x.shape[2:]
        if min(height, width) < self.smallest:
            raise InputError(
                f"{name} received pictures of {height}×{width}; allowed: {self.smallest}×{self.smallest} or more"
            )


class FitPool(nn.Module):
    """Average pooling to ``size``×``size``: the identity at the paper's input size, adaptive pooling at others.

    Adaptive average pooling is linear along each axis. Where the windows differ in size it is written as two matrix
    products, which ONNX can say; torch's own operator has no ONNX form there.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×C×size×size."""
        height, width = x.shape[2:]
        if (height, width) == (self.size, self.size):
            return x
        if height % self.size == 0 and width % self.size == 0:
            return F.avg_pool2d(x, (height // self.size, width // self.size))
        rows, columns = (x.new_tensor(_shares(self.size, length)) for length in (height, width))
        return rows @ x @ columns.T

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        """None: pooling multiplies nothing."""
        return 0, 0


@cache
def _shares(bins: int, length: int) -> list[list[float]]:
    """bins×length: each row averages the pixels of one bin, from floor(i·L/n) to ceil((i+1)·L/n)."""
    rows = []
    for index in range(bins):
        start, stop = index * length // bins, -(-(index + 1) * length // bins)
        rows.append([1.0 / (stop - start) if start <= pixel < stop else 0.0 for pixel in range(length)])
    return rows
