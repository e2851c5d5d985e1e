"""Rewrites are compared with ONNX Runtime's unoptimised session of the model before, and with numpy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import UnknownNameError
from deploykit.graph.rewrites import REWRITES, rewrite_model

FLOAT = TensorProto.FLOAT


def build(nodes, inputs, outputs, weights=None, *, opset=20, ir_version=10, domains=()):
    """A model; ``inputs`` and ``outputs`` are shapes by name, ``weights`` arrays by name."""
    ends = [
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    graph = helper.make_graph(nodes, "g", *ends, stored)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports)


def answers(model, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def rewritten(model, *, batch=3, seed=1, atol=1e-5, **which):
    """The rewritten model and what was changed, after both have answered alike; the model given has not changed."""
    before = model.SerializeToString(deterministic=True)
    made, counts = rewrite_model(model, **which)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made, full_check=True)
    assert [*made.graph.input] == [v for v in model.graph.input if v.name in {i.name for i in made.graph.input}]
    assert [*made.graph.output] == [*model.graph.output]
    generator = np.random.default_rng(seed)
    feeds = {
        value.name: generator.standard_normal([d.dim_value or batch for d in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in made.graph.input
    }
    for wanted, got in zip(answers(model, feeds), answers(made, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=atol)
        assert got.dtype == wanted.dtype
    return made, {name: count for name, count in counts.items() if count}


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def norm_weights(channels, seed=0, prefix=""):
    """Scale, bias, mean and variance of a BatchNormalization that has lived."""
    generator = np.random.default_rng(seed)
    numbers = generator.uniform(0.5, 2.0, (4, channels)).astype(np.float32)
    numbers[1:3] -= 1.2
    return {f"{prefix}{name}": row for name, row in zip(("scale", "shift", "mean", "var"), numbers, strict=True)}


def norm(source, target, prefix="", **attributes):
    names = [f"{prefix}{name}" for name in ("scale", "shift", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *names], [target], **attributes)


def normal(*shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_norm_behind_a_convolution_is_folded(op_type, bias, groups):
    shape = (6, 4 // groups, 3, 3) if op_type == "Conv" else (4, 6 // groups, 3, 3)
    weights = {"w": normal(*shape), **norm_weights(6)} | ({"b": normal(6)} if bias else {})
    layer = helper.make_node(op_type, ["x", "w", *(["b"] if bias else [])], ["c"], group=groups, pads=[1, 1, 1, 1])
    model = build([layer, norm("c", "y", epsilon=0.01)], {"x": ["N", 4, 5, 5]}, {"y": ["N", 6, 5, 5]}, weights)
    made, counts = rewritten(model)
    assert operators(made) == {op_type: 1}
    assert counts == {"fold_batch_norm": 1}


def test_unknown_names_are_refused():
    model = build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N"]}, {"y": ["N"]})
    with pytest.raises(UnknownNameError, match="did you mean 'global_pool'"):
        rewrite_model(model, without=["global_pol"])
    with pytest.raises(UnknownNameError):
        rewrite_model(model, only=["nothing"])
    assert all(name == rewrite.name and rewrite.rule for name, rewrite in REWRITES.items())
