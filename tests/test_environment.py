"""The room ``environment``: what machine this is, from real and from built /proc and cgroup trees."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import psutil
import pytest

from deploykit import environment


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_description_is_json_and_agrees_with_the_system():
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["logical_cores"] == os.cpu_count()
    assert described["memory_bytes"] == psutil.virtual_memory().total
    assert described["versions"]["numpy"] == metadata.version("numpy")
    assert described["cpu"]
    assert 1 <= described["available_cpus"] <= os.cpu_count()


def test_description_cannot_be_spoiled_by_its_reader():
    environment.describe()["versions"]["numpy"] = "0"
    assert environment.describe()["versions"]["numpy"] == metadata.version("numpy")


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu tells the same independently")
def test_features_are_those_that_lscpu_lists():
    output = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    flags = next(line for line in output.stdout.splitlines() if line.startswith("Flags:")).split()
    named = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "i8mm")
    for name in named:
        assert (name in environment.cpu_features()) == (name in flags), name


def test_describing_imports_nothing_heavy():
    code = (
        "import sys; from deploykit import environment; environment.describe();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_affinity_limits_the_cpus():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from deploykit import environment; print(environment.available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.fixture
def many_cpus(monkeypatch):
    """A machine with 16 processors, so that the quota is what limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


def test_cgroup_v2_quota_of_a_parent_holds(tmp_path, many_cpus):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kube/pod\n",
            "sys/fs/cgroup/kube/pod/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kube/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/kube/pod/memory.max": "1073741824\n",
            "sys/fs/cgroup/kube/memory.max": "max\n",
        },
    )
    assert environment.available_cpus(root) == 2  # 2.5, rounded down
    assert environment.memory_limit(root) == 1 << 30


def test_cgroup_v2_of_a_container_that_sees_its_own_group_as_the_top(tmp_path, many_cpus):
    files = {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert environment.available_cpus(write(tmp_path, files)) == 1  # half a CPU is still one thread


def test_cgroup_v1(tmp_path, many_cpus):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "536870912\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert environment.available_cpus(root) == 4
    assert environment.memory_limit(root) == 512 << 20


@pytest.mark.parametrize("quota", ["max 100000", "-1", "", "nonsense here", "100000 0"])
def test_no_quota_and_no_cgroup_leave_all_cpus(tmp_path, many_cpus, quota):
    assert environment.available_cpus(tmp_path) == 16
    assert environment.memory_limit(tmp_path) is None
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota + "\n"})
    assert environment.available_cpus(root) == 16
