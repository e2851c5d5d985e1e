"""What machine this is: processor and its features, cores and memory that may be used, GPUs, installed versions.

Nothing heavy is imported: versions come from the installed packages' metadata, GPUs from ``nvidia-smi``. Containers
see the host's processors and memory; what the kernel lets a process have stands in its control group (cgroup v1 or
v2), which ONNX Runtime does not read (microsoft/onnxruntime#10113).
"""

from __future__ import annotations

import copy
import functools
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["available_cpus", "cgroup_folders", "cpu_features", "describe", "memory_limit", "package_versions"]

PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "onnx-ir",
    "onnxscript",
    "torch",
    "safetensors",
    "altair",
)
"""Distributions whose versions are recorded where they are installed."""

# Spellings of /proc/cpuinfo on the left (x86 "flags", ARM "Features"), ours on the right.
_LINUX_FEATURES = {
    "sse4_2": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "asimd",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
# sysctl names of macOS; Apple's documentation "Determining instruction set characteristics".
_MAC_FEATURES = {
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
# PF_* numbers of IsProcessorFeaturePresent (winnt.h); Windows names neither VNNI nor AMX.
_WINDOWS_FEATURES = {38: "sse4_2", 39: "avx", 40: "avx2", 41: "avx512f", 43: "asimddp"}

_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
_TOOL_SECONDS = 5.0


def describe() -> dict[str, Any]:
    """What was measured on: a JSON-able object that every record carries. Found out once a process.

    Returns:
        ``os, machine, cpu, cpu_features, physical_cores, logical_cores, available_cpus, memory_bytes,
        memory_limit_bytes, gpus: [{name, memory_bytes, driver, compute_capability}], python, versions``; None where
        unknown.
    """
    return copy.deepcopy(_described())


@functools.cache
def _described() -> dict[str, Any]:
    import psutil

    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_features": list(cpu_features()),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "available_cpus": available_cpus(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "memory_limit_bytes": memory_limit(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that matter, by distribution name, without importing any."""
    return {name: version for name in PACKAGES if (version := _version(name)) is not None}


def _version(distribution: str) -> str | None:
    from importlib import metadata  # brings zipfile and email, 4 MB that a bench worker would be charged with

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: affinity and cgroup quota, whichever is less; at least 1.

    A quota of a fraction is rounded down: one thread more than the quota is throttled in every period.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the cgroup grants, None without a limit (kernel docs: cgroup-v2, sched-bwc)."""
    quotas = []
    for folder in cgroup_folders(root, "cpu"):
        words = _words(folder / "cpu.max")  # v2: "150000 100000" or "max 100000"
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")  # v1; -1 is no limit
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the cgroup lets this process have, None without a limit."""
    limits = []
    for folder in cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            if words and words[0].isdigit() and int(words[0]) < _NO_LIMIT_BYTES:
                limits.append(int(words[0]))
    return min(limits, default=None)


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders that may limit this process, own group first, then its parents: the tightest one holds.

    A container often sees its own group mounted as the top folder under another path than /proc/self/cgroup says;
    walking up to the top finds it there.
    """
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            tops = [mount / controllers, mount / controller]
        else:
            continue
        own = path.strip("/")
        below = [Path(own), *Path(own).parents] if own else [Path()]
        yield from (top / part for top in tops for part in below)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or not readable here: then there is nothing to know
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that decide how fast and how exactly int8 runs, named as Linux names them.

    x86: sse4_2, avx, avx2, fma, avx512f, avx512_vnni, avx_vnni, avx512_bf16, amx_int8, amx_bf16.
    ARM: asimd, asimddp (dot product), i8mm, bf16, sve. Empty where the system does not tell.
    """
    if sys.platform == "win32":
        return _windows_features()
    if sys.platform == "darwin":
        answers = {name: _output(["sysctl", "-n", key]) for key, name in _MAC_FEATURES.items()}
        return tuple(name for name, answer in answers.items() if answer == "1")
    for key in ("flags", "Features"):
        if words := _cpuinfo(key).split():
            return tuple(ours for theirs, ours in _LINUX_FEATURES.items() if theirs in words)
    return ()


def _windows_features() -> tuple[str, ...]:
    import ctypes

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - absent from the type stubs elsewhere
    return tuple(name for number, name in _WINDOWS_FEATURES.items() if kernel.IsProcessorFeaturePresent(number))


def _cpuinfo(key: str) -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs, asked of the driver's own tool, so that neither torch nor CUDA is needed."""
    asked = "name,memory.total,driver_version"
    # Drivers before 470 do not know the compute capability and then tell nothing at all.
    answer = _nvidia_smi(f"{asked},compute_cap") or _nvidia_smi(asked)
    return [gpu for line in answer.splitlines() if (gpu := _gpu([part.strip() for part in line.split(",")]))]


def _nvidia_smi(query: str) -> str:
    return _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"])


def _gpu(parts: list[str]) -> dict[str, Any] | None:
    """One line of nvidia-smi's; what it does not tell is None."""
    if len(parts) not in (3, 4):
        return None
    memory_bytes = int(parts[1]) * 1024 * 1024 if parts[1].isdigit() else None
    capability = parts[3] if len(parts) == 4 and parts[3][:1].isdigit() else None
    return {"name": parts[0], "memory_bytes": memory_bytes, "driver": parts[2], "compute_capability": capability}


def _output(command: list[str]) -> str:
    """What a system tool prints; empty when it is absent, fails or hangs, since each of them is optional."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
