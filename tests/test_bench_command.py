"""``deploykit bench`` as a user meets it: real processes, what goes wrong in one of several models, exit codes."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from synthetic_records import bench as record_of
from synthetic_records import timing
from tiny_onnx import conv_chain, endless_loop, relu, save_graph

from deploykit import environment
from deploykit.commands.bench import _print
from deploykit.results import Memory, read_record

QUICK = ("--samples", 10, "--min-time", 0.05, "--threads", 1)
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


def bench(*arguments, cwd):
    command = [sys.executable, "-m", "deploykit", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def overflowing_division(path):
    """-2**63 / -1: ONNX Runtime 1.31 looks for divisors of zero only, and x86 traps."""
    nodes = [
        helper.make_node("Add", ["x", "minus_one"], ["divisor"]),
        helper.make_node("Div", ["least", "divisor"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.full(1, -1, np.int64), "minus_one"),
        numpy_helper.from_array(np.full(1, np.iinfo(np.int64).min, np.int64), "least"),
    ]
    return save_graph(path, nodes, [("x", TensorProto.INT64, [1])], [("y", TensorProto.INT64, [1])], weights)


def one_line(text):
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


# What goes wrong in one model


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 traps here")
def test_a_model_that_crashes_the_runtime_is_reported_and_the_others_go_on(tmp_path):
    overflowing_division(tmp_path / "crash.onnx")
    relu(tmp_path / "fine.onnx")
    done = bench("crash.onnx", "fine.onnx", *QUICK, "--json", "-o", "b.json", cwd=tmp_path)
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert error.startswith("error: crash on cpu ×1, batch 1 was not measured: crash: the process that ran it on")
    assert "was killed by SIGFPE during 'start'" in error
    document = json.loads(done.stdout)
    assert [timing["model"] for timing in document["results"]] == ["fine"]
    assert [failure["model"] for failure in document["failures"]] == ["crash"]
    assert read_record(tmp_path / "b.json").to_document() == document
    alone = bench("crash.onnx", *QUICK, cwd=tmp_path)
    assert (alone.returncode, alone.stdout) == (2, "") and "SIGFPE" in one_line(alone.stderr)


@pytest.mark.slow
def test_a_model_that_hangs_meets_its_time_limit(tmp_path):
    endless_loop(tmp_path / "hangs.onnx")
    relu(tmp_path / "fine.onnx")
    began = time.monotonic()
    done = bench("hangs.onnx", "fine.onnx", *QUICK, "--timeout", 2, cwd=tmp_path)
    assert time.monotonic() - began < 60
    assert done.returncode == 2
    assert "hangs: the process" in done.stderr and "gave no answer to 'start' within 2 s and was ended" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["fine"]


@pytest.mark.slow
@POSIX
def test_a_worker_that_is_killed_amid_its_turns_is_reported_and_the_others_go_on(tmp_path):
    conv_chain(tmp_path / "one.onnx", 4)
    conv_chain(tmp_path / "two.onnx", 4)
    command = [sys.executable, "-m", "deploykit", "bench", "one.onnx", "two.onnx", "--threads", "1", "--min-time", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--json"], cwd=tmp_path, **pipes) as process:
        workers = []
        while len(workers) < 2 or min(worker.cpu_times().user for worker in workers) < 0.7:  # both are timed by now
            assert process.poll() is None
            workers = psutil.Process(process.pid).children()
        workers[0].send_signal(signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "was killed by SIGKILL during" in errors
    document = json.loads(output)
    assert {document["results"][0]["model"], document["failures"][0]["model"]} == {"one", "two"}


def test_what_is_wrong_with_a_file_is_said_before_anything_is_measured(tmp_path):
    shape = ["N", 3, "H", "W"]
    save_graph(
        tmp_path / "unknown.onnx",
        [helper.make_node("Relu", ["input"], ["y"])],
        [("input", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )
    done = bench("unknown.onnx", *QUICK, cwd=tmp_path)
    assert done.returncode == 2 and "give them with --shape input=1x3x224x224" in one_line(done.stderr)
    done = bench("unknown.onnx", *QUICK, "--shape", "input=1x3x8x8", "--batch", "1,2", "--json", cwd=tmp_path)
    assert [timing["batch"] for timing in json.loads(done.stdout)["results"]] == [1, 2]
    save_graph(tmp_path / "mute.onnx", [helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, [1, 3])], [])
    done = bench("mute.onnx", *QUICK, cwd=tmp_path)
    assert done.returncode == 2 and "it has no nodes or no outputs" in one_line(done.stderr)


@pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")
def test_cuda_without_a_gpu_is_one_line_and_no_figures(tmp_path):
    relu(tmp_path / "m.onnx")
    relu(tmp_path / "n.onnx")
    done = bench("m.onnx", "n.onnx", *QUICK, "--provider", "cuda", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--provider cpu" in one_line(done.stderr) and "'cuda'" in done.stderr
    both = bench("m.onnx", *QUICK, "--provider", "cuda,cpu", "--json", cwd=tmp_path)
    assert both.returncode == 2
    document = json.loads(both.stdout)
    assert [timing["provider"] for timing in document["results"]] == ["cpu"]
    assert [failure["provider"] for failure in document["failures"]] == ["cuda"]
    allowed = bench("m.onnx", *QUICK, "--provider", "cuda", "--allow-fallback", "--json", cwd=tmp_path)
    (timing,) = json.loads(allowed.stdout)["results"]
    assert (allowed.returncode, timing["provider"]) == (0, "cpu")
    assert any("figures of 'cpu'" in warning for warning in timing["warnings"])


# What is measured


@pytest.mark.slow
def test_every_combination_in_one_call(tmp_path):
    relu(tmp_path / "m.onnx")
    flags = ("--threads", "1,2", "--batch", 1, "--batch", 4, "--processes", 2, "--samples", 10, "--min-time", 0.01)
    done = bench("m.onnx", *flags, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(timing["threads"], timing["batch"]) for timing in results] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert all(timing["processes"] == len(timing["turns_ms"]) == 2 for timing in results)


def test_flags_override_a_preset_and_its_headline_stands_first(tmp_path):
    conv_chain(tmp_path / "m.onnx", 2)
    done = bench(
        "m.onnx", "--preset", "mlperf", "--min-time", 0.1, "--threads", 1, "-o", "b.json", "--per-op", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    head = done.stdout.splitlines()[0].split("  ")
    columns = [column.strip() for column in head if column.strip()]
    assert columns[:6] == ["model", "precision", "on", "p90", "95 %", "median"]
    record = read_record(tmp_path / "b.json")
    (timing,) = record.results
    assert record.headline == "p90" and timing.latency_ms.samples >= 1024
    assert timing.latency_ms.p90_ci_low <= timing.latency_ms.p90 <= timing.latency_ms.p90_ci_high
    assert [(row.op_type, row.provider, row.count) for row in timing.operators][:1] == [("Conv", "cpu", 2)]
    assert "operator" in done.stdout and "█" in done.stdout
    assert not list(tmp_path.glob("*profile*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--threads", "two"), "--threads 'two'; expected whole numbers"),
        (("--threads", "1,"), "--threads ''; expected whole numbers"),
        (("--batch", "0"), "batch 0; allowed: 1 or more"),
        (("--preset", "quik"), "did you mean 'quick'"),
        (("--memory", "leen"), "did you mean 'lean'"),
        (("--provider", "cpu,cud"), "did you mean 'cuda'"),
        (("--provider-option", "a=b"), "takes no options"),
        (("--max-time", "1", "--min-time", "2"), "max_time_s 1.0 is below min_time_s 2.0"),
        (("--processes", "0"), "processes 0; allowed: 1 or more"),
        (("--timeout", "0"), "timeout_s 0.0"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, flags, said):
    relu(tmp_path / "m.onnx")
    done = bench("m.onnx", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and said in one_line(done.stderr)


def test_what_continuous_integration_reads(tmp_path):
    relu(tmp_path / "m.onnx")
    files = ("--github-benchmark", "g.json", "--bencher", "b.json", "--junit", "j.xml", "--summary", "s.md")
    done = bench("m.onnx", *QUICK, *files, "-o", "record.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (timing,) = read_record(tmp_path / "record.json").results
    entries = json.loads((tmp_path / "g.json").read_text())
    assert (entries[0]["unit"], entries[0]["value"]) == ("ms", timing.latency_ms.median)
    metrics = json.loads((tmp_path / "b.json").read_text())
    assert metrics["m"]["latency"]["value"] == pytest.approx(timing.latency_ms.median * 1e6)
    assert 'tests="1" failures="0"' in (tmp_path / "j.xml").read_text()
    assert "| m | fp32 |" in (tmp_path / "s.md").read_text()
    again = bench("m.onnx", *QUICK, "--junit", "j.xml", cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in one_line(again.stderr)


def test_lean_memory_reaches_the_session(tmp_path):
    relu(tmp_path / "m.onnx")
    done = bench("m.onnx", *QUICK, "--memory", "lean", "--processes", 2, "--json", cwd=tmp_path)
    (timing,) = json.loads(done.stdout)["results"]
    assert (done.returncode, timing["memory_mode"]) == (0, "lean")
    assert any("lean memory" in warning for warning in timing["warnings"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_table_shows_the_gpus_memory_and_the_computed_precision_where_there_is_any(capsys):
    on_cpu = timing("a", "fp32", 5000, 2.0, 9_000_000, computed_in="fp32")
    held = Memory(5000, 8_000_000, 9_000_000, device_bytes=612_000_000, device_counted="process")
    on_gpu = timing("b", "fp32", 5000, 2.0, 9_000_000, provider="cuda", computed_in="tf32", memory=held)
    _print(record_of(on_cpu))
    assert "on GPU" not in (shown := capsys.readouterr().out) and "fp32 in" not in shown
    _print(record_of(on_cpu, on_gpu))
    shown = capsys.readouterr().out
    assert "on GPU" in shown and "612 MB" in shown and "fp32 in tf32" in shown and "fp32 in fp32" not in shown
