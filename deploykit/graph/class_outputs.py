"""Answers that an app can show as they are: probabilities, and the best classes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import constant, operator

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["CLASS_OUTPUTS", "add_class_outputs"]

CLASS_OUTPUTS = ("probabilities", "top_probabilities", "top_indices")
"""Names of the outputs that are added, in their order behind the model's own."""


def add_class_outputs(model: onnx_ir.Model, count: int, *, distribution: bool) -> None:
    """Adds the outputs; changes ``model``. The first output stays the first, with its name.

    1. ``probabilities`` (N, classes), float32: the softmax of the first output, or itself where it is a distribution.
    2. ``top_probabilities`` (N, count), float32, falling, and ``top_indices`` (N, count), int64, the classes' numbers.

    Args:
        model: A classifier; its first output is (N, classes), or that with axes of 1 behind.
        count: How many of the best classes; at most as many as there are.
        distribution: Whether the first output's values are probabilities already.
    """
    import onnx_ir as ir

    answer = model.graph.outputs[0]
    nodes = []
    value = answer
    if answer.shape is None or len(answer.shape) != 2:
        nodes.append(operator("Flatten", [value], {"axis": 1}, name="picture.flat_answer"))
        value = nodes[-1].outputs[0]
    if answer.dtype not in (None, ir.DataType.FLOAT):
        nodes.append(operator("Cast", [value], {"to": ir.DataType.FLOAT.value}, name="picture.float_answer"))
        value = nodes[-1].outputs[0]
    op, attributes = ("Identity", {}) if distribution else ("Softmax", {"axis": 1})
    softmax = operator(op, [value], attributes, name="probabilities")
    places = constant(model, np.asarray([count], np.int64), "picture.top")
    top = ir.node(
        "TopK", [softmax.outputs[0], places], {"axis": 1, "largest": 1, "sorted": 1}, num_outputs=2, name="top"
    )
    for node in nodes:
        node.outputs[0].name = node.name
    made = (softmax.outputs[0], *top.outputs)
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT64)
    batch = answer.shape[0] if answer.shape is not None and len(answer.shape) else None
    classes = answer.shape[1] if answer.shape is not None and len(answer.shape) > 1 else None
    for value, name, kind, width in zip(made, CLASS_OUTPUTS, kinds, (classes, count, count), strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape([batch, width])
    model.graph.extend([*nodes, softmax, top])
    model.graph.outputs.extend(made)
