"""BatchNormalization folded into the layer beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import (
    array_of,
    bypass,
    flag_of,
    float_arrays,
    nodes_of_model,
    only_reader,
    same_kind,
    set_weight,
)
from deploykit.graph.norm_parameters import factor_and_summand

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["fold_batch_norm"]

Numbers = NDArray[np.float64]


def fold_batch_norm(model: onnx_ir.Model) -> int:
    """Folds BatchNormalization into a neighbour, computed in float64; returns how many.

    1. Behind ``Conv``, ``ConvTranspose`` or ``Gemm`` that nothing else reads: the layer's weights take the factor, its
       bias factor and summand.
    2. Before a ``Conv`` without padding that alone reads it: the weights take the factor of their input channel, the
       bias their sum with the summand. With padding the zeros would have to be normalised too.

    A weight that several layers share is copied for the one that changes.
    """
    return sum(_fold(model, node) for node in nodes_of_model(model, "BatchNormalization"))


def _fold(model: onnx_ir.Model, norm: onnx_ir.Node) -> bool:
    numbers = factor_and_summand(norm)
    if numbers is None or norm.inputs[0] is None:
        return False
    before = norm.inputs[0].producer()
    if before is not None and only_reader(norm.inputs[0]) is norm and before.graph is norm.graph:
        behind = _folded_behind(before, *numbers)
        if behind is not None and _store(model, before, *behind):
            return bypass(norm)
    after = only_reader(norm.outputs[0])
    if (
        after is not None
        and after.op_type == "Conv"
        and after.graph is norm.graph
        and after.inputs[0] is norm.outputs[0]
    ):
        ahead = _folded_before(after, *numbers)
        if ahead is not None and _store(model, after, *ahead):
            return bypass(norm)
    return False


def _folded_behind(node: onnx_ir.Node, factor: Numbers, summand: Numbers) -> tuple[Numbers, Numbers] | None:
    """Rule 1: the new weight and bias."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
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


def _folded_before(node: onnx_ir.Node, factor: Numbers, summand: Numbers) -> tuple[Numbers, Numbers] | None:
    """Rule 2: the new weight and bias."""
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


def _store(model: onnx_ir.Model, node: onnx_ir.Node, weight: Numbers, bias: Numbers) -> bool:
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
