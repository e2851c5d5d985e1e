"""Average pooling in front of the 1×1 convolution that it follows: the same means, of which fewer are convolved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import array_of, constant, nodes_of_model, only_reader, operator, replace_node

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["pool_before_pointwise"]

_MOST_TAPS = 16  # a window for which a depthwise convolution is not slower than pooling


def pool_before_pointwise(model: onnx_ir.Model) -> int:
    """AveragePool(Conv(x)) → Conv(mean(x)) for 1×1 convolutions; returns how many.

    1. Both are linear and the convolution sees one position at a time, so their order does not matter; behind a stride
       of 2 × 2 the convolution has a quarter of the positions to compute. DenseNet's transitions are of this kind
       (Huang et al. 2017, section 3).
    2. The convolution: 1×1, strides 1, one group, no padding, read by the pooling alone, its weights stored.
    3. The pooling: strides that leave fewer positions, no padding and no rounding up, a window of 16 at most.
    4. The mean becomes a depthwise convolution whose weights are all 1 / window, which has fast kernels everywhere.
    """
    return sum(_convert(model, pool) for pool in nodes_of_model(model, "AveragePool"))


def _convert(model: onnx_ir.Model, pool: onnx_ir.Node) -> bool:
    source = pool.inputs[0]
    conv = None if source is None else source.producer()
    if source is None or conv is None or conv.domain or conv.op_type != "Conv" or only_reader(source) is not pool:
        return False
    weight = array_of(conv.inputs[1])
    if weight is None or not _is_pointwise(conv, weight.shape) or not _is_plain(pool):
        return False
    window, strides = pool.attributes.get_ints("kernel_shape"), pool.attributes.get_ints("strides")
    channels, stem = weight.shape[1], str(conv.outputs[0].name)
    mean = np.full((channels, 1, *window), 1 / math.prod(window), weight.dtype)
    attributes = {"group": channels, "kernel_shape": list(window), "strides": list(strides)}
    averaged = operator(
        "Conv", [conv.inputs[0], constant(model, mean, f"{stem}.mean")], attributes, name=f"{pool.name}_mean"
    )
    convolved = operator("Conv", [averaged.outputs[0], *conv.inputs[1:]], {"kernel_shape": [1, 1]}, name=conv.name)
    replace_node(pool, averaged, convolved)
    return True


def _is_pointwise(conv: onnx_ir.Node, shape: tuple[int, ...]) -> bool:
    read = conv.attributes
    return (
        len(shape) == 4
        and shape[2:] == (1, 1)
        and read.get_int("group", 1) == 1
        and not any(read.get_ints("pads", (0,)))
        and set(read.get_ints("strides", (1,))) == {1}
        and read.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _is_plain(pool: onnx_ir.Node) -> bool:
    read = pool.attributes
    window, strides = read.get_ints("kernel_shape", ()), read.get_ints("strides", ())
    return (
        len(window) == len(strides) == 2
        and math.prod(window) <= _MOST_TAPS
        and math.prod(strides) > 1
        and not any(read.get_ints("pads", (0,)))
        and not read.get_int("ceil_mode", 0)
        and set(read.get_ints("dilations", (1,))) == {1}
        and read.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
