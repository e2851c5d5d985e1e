"""The script ``benchmarks/gpu.py``: what it refuses, how it deals with time, and its rehearsal on a CPU."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, save_graph

from deploykit import environment
from deploykit.files import sha256_file
from deploykit.results import Training

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))
import gpu  # noqa: E402
import gpu_document  # noqa: E402
import gpu_flowers  # noqa: E402
import gpu_headlines  # noqa: E402
import gpu_inference  # noqa: E402
import gpu_job  # noqa: E402
import gpu_process  # noqa: E402
import gpu_throughput  # noqa: E402

no_gpu = pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")


def run(folder, *words, python=(), timeout=900):
    command = [sys.executable, *python, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=timeout, check=False)


def rehearse(folder, *words):
    done = run(folder, "--device", "cpu", "--small", *words)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "gpu.json").read_text())


def test_what_is_missing_is_said_in_one_line_with_the_command(tmp_path):
    done = run(tmp_path, python=("-S", "-E"))  # without site-packages
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert "torch" in line and "pip install torch numpy Pillow psutil safetensors" in line


@no_gpu
def test_without_a_gpu_nothing_is_measured(tmp_path):
    done = run(tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "finds no CUDA device" in line and "--device cpu --small" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "speed"), "allowed: throughput, lenet, inference, cifar, flowers"),
        (("--device", "cpu"), "give --small"),
        (("--minutes", "0"), "more than 0"),
        (("--minutes", "nan"), "more than 0"),
        (("--minutes", "1441"), "more than 0, up to 1440"),
    ],
)
def test_wrong_words(tmp_path, words, said):
    done = run(tmp_path, *words)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "words", "said"),
    [
        ("folder", "a file", ("--output", "folder/gpu.json"), "folder is no folder"),
        ("gpu.json", "{", ("--continue",), "gpu.json is not JSON"),
        ("gpu.json", "[]", ("--continue",), "gpu.json holds a JSON list"),
        ("gpu.json", '{"parts": {}, "runs": []}', ("--continue",), "gpu.json is no file of this script"),
    ],
)
def test_a_file_that_cannot_be_written_or_added_to_is_refused_before_anything_runs(
    tmp_path, name, content, words, said
):
    (tmp_path / name).write_text(content)
    done = run(tmp_path, "--device", "cpu", "--small", *words)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and said in line
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content


@pytest.mark.slow
def test_parts_without_time_are_skipped_say_so_and_leave_earlier_figures(tmp_path):
    _, document = rehearse(tmp_path, "--minutes", "0.01")
    assert {part["status"] for part in document["parts"].values()} == {"skipped"}
    assert {part["reason"] for part in document["parts"].values()} == {"no time was left"}
    assert list(document["parts"]) == list(gpu.PARTS)
    measured = {"status": "running", "reason": "…", "seconds": 7.0, "figures": {"resnet18": {"test_top1": 0.9}}}
    document["parts"]["flowers"] |= measured
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    _, again = rehearse(tmp_path, "--minutes", "0.01", "--continue")
    flowers = again["parts"]["flowers"]
    assert flowers["figures"] == measured["figures"] and flowers["seconds"] == 7.0
    assert (flowers["status"], flowers["last_try"]) == ("partial", "skipped: no time was left")
    assert again["parts"]["lenet"]["status"] == "skipped"
    assert [run["minutes"] for run in again["runs"]] == [0.01, 0.01]
    assert again["seconds"] == pytest.approx(sum(run["seconds"] for run in again["runs"]), abs=0.01)
    assert again["seconds"] > document["seconds"]


def test_a_part_that_dies_or_hangs_is_ended_and_said():
    code = "import sys; print('kernels are gone', file=sys.stderr); sys.exit(3)"
    assert gpu_process.supervise([sys.executable, "-c", code], time.time() + 60) == "exit code 3: kernels are gone"
    began = time.monotonic()
    code = "import subprocess, time; subprocess.run(['sleep', '600'])"
    assert gpu_process.supervise([sys.executable, "-c", code], time.time() - gpu_process.GRACE_S) == ""
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_script_ends_the_part_too(tmp_path, number):
    pipe = tmp_path / "pipe"  # which the part holds open for as long as it lives
    os.mkfifo(pipe)
    part = f"import time; pipe = open({str(pipe)!r}, 'w'); print('here', file=pipe, flush=True); time.sleep(600)"
    code = "import sys, gpu_process as p; p.end_on_signals(); p.supervise([sys.executable, '-c', sys.argv[1]], 1e12)"
    script = subprocess.Popen([sys.executable, "-c", code, part], cwd=SCRIPT.parent)
    with pipe.open() as end:
        assert end.readline() == "here\n"
        script.send_signal(number)
        assert script.wait(timeout=60) == 128 + number
        assert end.read() == ""  # returns when nobody has it open any more


def test_a_part_imports_from_nowhere_but_where_it_should(monkeypatch):
    code = "import os, sys; sys.exit(os.environ['PYTHONPATH'])"
    for before, after in (("", ()), (os.pathsep, ()), (f"/a{os.pathsep}{os.pathsep}/b", ("/a", "/b"))):
        monkeypatch.setenv("PYTHONPATH", before)
        said = gpu_process.supervise([sys.executable, "-c", code], time.time() + 60)
        assert said == f"exit code 1: {os.pathsep.join([str(gpu_process.ROOT), *after])}"


def test_a_network_that_fails_is_told_in_its_parts_status():
    good, bad = {"test_top1": 0.9, "files": []}, {"error": "no memory"}
    assert gpu_document.ending({"a": good, "dataset": "flowers"}) == ("done", None)
    assert gpu_document.ending({"a": good, "b": bad}) == ("partial", "1 of 2: no memory")
    assert gpu_document.ending({"b": bad}) == ("failed", "1 of 1: no memory")
    assert gpu_document.ending({"a": {"torch": [], "onnxruntime": [{"error": "no CUDA"}]}, "b": good})[0] == "partial"
    row = {"errors": ["no compiler"], "synthetic": {"images_per_s": 12.5}}
    assert gpu_document.ending({"a": row}) == ("partial", "1 of 1: no compiler")
    assert gpu_document.ending({"a": {"errors": ["diverged"], "synthetic": {}}}) == ("failed", "1 of 1: diverged")
    assert gpu_document.ending({"a": {"torch": [{"median_ms": 1.5}, {"error": "no kernel"}]}})[1] == "1 of 1: no kernel"
    row = {"synthetic": {"images_per_s": 12.5}, "real": {"skipped": "no flowers"}}
    assert gpu_document.ending({"a": row}) == ("partial", "1 of 1: no flowers")
    assert gpu_document.ending({"a": good | {"latency_error": "no time was left"}})[0] == "partial"


def test_settings_and_counts_are_no_figures():
    for nothing in ({}, {"a": {"torch": [], "onnxruntime": []}}, {"epochs_of_recipe": 40}, {"a": {"batch": 64}}):
        assert not gpu_document.holds_figure(nothing)
    assert not gpu_document.holds_figure({"a": {"test_top1": None, "top1": True}})
    assert gpu_document.holds_figure({"a": {"torch": [{"batch": 1, "median_ms": 0.0}]}})
    old = {"status": "partial", "reason": "ran out of time", "figures": {"a": {"test_top1": 0.5}}}
    new = {"status": "failed", "reason": "no memory", "figures": {"epochs_of_recipe": 40}}
    assert gpu_document.merged(old, new) == old | {"last_try": "failed: no memory"}
    assert gpu_document.merged(new, old) == old and gpu_document.merged(None, new) == new
    better = {"status": "done", "reason": None, "figures": {"a": {"test_top1": 0.6}}}
    assert gpu_document.merged(old, better) == better


def test_the_ratio_gives_both_loops_the_same_batch_sizes():
    def tried(**speeds):
        rows = [{"asked_batch_size": int(key[1:]), "images_per_s": speed} for key, speed in speeds.items()]
        return max(rows, key=lambda row: row["images_per_s"]) | {"tried": rows}

    row = {"synthetic": tried(b64=300.0, b128=400.0), "plain": tried(b64=100.0)}
    row["real"] = {"images_per_s": 150.0}
    gpu_throughput.compare(row)
    assert (row["synthetic"]["times_plain"], row["synthetic"]["compared_batch_sizes"]) == (3.0, [64])
    assert row["real"]["times_plain"] == 1.5
    row["plain"] = tried(b64=100.0, b128=160.0)
    gpu_throughput.compare(row)
    assert (row["synthetic"]["times_plain"], row["synthetic"]["compared_batch_sizes"]) == (2.5, [64, 128])
    assert row["real"]["times_plain"] == pytest.approx(150 / 160, abs=1e-3)


def test_speed_is_that_of_the_median_epoch_after_the_first():
    seconds = (9.0, 2.0, 8.0, 1.0)
    record = Training(
        **dict.fromkeys(("deploykit", "network", "dataset", "dataset_digest", "device", "checkpoint"), ""),
        **dict.fromkeys(("seconds", "test_top1", "parameters", "seed", "threads"), 0),
        environment={},
        checkpoint_sha256="",
        precision="bf16",
        epochs=4,
        images_per_s=20.0,
        mfu=0.25,
        options={"batch_size": 8},
        history=tuple({"train_seconds": value} for value in seconds),
    )
    found = gpu_throughput.settled_speed(record, 100)
    assert (found["images_per_s"], found["mfu"]) == (50.0, 0.625)


def gathers_too_far(path):
    """Loads, and fails when it is run: row 9 of 3."""
    node = helper.make_node("Gather", ["x", "index"], ["y"], axis=1)
    index = numpy_helper.from_array(np.array([9]), "index")
    return save_graph(path, [node], [("x", TensorProto.FLOAT, [1, 3])], [("y", TensorProto.FLOAT, [1, 1])], [index])


def job_in(folder, **changes):
    paths = {"work": str(folder), "result": str(folder / "result.json")}
    return gpu_job.Job("cpu", "cpu", True, None, time.time() + 300, **paths, **changes)


def test_what_torch_cannot_do_is_noted_and_the_next_network_goes_on(tmp_path):
    job = job_in(tmp_path)

    def measure(job, network, row):
        if network == "broken":
            raise RuntimeError("cuDNN error:\n  CUDNN_STATUS_EXECUTION_FAILED")
        row["synthetic"] = {"images_per_s": 5.0}

    for network in ("broken", "fine"):
        gpu_throughput._measure(job, network, measure)
    noted = ["RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"]
    assert gpu.written(tmp_path / "result.json")["figures"] == {
        "broken": {"errors": noted},
        "fine": {"synthetic": {"images_per_s": 5.0}},
    }

    def timings():
        yield {"median_ms": 1.0}
        raise RuntimeError("no kernel image")

    job.figures = {"fine": {"torch": []}}
    gpu_inference._add(job, "fine", "torch", timings())
    assert job.figures["fine"]["torch"] == [{"median_ms": 1.0}, {"error": "RuntimeError: no kernel image"}]


def test_networks_without_figures_are_trained_first_and_a_failure_takes_none_away(tmp_path):
    done, lacking = {"test_top1": 0.9}, {"test_top1": 0.8, "latency_error": "no time was left"}
    figures = {"a": done, "b": lacking, "c": {"error": "no time was left"}}
    assert gpu_flowers.still_waiting(("a", "b", "c", "d"), figures) == ["c", "d", "b"]
    job = job_in(tmp_path, figures=dict(figures))
    for name in ("b", "c"):
        gpu_flowers._take(job, name, {"error": "no memory"})
    assert job.figures == figures | {"c": {"error": "no memory"}}


def test_latency_on_the_cpu_is_called_that_and_what_cannot_be_timed_says_why(tmp_path):
    rows = {}
    for network in ("timed", "fails", "gone"):
        (tmp_path / network).mkdir()
        path = tmp_path / network / f"{network}.onnx"
        if network == "fails":
            gathers_too_far(path)
        else:
            conv_chain(path, layers=1, channels=2, size=4)
        file = {"recipe": "fp32", "file": path.name, "sha256": sha256_file(path), "top1": 0.5, "file_bytes": 1000}
        rows[network] = {"files": [file], "latency_error": gpu_flowers.NO_LATENCY}
    sound = rows["fails"]["files"][0] | {"file": "sound.onnx"}
    conv_chain(tmp_path / "fails" / "sound.onnx", layers=1, channels=2, size=4)
    rows["fails"]["files"].append(sound | {"sha256": sha256_file(tmp_path / "fails" / "sound.onnx")})
    (tmp_path / "gone" / "gone.onnx").unlink()  # as after an earlier run
    job = job_in(tmp_path, figures=rows)
    gpu_flowers.latencies(job)
    cpu = rows["timed"]["files"][0]["cpu"]
    assert cpu["name"] == environment.describe()["cpu"] and cpu["threads"] == 1 and cpu["median_ms"] > 0
    assert "latency_error" not in rows["timed"] and rows["gone"]["latency_error"] == gpu_flowers.NO_LATENCY
    assert "fails" in rows["fails"]["latency_error"] and "cpu" in rows["fails"]["files"][1]
    line, *_ = gpu_headlines.headlines("flowers", rows)
    assert line == f"timed fp32: 50.0 %, 0.00 MB, {cpu['median_ms']:.2f} ms on the CPU, 1 thread"
    job.until = time.time()
    gpu_flowers.latencies(job)
    assert rows["timed"]["latency_error"] == "no time was left"


def test_a_line_of_inference_keeps_what_was_computed_in_apart_from_the_file():
    rows = {"way": "onnxruntime cuda", "batch": 1, "median_ms": 2.0, "file_precision": "fp32"}
    unknown, known = rows | {"computed_in": None}, rows | {"computed_in": "tf32", "cuda_graph": True}
    figures = {"resnet50": {"torch": [], "onnxruntime": [unknown, known]}}
    assert list(gpu_headlines.headlines("inference", figures)) == [
        "resnet50, batch 1, onnxruntime cuda fp32 file, computed in an unknown precision: 2.000 ms",
        "resnet50, batch 1, onnxruntime cuda tf32 with a CUDA graph: 2.000 ms",
    ]


def figures(value, path=()):
    """Every number with the keys that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from figures(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from figures(item, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rehearsal_has_every_part_and_says_that_it_is_one(tmp_path):
    done, document = rehearse(tmp_path, "--minutes", "14")
    assert document["schema"] == "deploykit.gpu-benchmark/1" and document["rehearsal"] is True
    assert document["label"].startswith("rehearsal on a CPU") and document["label"] in done.stdout
    assert list(document["parts"]) == ["throughput", "lenet", "inference", "cifar", "flowers"]
    for name, part in document["parts"].items():
        assert (name, part["status"], part["reason"]) == (name, "done", None)
        assert part["device"] == "cpu" and part["rehearsal"] is True and part["figures"]
        for path, value in figures(part["figures"]):
            assert math.isfinite(value), path
            if path[-1].endswith(("per_s", "_ms", "_s", "_bytes", "seconds", "times_plain", "parameters")):
                assert value > 0, path
    parts = {name: part["figures"] for name, part in document["parts"].items()}
    assert "NVIDIA" not in json.dumps(parts) and "cuda" not in json.dumps(parts).replace("cuda_graph", "")
    assert document["seconds"] < 14 * 60 and len(document["runs"]) == 1
    for row in parts["throughput"].values():
        assert {"synthetic", "plain", "real"} <= set(row) and len(row["synthetic"]["tried"]) == 2
        assert row["synthetic"]["mfu"] is None  # a CPU has no peak in the table
        ratio = row["synthetic"]["images_per_s"] / row["plain"]["images_per_s"]
        assert row["synthetic"]["times_plain"] == pytest.approx(ratio, abs=1e-3)
    assert parts["lenet"]["reached"] == {"top1": 0.994, "epoch": None, "seconds": None}
    assert parts["cifar"]["epochs"] == parts["cifar"]["epochs_of_recipe"] == 2
    (network,) = parts["inference"].values()
    assert {(row["way"], row["batch"]) for row in network["torch"]} == {
        (way, batch) for way in ("eager", "torch.compile (aot_eager)") for batch in (1, 4)
    }
    assert {(row["way"], row["batch"]) for row in network["onnxruntime"]} == {
        ("onnxruntime cpu", 1),
        ("onnxruntime cpu", 4),
    }
    assert all(row["computed_in"] == row["file_precision"] == "fp32" for row in network["onnxruntime"])
    for row in parts["flowers"].values():
        assert [file["recipe"] for file in row["files"]] == ["fp32", "int8"] and row["trainings_at_once"] == 1
        assert all(file["cpu"]["median_ms"] > 0 and 0 <= file["top1"] <= 1 for file in row["files"])
        assert row["files"][1]["file_bytes"] < row["files"][0]["file_bytes"]


@pytest.mark.gpu
@pytest.mark.skipif(not environment.describe()["gpus"], reason="needs an NVIDIA GPU and torch with CUDA")
@pytest.mark.timeout(600)
def test_a_rehearsal_on_a_gpu_is_of_the_gpu_and_no_measurement(tmp_path):
    done = run(tmp_path, "--small", "--only", "throughput,lenet", "--minutes", "9")
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0 and document["rehearsal"] is True and document["device"]["type"] == "cuda"
    assert document["label"].startswith("rehearsal with tiny sizes on ")
    for part in document["parts"].values():
        assert part["device"] == document["device"]["name"] and part["figures"]


@pytest.mark.slow
def test_a_file_is_added_to_and_never_to_one_of_another_kind(tmp_path):
    _, first = rehearse(tmp_path, "--only", "lenet")
    _, second = rehearse(tmp_path, "--only", "lenet,cifar", "--continue", "--minutes", "0.2")
    assert second["parts"]["lenet"] == first["parts"]["lenet"]
    assert second["parts"]["cifar"]["status"] == "skipped"
    (tmp_path / "gpu.json").write_text(json.dumps(first | {"rehearsal": False}))
    done = run(tmp_path, "--device", "cpu", "--small", "--continue")
    assert done.returncode == 2 and "another device or a rehearsal" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_throughput_and_inference_go_on_with_what_is_missing(tmp_path):
    only = ("--only", "throughput,inference", "--minutes", "9")
    _, first = rehearse(tmp_path, *only)
    throughput, inference = (first["parts"][name]["figures"] for name in ("throughput", "inference"))
    whole, lacking = throughput.values()
    kept = lacking["synthetic"]["tried"][0]
    lacking["synthetic"] |= {"tried": [kept]}
    del lacking["plain"], lacking["real"]
    rows = inference["mobilenet-v3-small"]
    gone = rows["torch"].pop(), rows["onnxruntime"].pop()
    rows["torch"].append({"error": "no kernel"})
    for part in first["parts"].values():
        part |= {"status": "partial", "reason": "ran out of time"}
    (tmp_path / "gpu.json").write_text(json.dumps(first))
    _, second = rehearse(tmp_path, *only, "--continue")
    again, filled = second["parts"]["throughput"]["figures"].values()
    assert again == whole and filled["synthetic"]["tried"][0] == kept
    assert len(filled["synthetic"]["tried"]) == len(filled["plain"]["tried"]) == 2 and "images_per_s" in filled["real"]
    found = second["parts"]["inference"]["figures"]["mobilenet-v3-small"]
    for kind, missing in zip(("torch", "onnxruntime"), gone, strict=True):
        assert found[kind][: len(rows[kind]) - (kind == "torch")] == [row for row in rows[kind] if "error" not in row]
        (new,) = found[kind][len(found[kind]) - 1 :]
        assert (new["way"], new["batch"]) == (missing["way"], missing["batch"]) and "error" not in new
        assert len(found[kind]) == len({(row["way"], row["batch"]) for row in found[kind]})
    for name, part in second["parts"].items():
        assert part["status"] == "done" and part["seconds"] > first["parts"][name]["seconds"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_script_that_is_ended_leaves_what_the_running_part_has(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--only", "throughput"]
    script, output = subprocess.Popen(command, cwd=tmp_path), tmp_path / "gpu.json"
    document = None
    while not (document and gpu_document.holds_figure(document["parts"])):
        with pytest.raises(subprocess.TimeoutExpired):
            script.wait(timeout=0.2)
        document = json.loads(output.read_text()) if output.exists() else None
    (part,) = (child for child in psutil.Process(script.pid).children() if "--run" in child.cmdline())
    script.terminate()
    assert script.wait(timeout=60) == 143 and not part.is_running()
    left = json.loads(output.read_text())["parts"]["throughput"]
    assert left["status"] == "running" and gpu_document.holds_figure(left["figures"])
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
