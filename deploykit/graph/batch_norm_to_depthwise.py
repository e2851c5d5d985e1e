"""BatchNormalization as a convolution, for which every runtime has integer kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import array_of, constant, nodes_of_model, operator, rank_of, replace_node, same_kind
from deploykit.graph.norm_parameters import factor_and_summand

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["batch_norm_to_depthwise"]


def batch_norm_to_depthwise(model: onnx_ir.Model) -> int:
    """Turns BatchNormalization of pictures (N, C, H, W) into 1×1 depthwise convolutions; returns how many.

    1. ``y = factor * x + summand`` a channel is a convolution with C groups, weights (C, 1, 1, 1) and a bias (C,).

    It is for those that ``fold_batch_norm`` leaves: behind Concat, where no convolution writes the channels, and before
    a Relu. DenseNet has both (Huang et al. 2017, section 3): there nothing reads the norm but the Relu before the
    convolution, so the norm cannot move into that either.
    """
    return sum(_convert(model, node) for node in nodes_of_model(model, "BatchNormalization"))


def _convert(model: onnx_ir.Model, norm: onnx_ir.Node) -> bool:
    numbers, scale = factor_and_summand(norm), array_of(norm.inputs[1])
    if numbers is None or scale is None or rank_of(norm.inputs[0]) != 4:
        return False
    weight, bias = (same_kind(array, scale.dtype) for array in numbers)
    if weight is None or bias is None:
        return False
    near = str(norm.outputs[0].name)
    stored = [
        constant(model, np.reshape(weight, (-1, 1, 1, 1)), f"{near}.weight"),
        constant(model, bias, f"{near}.bias"),
    ]
    attributes = {"group": len(weight), "kernel_shape": [1, 1]}
    replace_node(norm, operator("Conv", [norm.inputs[0], *stored], attributes, name=norm.name))
    return True
