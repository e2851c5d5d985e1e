"""The script ``benchmarks/gpu.py``: what it refuses, how it deals with time, and its rehearsal on a CPU."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit import environment

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))
import gpu  # noqa: E402
import gpu_parts  # noqa: E402

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
        (("--only", "speed"), "allowed: throughput, lenet, cifar, inference, flowers"),
        (("--device", "cpu"), "give --small"),
        (("--minutes", "0"), "more than 0"),
        (("--minutes", "nan"), "more than 0"),
    ],
)
def test_wrong_words(tmp_path, words, said):
    done = run(tmp_path, *words)
    assert done.returncode == 2 and said in done.stderr


def test_parts_without_time_are_skipped_and_say_so(tmp_path):
    _, document = rehearse(tmp_path, "--minutes", "0.01")
    assert {part["status"] for part in document["parts"].values()} == {"skipped"}
    assert {part["reason"] for part in document["parts"].values()} == {"no time was left"}
    assert list(document["parts"]) == list(gpu.PARTS)


def test_a_part_that_dies_or_hangs_is_ended_and_said():
    code = "import sys; print('kernels are gone', file=sys.stderr); sys.exit(3)"
    assert gpu.supervise([sys.executable, "-c", code], time.time() + 60) == "exit code 3: kernels are gone"
    began = time.monotonic()
    code = "import subprocess, time; subprocess.run(['sleep', '600'])"
    assert gpu.supervise([sys.executable, "-c", code], time.time() - gpu.GRACE_S) == ""
    assert time.monotonic() - began < 30


def test_a_network_that_fails_is_told_in_its_parts_status():
    good, bad = {"test_top1": 0.9, "files": []}, {"error": "no memory"}
    assert gpu_parts.ending({"a": good, "dataset": "flowers"}) == ("done", None)
    assert gpu_parts.ending({"a": good, "b": bad}) == ("partial", "1 of 2: no memory")
    assert gpu_parts.ending({"b": bad}) == ("failed", "1 of 1: no memory")
    assert gpu_parts.ending({"a": {"torch": [], "onnxruntime": [{"error": "no CUDA"}]}, "b": good})[0] == "partial"
    row = {"errors": ["no compiler"], "synthetic": {"images_per_s": 12.5}}
    assert gpu_parts.ending({"a": row}) == ("partial", "1 of 1: no compiler")
    assert gpu_parts.ending({"a": {"errors": ["diverged"], "synthetic": {}}}) == ("failed", "1 of 1: diverged")


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
    assert list(document["parts"]) == ["throughput", "lenet", "cifar", "inference", "flowers"]
    for name, part in document["parts"].items():
        assert (name, part["status"], part["reason"]) == (name, "done", None)
        assert part["device"] == "cpu" and part["rehearsal"] is True and part["figures"]
        for path, value in figures(part["figures"]):
            assert math.isfinite(value), path
            if path[-1].endswith(("per_s", "_ms", "_s", "_bytes", "seconds", "times_plain", "parameters")):
                assert value > 0, path
    parts = {name: part["figures"] for name, part in document["parts"].items()}
    assert "NVIDIA" not in json.dumps(parts) and "cuda" not in json.dumps(parts).replace("cuda_graph", "")
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
    for row in parts["flowers"].values():
        assert [file["recipe"] for file in row["files"]] == ["fp32", "int8"]
        assert all(file["cpu_latency_ms"] > 0 and 0 <= file["top1"] <= 1 for file in row["files"])
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
