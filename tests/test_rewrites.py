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


@pytest.mark.parametrize("turned", [0, 1])
def test_a_norm_behind_gemm_is_folded_with_alpha_and_beta(turned):
    weights = {"w": normal(*((5, 4) if turned else (4, 5))), "b": normal(1, 5), **norm_weights(5)}
    layer = helper.make_node("Gemm", ["x", "w", "b"], ["c"], transB=turned, alpha=0.5, beta=2.0)
    made, _ = rewritten(build([layer, norm("c", "y")], {"x": ["N", 4]}, {"y": ["N", 5]}, weights))
    assert operators(made) == {"Gemm": 1}


def test_a_weight_that_two_layers_share_changes_for_one_alone():
    weights = {"w": normal(4, 4, 1, 1), **norm_weights(4)}
    layers = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("c", "n"), helper.make_node("Conv", ["n", "w"], ["y"])]
    made, _ = rewritten(build(layers, {"x": ["N", 4, 3, 3]}, {"y": ["N", 4, 3, 3]}, weights))
    assert operators(made) == {"Conv": 2}
    assert len({node.input[1] for node in made.graph.node}) == 2


def test_what_others_read_is_not_folded_but_becomes_depthwise():
    """The convolution's own output is an answer too, so it must not take the norm's numbers."""
    weights = {"w": normal(4, 4, 1, 1), **norm_weights(4)}
    layers = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("c", "y")]
    shape = ["N", 4, 3, 3]
    made, counts = rewritten(build(layers, {"x": shape}, {"c": shape, "y": shape}, weights))
    assert counts == {"batch_norm_to_depthwise": 1}
    assert operators(made) == {"Conv": 2}


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_norm_before_a_convolution_folds_unless_zeros_are_added(pads):
    weights = {"w": normal(6, 2, 3, 3), "b": normal(6), **norm_weights(4)}
    layers = [norm("x", "n"), helper.make_node("Conv", ["n", "w", "b"], ["y"], pads=pads, group=2)]
    size = 3 + 2 * pads[0]
    made, counts = rewritten(build(layers, {"x": ["N", 4, 5, 5]}, {"y": ["N", 6, size, size]}, weights))
    assert operators(made) == ({"Conv": 2} if any(pads) else {"Conv": 1})
    assert counts == {"batch_norm_to_depthwise" if any(pads) else "fold_batch_norm": 1}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_norm_behind_concat_becomes_a_depthwise_convolution(dtype):
    weights = {name: array.astype(dtype) for name, array in norm_weights(6).items()}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cast = [helper.make_node("Cast", ["x"], ["h"], to=kind), helper.make_node("Relu", ["h"], ["r"])]
    join = [
        helper.make_node("Concat", ["h", "r"], ["c"], axis=1),
        norm("c", "n"),
        helper.make_node("Relu", ["n"], ["m"]),
    ]
    back = [helper.make_node("Cast", ["m"], ["y"], to=FLOAT)]
    model = build([*cast, *join, *back], {"x": ["N", 3, 4, 4]}, {"y": ["N", 6, 4, 4]}, weights)
    made, counts = rewritten(model, atol=1e-5 if dtype is np.float32 else 5e-3)
    assert counts["batch_norm_to_depthwise"] == 1
    (layer,) = (node for node in made.graph.node if node.op_type == "Conv")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert stored[layer.input[1]].shape == (6, 1, 1, 1) and stored[layer.input[1]].dtype == dtype
    assert helper.get_node_attr_value(layer, "group") == 6


def test_norms_without_stored_numbers_or_in_training_stay():
    weights = norm_weights(3)
    computed = helper.make_node("Relu", ["s"], ["scale"])
    ends = {"x": ["N", 3, 2, 2]}, {"y": ["N", 3, 2, 2]}
    open_scale = build(
        [computed, norm("x", "y")], {**ends[0], "s": [3]}, ends[1], {**weights} | {"scale": weights["scale"]}
    )
    open_scale.graph.initializer.remove(next(t for t in open_scale.graph.initializer if t.name == "scale"))
    assert rewritten(open_scale)[1] == {}
    made, _ = rewrite_model(build([norm("x", "y", training_mode=1)], *ends, weights))
    assert operators(made) == {"BatchNormalization": 1}


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), ()])
def test_arithmetic_a_channel_is_folded(op_type, shape):
    numbers = np.random.default_rng(2).uniform(0.5, 2.0, shape).astype(np.float32)
    order = ["numbers", "c"] if op_type in ("Add", "Mul") and shape else ["c", "numbers"]
    layers = [helper.make_node("Conv", ["x", "w", "b"], ["c"], group=2), helper.make_node(op_type, order, ["y"])]
    weights = {"w": normal(6, 2, 3, 3), "b": normal(6), "numbers": numbers}
    made, counts = rewritten(build(layers, {"x": ["N", 4, 5, 5]}, {"y": ["N", 6, 3, 3]}, weights))
    assert (operators(made), counts) == ({"Conv": 1}, {"fold_scale": 1})


@pytest.mark.parametrize(
    ("op_type", "order", "shape"), [("Sub", "nc", (6, 1, 1)), ("Div", "nc", (6, 1, 1)), ("Add", "cn", (6,))]
)
def test_other_arithmetic_stays(op_type, order, shape):
    """A stored tensor on the left of Sub and Div; one number a column, not a channel."""
    names = [{"n": "numbers", "c": "c"}[letter] for letter in order]
    layers = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(op_type, names, ["y"])]
    weights = {"w": normal(6, 4, 1, 1), "numbers": normal(*shape)}
    assert rewritten(build(layers, {"x": ["N", 4, 6, 6]}, {"y": ["N", 6, 6, 6]}, weights), atol=1e-3)[1] == {}


def test_caffes_norm_and_scale_become_one_depthwise_convolution():
    layers = [
        helper.make_node("Concat", ["x", "x"], ["c"], axis=1),
        norm("c", "n"),
        helper.make_node("Unsqueeze", ["gamma", "axes"], ["gamma4"]),
        helper.make_node("Mul", ["n", "gamma4"], ["m"]),
        helper.make_node("Unsqueeze", ["beta", "axes"], ["beta4"]),
        helper.make_node("Add", ["m", "beta4"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weights = {"gamma": normal(6), "beta": normal(6), "axes": np.array([1, 2]), **norm_weights(6)}
    made, _ = rewritten(build(layers, {"x": ["N", 3, 4, 4]}, {"y": ["N", 6, 4, 4]}, weights))
    assert operators(made) == {"Concat": 1, "Conv": 1, "Relu": 1}


def test_a_value_that_a_branch_reads_is_kept():
    """The convolution's output is read once in the main graph, and once more inside of If."""

    def branch(name, op_type):
        info = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, ["c"], [name])], name, [], [info])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("c", "n"),
        helper.make_node("ReduceSum", ["n"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["b"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
        helper.make_node("Add", ["b", "n"], ["y"]),
    ]
    weights = {"w": normal(4, 4, 1, 1), "zero": np.float32(0), **norm_weights(4)}
    model = build(nodes, {"x": ["N", 4, 3, 3]}, {"y": ["N", 4, 3, 3]}, weights)
    for seed in range(4):
        made, counts = rewritten(model, seed=seed)
    assert counts == {"batch_norm_to_depthwise": 1}
    assert operators(made)["If"] == 1


def test_what_changes_nothing_is_taken_out_and_names_stay():
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Dropout", ["b", "ratio"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=FLOAT),
        helper.make_node("Identity", ["d"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    made, counts = rewritten(build(nodes, {"x": ["N"]}, {"y": ["N"], "z": ["N"]}, {"ratio": np.float32(0.9)}))
    assert [(n.op_type, *n.input, *n.output) for n in made.graph.node] == [("Relu", "x", "y"), ("Identity", "x", "z")]
    assert counts == {"drop_identity": 4}
    assert not made.graph.initializer


def test_a_dropout_that_trains_or_whose_mask_is_read_stays():
    trains = [helper.make_node("Dropout", ["x", "ratio", "yes"], ["y"])]
    weights = {"ratio": np.float32(0.5), "yes": np.array(True)}
    assert rewrite_model(build(trains, {"x": ["N"]}, {"y": ["N"]}, weights))[1]["drop_identity"] == 0
    masked = [helper.make_node("Dropout", ["x"], ["d", "mask"]), helper.make_node("Cast", ["mask"], ["y"], to=FLOAT)]
    assert operators(rewritten(build(masked, {"x": ["N"]}, {"y": ["N"]}))[0])["Dropout"] == 1


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 20])
def test_a_mean_over_space_becomes_a_global_pool(opset, keepdims, axes):
    given = {"axes": list(axes)} if opset < 18 else {}
    names, weights = (["x"], {}) if opset < 18 else (["x", "axes"], {"axes": np.array(axes)})
    node = helper.make_node("ReduceMean", names, ["y"], keepdims=keepdims, **given)
    shape = ["N", 3, 1, 1] if keepdims else ["N", 3]
    made, _ = rewritten(build([node], {"x": ["N", 3, 4, 5]}, {"y": shape}, weights, opset=opset))
    assert operators(made) == ({"GlobalAveragePool": 1} if keepdims else {"GlobalAveragePool": 1, "Flatten": 1})


def test_means_over_other_axes_stay():
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"])
    model = build([node], {"x": ["N", 3, 4, 5]}, {"y": ["N", 3, 1, 5]}, {"axes": np.array([2])})
    assert rewritten(model)[1] == {}


def channels_last(*, relu=True):
    """As Keras's exporter writes it: every convolution between two transposes, bias by Add, mean over axes 1 and 2."""
    to, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes = [
        helper.make_node("Transpose", ["x"], ["x1"], **to),
        helper.make_node("Conv", ["x1", "w"], ["c1"], pads=[1, 1, 1, 1]),
        norm("c1", "n1"),
        helper.make_node("Transpose", ["n1"], ["h1"], **back),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Transpose", ["r1"], ["x2"], **to),
        helper.make_node("Conv", ["x2", "v"], ["c2"]),
        norm("c2", "n2", "second."),
        helper.make_node("Transpose", ["n2"], ["h2"], **back),
        helper.make_node("ReduceMean", ["h2"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "dense"], ["d"]),
        helper.make_node("Add", ["d", "bias"], ["y"]),
    ]
    weights = {"w": normal(8, 3, 3, 3), "v": normal(6, 8, 1, 1, seed=6), "dense": normal(6, 4), "bias": normal(4)}
    weights |= norm_weights(8) | norm_weights(6, 1, "second.")
    return build(nodes, {"x": ["N", 6, 6, 3]}, {"y": ["N", 4]}, weights, opset=13)


def test_a_channels_last_model_loses_its_norms_and_pools_globally():
    made, counts = rewritten(channels_last())
    assert counts == {"fold_batch_norm": 2, "global_pool": 1}
    assert operators(made)["Transpose"] == 3
    made, counts = rewritten(channels_last(), only=[*REWRITES])
    assert operators(made)["Gemm"] + operators(made)["MatMul"] == 1


def test_arithmetic_with_constants_is_done_once_and_keeps_its_shape():
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["two", "w"], ["double"]),
        helper.make_node("Sqrt", ["double"], ["root"]),
        helper.make_node("Add", ["x", "root"], ["s"]),
        helper.make_node("Shape", ["s"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["three"]),
        helper.make_node("Cast", ["three"], ["three_f"], to=FLOAT),
        helper.make_node("Mul", ["s", "three_f"], ["y"]),
    ]
    weights = {"w": np.float32(8), "one": np.array(1)}
    made, _ = rewritten(build(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, weights))
    assert operators(made) == {"Add": 1, "Mul": 1}
    assert sorted((t.dims[:], float(numpy_helper.to_array(t))) for t in made.graph.initializer) == [
        ([], 3.0),
        ([], 4.0),
    ]


def test_constants_that_would_swell_the_file_stay_operators():
    nodes = [
        helper.make_node("ConstantOfShape", ["large"], ["zeros"]),
        helper.make_node("ConstantOfShape", ["small"], ["few"]),
        helper.make_node("Add", ["x", "zeros"], ["s"]),
        helper.make_node("Add", ["s", "few"], ["y"]),
    ]
    weights = {"large": np.array([300, 300]), "small": np.array([300])}
    made, _ = rewritten(build(nodes, {"x": [300, 300]}, {"y": [300, 300]}, weights))
    assert operators(made)["ConstantOfShape"] == 1
    assert made.ByteSize() < 3000


def test_a_stored_weight_stays_beside_its_scale():
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": np.arange(6, dtype=np.int8).reshape(2, 3), "scale": np.float32(0.5), "zero": np.int8(1)}
    assert rewritten(build(nodes, {"x": ["N", 2]}, {"y": ["N", 3]}, weights))[1] == {}


@pytest.mark.parametrize("yes", [True, False])
def test_a_branch_with_a_stored_condition_takes_its_place(yes):
    """Both branches use the same names, and so does a second If."""

    def branch(op_type):
        info = helper.make_tensor_value_info("out", FLOAT, None)
        inner = [helper.make_node(op_type, ["x"], ["mid"]), helper.make_node("Add", ["mid", "own"], ["out"])]
        own = numpy_helper.from_array(np.float32(3), "own")
        return helper.make_graph(inner, op_type, [], [info], [own])

    def choice(target):
        graphs = {"then_branch": branch("Relu"), "else_branch": branch("Neg")}
        return helper.make_node("If", ["yes"], [target], **graphs)

    nodes = [choice("a"), choice("b"), helper.make_node("Mul", ["a", "b"], ["y"])]
    made, _ = rewritten(build(nodes, {"x": ["N"]}, {"y": ["N"]}, {"yes": np.array(yes)}))
    assert operators(made) == {"Relu" if yes else "Neg": 2, "Add": 2, "Mul": 1}


def reshaped(shape, *, source=("N", 3, 2, 2), target=("N", 12), **attributes):
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["y"], **attributes)]
    return build(nodes, {"x": list(source)}, {"y": list(target)}, {"shape": np.array(shape)})


@pytest.mark.parametrize("shape", [[2, 12], [2, -1], [1, -1]])
def test_a_reshape_to_the_traced_batch_takes_any(shape):
    made, counts = rewrite_model(reshaped(shape))
    assert counts["dynamic_batch"] == 1
    x = normal(5, 3, 2, 2)
    np.testing.assert_array_equal(answers(made, {"x": x})[0], np.maximum(x, 0).reshape(5, 12))


def test_a_reshape_that_joins_samples_on_purpose_stays():
    model = reshaped([1, -1], target=(1, "M"))
    assert rewritten(model)[1] == {}
    assert rewritten(reshaped([-1, 12]))[1] == {}
    fixed = reshaped([2, 12], source=(2, 3, 2, 2), target=(2, 12))
    assert rewritten(fixed)[1] == {}


def test_a_shape_put_together_from_the_batch_is_stored():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    weights = {"first": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    made, counts = rewritten(build(nodes, {"x": ["N", 3, 2, 2]}, {"y": ["N", 12]}, weights), batch=4)
    assert counts == {"dynamic_batch": 1}
    assert operators(made) == {"Relu": 1, "Reshape": 1}


def test_a_fixed_batch_is_freed_when_asked():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"w": normal(2, 3, 1, 1), "shape": np.array([1, 8]), "v": normal(8, 4)}
    model = build(nodes, {"x": [1, 3, 2, 2]}, {"y": [1, 4]}, weights)
    assert rewritten(model)[1] == {}
    made, counts = rewrite_model(model, only=["free_batch"])
    assert counts == {"free_batch": 2}
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in (made.graph.input[0], made.graph.output[0])] == [
        "batch"
    ] * 2
    x = normal(3, 3, 2, 2)
    one_by_one = np.concatenate([answers(model, {"x": row[None]})[0] for row in x])
    np.testing.assert_allclose(answers(made, {"x": x})[0], one_by_one, rtol=1e-5, atol=1e-6)


def test_a_batch_that_the_graph_mixes_stays_fixed():
    nodes = [
        helper.make_node("Concat", ["x", "w"], ["c"], axis=0),
        helper.make_node("Transpose", ["c"], ["y"], perm=[1, 0]),
    ]
    model = build(nodes, {"x": [1, 1]}, {"y": [1, 2]}, {"w": normal(1, 1)})
    made, counts = rewrite_model(model, only=["free_batch"])
    assert counts == {"free_batch": 0}
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_gemm_and_matmul_become_each_other():
    weights = {"w": normal(5, 4), "b": normal(5)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=3.0)
    model = build([node], {"x": ["N", 4]}, {"y": ["N", 5]}, weights)
    apart, counts = rewritten(model, only=["gemm_to_matmul"])
    assert (operators(apart), counts) == ({"MatMul": 1, "Add": 1}, {"gemm_to_matmul": 1})
    together, counts = rewritten(apart, only=["matmul_to_gemm"])
    assert (operators(together), counts) == ({"Gemm": 1}, {"matmul_to_gemm": 1})
    assert rewritten(model)[1] == {}


def test_products_of_stacks_of_matrices_stay_matmul():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    model = build(nodes, {"x": ["N", 3, 4]}, {"y": ["N", 3, 5]}, {"w": normal(4, 5), "b": normal(5)})
    assert rewritten(model, only=["matmul_to_gemm"])[1] == {}


def response_norm(*, size=5, pads=(2, 2), square="Mul", turn="Unsqueeze"):
    """PyTorch's chain, as its function ``local_response_norm`` spells it."""
    to = {"Unsqueeze": "one", "Reshape": "wide"}[turn]
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["s"]) if square == "Mul" else helper.make_node("Pow", ["x", "two"], ["s"]),
        helper.make_node(turn, ["s", to], ["u"]),
        helper.make_node("Pad", ["u", "pads"], ["p"]),
        helper.make_node("AveragePool", ["p"], ["a"], kernel_shape=[size, 1, 1], strides=[1, 1, 1]),
        helper.make_node("Squeeze", ["a", "one"], ["m"]),
        helper.make_node("Mul", ["m", "alpha"], ["ma"]),
        helper.make_node("Add", ["k", "ma"], ["t"]),
        helper.make_node("Pow", ["t", "beta"], ["d"]),
        helper.make_node("Div", ["x", "d"], ["y"]),
    ]
    padding = [0, 0, pads[0], 0, 0, 0, 0, pads[1], 0, 0]
    weights = {"one": np.array([1]), "wide": np.array([-1, 1, 7, 3, 4]), "pads": np.array(padding)}
    weights |= {name: np.float32(value) for name, value in {"two": 2, "alpha": 0.3, "k": 2, "beta": 0.75}.items()}
    return build(nodes, {"x": ["N", 7, 3, 4]}, {"y": ["N", 7, 3, 4]}, weights)


def numpy_response_norm(x, *, size=5, alpha=0.3, beta=0.75, bias=2.0):
    """Krizhevsky et al. 2012, section 3.3, with alpha over the size as PyTorch has it."""
    channels, reach = x.shape[1], size // 2
    total = np.stack(
        [(x[:, max(0, c - reach) : c + reach + 1].astype(np.float64) ** 2).sum(1) for c in range(channels)], axis=1
    )
    return x / (bias + alpha / size * total) ** beta


@pytest.mark.parametrize("turn", ["Unsqueeze", "Reshape"])
@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_the_chain_of_a_response_norm_becomes_one_operator(square, turn):
    made, counts = rewritten(response_norm(square=square, turn=turn), atol=1e-6)
    assert (operators(made), counts["lrn_chain"]) == ({"LRN": 1}, 1)
    x = normal(2, 7, 3, 4)
    np.testing.assert_allclose(answers(made, {"x": x})[0], numpy_response_norm(x), rtol=1e-5)


def test_other_windows_are_no_response_norm():
    """An even size begins one channel earlier in PyTorch than in ONNX; padding on one side alone shifts the window."""
    assert "lrn_chain" not in rewritten(response_norm(size=4, pads=(2, 1)))[1]
    assert "lrn_chain" not in rewritten(response_norm(size=5, pads=(4, 0)))[1]


def test_sparse_weights_become_dense():
    values = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w"),
        numpy_helper.from_array(np.array([1, 5]), "i"),
        [2, 3],
    )
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 2]}, {"y": ["N", 3]})
    model.graph.sparse_initializer.append(values)
    made, _ = rewrite_model(model)
    x = normal(4, 2)
    dense = np.array([[0, 2, 0], [0, 0, 3]], np.float32)
    np.testing.assert_allclose(answers(made, {"x": x})[0], x @ dense, rtol=1e-6)


def test_other_operators_and_metadata_stay():
    nodes = [helper.make_node("Mystery", ["x"], ["m"], domain="my.own"), helper.make_node("Identity", ["m"], ["y"])]
    model = build(nodes, {"x": ["N"]}, {"y": ["N"]}, domains=["my.own"])
    model.metadata_props.add(key="someone's", value="note")
    model.producer_name, model.graph.doc_string = "someone", "text"
    made, _ = rewrite_model(model)
    assert [(n.op_type, n.domain, *n.output) for n in made.graph.node] == [("Mystery", "my.own", "y")]
    assert (made.metadata_props, made.producer_name, made.graph.doc_string) == (model.metadata_props, "someone", "text")
    assert {entry.domain: entry.version for entry in made.opset_import} == {"": 20, "my.own": 1}


def test_unknown_names_are_refused():
    model = build([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N"]}, {"y": ["N"]})
    with pytest.raises(UnknownNameError, match="did you mean 'global_pool'"):
        rewrite_model(model, without=["global_pol"])
    with pytest.raises(UnknownNameError):
        rewrite_model(model, only=["nothing"])
    assert all(name == rewrite.name and rewrite.rule for name, rewrite in REWRITES.items())


def test_each_rewrite_is_off_by_name():
    for name, model in {
        "fold_batch_norm": channels_last(),
        "global_pool": channels_last(),
        "lrn_chain": response_norm(),
        "dynamic_batch": reshaped([2, 12]),
    }.items():
        assert rewrite_model(model)[1][name] > 0
        assert name not in rewrite_model(model, without=[name])[1]
