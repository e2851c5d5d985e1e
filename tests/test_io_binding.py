"""The room ``io_binding``, on the CPU, whose memory is bound in the same way as a GPU's."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, save_graph

from deploykit.bench import bench_onnx
from deploykit.errors import ModelFileError
from deploykit.io_binding import BoundRun, device_of
from deploykit.runtime import create_session


def two_outputs(path):
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    ends = [[(name, TensorProto.FLOAT, ["N", 3]) for name in names] for names in (("a", "b"), ("sum", "product"))]
    return save_graph(path, nodes, *ends)


def test_bound_runs_answer_as_plain_ones(tmp_path):
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal((4, 3), dtype=np.float32) for name in ("b", "a")}
    session = create_session(two_outputs(tmp_path / "m.onnx"), threads=1)
    bound = BoundRun(session, feeds)
    for _ in range(3):
        bound()
    for answer, expected in zip(bound.outputs(), session.run(feeds), strict=True):
        assert np.array_equal(answer, expected)


def test_outputs_stay_where_they_are(tmp_path):
    """A captured graph writes to the same addresses for ever."""
    session = create_session(conv_chain(tmp_path / "m.onnx", 2), threads=1)
    bound = BoundRun(session, {"x": np.ones((1, 16, 24, 24), np.float32)})
    (before,) = (value.data_ptr() for value in bound._binding.get_outputs())
    bound()
    (after,) = (value.data_ptr() for value in bound._binding.get_outputs())
    assert before == after


def test_what_fails_while_it_runs_is_ours(tmp_path):
    nodes = [helper.make_node("Div", ["one", "x"], ["y"])]
    ends = [[(name, TensorProto.INT64, [2])] for name in ("x", "y")]
    model = save_graph(tmp_path / "m.onnx", nodes, *ends, [numpy_helper.from_array(np.ones(2, np.int64), "one")])
    with pytest.raises(ModelFileError, match="by zero"):
        BoundRun(create_session(model, threads=1), {"x": np.zeros(2, np.int64)})


def test_the_record_says_how_inputs_were_passed(tmp_path):
    model = conv_chain(tmp_path / "m.onnx", 8)
    bound, plain = (
        bench_onnx(model, threads=1, samples=20, min_time_s=0.1, io_binding=binding).results[0]
        for binding in (True, None)
    )
    assert (bound.io_binding, plain.io_binding) == (True, False)
    assert bound.latency_ms.min == pytest.approx(plain.latency_ms.min, rel=0.4)


def test_gpus_have_memory_of_their_own():
    assert [device_of(name) for name in ("cuda", "tensorrt", "cpu", "openvino")] == ["cuda", "cuda", "cpu", "cpu"]
