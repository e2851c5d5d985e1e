"""The room ``operators``: profiles that ONNX Runtime writes, and events of which the times are known."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, save_graph

from deploykit.errors import InputError
from deploykit.operators import read_profile
from deploykit.runtime import create_session


def event(name, start, duration, op="", provider="CPUExecutionProvider"):
    if not op:
        return {"cat": "Session", "name": name, "ts": start, "dur": duration, "args": {}}
    args = {"op_name": op, "provider": provider}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}


def written(path, events):
    path.write_text(json.dumps(events))
    return path


def test_the_times_of_known_events(tmp_path):
    """Four runs of 100 µs: a convolution, and a loop around two additions. One run was interrupted."""
    events = []
    for run, start in enumerate((0, 1000, 2000, 9000)):
        slow = 500 if run == 1 else 0
        events += [
            event("conv", start + 5, 40 + slow, "Conv"),
            event("loop", start + 50 + slow, 30, "Loop"),
            event("add", start + 55 + slow, 10, "Add"),
            event("add", start + 68 + slow, 10, "Add"),
            event("model_run", start, 100 + slow),
        ]
    profile = read_profile(written(tmp_path / "p.json", events), names={"CPUExecutionProvider": "cpu"})
    assert (profile.runs, profile.call_ms) == (4, 0.1)
    times = {(row.op_type, row.provider, row.count): row.ms for row in profile.operators}
    assert times == {("Conv", "cpu", 1): 0.04, ("Add", "cpu", 1): 0.02, ("Loop", "cpu", 1): 0.01}
    assert [row.share for row in profile.operators] == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=1e-6)
    assert [(row.name, row.op_type) for row in profile.nodes] == [("conv", "Conv"), ("add", "Add"), ("loop", "Loop")]
    assert read_profile(tmp_path / "p.json", skip=3, top=1).runs == 1
    assert len(read_profile(tmp_path / "p.json", top=1).nodes) == 1


def test_what_is_no_profile(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('[{"name": ')
    with pytest.raises(InputError, match="not JSON"):
        read_profile(tmp_path / "cut.json")
    with pytest.raises(InputError, match="list of a profile"):
        read_profile(written(tmp_path / "object.json", {}))
    with pytest.raises(InputError, match="no more than 1 runs"):
        read_profile(written(tmp_path / "one.json", [event("model_run", 0, 10)]), skip=1)


def profiled(path, feeds, folder, runs=20):
    session = create_session(path, threads=1, profile_prefix=str(folder / "profile"))
    for _ in range(runs):
        session.run(feeds)
    return read_profile(session.raw.end_profiling(), skip=2)


def test_a_profile_of_onnx_runtime(tmp_path):
    profile = profiled(conv_chain(tmp_path / "m.onnx", 6), {"x": np.ones((1, 16, 24, 24), np.float32)}, tmp_path)
    assert profile.runs == 18
    convolution = profile.operators[0]
    assert (convolution.op_type, convolution.count) == ("Conv", 6)
    assert convolution.share > 0.5
    assert sum(row.share for row in profile.operators) == pytest.approx(1.0, abs=1e-3)
    assert sum(row.ms for row in profile.operators) <= profile.call_ms * 1.001
    assert sum(row.ms for row in profile.nodes) == pytest.approx(sum(row.ms for row in profile.operators), rel=1e-3)


def test_the_nodes_of_a_loop_are_not_counted_twice(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("MatMul", ["value", "w"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [64, 64]),
        ],
    )
    weights = [
        numpy_helper.from_array(np.array(50, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "always"),
        numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"),
    ]
    ends = ([("x", TensorProto.FLOAT, [64, 64])], [("y", TensorProto.FLOAT, [64, 64])])
    path = save_graph(
        tmp_path / "m.onnx", [helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)], *ends, weights
    )
    profile = profiled(path, {"x": np.ones((64, 64), np.float32)}, tmp_path)
    assert {row.op_type for row in profile.operators} >= {"Loop", "MatMul"}
    assert sum(row.ms for row in profile.operators) <= profile.call_ms * 1.001
