"""The rooms of ``bench``, and ``feeds``: real models in real processes: measured, killed, hung, interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, endless_loop, matmul, relu, save_graph

from deploykit import environment
from deploykit.artifact import Artifact
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.bench_options import preset
from deploykit.contestant import Contestant, ModelProcess
from deploykit.errors import InputError, ModelFileError, ProviderError, UnknownNameError
from deploykit.feeds import Feed, feeds_of, parse_shapes
from deploykit.files import dump_json, sha256_file, write_json
from deploykit.latencies import timer_note
from deploykit.random_inputs import make_feeds
from deploykit.results import Bench, read_record
from deploykit.runtime import create_session
from deploykit.worker import Worker

QUICK = BenchOptions(threads=1, samples=30, min_time_s=0.2, timeout_s=60)
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


def children():
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    assert children() == []


# What is measured


def test_record_of_two_models(tmp_path):
    small, large = conv_chain(tmp_path / "small.onnx", 2), conv_chain(tmp_path / "large.onnx", 8)
    stages = []
    record = bench_onnx([small, large], QUICK, progress=lambda stage, done, total, note="": stages.append(stage))
    first, second = record.results
    assert (first.model, second.model) == ("small", "large")
    assert first.model_sha256 == sha256_file(small)
    assert first.file_bytes == first.memory.weights_bytes == small.stat().st_size
    assert (first.provider, first.precision, first.threads, first.batch) == ("cpu", "fp32", 1, 1)
    assert (first.nodes_by_provider, second.nodes_by_provider) == ({"cpu": 2}, {"cpu": 8})
    ratio = second.latency_ms.median / first.latency_ms.median
    assert 2.0 < ratio < 8.0  # four times the work
    for timing in record.results:
        latency = timing.latency_ms
        assert latency.min <= latency.ci_low <= latency.median == latency.p50 <= latency.ci_high
        assert latency.p50 <= latency.p90 <= latency.p99
        assert latency.p90_ci_low <= latency.p90 <= latency.p90_ci_high
        assert latency.p99_ci_low <= latency.p99 <= latency.p99_ci_high
        assert latency.samples >= 30 and latency.mean * latency.samples >= 200.0  # both limits hold
        assert timing.throughput_per_s == pytest.approx(1000.0 / latency.mean)
        assert timing.load_ms > 0 and timing.first_run_ms >= latency.min
        assert timing.stable == (not timing.warnings)
    assert record.environment == environment.describe()
    assert {"bench: load", "bench"} == set(stages)
    path = write_json(tmp_path / "record.json", record.to_document())
    assert read_record(path) == record


def test_the_same_model_twice_measures_alike(tmp_path):
    path = conv_chain(tmp_path / "m.onnx", 4)
    one, two = bench_onnx([path, path], QUICK, samples=200, min_time_s=0.5).results
    ratio = one.latency_ms.median / two.latency_ms.median
    # On a machine that others load heavily the ratio may be off, but then the record has to say so.
    tolerance = 0.05 if one.stable and two.stable else 0.3
    assert ratio == pytest.approx(1.0, abs=tolerance)


def test_agrees_with_a_bare_loop(tmp_path):
    path = conv_chain(tmp_path / "m.onnx", 8)
    (timing,) = bench_onnx(path, QUICK).results
    session = create_session(path, threads=1)
    feeds = {"x": np.ones((1, 16, 24, 24), np.float32)}
    durations = []
    for _ in range(100):
        began = time.perf_counter()
        session.raw.run(None, feeds)
        durations.append((time.perf_counter() - began) * 1000.0)
    assert timing.latency_ms.min == pytest.approx(min(durations), rel=0.4)  # minima stand other load best


def test_batch_threads_and_processes_reach_the_worker(tmp_path):
    path = conv_chain(tmp_path / "m.onnx", 4)
    one = bench_onnx(path, QUICK).results[0]
    eight = bench_onnx([path], QUICK, batch=8, threads=2, processes=2).results[0]
    assert (eight.batch, eight.threads) == (8, 2)
    assert eight.latency_ms.min > 2.0 * one.latency_ms.min
    assert eight.throughput_per_s == pytest.approx(8000.0 / eight.latency_ms.mean)


def test_memory_of_the_fresh_process(tmp_path):
    weight_bytes = 4 * 2500 * 4000
    memory = bench_onnx(matmul(tmp_path / "m.onnx", 2500, 4000), QUICK, samples=5, min_time_s=0).results[0].memory
    tiny = bench_onnx(relu(tmp_path / "tiny.onnx"), QUICK, samples=5, min_time_s=0).results[0].memory
    assert memory.after_load_bytes - tiny.after_load_bytes >= 0.95 * weight_bytes
    assert memory.after_load_bytes <= memory.load_peak_bytes <= memory.peak_bytes < memory.process_peak_bytes
    assert memory.load_peak_bytes >= 1.9 * weight_bytes  # in the file's message, and packed for the kernel
    assert memory.after_load_bytes <= memory.steady_bytes <= memory.peak_bytes
    assert tiny.peak_bytes < 40 << 20


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_agrees_with_a_script_that_only_runs_the_model(tmp_path):
    """The largest of three runs of each, as now and then a block of the file's size stays with the allocator.

    The script is started by a small process: what a child holds before its exec counts in its peak (wait4(2)).
    """
    path = matmul(tmp_path / "m.onnx", 2500, 8000)
    script = f"""
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({str(path)!r}, options, providers=["CPUExecutionProvider"])
for _ in range(20):
    session.run(None, {{"x": numpy.ones((1, 2500), numpy.float32)}})
"""
    starter = f"""
import resource, subprocess, sys
for _ in range(3):
    subprocess.run([sys.executable, "-c", {script!r}], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    counted = 1024 * int(subprocess.run([sys.executable, "-c", starter], capture_output=True, check=True).stdout)
    (timing,) = bench_onnx(path, QUICK, processes=3, samples=5, min_time_s=0).results
    assert timing.memory.process_peak_bytes == pytest.approx(counted, rel=0.03)


@POSIX
def test_peak_agrees_with_what_the_system_counts_for_the_process(tmp_path):
    path = matmul(tmp_path / "m.onnx", 2500, 4000)
    code = f"""
import json, resource
from deploykit.worker import Worker
feed = {{"name": "x", "dtype": "float32", "shape": [1, 2500]}}
with Worker("m") as worker:
    worker.ask("start", model={str(path)!r}, feeds=[feed], seed=0, threads=1)
    peak = worker.ask("memory")["process_peak_bytes"]
print(json.dumps([peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, counted = json.loads(done.stdout)
    assert peak == pytest.approx(counted * (1 if sys.platform == "darwin" else 1024), rel=0.03)


def test_worker_imports_neither_torch_nor_onnx(tmp_path):
    path = relu(tmp_path / "m.onnx")
    with Worker("m") as worker:
        feed = {"name": "x", "dtype": "float32", "shape": [1, 3]}
        worker.ask("start", model=str(path), feeds=[feed], seed=0, threads=1)
        modules = set(worker.ask("modules")["modules"])
    assert {"numpy", "onnxruntime"} <= modules
    assert not modules & {"torch", "onnx", "onnx_ir", "google", "PIL", "typer", "rich"}
    # 8 MB of the standard library that an app does not hold.
    assert not modules & {"hashlib", "numpy.random", "email", "zipfile", "subprocess", "psutil"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_idle_worker_uses_no_processor_time_while_another_measures(tmp_path):
    def used_ns(worker):
        pid = worker._process.pid
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))

    feed = {"name": "x", "dtype": "float32", "shape": [1, 16, 24, 24]}
    model = str(conv_chain(tmp_path / "m.onnx", 8))
    with Worker("busy") as busy, Worker("idle") as idle:
        for worker in (busy, idle):
            worker.ask("start", model=model, feeds=[feed], seed=0, threads=2)
        for _ in range(5):
            idle.ask("measure", runs=20, lead=0)  # its threads spin for a while after this
            before, busy_before = used_ns(idle), used_ns(busy)
            busy.ask("measure", runs=200, lead=0)
            assert used_ns(busy) - busy_before > 20e6
            assert used_ns(idle) - before < 1e6


@pytest.mark.slow
def test_time_by_operator_is_measured_apart(tmp_path):
    stages = []
    record = bench_onnx(
        [conv_chain(tmp_path / "m.onnx", 6), relu(tmp_path / "tiny.onnx")],
        QUICK,
        per_operator=True,
        progress=lambda stage, done, total, note="": stages.append(stage),
    )
    timing, tiny = record.results
    assert {"bench: load", "bench", "bench: operators"} == set(stages)
    assert (timing.operators[0].op_type, timing.operators[0].provider, timing.operators[0].count) == ("Conv", "cpu", 6)
    assert [row.op_type for row in tiny.operators] == ["Relu"]
    total_ms = sum(row.ms for row in timing.operators)
    assert 0.3 * timing.latency_ms.min < total_ms <= 1.001 * timing.profiled_ms
    assert Bench.from_document(json.loads(dump_json(record.to_document()))) == record
    assert bench_onnx(relu(tmp_path / "tiny.onnx"), QUICK).results[0].operators == ()


@pytest.mark.skipif(Path("/sys/class/powercap/intel-rapl:0").exists(), reason="needs a machine that counts no energy")
def test_energy_that_cannot_be_read_is_no_figure(tmp_path):
    (timing,) = bench_onnx(relu(tmp_path / "m.onnx"), QUICK, energy=True).results
    assert timing.energy_mj_per_inference is None and timing.energy_sources == ()
    assert any(warning.startswith("no energy: no processor counts") for warning in timing.warnings)


def test_energy_is_that_of_the_timed_calls(tmp_path):
    warm = {"median_ms": 1.0, "levelled": True, "cpu_s": 0.0}
    started = {"threads": 1, "energy_sources": ["package-0"]}
    processes = [
        ModelProcess(worker=None, started=started, warm=warm, blocks=[[1.0] * 5] * 2, energy_uj=energy)
        for energy in (30_000, 50_000)
    ]
    contestant = Contestant(Artifact.read(relu(tmp_path / "m.onnx")), "fp32", [], processes=processes)
    assert contestant._energy_mj() == 80 / 20


@pytest.mark.parametrize(
    ("median_ms", "step_ns", "note"),
    [
        (1.0, 50, None),
        (0.015, 50, "Python's call into ONNX Runtime"),
        (0.12, 5000, "takes 120 µs, and the timer steps by 5 µs"),
    ],
)
def test_calls_that_are_too_short_are_said(median_ms, step_ns, note):
    said = timer_note(median_ms, step_ns)
    assert said is None if note is None else note in said


def test_precision_comes_from_the_file_or_from_its_operators(tmp_path):
    told = conv_chain(tmp_path / "told.onnx", metadata={"deploykit.precision": "int8", "deploykit.network": "lenet5"})
    scale = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
    ]
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    ends = ([("x", TensorProto.FLOAT, [1, 3])], [("y", TensorProto.UINT8, [1, 3])])
    foreign = save_graph(tmp_path / "foreign.onnx", [node], *ends, scale)
    half = [numpy_helper.from_array(np.ones((3, 3), np.float16), "w")]
    ends16 = ([("x", TensorProto.FLOAT16, [1, 3])], [("y", TensorProto.FLOAT16, [1, 3])])
    fp16 = save_graph(tmp_path / "half.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], *ends16, half)
    results = bench_onnx([told, foreign, fp16], QUICK, samples=5, min_time_s=0).results
    assert [timing.precision for timing in results] == ["int8", "int8", "fp16"]
    assert [timing.network for timing in results] == ["lenet5", None, None]


def test_too_little_time_is_said_beside_the_number(tmp_path):
    options = BenchOptions(threads=1, samples=10**6, min_time_s=0.1, max_time_s=0.3)
    (timing,) = bench_onnx(conv_chain(tmp_path / "m.onnx", 8), options).results
    assert not timing.stable
    assert any("1000000 samples" in warning for warning in timing.warnings)


def test_every_combination_and_each_once(tmp_path):
    model = relu(tmp_path / "m.onnx")
    record = bench_onnx([model], QUICK, batch=(1, 4), threads=(1, 2, 1), samples=5, min_time_s=0.0)
    assert [(timing.threads, timing.batch) for timing in record.results] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert all(len(timing.turns_ms) == 1 and len(timing.turns_ms[0]) >= 2 for timing in record.results)


@pytest.mark.slow
def test_the_others_go_on_without_one_that_hangs(tmp_path):
    fine, hangs = relu(tmp_path / "fine.onnx"), endless_loop(tmp_path / "endless.onnx")
    record = bench_onnx([hangs, fine], QUICK, keep_going=True, timeout_s=2, samples=5, min_time_s=0.0)
    assert [timing.model for timing in record.results] == ["fine"]
    assert [failure.model for failure in record.failures] == ["endless"]
    assert "no answer to 'start' within 2 s" in record.failures[0].error
    with pytest.raises(InputError, match="no answer"):
        bench_onnx([hangs], QUICK, keep_going=True, timeout_s=2)


@pytest.mark.parametrize(
    ("blocks", "doubt"),
    [
        ([[1.0] * 10] * 10, None),
        ([[1.0] * 10] * 5 + [[1.2] * 10] * 5, "second half of the measurement is 20% slower"),
        ([[1.0, 1.5, 0.7, 1.9, 0.5] * 2] * 10, "spread by"),
        ([[1.0]] * 5, "only 5 samples"),
    ],
    ids=["steady", "drift", "spread", "few"],
)
def test_what_makes_a_latency_doubtful(tmp_path, blocks, doubt):
    warm = {"median_ms": 1.0, "levelled": True, "cpu_s": 0.0}
    process = ModelProcess(worker=None, started={"threads": 1}, warm=warm, blocks=blocks)
    contestant = Contestant(Artifact.read(relu(tmp_path / "m.onnx")), "fp32", [], processes=[process])
    doubts = list(contestant._doubts(BenchOptions(samples=5, min_time_s=0.0)))
    assert (not doubts) if doubt is None else any(doubt in text for text in doubts)


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0},
        {"batch": 0},
        {"samples": 0},
        {"processes": 0},
        {"timeout_s": 0},
        {"min_time_s": -1},
        {"max_time_s": 0.5},
        {"shape": {"x": (0, 3)}},
        {"provider": "gpu"},
        {"memory": "lots"},
        {"headline": "p50"},
    ],
)
def test_options_check_themselves(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong)))):
        BenchOptions(**wrong)


def test_presets_and_limits_that_leave_room():
    assert preset("quick").max_time_s < preset("ci").max_time_s and preset("ci").processes == 3
    assert (preset("mlperf").samples, preset("mlperf").headline) == (1024, "p90")
    with pytest.raises(UnknownNameError, match="did you mean 'mlperf'"):
        preset("mlpref")
    assert preset("quick").changed(min_time_s=90.0).max_time_s == 180.0
    assert preset("quick").changed(samples=9).max_time_s == 60.0
    assert preset("quick").changed(samples=9, max_time_s=5.0).max_time_s == 5.0


def test_provider_options_are_of_the_providers_that_take_some():
    settings = BenchOptions(provider=("cpu", "openvino"), provider_options={"A": "1"}, memory="lean").settings()
    assert [dict(setting.session["provider_options"]) for setting in settings] == [{}, {"A": "1"}]
    assert {setting.session["memory"] for setting in settings} == {"lean"}


def test_only_devices_with_their_own_memory_are_bound_unless_asked():
    assert [BenchOptions().binds(name) for name in ("cpu", "cuda", "openvino")] == [False, True, False]
    assert [BenchOptions(io_binding=value).binds("cuda") for value in (True, False)] == [True, False]


def test_changed_leaves_what_is_none():
    assert BenchOptions(samples=7).changed(samples=None, min_time_s=2.0) == BenchOptions(samples=7, min_time_s=2.0)


def test_nothing_to_measure_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no model"):
        bench_onnx([])
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx"):
        bench_onnx([conv_chain(tmp_path / "good.onnx"), tmp_path / "text.onnx"], QUICK)


@pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")
def test_cuda_is_refused_without_a_gpu_and_never_replaced_quietly(tmp_path):
    path = relu(tmp_path / "m.onnx")
    with pytest.raises(ProviderError, match="cuda") as info:
        bench_onnx(path, QUICK, provider="cuda")
    assert info.value.exit_code == 2 and "\n" not in str(info.value)
    (timing,) = bench_onnx(path, QUICK, provider="cuda", allow_fallback=True).results
    assert timing.provider == "cpu"
    assert any("figures of 'cpu'" in warning for warning in timing.warnings)


@POSIX
def test_a_process_that_dies_after_its_last_turn_has_no_figures(tmp_path):
    paths = [conv_chain(tmp_path / f"{name}.onnx", 4) for name in ("one", "two")]

    def kill_one(stage, done, total, note=""):
        if stage == "bench" and done == 100:
            children()[0].send_signal(signal.SIGKILL)

    record = bench_onnx(paths, QUICK, keep_going=True, progress=kill_one)
    assert [timing.model for timing in record.results] == ["two"]
    assert [(failure.model, "SIGKILL" in failure.error) for failure in record.failures] == [("one", True)]


@pytest.mark.slow
def test_reasons_that_differ_are_all_said_when_nothing_is_left(tmp_path):
    hangs = endless_loop(tmp_path / "hangs.onnx")
    with pytest.raises(InputError) as info:
        bench_onnx([hangs, hangs], QUICK, keep_going=True, timeout_s=1)
    assert str(info.value).count("hangs: ") == 1  # both for one reason
    nodes = [helper.make_node("Div", ["one", "x"], ["y"])]
    ends = [[(name, TensorProto.INT64, [1])] for name in ("x", "y")]
    one = numpy_helper.from_array(np.ones(1, np.int64), "one")
    divides = save_graph(tmp_path / "divides.onnx", nodes, *ends, [one])
    with pytest.raises(InputError, match=r"no answer to 'start' within 1 s.*; .*division by zero"):
        bench_onnx([hangs, divides], QUICK, keep_going=True, timeout_s=1)


@POSIX
def test_worker_that_is_killed_is_named_and_the_others_are_ended(tmp_path):
    paths = [conv_chain(tmp_path / f"{name}.onnx", 4) for name in ("one", "two")]

    rounds = []

    def kill_one(stage, done, total, note=""):
        rounds.append(stage)
        if rounds.count("bench") == 3:
            children()[0].send_signal(signal.SIGKILL)

    with pytest.raises(InputError, match=r"(one|two): .* was killed by SIGKILL .* lack of memory"):
        bench_onnx(paths, QUICK, samples=10**6, progress=kill_one)


def test_worker_that_hangs_is_ended_after_the_time_limit(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"endless: .* no answer .* within 2 s"):
        bench_onnx([relu(tmp_path / "fine.onnx"), endless_loop(tmp_path / "endless.onnx")], QUICK, timeout_s=2)
    assert time.monotonic() - began < 20


def start_endless_bench(path):
    """A process that measures for minutes, and its workers, once it has begun to."""
    code = f"""
from deploykit.bench import bench_onnx
def say(stage, done, total, note=""):
    if stage == "bench":
        print(flush=True)
bench_onnx([{str(path)!r}] * 2, threads=1, min_time_s=200, max_time_s=200, progress=say)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    return process, workers


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    process, workers = start_endless_bench(conv_chain(tmp_path / "m.onnx", 4))
    with process:
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


# Shapes


def picture_model(path, preprocess=None, shape=("N", 3, "H", "W")):
    return relu_with(path, shape, {"deploykit.preprocess": json.dumps(preprocess)} if preprocess else {})


def relu_with(path, shape, metadata):
    node = helper.make_node("Relu", ["input"], ["y"])
    ends = [[(name, TensorProto.FLOAT, shape)] for name in ("input", "y")]
    return Artifact.read(save_graph(path, [node], *ends, metadata=metadata))


def test_shapes_from_file_preprocess_and_flag(tmp_path):
    fixed = picture_model(tmp_path / "a.onnx", shape=(1, 3, 8, 8))
    assert feeds_of(fixed) == (Feed("input", "float32", (1, 3, 8, 8)),)
    known = picture_model(tmp_path / "b.onnx", {"size": [32, 48], "channels": "RGB"})
    assert feeds_of(known, batch=4)[0].shape == (4, 3, 32, 48)
    nhwc = picture_model(tmp_path / "c.onnx", {"size": [32, 48], "layout": "NHWC"}, shape=("N", "H", "W", 3))
    assert feeds_of(nhwc, batch=2)[0].shape == (2, 32, 48, 3)
    assert feeds_of(known, shapes={"input": (1, 3, 64, 64)})[0].shape == (1, 3, 64, 64)


def test_shapes_that_are_unknown_or_contradict_the_file(tmp_path):
    unknown = picture_model(tmp_path / "a.onnx")
    with pytest.raises(InputError, match="--shape input=1x3x224x224"):
        feeds_of(unknown)
    with pytest.raises(InputError, match="does not fit"):
        feeds_of(unknown, shapes={"input": (1, 1, 8, 8)})
    with pytest.raises(InputError, match="batch 4, but batch 1"):
        feeds_of(unknown, shapes={"input": (4, 3, 8, 8)})
    with pytest.raises(UnknownNameError, match="did you mean 'input'"):
        feeds_of(unknown, shapes={"inputs": (1, 3, 8, 8)})
    with pytest.raises(InputError, match="fixed at 1"):
        feeds_of(picture_model(tmp_path / "b.onnx", shape=(1, 3, 8, 8)), batch=2)
    text = relu(tmp_path / "c.onnx")
    model = onnx.load(text)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(model, text)
    with pytest.raises(InputError, match="bfloat16"):
        feeds_of(Artifact.read(text))


def test_a_model_is_measured_at_the_shape_that_was_asked_for(tmp_path):
    artifact = picture_model(tmp_path / "m.onnx")
    record = bench_onnx(artifact.path, QUICK, shape={"input": (1, 3, 16, 16)}, samples=5, min_time_s=0)
    assert Bench.from_document(json.loads(dump_json(record.to_document()))) == record


def test_shapes_of_the_command_line():
    assert parse_shapes(["a=1x3x8X8", "b:0=7"]) == {"a": (1, 3, 8, 8), "b:0": (7,)}
    for text in ("1x3", "a=", "a=1x0", "a=1xx2", "a=-1x3", "=1x2"):
        with pytest.raises(InputError, match="expected name=1x3x224x224"):
            parse_shapes([text])
    with pytest.raises(InputError, match="twice"):
        parse_shapes(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("int8", -128, 127), ("int64", 0, 0), ("bool", 0, 0), ("float32", -9, 9), ("float16", -9, 9)],
)
def test_inputs_span_what_their_type_allows_and_follow_the_seed(dtype, low, high):
    feed = {"name": "x", "dtype": dtype, "shape": [1, 3, 64, 64]}
    values = make_feeds([feed], 1)["x"]
    assert (values.dtype.name, values.shape) == (dtype, (1, 3, 64, 64))
    assert low <= float(values.min()) and float(values.max()) <= high
    if high > low:
        assert len(np.unique(values)) > 200
        assert not np.array_equal(values, make_feeds([feed], 2)["x"])
    assert np.array_equal(values, make_feeds([feed], 1)["x"])


# What cannot be measured


def test_weights_that_are_not_finite_are_refused_and_masks_are_not(tmp_path):
    def with_weights(name, values):
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        ends = ([("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])])
        return save_graph(tmp_path / name, nodes, *ends, [numpy_helper.from_array(np.array(values, np.float32), "w")])

    for values in ([1, 2, np.nan, 4], [1, 2, -np.inf, 4]):
        with pytest.raises(ModelFileError, match="the weights 'w' hold"):
            bench_onnx(with_weights("bad.onnx", values), QUICK)
    mask = with_weights("mask.onnx", [0, 0, -np.inf, -np.inf])
    assert bench_onnx(mask, QUICK, samples=5, min_time_s=0.0).results[0].model == "mask"


@pytest.mark.parametrize("name", ["min_time_s", "max_time_s", "timeout_s"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_are_finite(name, value):
    with pytest.raises(InputError, match="finite seconds"):
        BenchOptions(**{name: value})


@pytest.mark.parametrize("threads", [0, 1025])
def test_threads_are_few_enough(threads, tmp_path):
    with pytest.raises(InputError, match="allowed: 1 to 1024"):
        BenchOptions(threads=threads)
    with pytest.raises(InputError, match="allowed: 1 to 1024"):
        create_session(relu(tmp_path / "m.onnx"), threads=threads)
