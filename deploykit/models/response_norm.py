"""Local response normalisation, as AlexNet defines it, exported as ONNX's one operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploykit.errors import InputError

__all__ = ["LocalResponseNorm"]


class LocalResponseNorm(nn.Module):
    """``b_i = a_i / (k + alpha * sum(a_j² for the n channels around i)) ** beta``; alpha is not divided by n.

    Krizhevsky et al. 2012, section 3.3, with its four numbers. PyTorch's ``LocalResponseNorm`` and ONNX's ``LRN``
    divide alpha by the size, so theirs is ours times n. TensorFlow's parameters are ``n = 2 * depth_radius + 1`` and
    ``k = bias``.

    Raises: InputError for an even n, whose channels PyTorch and ONNX choose differently.
    """

    def __init__(self, n: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        if n < 1 or n % 2 == 0:
            raise InputError(f"response normalisation over {n} channels; allowed: an odd number of 1 or more")
        self.n, self.alpha, self.beta, self.k = n, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to the same."""
        if torch.onnx.is_in_onnx_export():  # otherwise a chain of a dozen operators would be written
            return self._operator(x)
        # Slices added up take a third of the time of torch's three-dimensional pooling, and their gradient is the same
        # in every run on a GPU too. In half precision the squares would overflow and k swallow the sum, hence float.
        channels, reach = x.shape[1], self.n // 2
        wide = x if x.dtype == torch.float64 else x.float()
        squares = F.pad(wide.square(), (0, 0, 0, 0, reach, reach))
        total = squares[:, :channels]
        for start in range(1, self.n):
            total = total + squares[:, start : start + channels]
        return (wide * (self.k + self.alpha * total).pow(-self.beta)).to(x.dtype)

    def _operator(self, x: Tensor) -> Tensor:
        normed: Tensor = torch.onnx.ops.symbolic(
            "LRN",
            (x,),
            {"alpha": self.alpha * self.n, "beta": self.beta, "bias": self.k, "size": self.n},
            dtype=x.dtype,
            shape=x.shape,
            version=13,
        )
        return normed

    def extra_repr(self) -> str:
        """The four numbers."""
        return f"n={self.n}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
