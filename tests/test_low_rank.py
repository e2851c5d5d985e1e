"""Low rank against numpy's singular value decomposition and what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, matmul, save_graph

from deploykit.artifact import Artifact
from deploykit.cli import main
from deploykit.errors import InputError, OutputError
from deploykit.factorize import FactorizeOptions, factorize_onnx
from deploykit.files import sha256_file
from deploykit.graph.low_rank import LARGE, low_rank
from deploykit.graph.profile import profile_onnx
from deploykit.report.reading import collect
from deploykit.results import Compression, read_record

KINDS = ("gemm", "turned", "old", "matmul")


def spectrum(rows, columns, squares, seed=0):
    """A matrix with these squared singular values, and its directions."""
    generator = np.random.default_rng(seed)
    left, _ = np.linalg.qr(generator.standard_normal((rows, len(squares))))
    right, _ = np.linalg.qr(generator.standard_normal((columns, len(squares))))
    return (left * np.sqrt(squares) @ right.T).astype(np.float32)


def one_layer(path, matrix, kind="gemm", *, dtype=np.float32, metadata=None):
    """One fully connected layer as exporters write it; ``old`` is of opset 9, where Gemm's bias has to be there."""
    rows, columns = matrix.shape
    bias = np.random.default_rng(1).standard_normal(columns).astype(dtype)
    stored = matrix.T if kind == "turned" else matrix
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(stored, dtype), "fc.weight"),
        numpy_helper.from_array(bias, "fc.bias"),
    ]
    if kind == "matmul":
        nodes = [
            helper.make_node("MatMul", ["x", "fc.weight"], ["h"]),
            helper.make_node("Add", ["h", "fc.bias"], ["y"]),
        ]
    else:
        given = {"alpha": 0.5, "beta": 2.0} | ({"transB": 1} if kind == "turned" else {})
        nodes = [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], name="fc", **given)]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [("x", element, ["N", rows])], [("y", element, ["N", columns])]
    return save_graph(path, nodes, *ends, weights, opset=9 if kind == "old" else 17, metadata=metadata)


def answers(model, inputs):
    model = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(400, 200), (200, 400)])
def test_a_matrix_of_that_rank_loses_nothing(tmp_path, kind, rows, columns):
    matrix = spectrum(rows, columns, np.linspace(3.0, 1.0, 40))
    path = one_layer(tmp_path / "m.onnx", matrix, kind)
    made = low_rank(onnx.load(path), 40)
    onnx.checker.check_model(made.model, full_check=True)
    (layer,) = made.layers
    assert (layer.name, layer.inputs, layer.outputs, layer.rank) == ("fc", rows, columns, 40)
    assert (layer.macs_before, layer.macs_after) == (rows * columns, 40 * (rows + columns))
    assert layer.energy == pytest.approx(1.0, abs=1e-9)
    inputs = np.random.default_rng(2).standard_normal((5, rows), dtype=np.float32)
    before = answers(path, inputs)
    assert np.abs(answers(made.model, inputs) - before).max() < 1e-4 * np.abs(before).max()
    assert "fc.weight" not in {tensor.name for tensor in made.model.graph.initializer}
    assert made.model.ByteSize() < 0.4 * path.stat().st_size


@pytest.mark.parametrize("kind", ["gemm", "turned"])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_rank_is_the_smallest_that_keeps_the_energy(tmp_path, kind, energy):
    matrix = spectrum(320, 256, 0.9 ** np.arange(256.0))
    made = low_rank(onnx.load(one_layer(tmp_path / "m.onnx", matrix, kind)), energy)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = np.cumsum(values) / values.sum()
    (layer,) = made.layers
    assert layer.rank == int((shares < energy).sum()) + 1
    assert layer.energy == pytest.approx(shares[layer.rank - 1], abs=1e-6)
    parts = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer}
    second = parts["fc.second.weight"]
    product = parts["fc.first.weight"] @ (second.T if kind == "turned" else second)
    error = np.linalg.norm(product - matrix) / np.linalg.norm(matrix)
    assert error == pytest.approx(layer.relative_error, rel=1e-3)  # Eckart & Young: no other product is nearer
    assert error == pytest.approx(np.sqrt(1.0 - shares[layer.rank - 1]), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_their_type(tmp_path, dtype):
    path = one_layer(tmp_path / "m.onnx", spectrum(300, 300, np.ones(20)), "turned", dtype=dtype)
    made = low_rank(onnx.load(path), 20)
    kinds = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in made.model.graph.initializer}
    assert kinds["fc.first.weight"] == kinds["fc.second.weight"] == dtype
    inputs = np.random.default_rng(2).standard_normal((3, 300)).astype(dtype)
    assert np.allclose(answers(made.model, inputs), answers(path, inputs), rtol=0.02, atol=0.02)


def test_a_matrix_that_is_read_elsewhere_stays_too(tmp_path):
    matrix = spectrum(300, 300, np.ones(10))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"], transB=1),  # the other way round
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Add", ["c", "w"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, [300, 300])], [("y", TensorProto.FLOAT, [300, 300])]
    path = save_graph(tmp_path / "m.onnx", nodes, *ends, [numpy_helper.from_array(matrix, "w")])
    made = low_rank(onnx.load(path), 10)
    assert [node.op_type for node in made.model.graph.node].count("MatMul") == 4
    assert "w" in {tensor.name for tensor in made.model.graph.initializer}
    inputs = np.random.default_rng(2).standard_normal((300, 300), dtype=np.float32)
    assert np.allclose(answers(made.model, inputs), answers(path, inputs), atol=1e-4)


def test_the_model_stays_as_it_was(tmp_path):
    model = onnx.load(one_layer(tmp_path / "m.onnx", spectrum(300, 300, np.ones(10))))
    before = model.SerializeToString(deterministic=True)
    low_rank(model, 10)
    assert model.SerializeToString(deterministic=True) == before


def test_old_files_that_name_weights_as_inputs(tmp_path):
    model = onnx.load(one_layer(tmp_path / "m.onnx", spectrum(300, 300, np.ones(10)), "old"))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    made = low_rank(model, 10).model
    onnx.checker.check_model(made)
    assert [value.name for value in made.graph.input] == ["x", "fc.bias"]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "rank 0; allowed: a whole number of 1 or more"),
        (-3, "rank -3"),
        (1.5, "rank 1.5; allowed"),
        (1.0, "rank 1.0; allowed"),
        (float("nan"), "rank nan"),
        (True, "rank True"),
        (150, r"rank 150 makes no matrix smaller: fc \(300×300\) stays whole: .* allowed: up to 149"),
        (0.999, r"takes rank \d+; smaller are those up to 149"),
    ],
)
def test_ranks_that_make_nothing_smaller(tmp_path, rank, message):
    path = one_layer(tmp_path / "m.onnx", np.random.default_rng(0).standard_normal((300, 300), dtype=np.float32))
    with pytest.raises(InputError, match=message):
        low_rank(onnx.load(path), rank)


def test_the_largest_rank_is_smaller_by_one_weight_at_least(tmp_path):
    path = one_layer(tmp_path / "m.onnx", np.random.default_rng(0).standard_normal((300, 300), dtype=np.float32))
    (layer,) = low_rank(onnx.load(path), 149).layers
    assert layer.macs_after < layer.macs_before


def test_models_without_large_matrices(tmp_path, trained):
    small = matmul(tmp_path / "small.onnx", 255, 257)
    assert LARGE > 255 * 257
    for path in (small, conv_chain(tmp_path / "conv.onnx")):
        with pytest.raises(InputError, match=f"no Gemm or MatMul with a constant matrix of {LARGE:,} weights"):
            low_rank(onnx.load(path), 0.9)
    zeros = one_layer(tmp_path / "zeros.onnx", np.zeros((300, 300), np.float32))
    with pytest.raises(InputError, match="holds only zeros"):
        low_rank(onnx.load(zeros), 0.9)
    with pytest.raises(InputError, match="the model is quantized"):
        low_rank(onnx.load(trained.int8), 0.9)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """``color-shape-mlp`` with fresh weights: 2,352×128 is its large matrix."""
    folder = tmp_path_factory.mktemp("plain")
    assert main(["export", "color-shape-mlp", "-o", str(folder / "net.onnx"), "--data", "shapes"]) == 0
    return folder / "net.onnx"


def test_the_command_writes_file_and_record(plain, tmp_path, capsys):
    before = sha256_file(plain)
    target = tmp_path / "thin.onnx"
    assert main(["compress", str(plain), "-o", str(target), "--rank", "64", "--data", "shapes", "--threads", "1"]) == 0
    assert sha256_file(plain) == before
    record = read_record(tmp_path / "thin.compression.json")
    assert isinstance(record, Compression)
    made, parent = Artifact.read(target), Artifact.read(plain)
    assert (made.parent_sha256, made.network, made.preprocess) == (before, parent.network, parent.preprocess)
    assert made.parity is None  # that was of the parent
    assert record.model_sha256 == made.sha256
    assert record.file_bytes == target.stat().st_size < record.parent_bytes
    assert record.download_bytes == profile_onnx(target).download_bytes
    saved = sum(layer.macs_before - layer.macs_after for layer in record.factored)
    assert profile_onnx(target).macs == profile_onnx(plain).macs - saved
    assert 0.0 <= record.agreement <= 1.0
    assert record.samples == 900
    (row,) = collect([tmp_path]).rows
    assert (row.recipe, row.precision, row.download_bytes) == ("low-rank", "fp32", record.download_bytes)
    printed = capsys.readouterr().out
    assert "2352×128" in printed
    assert "same top-1" in printed
    assert main(["compress", str(plain), "-o", str(target), "--rank", "64"]) == 2  # it is there


def test_the_stage_refuses_before_it_writes(plain, trained, tmp_path):
    target = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="is the model itself"):
        factorize_onnx(plain, plain)
    with pytest.raises(InputError, match=f"{trained.int8.name}: the model is quantized"):
        factorize_onnx(trained.int8, target)
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        factorize_onnx(plain, target, options=FactorizeOptions(32))
    assert target.read_bytes() == b"mine"
