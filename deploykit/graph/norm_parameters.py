"""What a BatchNormalization does in inference: a factor and a summand a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import flag_of, float_arrays

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["factor_and_summand"]

_EPSILON = 1e-5  # the operator's default


def factor_and_summand(norm: onnx_ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(C,) and (C,) in float64, with ``y = factor * x + summand``.

    Ioffe and Szegedy 2015, algorithm 2, step 11. None where the node trains, or its numbers are not stored.
    """
    if flag_of(norm, "training_mode") or not norm.attributes.get_int("spatial", 1):
        return None
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return None  # running statistics, which only training has
    arrays = float_arrays(norm.inputs[1:5])
    if arrays is None or len(arrays) < 4 or any(array.shape != arrays[0].shape for array in arrays):
        return None
    scale, bias, mean, variance = arrays
    if variance.ndim != 1 or (variance < 0).any():
        return None
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", _EPSILON))
    return factor, bias - factor * mean
