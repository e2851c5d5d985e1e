"""Profiles of graphs built by hand: every expected number is worked out in the test."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import Artifact, Preprocess
from deploykit.errors import InputError, ModelFileError
from deploykit.files import deflated_size, sha256_file
from deploykit.graph.profile import profile_onnx

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)
MICROSOFT = "com.microsoft"


def weight(name, *shape, dtype=np.float32):
    values = RANDOM.standard_normal(shape) if np.issubdtype(dtype, np.floating) else RANDOM.integers(0, 100, shape)
    return numpy_helper.from_array(np.asarray(values).astype(dtype), name)


def save(path, nodes, inputs, outputs, initializers=(), opset=17, functions=(), metadata=None):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        # The checker wants a rank, the sizes may be anything.
        [helper.make_tensor_value_info(name, kind, [None] * (rank[0] if rank else 2)) for name, kind, *rank in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def node(op, inputs, outputs, domain="", **attributes):
    return helper.make_node(
        op, inputs.split(), outputs.split(), name=f"the_{outputs.split()[0]}", domain=domain, **attributes
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "modèl one.onnx"


def small_float(path, **extra):
    """Conv, Relu, a skip connection, pooling, Flatten, Gemm: 3×8×8 to 5 numbers, dynamic batch."""
    nodes = [
        node("Conv", "x c1.weight c1.bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b c2.weight", "c", pads=[1, 1, 1, 1], group=2),
        node("Add", "b c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "e", "f"),
        node("Gemm", "f fc.weight fc.bias", "y", transB=1),
    ]
    weights = [weight("c1.weight", 4, 3, 3, 3), weight("c1.bias", 4), weight("c2.weight", 4, 2, 3, 3)]
    weights += [weight("fc.weight", 5, 64), weight("fc.bias", 5)]
    return save(path, nodes, [("x", FLOAT, ["n", 3, 8, 8])], [("y", FLOAT)], weights, **extra)


def test_small_float_by_hand(path):
    found = profile_onnx(small_float(path))
    assert found.parameters == 108 + 4 + 72 + 320 + 5
    assert found.macs == 4 * 64 * 27 + 4 * 64 * 18 + 5 * 64
    assert found.connections == found.macs + 4 * 64 + 5
    assert found.weight_bytes == 4 * found.parameters
    plane = 4 * 8 * 8 * 4  # bytes of a, b, c, d
    assert found.peak_activation_bytes == 2 * plane  # b and c; Relu and Add write in place
    assert found.operators == {"Conv": 2, "Relu": 1, "Add": 1, "MaxPool": 1, "Flatten": 1, "Gemm": 1}
    rows = [(row.name, row.op, row.output_shape, row.parameters, row.macs) for row in found.layers]
    assert rows == [
        ("c1", "Conv", (4, 8, 8), 112, 6912),
        ("c2", "Conv", (4, 8, 8), 72, 4608),
        ("the_e", "MaxPool", (4, 4, 4), 0, 0),
        ("fc", "Gemm", (5,), 325, 320),
    ]
    assert (found.precision, found.opset, found.input_shape, found.name) == ("fp32", 17, (3, 8, 8), "modèl one")
    assert (found.sha256, found.file_bytes) == (sha256_file(path), path.stat().st_size)
    assert found.download_bytes == deflated_size(path)
    assert found.warnings == ()
    assert profile_onnx(path, download=False).download_bytes is None


def test_the_file_is_left_alone(path):
    before = small_float(path).read_bytes()
    profile_onnx(path)
    assert path.read_bytes() == before


def test_lineage_and_metadata(path):
    small_float(path, metadata={"other.tool": "1"})
    model = onnx.load(path)
    artifact = Artifact.of_model(model, path)
    labels = ("a", "b", "c", "d", "e")
    full = Artifact(**(vars(artifact) | {"network": "{odd", "labels": labels, "parent_sha256": "12ab"}))
    full.stamp(model)
    onnx.save(model, path)
    found = profile_onnx(path)
    assert found.metadata == {
        "deploykit.network": "{odd",
        "deploykit.labels": list(labels),
        "deploykit.parent_sha256": "12ab",
    }
    assert found.parent_sha256 == "12ab"
    json.dumps(found.to_document())


def test_external_data_counts_towards_the_file(path):
    model = onnx.load(small_float(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = profile_onnx(path)
    assert found.file_bytes == path.stat().st_size + (path.parent / "weights.bin").stat().st_size
    assert found.parameters == 509
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ModelFileError):
        profile_onnx(path)


def quantize_dequantize(name, to):
    return [
        node("QuantizeLinear", f"{name} scale zero", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q scale zero", to),
    ]


SCALES = (
    numpy_helper.from_array(np.float32(0.1), "scale"),
    numpy_helper.from_array(np.uint8(128), "zero"),
    numpy_helper.from_array(np.full(4, 0.1, np.float32), "w_scale"),
    numpy_helper.from_array(np.zeros(4, np.int8), "w_zero"),
    numpy_helper.from_array(np.full(4, 0.01, np.float32), "b_scale"),
    numpy_helper.from_array(np.zeros(4, np.int32), "b_zero"),
)


def qdq_conv(path):
    nodes = [
        *quantize_dequantize("x", "xf"),
        node("DequantizeLinear", "c1.weight_quantized w_scale w_zero", "wf", axis=0),
        node("DequantizeLinear", "c1.bias_quantized b_scale b_zero", "bf", axis=0),
        node("Conv", "xf wf bf", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        *quantize_dequantize("r", "af"),
        node("MaxPool", "af", "p", kernel_shape=[2, 2], strides=[2, 2]),
        *quantize_dequantize("p", "y"),
    ]
    weights = [weight("c1.weight_quantized", 4, 3, 3, 3, dtype=np.int8), weight("c1.bias_quantized", 4, dtype=np.int32)]
    return save(path, nodes, [("x", FLOAT, ["n", 3, 8, 8])], [("y", FLOAT)], [*weights, *SCALES])


def test_qdq_weights_count_once_and_activations_as_bytes(path):
    found = profile_onnx(qdq_conv(path))
    assert (found.parameters, found.macs, found.connections) == (112, 6912, 6912 + 256)
    # int8 weights, int32 biases, then scales and zero points of each kind
    assert found.weight_bytes == 108 + 4 * 4 + (4 + 1) + (16 + 4) + (16 + 16)
    assert found.precision == "int8"
    # x as given and quantized; later a 4×8×8 map of bytes with its source, then the float answer of 4×4×4.
    assert found.peak_activation_bytes == max(768 + 192, 192 + 256, 256 + 64, 64 + 256)
    rows = [(row.name, row.op, row.precision) for row in found.layers]
    assert rows == [("c1", "Conv", "int8"), ("the_p", "MaxPool", None)]


def test_weights_that_are_float_before_quantize_are_int8_when_they_multiply(path):
    nodes = [
        *quantize_dequantize("x", "xf"),
        node("QuantizeLinear", "c1.weight scale zero", "wq"),
        node("DequantizeLinear", "wq scale zero", "wf"),
        node("Conv", "xf wf", "y"),
    ]
    weights = [weight("c1.weight", 4, 3, 3, 3), *SCALES[:2]]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT)], weights))
    assert (found.parameters, found.precision) == (108, "int8")
    assert found.weight_bytes == 4 * 108 + 5


def test_qlinear_operators(path):
    nodes = [
        node("QLinearConv", "x scale zero w w_scale w_zero scale zero b", "a"),
        node("Flatten", "a", "f"),
        node("QLinearMatMul", "f scale zero m scale zero scale zero", "y"),
    ]
    weights = [
        weight("w", 4, 3, 3, 3, dtype=np.int8),
        weight("b", 4, dtype=np.int32),
        weight("m", 144, 5, dtype=np.uint8),
    ]
    file = save(
        path, nodes, [("x", TensorProto.UINT8, ["n", 3, 8, 8])], [("y", TensorProto.UINT8)], [*weights, *SCALES[:4]]
    )
    found = profile_onnx(file)
    assert found.parameters == 108 + 4 + 720
    assert found.macs == 4 * 36 * 27 + 5 * 144
    assert found.connections == found.macs + 4 * 36
    assert found.precision == "int8"
    assert found.peak_activation_bytes == 192 + 144


def test_integer_operators(path):
    nodes = [
        node("ConvInteger", "x w", "a"),
        node("Cast", "a", "c", to=TensorProto.UINT8),
        node("Flatten", "c", "f"),
        node("MatMulInteger", "f m", "y"),
    ]
    weights = [weight("w", 4, 3, 3, 3, dtype=np.int8), weight("m", 144, 5, dtype=np.int8)]
    file = save(path, nodes, [("x", TensorProto.UINT8, ["n", 3, 8, 8])], [("y", TensorProto.INT32)], weights)
    found = profile_onnx(file)
    assert (found.parameters, found.macs, found.precision) == (828, 3888 + 720, "int8")


def test_four_bit_products_and_what_follows_them(path):
    """MatMulNBits has no shapes in ONNX; the layers behind it must still be counted."""
    nodes = [
        node("MatMulNBits", "x fc1.weight_Q4 fc1.scales", "a", domain=MICROSOFT, K=64, N=8, bits=4, block_size=32),
        node("QGemm", "q scale zero g scale zero b scale zero", "h", domain=MICROSOFT, alpha=1.0, transB=1),
        node("Relu", "a", "y"),
    ]
    packed = numpy_helper.from_array(RANDOM.integers(0, 255, (8, 2, 16), dtype=np.uint8), "fc1.weight_Q4")
    weights = [packed, weight("fc1.scales", 16), weight("g", 3, 8, dtype=np.int8), weight("b", 3, dtype=np.int32)]
    inputs = [("x", FLOAT, ["n", 64]), ("q", TensorProto.UINT8, ["n", 8])]
    outputs = [("y", FLOAT), ("h", TensorProto.UINT8)]
    found = profile_onnx(save(path, nodes, inputs, outputs, [*weights, *SCALES[:2]]))
    assert found.parameters == 64 * 8 + 24 + 3
    assert found.macs == 64 * 8 + 24
    assert found.weight_bytes == 256 + 64 + 24 + 12 + 5
    assert found.precision == "mixed"
    assert found.peak_activation_bytes is not None
    assert found.layers[0].name == "fc1"


def test_dynamically_quantized_products(path):
    nodes = [
        node("DynamicQuantizeMatMul", "x fc1.weight_quantized w_scale w_zero fc1.bias", "a", domain=MICROSOFT),
        node("DynamicQuantizeLinear", "a", "q q_scale q_zero"),
        node("MatMulIntegerToFloat", "q m q_scale w_scale q_zero w_zero c", "y", domain=MICROSOFT),
    ]
    weights = [weight("fc1.weight_quantized", 8, 4, dtype=np.int8), weight("fc1.bias", 4)]
    weights += [weight("m", 4, 4, dtype=np.int8), weight("c", 4), *SCALES[2:4]]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT)], weights))
    assert (found.parameters, found.macs, found.connections) == (32 + 4 + 16 + 4, 32 + 16, 32 + 4 + 16 + 4)
    assert found.weight_bytes == 32 + 16 + 16 + 16 + 4 * 4 + 4  # scales and zero points of four columns, once
    assert [(row.name, row.precision, row.output_shape) for row in found.layers] == [
        ("fc1", "int8", (4,)),
        ("the_y", "int8", (4,)),
    ]
    assert found.precision == "int8"
    assert found.peak_activation_bytes is not None


def test_what_onnx_runtime_saves_is_counted(path, tmp_path):
    """Optimised files have ONNX Runtime's own convolutions, for one kind of CPU in blocks of channels."""
    import onnxruntime

    nodes = [
        node("Conv", "x c1.weight c1.bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "d", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "d", "f"),
        node("Gemm", "f fc.weight", "y", transB=1),
    ]
    weights = [weight("c1.weight", 20, 3, 3, 3), weight("c1.bias", 20), weight("fc.weight", 5, 320)]
    plain = profile_onnx(save(path, nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT)], weights))
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        options.optimized_model_filepath = str(tmp_path / f"{level.name}.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = profile_onnx(options.optimized_model_filepath)
        (conv,) = [row for row in found.layers if "Conv" in row.op]
        filled = conv.output_shape[0]  # blocks of 8 or 16 channels are filled up
        assert (filled == 20) if level == levels.ORT_ENABLE_EXTENDED else (filled % 8 == 0)
        assert conv.macs == plain.layers[0].macs * filled // 20
        assert (found.layers[-1].name, found.layers[-1].macs) == ("fc", 5 * 320)


def test_a_convolution_of_onnx_runtimes_own_domain(path):
    nodes = [node("QLinearConv", "x scale zero w w_scale w_zero scale zero", "y", domain=MICROSOFT)]
    weights = [weight("w", 4, 3, 3, 3, dtype=np.int8), *SCALES[:4]]
    found = profile_onnx(
        save(path, nodes, [("x", TensorProto.UINT8, ["n", 3, 8, 8])], [("y", TensorProto.UINT8)], weights)
    )
    assert (found.parameters, found.macs, found.layers[0].precision) == (108, 4 * 36 * 27, "int8")


def test_four_bit_floats(path):
    nodes = [node("MatMulBnb4", "x w absmax", "y", domain=MICROSOFT, K=64, N=8, block_size=16, quant_type=1)]
    packed = numpy_helper.from_array(RANDOM.integers(0, 255, 256, dtype=np.uint8), "w")
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT)], [packed, weight("absmax", 32)]))
    assert (found.parameters, found.macs, found.weight_bytes) == (512, 512, 256 + 128)
    assert found.precision == found.layers[0].precision == "nf4"


def test_four_bit_integers_in_blocks(path):
    nodes = [node("DequantizeLinear", "w s", "wf", axis=0, block_size=32), node("MatMul", "x wf", "y")]
    weights = [helper.make_tensor("w", TensorProto.INT4, [64, 4], np.zeros(256, np.int8)), weight("s", 2, 4)]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT)], weights, opset=21))
    assert (found.parameters, found.macs, found.precision) == (256, 256, "int4")
    assert found.weight_bytes == 128 + 32


def test_a_quantized_embedding_has_parameters_and_indices_have_none(path):
    nodes = [node("Gather", "table x", "q"), node("DequantizeLinear", "q scale", "y"), node("Gather", "sizes x", "z")]
    weights = [weight("table", 100, 8, dtype=np.int8), weight("sizes", 100, dtype=np.int64), SCALES[0]]
    found = profile_onnx(
        save(path, nodes, [("x", TensorProto.INT64, ["n"])], [("y", FLOAT), ("z", TensorProto.INT64, 1)], weights)
    )
    assert (found.parameters, found.precision) == (800, "int8")


def test_sparse_weights_are_expanded(path):
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5, 9]), "where"), [8, 4])
    model = onnx.load(save(path, [node("Relu", "x", "y")], [("x", FLOAT, ["n", 8])], [("y", FLOAT)]))
    model.graph.node[0].CopyFrom(node("MatMul", "x w", "y"))
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, path)
    found = profile_onnx(path)
    assert (found.parameters, found.macs, found.weight_bytes) == (32, 32, 12)


def test_loops_and_scans_are_survived(path):
    step = helper.make_graph(
        [node("MatMul", "state w", "next"), node("Identity", "go", "still")],
        "step",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", 9, [])]
        + [helper.make_tensor_value_info("state", FLOAT, [1, 8])],
        [helper.make_tensor_value_info("still", 9, []), helper.make_tensor_value_info("next", FLOAT, [1, 8])],
    )
    add = helper.make_graph(
        [node("Add", "sum row", "total"), node("Identity", "total", "seen")],
        "add",
        [helper.make_tensor_value_info(name, FLOAT, [8]) for name in ("sum", "row")],
        [helper.make_tensor_value_info(name, FLOAT, [8]) for name in ("total", "seen")],
    )
    nodes = [
        helper.make_node("Loop", ["times", "", "x"], ["a"], body=step),
        helper.make_node("Scan", ["start", "a"], ["last", "y"], body=add, num_scan_inputs=1),
    ]
    weights = [weight("w", 8, 8), weight("start", 8), numpy_helper.from_array(np.int64(3), "times")]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, [1, 8])], [("y", FLOAT)], weights))
    assert (found.parameters, found.macs) == (64 + 8, 64)
    assert found.operators == {"Loop": 1, "MatMul": 1, "Identity": 2, "Scan": 1, "Add": 1}
    assert "bodies of Loop, Scan count once" in found.warnings[-1]


def test_kernels_strides_groups_and_what_is_passed_on(path):
    nodes = [
        node("Conv", "x c.weight", "a", pads=[1, 1, 1, 1], strides=[2, 2], group=4),
        node("Relu", "a", "b"),
        node("Concat", "b b", "d", axis=1),
        node("ReduceMean", "d", "m", axes=[2, 3], keepdims=1),
        node("Flatten", "m", "y"),
    ]
    found = profile_onnx(
        save(path, nodes, [("x", FLOAT, ["n", 4, 8, 8])], [("y", FLOAT)], [weight("c.weight", 4, 1, 3, 3)])
    )
    conv, mean = found.layers
    assert (conv.kernel, conv.stride, conv.groups) == ((3, 3), (2, 2), 4)
    assert (conv.output_shape, conv.passes_on) == ((4, 4, 4), (8, 4, 4))
    assert (conv.macs, conv.parameters, conv.precision) == (4 * 16 * 9, 36, "fp32")
    assert (mean.op, mean.output_shape, mean.kernel, mean.precision) == ("ReduceMean", (8, 1, 1), None, None)


def test_numbers_in_constant_nodes_are_no_activations(path):
    constant = node("Constant", "", "half", value_floats=[0.5, 0.5])
    del constant.input[:]
    found = profile_onnx(save(path, [constant, node("Mul", "x half", "y")], [("x", FLOAT, ["n", 2])], [("y", FLOAT)]))
    assert (found.parameters, found.peak_activation_bytes) == (0, 8)


def test_transposed_convolution_and_batched_product(path):
    nodes = [
        node("ConvTranspose", "x w", "a", strides=[2, 2]),
        node("MatMul", "a a", "y"),
    ]
    file = save(path, nodes, [("x", FLOAT, ["n", 2, 4, 4])], [("y", FLOAT)], [weight("w", 2, 3, 2, 2)])
    found = profile_onnx(file)
    assert found.macs == 2 * 16 * 3 * 4 + 3 * 8 * 8 * 8
    assert found.parameters == 24


def test_batch_norm_statistics_are_bytes_and_not_parameters(path):
    nodes = [node("BatchNormalization", "x s b m v", "y")]
    weights = [weight(name, 3) for name in "sbm"] + [numpy_helper.from_array(np.ones(3, np.float32), "v")]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 3, 4, 4])], [("y", FLOAT)], weights))
    assert (found.parameters, found.weight_bytes, found.macs) == (6, 48, 0)


def test_settings_and_scalars_are_not_parameters(path):
    nodes = [
        node("Clip", "x low high", "a"),
        node("Mul", "a half", "b"),
        helper.make_node("Resize", ["b", "", "factors"], ["y"]),
    ]
    scalars = [
        numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6), ("half", 0.5))
    ]
    factors = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "factors")
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 3, 4, 4])], [("y", FLOAT)], [*scalars, factors]))
    assert (found.parameters, found.precision) == (0, "fp32")
    assert found.peak_activation_bytes == 3 * 16 * 4 * 5


def test_shared_and_constant_node_weights_count_once(path):
    constant = node("Constant", "", "w", value=weight("w", 8, 8))
    del constant.input[:]
    nodes = [constant, node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT)]))
    assert (found.parameters, found.macs, found.weight_bytes) == (64, 128, 256)
    assert found.operators == {"MatMul": 2}


def test_half_precision(path):
    half = TensorProto.FLOAT16
    file = save(
        path,
        [node("MatMul", "x w", "y")],
        [("x", half, ["n", 8])],
        [("y", half)],
        [weight("w", 8, 4, dtype=np.float16)],
    )
    found = profile_onnx(file)
    assert (found.precision, found.weight_bytes, found.peak_activation_bytes) == ("fp16", 64, 16 + 8)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinities")])
def test_weights_that_are_not_finite_are_named(path, value, word):
    bad = np.ones((8, 4), np.float32)
    bad[3, 2] = value
    initializer = numpy_helper.from_array(bad, "head.weight")
    found = profile_onnx(
        save(path, [node("MatMul", "x head.weight", "y")], [("x", FLOAT, ["n", 8])], [("y", FLOAT)], [initializer])
    )
    assert found.warnings == (f"weights of head hold {word}",)


def dynamic_picture(path, **extra):
    nodes = [node("Conv", "x c.weight", "a"), node("GlobalAveragePool", "a", "y")]
    return save(
        path, nodes, [("x", FLOAT, ["n", 3, "h", "w"])], [("y", FLOAT)], [weight("c.weight", 4, 3, 1, 1)], **extra
    )


def test_unknown_sizes_are_said_and_asked_for(path):
    found = profile_onnx(dynamic_picture(path))
    assert (found.macs, found.connections, found.peak_activation_bytes, found.input_shape) == (None,) * 4
    assert found.parameters == 12
    assert any("axes of unknown size (n, h, w)" in text for text in found.warnings)
    assert any("first is 'c'" in text for text in found.warnings)


@pytest.mark.parametrize("shape", [{"h": 10, "w": 6}, {"x": (1, 3, 10, 6)}])
def test_sizes_by_axis_or_by_input(path, shape):
    found = profile_onnx(dynamic_picture(path), shape=shape)
    assert (found.macs, found.input_shape, found.warnings) == (4 * 60 * 3, (3, 10, 6), ())


def test_sizes_from_the_files_own_preprocessing(path):
    dynamic_picture(path, metadata={"deploykit.preprocess": json.dumps(Preprocess(size=(10, 6)).to_json())})
    assert profile_onnx(path).macs == 4 * 60 * 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"z": 3}, "'z', which is no input or dynamic axis; allowed: x, h, n, w"),
        ({"x": (1, 3, 8)}, "it has 4 axes"),
        ({"x": (1, 3, 0, 8)}, "positive sizes"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(path, shape, message):
    with pytest.raises(InputError, match=message):
        profile_onnx(dynamic_picture(path), shape=shape)


def test_a_fixed_batch_counts_one_picture(path):
    file = save(path, [node("MatMul", "x w", "y")], [("x", FLOAT, [6, 8])], [("y", FLOAT)], [weight("w", 8, 4)])
    found = profile_onnx(file)
    assert found.macs == 32
    assert found.peak_activation_bytes == 6 * (32 + 16)
    assert "batch is fixed at 6" in found.warnings[0]


def test_stale_symbolic_shapes_do_not_win(path):
    model = onnx.load(small_float(path))
    model.graph.value_info.add().CopyFrom(helper.make_tensor_value_info("a", FLOAT, ["n", 4, "stale", "stale"]))
    onnx.save(model, path)
    assert profile_onnx(path).macs == 4 * 64 * 27 + 4 * 64 * 18 + 5 * 64


def test_functions_are_inlined(path):
    body = [node("MatMul", "left right", "product"), node("Relu", "product", "out")]
    function = helper.make_function("own", "Dense", ["left", "right"], ["out"], body, [helper.make_opsetid("", 17)])
    nodes = [node("Dense", "x w", "a", domain="own"), node("Dense", "a w", "y", domain="own")]
    file = save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT)], [weight("w", 8, 8)], functions=[function])
    found = profile_onnx(file)
    assert (found.parameters, found.macs, found.operators) == (64, 128, {"MatMul": 2, "Relu": 2})


def test_bodies_count_once_and_are_warned_of(path):
    def branch(name):
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, None)
        return helper.make_graph(
            [node("MatMul", f"x {name}.weight", f"{name}_out")], name, [], [out], [weight(f"{name}.weight", 8, 4)]
        )

    nodes = [node("If", "flag", "y", then_branch=branch("one"), else_branch=branch("two"))]
    file = save(path, nodes, [("flag", TensorProto.BOOL, []), ("x", FLOAT, ["n", 8])], [("y", FLOAT)])
    found = profile_onnx(file)
    assert (found.parameters, found.macs) == (64, 64)
    assert found.operators == {"If": 1, "MatMul": 2}
    assert any("bodies of If" in text for text in found.warnings)


def test_an_operator_of_nobody_is_survived(path):
    nodes = [node("Mystery", "x", "a", domain="own"), node("MatMul", "a w", "y")]
    found = profile_onnx(save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT)], [weight("w", 8, 4)]))
    assert (found.parameters, found.macs, found.peak_activation_bytes) == (32, None, None)


def test_what_is_not_counted_is_said(path):
    file = save(
        path,
        [node("Einsum", "x w", "y", equation="ij,jk->ik")],
        [("x", FLOAT, ["n", 8])],
        [("y", FLOAT)],
        [weight("w", 8, 4)],
    )
    assert profile_onnx(file).warnings == ("operators that are not counted in MACs: Einsum",)


@pytest.mark.parametrize("content", [b"", b"this is text", None])
def test_what_is_no_model_is_refused(path, content):
    if content is None:
        content = small_float(path).read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        profile_onnx(path)
