"""Models that are rounded as the recipes say, run by ONNX Runtime with and without its integer kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from lived_in import live
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit import models
from deploykit.artifact import Artifact, load_model
from deploykit.calibrate import calibration_from_arrays
from deploykit.errors import UnknownNameError
from deploykit.export import export_onnx
from deploykit.float_model import opened_float_model
from deploykit.graph.block_matrices import BLOCK_SIZE, packed_nibbles
from deploykit.graph.profile import profile_onnx
from deploykit.graph.quantization_plan import plan_quantization
from deploykit.integer_model import IntegerModels
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.recipes import RECIPES
from deploykit.runtime import create_session

RANDOM = np.random.default_rng(0)


def _float(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def _residual(path: Path) -> Path:
    """Two convolutions around a sum, a pooling, joined branches, a hard sigmoid that scales, and a matrix."""
    weights = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "w2": (8, 8, 1, 1), "f": (5, 16), "g": (5,)}
    stored = [numpy_helper.from_array(_float(*shape) * 0.3, name) for name, shape in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["s"]),
        helper.make_node("Relu", ["s"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2"], ["c2"]),
        helper.make_node("HardSigmoid", ["c2"], ["h"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["c2", "h"], ["m"]),
        helper.make_node("Concat", ["m", "p"], ["j"], axis=1),
        helper.make_node("GlobalAveragePool", ["j"], ["a"]),
        helper.make_node("Flatten", ["a"], ["v"]),
        helper.make_node("Gemm", ["v", "f", "g"], ["y"], transB=1),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 8, 8])], [("y", TensorProto.FLOAT, ["N", 5])]
    return save_graph(path, nodes, *ends, stored, opset=20)


SAMPLES = _float(48, 3, 8, 8)


def _run(model: onnx.ModelProto | Path, rows: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    source = model if isinstance(model, Path) else model.SerializeToString()
    return create_session(source, optimize=optimize).run_rows(rows)


def _snr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))


def test_the_plan_of_a_graph_with_everything(tmp_path: Path) -> None:
    model = ir.load(_residual(tmp_path / "m.onnx"))
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}{index}"
    plan = plan_quantization(model)
    assert plan.products == ["Conv0", "Conv2", "Conv6", "Gemm12"]
    assert plan.points == ["x", "r0", "c1", "r1", "p", "c2", "m", "j", "a", "v"]
    assert plan.tied == {"p": "r1", "v": "a"}  # what only moves values keeps their rounding
    assert plan.tables == {"HardSigmoid7"}  # and the answers stay in float
    without = plan_quantization(model, without=["Conv2"])
    assert "Add3" not in without.nodes and "c1" not in without.points  # a sum with a float side stays in float
    assert "p" in without.points  # the next convolution reads integers all the same
    edges = plan_quantization(model, inputs_only=True)
    assert (edges.points, edges.tied) == (["x", "r0", "c1", "r1", "p", "j", "v"], {})


@pytest.mark.parametrize("recipe", ["int8", "int8-vnni", "int8-arm", "int8-tensorrt", "int8-openvino"])
def test_every_recipe_computes_nearly_the_same(recipe: str, tmp_path: Path) -> None:
    path = _residual(tmp_path / "m.onnx")
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[SAMPLES], recipe=recipe)
    assert record.snr_db is not None and record.snr_db > 28
    wanted, plain = _run(path, SAMPLES), _run(tmp_path / "q.onnx", SAMPLES, optimize=False)
    assert _snr(wanted, plain) > 28
    made = onnx.load(tmp_path / "q.onnx")
    kinds = {numpy_helper.to_array(t).dtype for t in made.graph.initializer if t.name == "x_zero_point"}
    signed = recipe in ("int8-arm", "int8-tensorrt", "int8-openvino")
    assert kinds == {np.dtype(np.int8 if signed else np.uint8)}
    behind_relu = {numpy_helper.to_array(t).dtype for t in made.graph.initializer if t.name == "r0_zero_point"}
    assert recipe != "int8-openvino" or behind_relu == {np.dtype(np.uint8)}  # no level is given away
    integer_bias = any(t.data_type == TensorProto.INT32 for t in made.graph.initializer)
    assert integer_bias == (recipe not in ("int8-tensorrt", "int8-openvino"))
    if recipe == "int8-tensorrt":
        zeros = [
            numpy_helper.to_array(t) for t in made.graph.initializer if "zero_point" in t.name and "cut" not in t.name
        ]
        assert not any(zero.any() for zero in zeros)


def _integer_operators(model: Path, folder: Path) -> dict[str, int]:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    counts: dict[str, int] = {}
    for node in onnx.load(folder / "optimised.onnx").graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def test_the_runtime_finds_an_integer_kernel_for_every_operator(tmp_path: Path) -> None:
    path = _residual(tmp_path / "m.onnx")
    quantize_onnx(path, tmp_path / "q.onnx", calibration=[SAMPLES])
    counts = _integer_operators(tmp_path / "q.onnx", tmp_path)
    assert counts["QLinearConv"] == 3 and counts["QGemm"] == 1
    assert not {"Conv", "Gemm", "Add", "Mul", "Relu", "HardSigmoid", "Concat", "GlobalAveragePool"} & set(counts)
    assert counts["QuantizeLinear"] == 1 and counts.get("DequantizeLinear", 0) == 0
    assert profile_onnx(tmp_path / "q.onnx").float_islands == ()


def _exported(name: str, folder: Path, size: int) -> tuple[Path, np.ndarray]:
    torch.manual_seed(0)
    module = models.build(name, num_classes=10)
    rows = np.random.default_rng(1).standard_normal((40, 3, size, size)).astype(np.float32)
    live(module, torch.from_numpy(rows[:8]))
    module.eval()
    export_onnx(module, folder / "net.onnx", example=torch.from_numpy(rows[:2]))
    return folder / "net.onnx", rows


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("squeezenet1.1", 64),
        pytest.param("resnet18", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet-v2", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet-v3-small", 64, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, marks=pytest.mark.slow),
        pytest.param("googlenet-bn", 64, marks=pytest.mark.slow),
        pytest.param("resnet50", 64, marks=pytest.mark.slow),
        pytest.param("vgg11-bn", 224, marks=pytest.mark.slow),
    ],
)
def test_reference_networks_have_no_float_islands(name: str, size: int, tmp_path: Path) -> None:
    path, rows = _exported(name, tmp_path, size)
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[rows], options=QuantizeOptions(effort="low"))
    assert record.unoptimised_agreement is not None and record.unoptimised_agreement >= 0.9  # fresh weights, near ties
    assert profile_onnx(tmp_path / "q.onnx").float_islands == ()
    counts = _integer_operators(tmp_path / "q.onnx", tmp_path)
    assert not {"Conv", "BatchNormalization", "Add", "Concat", "ReduceMean"} & set(counts), counts


def test_islands_are_found_where_they_are(tmp_path: Path) -> None:
    """A Tanh between two integer convolutions, and the float tail, which is none."""
    weights = [numpy_helper.from_array(_float(4, 3, 3, 3), "w"), numpy_helper.from_array(_float(4, 4, 3, 3), "v")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Tanh", ["c"], ["t"]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Conv", ["n", "v"], ["d"]),
        helper.make_node("Tanh", ["d"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 8, 8])], [("y", TensorProto.FLOAT, None)]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends, weights, opset=17)
    assert profile_onnx(path).float_islands is None
    quantize_onnx(path, tmp_path / "q.onnx", calibration=[SAMPLES])
    assert profile_onnx(tmp_path / "q.onnx").float_islands == (("Tanh", "Neg"),)


def test_nibbles_are_packed_as_the_runtime_reads_them(tmp_path: Path) -> None:
    integers = RANDOM.integers(-7, 8, (3, BLOCK_SIZE + 5)).astype(np.int8)
    packed = packed_nibbles(integers)
    assert packed.shape == (3, 2, BLOCK_SIZE // 2)
    low, high = packed & 15, packed >> 4
    unpacked = np.stack([low, high], axis=-1).reshape(3, -1).astype(int) - 8
    np.testing.assert_array_equal(unpacked[:, : BLOCK_SIZE + 5], integers)
    assert not unpacked[:, BLOCK_SIZE + 5 :].any()


def test_four_bit_matrices_answer_like_the_float_ones(tmp_path: Path) -> None:
    """Learned rounding beats plain rounding to the same steps; both sessions compute what the file says."""
    weights = [numpy_helper.from_array(_float(300, 40) * 0.1, "w"), numpy_helper.from_array(_float(40), "b")]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 300])], [("y", TensorProto.FLOAT, ["N", 40])]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends, weights, opset=20)
    rows = np.maximum(_float(400, 60) @ _float(60, 300), 0)
    record = quantize_onnx(path, tmp_path / "q.onnx", calibration=[rows], recipe="int8-int4fc")
    made = onnx.load(tmp_path / "q.onnx")
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
    assert record.snr_db is not None and record.snr_db > 22
    assert record.file_bytes < 0.2 * record.parent_bytes
    plain = _run(tmp_path / "q.onnx", rows, optimize=False)
    assert _snr(_run(path, rows), plain) > 22


def test_layers_stay_in_float_by_name(tmp_path: Path) -> None:
    path = _residual(tmp_path / "m.onnx")
    model, artifact = load_model(path), Artifact.read(path)
    samples = calibration_from_arrays(artifact, [SAMPLES])
    with opened_float_model(model, artifact, batch_size=8) as prepared:
        names = [node.name for node in prepared.proto.graph.node if node.op_type in ("Conv", "Gemm")]
        forms = IntegerModels(prepared, RECIPES["int8"], samples, effort="low")
        noise = {}
        for kept in ((), names[1:2], names[:3]):
            made = forms.build("mse", without=kept)
            counted = [node.op_type for node in made.graph.node]
            assert counted.count("Conv") + counted.count("Gemm") == 4
            noise[len(kept)] = -_snr(_run(path, SAMPLES), _run(made, SAMPLES))
        assert noise[3] < noise[1] < noise[0]
    with pytest.raises(UnknownNameError, match="layer"):
        quantize_onnx(
            path, tmp_path / "q.onnx", calibration=[SAMPLES], options=QuantizeOptions(keep_float=("no-such",))
        )
