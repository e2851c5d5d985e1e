"""A factor and a summand a channel, moved into the layer that writes or reads the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import array_of, flag_of, float_arrays, same_kind, set_weight

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Numbers", "channels_of", "folded_before", "folded_behind", "store_layer"]

Numbers = NDArray[np.float64]
_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def channels_of(node: onnx_ir.Node) -> tuple[int, int] | None:
    """Number of channels that a layer with stored weights writes on axis 1, and the rank of what it writes."""
    weight = array_of(node.inputs[1]) if not node.domain and node.op_type in _LAYERS else None
    if weight is None or weight.ndim < 2:
        return None
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1] * node.attributes.get_int("group", 1)), weight.ndim
    return int(weight.shape[0 if node.op_type == "Conv" or flag_of(node, "transB") else 1]), weight.ndim


def folded_behind(node: onnx_ir.Node, factor: Numbers, summand: Numbers) -> tuple[Numbers, Numbers] | None:
    """Weight and bias of a layer that does both to what it writes; None where its own are not stored."""
    if node.domain or node.op_type not in _LAYERS:
        return None
    weights = float_arrays(node.inputs[1:2])
    bias = _bias_of(node, len(factor))
    if weights is None or bias is None:
        return None
    scaled = _scaled(node, weights[0], factor)
    return None if scaled is None else (scaled, bias * factor + summand)


def _scaled(node: onnx_ir.Node, weight: Numbers, factor: Numbers) -> Numbers | None:
    """The weights with each output channel times its factor."""
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":  # (out, in/groups, …)
        fits, shape = weight.shape[0] == len(factor), (-1, *[1] * (weight.ndim - 1))
    elif node.op_type == "Gemm":  # (in, out), or (out, in)
        turned = flag_of(node, "transB")
        fits, shape = weight.shape[0 if turned else 1] == len(factor), (-1, 1) if turned else (1, -1)
    else:  # (in, out/groups, …): the factors of a group stand at its input channels
        fits = weight.shape[1] * groups == len(factor) and weight.shape[0] % groups == 0
        if fits:
            each = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # (in, out/groups)
            return np.asarray(weight * each.reshape(*each.shape, *[1] * (weight.ndim - 2)))
        return None
    return np.asarray(weight * factor.reshape(shape)) if fits else None


def _bias_of(node: onnx_ir.Node, channels: int) -> Numbers | None:
    """(C,): zeros where there is none, Gemm's times its beta; None for one that is computed or is a whole matrix."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels)
    arrays = float_arrays(node.inputs[2:3])
    if arrays is None or not (arrays[0].size == 1 or arrays[0].shape in ((channels,), (1, channels))):
        return None
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.array(np.broadcast_to(arrays[0].reshape(-1), channels)) * beta


def folded_before(node: onnx_ir.Node, factor: Numbers, summand: Numbers) -> tuple[Numbers, Numbers] | None:
    """Weight and bias of a convolution without padding that does both to what it reads."""
    weights = float_arrays(node.inputs[1:2])
    padded = any(node.attributes["pads"].as_ints()) if "pads" in node.attributes else False
    if weights is None or padded or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    weight, groups = weights[0], node.attributes.get_int("group", 1)  # (out, in/groups, …)
    bias = _bias_of(node, weight.shape[0])
    if bias is None or weight.shape[1] * groups != len(factor) or weight.shape[0] % groups:
        return None
    shape = (weight.shape[0], -1, *[1] * (weight.ndim - 2))
    factors, summands = (
        np.repeat(array.reshape(groups, -1), weight.shape[0] // groups, axis=0).reshape(shape)
        for array in (factor, summand)
    )
    return weight * factors, bias + (weight * summands).sum(axis=tuple(range(1, weight.ndim)))


def store_layer(model: onnx_ir.Model, node: onnx_ir.Node, weight: Numbers, bias: Numbers) -> bool:
    """Gives a layer both, in the type of its old weight; False where that cannot hold them."""
    stored = array_of(node.inputs[1])
    if stored is None:
        return False
    cast = [same_kind(array, stored.dtype) for array in (weight, bias)]
    if cast[0] is None or cast[1] is None:
        return False
    near = str(node.inputs[1].name)  # type: ignore[union-attr]
    set_weight(model, node, 1, cast[0], near)
    set_weight(model, node, 2, cast[1], f"{near}.bias")
    if node.op_type == "Gemm":
        node.attributes.pop("beta", None)
    return True
