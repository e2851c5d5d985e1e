"""The room ``doctor``: a real examination, and clashes built on disk."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata

import pytest

from deploykit import environment
from deploykit.cuda_diagnosis import CudaFacts
from deploykit.doctor import _browser, _cpu_limit, _cuda, _int8, _memory, _wheels, diagnose


@pytest.fixture(scope="module")
def diagnosis():
    began = time.monotonic()
    result = diagnose()
    assert time.monotonic() - began < 10  # a second on an idle machine
    return result


def check(diagnosis, name):
    return next(item for item in diagnosis.checks if item.name == name)


def test_document(diagnosis):
    document = json.loads(json.dumps(diagnosis.to_document()))
    assert document["schema"] == "deploykit.doctor/1"
    assert document["environment"] == environment.describe()
    assert {item["status"] for item in document["checks"]} <= {"ok", "warning", "problem"}
    assert document["healthy"] is all(item["status"] != "problem" for item in document["checks"])


def test_the_cpu_provider_runs_and_what_cannot_is_not_said_to(diagnosis):
    providers = {row["name"]: row for row in diagnosis.providers}
    assert providers["cpu"]["listed"] and providers["cpu"]["works"]
    assert check(diagnosis, "onnxruntime").status == "ok"
    if not diagnosis.environment["gpus"]:
        assert not providers["cuda"]["works"] and not providers["tensorrt"]["works"]
    if sys.platform != "darwin":
        assert not providers["coreml"]["works"]
        assert providers["coreml"]["detail"] == "not in this onnxruntime"


def test_the_wheel_that_is_installed_is_named(diagnosis):
    names = {dist.metadata["Name"] for dist in metadata.distributions()} & {"onnxruntime", "onnxruntime-gpu"}
    assert all(name in check(diagnosis, "onnxruntime wheel").detail for name in names)


def test_what_keeps_cuda_from_starting_has_a_remedy(diagnosis):
    row = next(row for row in diagnosis.providers if row["name"] == "cuda")
    gpus = bool(diagnosis.environment["gpus"])
    if row["works"]:
        assert gpus and check(diagnosis, "provider cuda").status == "ok"
    elif row["listed"]:
        found = check(diagnosis, "provider cuda")
        assert found.status == ("problem" if gpus else "warning")
        assert found.fix and "--provider cpu" in found.fix
        assert found.detail.split(": ", 1)[-1] in row["detail"]  # the error names the same mismatch
        assert gpus or "no NVIDIA driver was found" in found.detail
    else:
        found = check(diagnosis, "CUDA")
        assert "is built without CUDA" in found.detail
        assert (found.status, bool(found.fix)) == (("warning", True) if gpus else ("ok", False))


@pytest.mark.parametrize(
    ("wheel", "gpus", "works", "status"),
    [
        ("onnxruntime", ("NVIDIA L4",), False, "warning"),
        ("onnxruntime-directml", ("NVIDIA L4",), False, "warning"),
        ("onnxruntime", (), False, "ok"),
        ("onnxruntime-gpu", ("NVIDIA L4",), True, "ok"),
    ],
)
def test_a_gpu_that_lies_idle_for_a_wheel_without_cuda(wheel, gpus, works, status):
    facts = CudaFacts(wheels={wheel: "1.31.0"}, built_for=None, driver="580.65.06" if gpus else None, gpus=gpus)
    found = _cuda(facts, [{"name": "cuda", "works": works}])
    assert found.status == status
    if status == "ok":
        assert found.fix is None
    else:
        assert "there is a NVIDIA L4" in found.detail
        assert f"pip uninstall -y {wheel} && pip install --no-cache-dir onnxruntime-gpu" in found.fix


def test_the_browser_is_a_note(monkeypatch, tmp_path):
    monkeypatch.delenv("DEPLOYKIT_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _browser()
    assert (found.status, "only bench --provider web needs" in found.detail) == ("ok", sys.platform != "darwin")
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert _browser().detail.startswith(str(program))
    monkeypatch.setenv("DEPLOYKIT_BROWSER", "no-such-program")
    assert _browser().status == "ok" and "DEPLOYKIT_BROWSER is 'no-such-program'" in _browser().detail


@pytest.mark.parametrize(
    ("torch_cuda", "works", "status"),
    [(12, False, "warning"), (12, True, "ok"), (13, False, "ok"), (None, False, "ok")],
)
def test_versions_of_cuda_that_lie_apart(torch_cuda, works, status):
    facts = CudaFacts(
        wheels={"onnxruntime-gpu": "1.31.1"},
        built_for=13,
        packages={"nvidia-cublas-cu12": "12.8.4.1", "nvidia-nvtx": "13"},
        torch_cuda=torch_cuda,
        driver="580.65.06",
    )
    found = _cuda(facts, [{"name": "cuda", "works": works}])
    assert found.status == status
    assert "built for CUDA 13; driver 580.65.06; nvidia-cublas-cu12 12.8.4.1" in found.detail
    assert ("CUDA 13" in found.fix) if status == "warning" else found.fix is None


def install(site, name, version):
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_two_wheels_are_a_problem_with_the_commands_that_mend_it(tmp_path):
    install(tmp_path, "onnxruntime", "1.31.0")
    assert _wheels([str(tmp_path)]).status == "ok"
    install(tmp_path, "onnxruntime-gpu", "1.31.1")
    install(tmp_path, "onnxruntime-ep-openvino", "1.8.1")  # a plugin lies beside any wheel
    found = _wheels([str(tmp_path)])
    assert found.status == "problem"
    assert "onnxruntime 1.31.0, onnxruntime-gpu 1.31.1" in found.detail
    uninstall, install_again = found.fix.split(" && ")
    assert uninstall == "pip uninstall -y onnxruntime onnxruntime-gpu"
    assert install_again.endswith("onnxruntime-gpu==1.31.1")


def test_no_wheel_is_a_problem(tmp_path):
    assert _wheels([str(tmp_path)]).status == "problem"


def test_a_runtime_that_cannot_be_loaded_is_a_finding_not_a_crash(tmp_path):
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libonnxruntime.so: file too short')\n")
    code = "import json; from deploykit.doctor import diagnose; print(json.dumps(diagnose().to_document()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    document = json.loads(done.stdout)
    runtime = next(item for item in document["checks"] if item["name"] == "onnxruntime")
    assert runtime["status"] == "problem" and "file too short" in runtime["detail"]
    assert not document["healthy"]
    assert not any(row["works"] for row in document["providers"])


@pytest.mark.parametrize(
    ("machine", "features", "status", "word"),
    [
        ("x86_64", ("avx2", "fma"), "warning", "saturate"),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), "ok", "exact"),
        ("AMD64", ("avx2", "avx_vnni"), "ok", "exact"),
        ("aarch64", ("asimd", "asimddp"), "ok", "dot product"),
        ("aarch64", ("asimd",), "warning", "little"),
        ("x86_64", (), "warning", "slower"),
    ],
)
def test_what_the_processor_means_for_int8(machine, features, status, word):
    found = _int8(machine, features)
    assert found.status == status and word in found.detail


def test_limits_of_a_container_are_told_against_the_host():
    host = {"available_cpus": 2, "logical_cores": 64, "memory_bytes": 64 << 30, "memory_limit_bytes": 1 << 30}
    assert _cpu_limit(host).status == "warning"
    assert "2 of the host's 64" in _cpu_limit(host).detail
    assert _memory(host).detail == "1.0 GiB allowed by the cgroup, of the host's 64.0 GiB"
    assert _memory(host).status == "warning"
    assert _cpu_limit(host | {"available_cpus": 64}).status == "ok"
    assert _memory(host | {"memory_limit_bytes": None}).detail == "64.0 GiB"


def test_data_folder_that_is_missing_is_said(monkeypatch, tmp_path):
    from deploykit.doctor import _data_folder

    monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path / "absent"))
    assert _data_folder().status == "warning"
    monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path))
    assert _data_folder().detail == str(tmp_path)
