"""The room ``lean_model``: the same answers from mapped weights, and in real processes a peak near the file."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, matmul, relu, save_graph

from deploykit.errors import InputError, ModelFileError, OutputError, UnknownNameError
from deploykit.lean_model import LeanModel, lean_copy
from deploykit.runtime import create_session
from deploykit.worker import Worker

SIDE = 256


def classifier(path, *, external=None):
    """Convolution, Relu, fully connected layer; with ``external`` its weights lie in a file of that name."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((16, 3, 3, 3)).astype(np.float32)
    matrix = generator.standard_normal((16 * 64, SIDE)).astype(np.float32) / 32.0
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "matrix"], ["y"]),
    ]
    ends = ([("x", TensorProto.FLOAT, ["N", 3, 8, 8])], [("y", TensorProto.FLOAT, ["N", SIDE])])
    weights = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(matrix, "matrix")]
    save_graph(path, nodes, *ends, weights)
    if external:
        onnx.save_model(onnx.load(path), str(path), save_as_external_data=True, location=external, size_threshold=0)
    return path


def integer_gemm(path):
    """A fully connected layer in 8 bits between QuantizeLinear and DequantizeLinear, its matrix as PyTorch has it."""
    generator = np.random.default_rng(0)
    steps = generator.uniform(0.005, 0.015, 512).astype(np.float32)
    weights = [
        numpy_helper.from_array(np.array(0.05, np.float32), "step"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        numpy_helper.from_array(generator.integers(-127, 128, (512, SIDE), dtype=np.int8), "w"),
        numpy_helper.from_array(steps, "w_step"),
        numpy_helper.from_array(np.zeros(512, np.int8), "w_zero"),
        numpy_helper.from_array(generator.integers(-9999, 9999, 512, dtype=np.int32), "b"),
        numpy_helper.from_array(np.float32(0.05) * steps, "b_step"),
        numpy_helper.from_array(np.array(0.4, np.float32), "y_step"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_step", "w_zero"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_step"], ["bf"], axis=0),
        helper.make_node("Gemm", ["xf", "wf", "bf"], ["m"], transB=1),
        helper.make_node("QuantizeLinear", ["m", "y_step", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "y_step", "zero"], ["y"]),
    ]
    ends = ([("x", TensorProto.FLOAT, ["N", SIDE])], [("y", TensorProto.FLOAT, ["N", 512])])
    return save_graph(path, nodes, *ends, weights)


def answers(session, rows=3):
    shape = [rows if not isinstance(size, int) else size for size in session.inputs[0].shape]
    return session.run(np.random.default_rng(1).standard_normal(shape, dtype=np.float32))[0]


def message(info):
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_float_answers_are_those_of_the_default_session(tmp_path, threads):
    path = classifier(tmp_path / "größe net.onnx")
    default, lean = create_session(path, threads=threads), create_session(path, threads=threads, memory="lean")
    np.testing.assert_allclose(answers(lean), answers(default), rtol=1e-4, atol=1e-5)
    assert (default.memory, lean.memory) == ("default", "lean")
    assert lean.provider == "cpu" and set(lean.nodes_by_provider) == {"cpu"}
    assert lean.inputs == default.inputs and lean.outputs == default.outputs


def test_integer_answers_are_equal_to_the_bit_and_their_weights_stay_packed(tmp_path):
    path = integer_gemm(tmp_path / "int8.onnx")
    copy = lean_copy(path, tmp_path / "copies")
    assert LeanModel.read(copy).prepacking
    (node,) = [node for node in onnx.load(copy).graph.node if node.op_type == "QGemm"]
    assert not next(attribute.i for attribute in node.attribute if attribute.name == "transB")
    assert not LeanModel.read(lean_copy(classifier(tmp_path / "float.onnx"), tmp_path / "copies")).prepacking
    expected = answers(create_session(path))
    assert len(np.unique(expected)) > 100
    assert np.array_equal(answers(create_session(copy, memory="lean")), expected)


def test_the_file_and_its_folder_stay_as_they_are(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = classifier(folder / "m.onnx")
    before = path.read_bytes()
    create_session(path, memory="lean")
    assert [item.name for item in folder.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == before


def test_the_weights_stay_mapped_when_the_copy_is_gone(tmp_path):
    path = classifier(tmp_path / "m.onnx")
    copy = lean_copy(path, tmp_path / "copies")
    session = create_session(copy, memory="lean")
    if sys.platform != "win32":  # where a mapped file stays
        shutil.rmtree(tmp_path / "copies")
    np.testing.assert_allclose(answers(session), answers(create_session(path)), rtol=1e-4, atol=1e-5)


def test_a_copy_is_found_again_by_the_content_of_all_its_files(tmp_path):
    path = classifier(tmp_path / "m.onnx", external="m.data")
    first = lean_copy(path, tmp_path / "copies")
    made = first.stat().st_mtime_ns
    assert lean_copy(path, tmp_path / "copies") == first and first.stat().st_mtime_ns == made
    assert lean_copy(path, tmp_path / "copies", provider="cuda") != first
    np.testing.assert_allclose(
        answers(create_session(first, memory="lean")), answers(create_session(path)), rtol=1e-4, atol=1e-5
    )
    with (tmp_path / "m.data").open("r+b") as handle:
        handle.write(np.float32(9.0).tobytes())
    assert lean_copy(path, tmp_path / "copies") != first


def test_a_copy_for_another_provider_is_not_optimised_and_runs_anywhere(tmp_path):
    path = classifier(tmp_path / "m.onnx")
    copy = lean_copy(path, tmp_path / "copies", provider="cuda")
    assert not LeanModel.read(copy).optimised
    assert copy.stat().st_size < 4096 < copy.with_name("weights.data").stat().st_size
    assert {node.op_type for node in onnx.load(copy).graph.node} == {"Conv", "Relu", "Flatten", "Gemm"}
    session = create_session(path, "cuda", allow_fallback=True, memory="lean")
    np.testing.assert_allclose(answers(session), answers(create_session(path)), rtol=1e-4, atol=1e-5)


def test_a_copy_that_does_not_fit_is_refused(tmp_path):
    copy = lean_copy(classifier(tmp_path / "m.onnx"), tmp_path / "copies")
    with pytest.raises(InputError, match="optimised for the CPU provider") as info:
        create_session(copy, "cuda", memory="lean")
    assert "lean_copy" in message(info)
    with pytest.raises(InputError, match="without optimisations"):
        create_session(copy, optimize=False, memory="lean")
    sidecar = copy.with_name("lean.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"onnxruntime": "1.2.3"}))
    with pytest.raises(InputError, match=r"onnxruntime 1\.2\.3"):
        create_session(copy, memory="lean")


def test_without_optimisations_the_graph_is_left_as_it_is(tmp_path):
    path = classifier(tmp_path / "m.onnx")
    lean, default = create_session(path, optimize=False, memory="lean"), create_session(path, optimize=False)
    assert lean.nodes_by_provider == default.nodes_by_provider
    assert np.array_equal(answers(lean), answers(default))


def test_what_the_reader_of_figures_is_told(tmp_path):
    notes = " ".join(create_session(classifier(tmp_path / "m.onnx"), memory="lean").notes)
    assert "prepared optimised copy" in notes and "not packed" in notes
    assert create_session(relu(tmp_path / "r.onnx")).notes == ()


def test_models_that_cannot_be_copied(tmp_path):
    whole = classifier(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("cut.onnx", "absent.onnx"):
        with pytest.raises(ModelFileError) as info:
            create_session(tmp_path / name, memory="lean")
        assert str(tmp_path / name) in message(info)
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    ends = ([("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    with pytest.raises(ModelFileError, match=r"com\.example"):
        create_session(save_graph(tmp_path / "custom.onnx", [node], *ends), memory="lean")
    with pytest.raises(InputError, match="bytes"):
        create_session(whole, memory="lean")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError) as info:
        lean_copy(tmp_path / "whole.onnx", tmp_path / "file")
    assert "file" in message(info)


def test_an_unknown_mode_offers_the_near_match(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'lean'"):
        create_session(relu(tmp_path / "m.onnx"), memory="laen")


def test_the_process_ends_with_the_one_that_started_it(tmp_path):
    job = {"source": str(classifier(tmp_path / "m.onnx")), "folder": str(tmp_path / "copies"), "optimised": True}
    command = [sys.executable, "-m", "deploykit.lean_worker", json.dumps(job)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can count a peak from a moment on")
@pytest.mark.parametrize("external", [False, True])
def test_peak_of_a_fresh_process_stays_near_the_file(tmp_path, external):
    path = matmul(tmp_path / "m.onnx", 8192, 2048)  # 67 MB
    if external:
        onnx.save_model(onnx.load(path), str(path), save_as_external_data=True, location="m.data")
    weight_bytes = 4 * 8192 * 2048
    copy = lean_copy(path, tmp_path / "copies")
    feed = {"name": "x", "dtype": "float32", "shape": [1, 8192]}
    peaks = {}
    for memory, model in (("default", path), ("lean", copy)):
        with Worker("m") as worker:
            worker.ask("start", model=str(model), feeds=[feed], seed=0, threads=1, memory=memory)
            peaks[memory] = worker.ask("memory")["peak_bytes"]
    assert peaks["lean"] <= 1.15 * weight_bytes
    assert peaks["default"] >= 1.7 * weight_bytes


def test_a_small_model_without_large_weights(tmp_path):
    path = conv_chain(tmp_path / "m.onnx", 1, channels=2)
    np.testing.assert_allclose(
        answers(create_session(path, memory="lean")), answers(create_session(path)), rtol=1e-4, atol=1e-5
    )
