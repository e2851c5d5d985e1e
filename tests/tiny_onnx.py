"""Small ONNX models built in code, for the rooms that run models."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_graph(path, nodes, inputs, outputs, weights=(), *, opset=17, metadata=None):
    """Writes a model; ``inputs`` and ``outputs`` are ``(name, type, shape)``."""
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "tiny", *ends, list(weights))
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return Path(path)


def conv_chain(path, layers=2, *, channels=16, size=24, batch="N", metadata=None):
    """``layers`` convolutions of 3×3 over ``batch × channels × size × size``: work grows with ``layers``."""
    generator = np.random.default_rng(0)
    scale = 1.0 / np.sqrt(9 * channels)  # keeps the activations near 1, so that no denormals slow it down
    weights, nodes, last = [], [], "x"
    for layer in range(layers):
        values = generator.standard_normal((channels, channels, 3, 3)) * scale
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
        last = f"y{layer}"
    shape = [batch, channels, size, size]
    ends = ([("x", TensorProto.FLOAT, shape)], [(last, TensorProto.FLOAT, shape)])
    return save_graph(path, nodes, *ends, weights, metadata=metadata)


def relu(path, *, dtype=TensorProto.FLOAT, shape=("N", 3)):
    """One Relu."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return save_graph(path, [node], [("x", dtype, shape)], [("y", dtype, shape)])


def matmul(path, rows, columns, *, batch="N"):
    """One matrix product; the weight takes ``4 × rows × columns`` bytes."""
    weight = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = ([("x", TensorProto.FLOAT, [batch, rows])], [("y", TensorProto.FLOAT, [batch, columns])])
    return save_graph(path, [node], *ends, [numpy_helper.from_array(weight, "w")])


def endless_loop(path):
    """A loop of 2**62 rounds: loads at once and never answers."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    weights = [
        numpy_helper.from_array(np.array(1 << 62, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "always"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
    ]
    node = helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)
    ends = ([("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    return save_graph(path, [node], *ends, weights)


def classifier(path, *, width=64, layers=3, classes=9, apart=1.0, metadata=None):
    """A classifier of RGB pictures of 28×28 with random weights: ``layers`` convolutions, an average, one matrix.

    The smaller ``apart``, the less the weights of one class differ from those of another.
    """
    generator = np.random.default_rng(0)
    weights, nodes, last, channels = [], [], "x", 3
    for layer in range(layers):
        values = generator.standard_normal((width, channels, 3, 3)) * np.sqrt(2.0 / (9 * channels))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last, channels = f"r{layer}", width
    head = generator.standard_normal((width, 1)) + apart * generator.standard_normal((width, classes))
    weights.append(numpy_helper.from_array(head.astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes += [helper.make_node("Flatten", ["pooled"], ["flat"]), helper.make_node("MatMul", ["flat", "head"], ["y"])]
    preprocess = {"layout": "NCHW", "size": [28, 28], "channels": "RGB", "scale": 1 / 255, "dtype": "float32"}
    preprocess |= {"resize": None, "crop": None, "mean": [0.5] * 3, "std": [0.25] * 3}
    ends = ([("x", TensorProto.FLOAT, ["N", 3, 28, 28])], [("y", TensorProto.FLOAT, ["N", classes])])
    told = {"deploykit.preprocess": json.dumps(preprocess), **(metadata or {})}
    return save_graph(path, nodes, *ends, weights, metadata=told)
