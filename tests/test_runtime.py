"""The room ``runtime``: real sessions, honest placement, and every failure of ONNX Runtime in one line of ours."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_onnx import conv_chain, relu, save_graph

from deploykit import environment
from deploykit.artifact import TensorSpec
from deploykit.errors import InputError, ModelFileError, ProviderError, UnknownNameError
from deploykit.runtime import create_session, provider_names


def one_line(info):
    assert "\n" not in str(info.value)
    assert "onnxruntime_src" not in str(info.value)
    return str(info.value)


def no_gpu():
    return not environment.describe()["gpus"]


def test_runs_and_describes_itself(tmp_path):
    session = create_session(relu(tmp_path / "größe relu.onnx"), threads=1)
    values = np.array([[-1.0, 0.0, 2.0], [3.0, -4.0, 5.0]], np.float32)
    (result,) = session.run(values)
    assert result.tolist() == [[0.0, 0.0, 2.0], [3.0, 0.0, 5.0]]
    (named,) = session.run({"x": values})
    assert np.array_equal(named, result)
    assert session.inputs == (TensorSpec("x", "float32", ("N", 3)),)
    assert session.outputs == (TensorSpec("y", "float32", ("N", 3)),)
    assert (session.provider, session.threads) == ("cpu", 1)
    assert session.nodes_by_provider == {"cpu": 1}
    assert session.load_ms > 0


def test_placement_counts_the_nodes_that_are_left_after_optimisation(tmp_path):
    path = conv_chain(tmp_path / "m.onnx", 3)
    assert create_session(path, optimize=False).nodes_by_provider == {"cpu": 3}
    assert create_session(path.read_bytes()).nodes_by_provider == {"cpu": 3}
    unrecorded = create_session(path, record_placement=False)
    assert (unrecorded.nodes_by_provider, unrecorded.provider) == ({}, "cpu")


def test_threads_default_to_what_may_be_used_and_reach_the_session(tmp_path):
    path = relu(tmp_path / "m.onnx")
    assert create_session(path).threads == environment.available_cpus()
    session = create_session(path, threads=3, spinning=False)
    options = session.raw.get_session_options()
    assert options.intra_op_num_threads == session.threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(InputError, match="threads 0"):
        create_session(path, threads=0)


def test_element_types_have_numpys_names(tmp_path):
    types = {TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16", TensorProto.INT32: "int32"}
    for number, (dtype, name) in enumerate(types.items()):
        session = create_session(relu(tmp_path / f"{number}.onnx", dtype=dtype))
        assert session.inputs[0].dtype == name


def test_unknown_provider_offers_the_near_match(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        create_session(relu(tmp_path / "m.onnx"), "cudda")


@pytest.mark.skipif(not no_gpu(), reason="needs a machine without an NVIDIA GPU")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "coreml", "xnnpack", "qnn"])
def test_provider_that_is_not_here_is_refused_with_the_fix(tmp_path, provider, capfd):
    if provider not in ("cuda", "tensorrt") and provider in provider_names():
        pytest.skip(f"{provider} is here")
    with pytest.raises(ProviderError) as info:
        create_session(relu(tmp_path / "m.onnx"), provider)
    assert provider in one_line(info)
    assert "--provider cpu" in str(info.value)
    assert capfd.readouterr() == ("", "")  # neither the log of the C++ library nor its Python's prints


@pytest.mark.skipif(not no_gpu(), reason="needs a machine without an NVIDIA GPU")
def test_fallback_only_when_allowed_and_then_named(tmp_path):
    for provider in ("cuda", "coreml", "tensorrt"):
        session = create_session(relu(tmp_path / "m.onnx"), provider, allow_fallback=True)
        assert (session.provider, session.nodes_by_provider) == ("cpu", {"cpu": 1})


@pytest.mark.gpu
def test_cuda_takes_the_nodes(tmp_path):
    session = create_session(conv_chain(tmp_path / "m.onnx", 2), "cuda")
    assert session.provider == "cuda"
    assert session.nodes_by_provider["cuda"] >= 2


def test_damaged_files(tmp_path):
    whole = conv_chain(tmp_path / "whole.onnx", 2).read_bytes()
    cases = {"empty": b"", "text": b"this is no model\n" * 9, "cut": whole[: len(whole) // 2]}
    for name, content in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as info:
            create_session(path)
        assert path.name in one_line(info)
    with pytest.raises(ModelFileError, match="no such model file"):
        create_session(tmp_path / "absent.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        create_session(tmp_path)


def test_operator_without_kernel_is_named(tmp_path):
    ends = ([("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    path = save_graph(tmp_path / "custom.onnx", [node], *ends)
    with pytest.raises(ModelFileError, match=r"com\.example"):
        create_session(path)


@pytest.mark.parametrize(
    "feeds",
    [
        np.zeros((2, 4), np.float32),
        np.zeros(3, np.float32),
        np.zeros((2, 3), np.float64),
        {"other": np.zeros((2, 3), np.float32)},
        {},
    ],
    ids=["shape", "rank", "dtype", "name", "nothing"],
)
def test_wrong_inputs(tmp_path, feeds):
    session = create_session(relu(tmp_path / "m.onnx"))
    with pytest.raises(InputError) as info:
        session.run(feeds)
    assert "cannot run " in one_line(info) and ".onnx: " in one_line(info)


def test_operator_that_fails_while_it_runs(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    ends = (
        [("x", TensorProto.FLOAT, [4]), ("shape", TensorProto.INT64, [1])],
        [("y", TensorProto.FLOAT, ["n"])],
    )
    session = create_session(save_graph(tmp_path / "reshape.onnx", [node], *ends))
    with pytest.raises(ModelFileError) as info:
        session.run({"x": np.zeros(4, np.float32), "shape": np.array([3])})
    assert "Reshape" in one_line(info)


def test_importing_the_room_is_light():
    code = "import sys, deploykit.runtime; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
