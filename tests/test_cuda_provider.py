"""What is settled for the CUDA provider before it runs, and what its records say; the last tests need a GPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import classifier, conv_chain, save_graph

from deploykit import environment
from deploykit.artifact import load_model
from deploykit.bench import bench_onnx
from deploykit.bench_options import BenchOptions
from deploykit.cli import main
from deploykit.device_memory import open_device_memory
from deploykit.energy import find_meters
from deploykit.errors import InputError, ProviderError
from deploykit.evaluate import EvaluateOptions
from deploykit.graph.integer_operators import check_integers_run, integers_on_cuda
from deploykit.provider_options import captures_graph, check_provider_options, check_unbound, computed_in
from deploykit.results import Bench
from deploykit.runtime import create_session
from deploykit.worker import Worker

GPUS = environment.describe()["gpus"]
no_gpu = pytest.mark.skipif(bool(GPUS), reason="needs a machine without an NVIDIA GPU")
QUICK = {"threads": 1, "samples": 5, "min_time_s": 0.0}


def qdq(path, zero=TensorProto.UINT8):
    """A convolution between roundings, as ``quantize`` writes it."""
    weights = [
        numpy_helper.from_array(np.full((4, 3, 3, 3), 3, np.int8), "w"),
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "w_zero"),
        helper.make_tensor("zero", zero, [], [0]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["y"]),
    ]
    ends = [[(name, TensorProto.FLOAT, shape)] for name, shape in (("x", ["N", 3, 8, 8]), ("y", None))]
    return save_graph(path, nodes, *ends, weights, opset=19)


def qlinear(path):
    """The same with an operator on integers."""
    integers = {"w": np.full((4, 3, 3, 3), 3, np.int8), "zero": np.array(0, np.uint8), "w_zero": np.array(0, np.int8)}
    weights = [numpy_helper.from_array(value, name) for name, value in integers.items()]
    weights.append(numpy_helper.from_array(np.array(0.02, np.float32), "s"))
    node = helper.make_node("QLinearConv", ["x", "s", "zero", "w", "s", "w_zero", "s", "zero"], ["y"])
    ends = [[(name, TensorProto.UINT8, shape)] for name, shape in (("x", ["N", 3, 8, 8]), ("y", None))]
    return save_graph(path, [node], *ends, weights)


def weights_only(path):
    """Integer weights, float activations."""
    weights = [
        numpy_helper.from_array(np.full((3, 4), 3, np.int8), "w"),
        numpy_helper.from_array(np.array(0.02, np.float32), "s"),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"])]
    ends = [[(name, TensorProto.FLOAT, shape)] for name, shape in (("x", ["N", 3]), ("y", ["N", 4]))]
    return save_graph(path, nodes, *ends, weights)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (qdq, "in float, with 1 roundings on top"),
        (qlinear, "no kernel for QLinearConv (1 of them), which would run on the CPU"),
        (weights_only, None),
        (conv_chain, None),
        (lambda path: qdq(path, TensorProto.FLOAT8E4M3FN), None),
    ],
)
def test_what_the_cuda_provider_does_to_integers(tmp_path, build, words):
    reason = integers_on_cuda(load_model(build(tmp_path / "m.onnx")))
    assert (words in reason) if words else reason is None


@pytest.mark.parametrize("build", [qdq, qlinear])
def test_integers_are_refused_on_cuda_in_one_line_with_what_to_use_instead(tmp_path, capsys, build):
    path = build(tmp_path / "m.int8.onnx")
    assert main(["bench", str(path), "--provider", "cuda", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for part in ("m.int8.onnx is quantized to integers", "provider 'cuda'", "--provider cpu", "--recipe fp16"):
        assert part in err
    model = load_model(path)
    assert check_integers_run(model, path, "cpu", allow_fallback=False) is None
    assert check_integers_run(model, path, "tensorrt", allow_fallback=False) is None
    assert "int8" in check_integers_run(model, path, "cuda", allow_fallback=True)


def test_integers_are_refused_by_evaluate_too(tmp_path, capsys):
    float_model = load_model(classifier(tmp_path / "f.onnx", width=8))
    graph = float_model.graph
    first = graph.node[0]
    graph.initializer.append(numpy_helper.from_array(np.array(0.02, np.float32), "s"))
    graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), "z"))
    rounding = [
        helper.make_node("QuantizeLinear", [first.input[0], "s", "z"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "s", "z"], ["back"]),
    ]
    first.input[0] = "back"
    nodes = [*rounding, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path = tmp_path / "m.onnx"
    path.write_bytes(float_model.SerializeToString())
    assert main(["evaluate", str(path), "--data", "shapes", "--provider", "cuda"]) == 2
    assert "m.onnx is quantized to integers" in capsys.readouterr().err


@no_gpu
def test_a_permitted_fallback_runs_integers_on_the_cpu_and_says_so(tmp_path):
    (timing,) = bench_onnx(qdq(tmp_path / "m.onnx"), provider="cuda", allow_fallback=True, **QUICK).results
    assert (timing.provider, timing.computed_in) == ("cpu", "int8")
    assert (timing.memory.device_bytes, timing.memory.device_counted) == (None, None)
    assert any("could not be used" in warning for warning in timing.warnings)
    assert not any("does not compute in int8" in warning for warning in timing.warnings)
    assert not any("CUDA graph" in warning for warning in timing.warnings)  # the CPU has none to refuse


@pytest.mark.parametrize("key", ["use_tf32", "prefer_nhwc", "enable_cuda_graph"])
def test_switches_are_1_or_0(key):
    for value in ("1", "0", "True", "false"):
        check_provider_options("cuda", {key: value})
    with pytest.raises(InputError, match=f"{key}=off; allowed: 1 or 0"):
        check_provider_options("cuda", {key: "off"})


def test_a_captured_graph_needs_inputs_that_stay():
    told = {"enable_cuda_graph": "1"}
    for refuse in (
        lambda: check_unbound("cuda", told),
        lambda: EvaluateOptions(provider="cuda", provider_options=told),
        lambda: BenchOptions(provider="cuda", provider_options=told, io_binding=False),
    ):
        with pytest.raises(InputError, match="IO binding"):
            refuse()
    assert BenchOptions(provider="cuda", provider_options=told).binds("cuda")
    check_unbound("cuda", {"enable_cuda_graph": "0"})
    check_unbound("tensorrt", told)


def gpu(monkeypatch, capability):
    known = environment.describe() | {"gpus": [{"name": "GPU", "compute_capability": capability}]}
    monkeypatch.setattr(environment, "describe", lambda: known)


@pytest.mark.parametrize(
    ("provider", "options", "precision", "capability", "found"),
    [
        ("cuda", {}, "fp32", "9.0", "tf32"),
        ("cuda", {"use_tf32": "0"}, "fp32", "9.0", "fp32"),
        ("cuda", {}, "fp32", "7.5", "fp32"),
        ("cuda", {}, "fp32", None, None),
        ("cuda", {}, "fp16", "9.0", "fp16"),
        ("cuda", {}, "int8", "9.0", None),
        ("tensorrt", {}, "fp32", "10.0", "tf32"),
        ("tensorrt", {"trt_fp16_enable": "1"}, "fp32", "9.0", None),
        ("cpu", {}, "fp32", None, "fp32"),
        ("cpu", {}, "int8", None, "int8"),
        ("cpu", {}, "fp16", None, None),
        ("openvino", {"INFERENCE_PRECISION_HINT": "f16"}, "fp32", None, "fp16"),
        ("openvino", {"EXECUTION_MODE_HINT": "ACCURACY"}, "fp32", None, "fp32"),
        ("coreml", {}, "fp32", None, None),
    ],
)
def test_what_is_computed_in(monkeypatch, provider, options, precision, capability, found):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    gpu(monkeypatch, capability)
    assert computed_in(provider, options, precision) == found


def test_tf32_that_is_forbidden_everywhere(monkeypatch):
    gpu(monkeypatch, "9.0")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert computed_in("cuda", {}, "fp32") == "fp32"


def test_records_say_what_was_computed_in_and_old_ones_are_read(tmp_path):
    record = bench_onnx(conv_chain(tmp_path / "m.onnx"), **QUICK)
    document = json.loads(json.dumps(record.to_document()))
    (timing,) = document["results"]
    assert timing["computed_in"] == "fp32"
    assert timing["memory"]["device_bytes"] is timing["memory"]["device_counted"] is None
    assert Bench.from_document(document) == record
    for key in ("device_bytes", "device_counted"):
        del timing["memory"][key]
    del timing["computed_in"]
    assert Bench.from_document(document).results[0].computed_in is None


NVML = """
import os
class NVMLError(Exception): pass
class Memory: used = 0
class Process: pass
used, listed, own = 1000, True, 300
kinds = os.environ.get("KINDS", "A").split(",")
def nvmlInit():
    if os.environ.get("BROKEN"): raise NVMLError("Driver Not Loaded")
def nvmlDeviceGetCount(): return len(kinds)
def nvmlDeviceGetName(device): return kinds[device]
def nvmlDeviceGetUUID(device): return f"GPU-{device}0ab"
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetHandleByUUID(name): return name.decode()
def nvmlDeviceGetMemoryInfo(device):
    if used is None: raise NVMLError("GPU is lost")
    memory = Memory(); memory.used = used
    return memory
def nvmlDeviceGetComputeRunningProcesses(device):
    process = Process(); process.pid, process.usedGpuMemory = (os.getpid() if listed else 1), own
    return [process]
"""
"""A driver's library that stands in a file: what is tested reads what it says, not how it counts."""


def with_nvml(tmp_path, code, **environ):
    (tmp_path / "pynvml.py").write_text(NVML)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), **environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def readings(tmp_path, steps, **environ):
    """What the meter says after each step: a change of the library, and whether the model is alone on the GPU."""
    code = f"""
import pynvml
from deploykit.device_memory import open_device_memory
meter = open_device_memory("cuda")
for changes, alone in {steps!r}:
    vars(pynvml).update(changes)
    meter.read(alone=alone)
    print(meter.most_bytes, meter.counted, meter.missing)
"""
    return with_nvml(tmp_path, code, **environ).splitlines()


def test_memory_on_the_device_is_the_processs_at_most(tmp_path):
    steps = [({}, True), ({"own": 350}, False), ({"own": 200}, False), ({"listed": False, "used": 9000}, False)]
    expected = [f"{most} process" for most in (300, 350, 350, 350)]
    assert [line.strip() for line in readings(tmp_path, steps)] == expected


def test_memory_of_the_board_is_without_the_models_that_are_loaded_later(tmp_path):
    steps = [({"listed": False, "used": 1600}, True), ({"used": 1700}, True), ({"used": 5000}, False)]
    assert [line.strip() for line in readings(tmp_path, steps)] == ["600 board", "700 board", "700 board"]


def test_a_board_that_no_longer_tells_has_no_figure_but_a_reason(tmp_path):
    lines = readings(tmp_path, [({"listed": False, "used": 1600}, True), ({"used": None}, True)])
    assert lines[-1] == "None board the GPU's memory cannot be read: GPU is lost"


OPENED = """
from deploykit.nvml import open_gpu
opened = open_gpu()
print(opened if isinstance(opened, str) else opened[1])
"""


@pytest.mark.parametrize(
    ("kinds", "visible", "order", "found"),
    [
        ("A", None, None, "0"),
        ("A,A", "1,0", None, "1"),
        ("A,B", "1", "PCI_BUS_ID", "1"),
        ("A,B", "1", None, "set CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ("A,B", None, "FASTEST_FIRST", "set CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ("A,B", "GPU-10ab,GPU-00ab", None, "1"),
        ("A,B", "GPU-1", None, "1"),
        ("A,B", "GPU-", None, "2 GPUs are called GPU-"),
        ("A,B", "MIG-7", None, "MIG-7"),
        ("A", "", None, "hides all GPUs"),
        ("A", "-1", None, "hides all GPUs"),
        ("A", "3", None, "begins with 3, and there are 1 GPUs"),
    ],
)
def test_which_gpu_is_read(tmp_path, monkeypatch, kinds, visible, order, found):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    said = with_nvml(tmp_path, OPENED, KINDS=kinds)
    assert said == found or (found in said and said.startswith("cannot be read: "))


def test_a_driver_that_does_not_start_is_told(tmp_path):
    assert with_nvml(tmp_path, OPENED, BROKEN="1") == "cannot be read: Driver Not Loaded"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nvtensorrtrtx"])
def test_all_providers_on_nvidia_are_known_as_such(tmp_path, provider):
    assert with_nvml(
        tmp_path, f"import deploykit.device_memory as d; print(d.open_device_memory({provider!r}).counted)"
    )
    _, missing = find_meters(provider, tmp_path)
    assert "GPU" in missing


@pytest.mark.parametrize(
    ("kinds", "visible", "order", "found"),
    [
        (("7.5", "9.0"), "0", "PCI_BUS_ID", "fp32"),
        (("7.5", "9.0"), "1", "PCI_BUS_ID", "tf32"),
        (("7.5", "9.0"), "1", None, None),  # CUDA's second is the slower one
        (("7.5", "9.0"), "GPU-1", "PCI_BUS_ID", None),
        (("9.0", "9.0"), "GPU-1", None, "tf32"),
        (("9.0", "9.0"), "", None, None),
    ],
)
def test_the_precision_is_that_of_the_gpu_that_is_used(monkeypatch, kinds, visible, order, found):
    gpus = [{"name": f"GPU {kind}", "compute_capability": kind} for kind in kinds]
    known = environment.describe() | {"gpus": gpus}
    monkeypatch.setattr(environment, "describe", lambda: known)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    assert computed_in("cuda", {}, "fp32") == found


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_gpu_is_chosen_for_all_at_once(provider):
    with pytest.raises(InputError, match="received device_id; choose the GPU by CUDA_VISIBLE_DEVICES"):
        BenchOptions(provider=provider, provider_options={"device_id": "1"})


@pytest.mark.parametrize(
    ("provider", "value", "captures"),
    [
        ("cuda", "1", True),
        ("cuda", "true", True),
        ("cuda", "True", True),
        ("cuda", "0", False),
        ("tensorrt", "1", False),
    ],
)
def test_a_switch_counts_as_on_however_it_is_written(provider, value, captures):
    assert captures_graph(provider, {"enable_cuda_graph": value}) is captures


@no_gpu
def test_a_refused_graph_leaves_the_process_to_a_fresh_one(tmp_path):
    model = str(conv_chain(tmp_path / "m.onnx"))
    feed = {"name": "x", "dtype": "float32", "shape": [1, 16, 24, 24]}
    asked = {"model": model, "feeds": [feed], "seed": 0, "provider": "cuda", "threads": 1, "io_binding": True}
    with Worker("m", provider="cuda") as worker:
        answer = worker.ask("start", **asked, cuda_graph=True)
        assert list(answer) == ["graph_refused"] and "cuda" in answer["graph_refused"]
        with pytest.raises(ProviderError):
            worker.ask("start", **asked)


@no_gpu
def test_why_there_is_no_memory_on_a_device():
    assert open_device_memory("cpu") == ""
    assert open_device_memory("cuda").startswith("the GPU's memory ")


needs_gpu = pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU and CUDA under ONNX Runtime")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{}, {"use_tf32": "0"}, {"prefer_nhwc": "1"}, {"use_tf32": "0", "prefer_nhwc": "1"}]
)
def test_cuda_answers_as_the_cpu_does(tmp_path, options):
    model = conv_chain(tmp_path / "m.onnx", 3)
    rows = np.random.default_rng(0).standard_normal((4, 16, 24, 24), dtype=np.float32)
    expected = create_session(model).run(rows)[0]
    session = create_session(model, "cuda", provider_options=options)
    assert session.nodes_by_provider.get("cuda", 0) >= 3
    near = 1e-4 if options.get("use_tf32") == "0" else 2e-2  # TF32 keeps ten bits of the mantissa
    np.testing.assert_allclose(session.run(rows)[0], expected, rtol=near, atol=near * np.abs(expected).max())


@needs_gpu
@pytest.mark.gpu
def test_a_captured_graph_is_in_the_record_with_the_devices_memory(tmp_path):
    model = conv_chain(tmp_path / "m.onnx", 3)
    (timing,) = bench_onnx(model, provider="cuda", **QUICK).results
    assert timing.cuda_graph and timing.io_binding and timing.provider == "cuda"
    assert timing.memory.device_bytes is None or timing.memory.device_bytes > 0
    assert timing.computed_in in ("tf32", "fp32")


@needs_gpu
@pytest.mark.gpu
def test_a_graph_that_is_asked_for_or_refused_is_in_the_record(tmp_path):
    model = conv_chain(tmp_path / "m.onnx", 3)
    told = {"enable_cuda_graph": "True"}
    (timing,) = bench_onnx(model, provider="cuda", cuda_graph=False, provider_options=told, **QUICK).results
    assert timing.cuda_graph
    (timing,) = bench_onnx(partly_on_the_cpu(tmp_path / "p.onnx"), provider="cuda", **QUICK).results
    assert not timing.cuda_graph and timing.nodes_by_provider["cpu"]
    assert any(warning.startswith("no CUDA graph is replayed, as it was refused: ") for warning in timing.warnings)


def partly_on_the_cpu(path):
    """With an operator that only the CPU has a kernel for: Det."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["h"]), helper.make_node("Det", ["h"], ["y"])]
    return save_graph(path, nodes, [("x", TensorProto.FLOAT, [4, 4])], [("y", TensorProto.FLOAT, [])])


@needs_gpu
@pytest.mark.gpu
def test_a_captured_graph_without_binding_is_refused(tmp_path):
    session = create_session(conv_chain(tmp_path / "m.onnx"), "cuda", provider_options={"enable_cuda_graph": "1"})
    with pytest.raises((InputError, ProviderError), match="IO binding"):
        session.run(np.zeros((1, 16, 24, 24), np.float32))
