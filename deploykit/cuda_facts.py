"""What ``cuda_diagnosis`` judges: wheels, libraries and driver of this machine. No library of CUDA is loaded for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import util
from pathlib import Path

from deploykit import environment
from deploykit.cuda_diagnosis import CudaFacts
from deploykit.runtime_plugins import plugin_distributions

__all__ = ["RUNTIME_WHEELS", "cuda_facts"]

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
RUNTIME_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-webgpu",
    "onnxruntime-trt-rtx",
    "onnxruntime-windowsml",
    "onnxruntime-cann",
    "ort-nightly",
    "ort-nightly-gpu",
)
"""Distributions that all install the same ``onnxruntime`` folder, one over the other."""


def cuda_facts(
    error: str = "",
    *,
    preload: Sequence[str] = (),
    path: Sequence[str] | None = None,
    driver_file: Path = _DRIVER_FILE,
) -> CudaFacts:
    """Gathers them.

    Args:
        error: What failed to load or to start.
        preload: What ``onnxruntime.preload_dlls`` printed.
        path: Where distributions are looked for, instead of ``sys.path``.
        driver_file: Where the kernel module tells its version.
    """
    versions, torch_cuda = _distributions(path)
    plugins = plugin_distributions(path)  # onnxruntime-qnn is one since 2.0
    gpus = environment.describe()["gpus"]
    return CudaFacts(
        error=error,
        wheels={name: versions[name] for name in RUNTIME_WHEELS if name in versions and name not in plugins},
        built_for=_built_for(),
        packages={name: version for name, version in sorted(versions.items()) if name.startswith("nvidia-")},
        torch_cuda=torch_cuda,
        driver=_driver(driver_file) or next((gpu["driver"] for gpu in gpus), None),
        gpus=tuple(gpu["name"] for gpu in gpus),
        preload=tuple(preload),
    )


def _distributions(path: Sequence[str] | None) -> tuple[dict[str, str], int | None]:
    """Versions by name, and CUDA's major version of torch."""
    from importlib import metadata  # brings zipfile and email, 4 MB that a bench worker would be charged with

    versions: dict[str, str] = {}
    torch_cuda = None
    for item in metadata.distributions() if path is None else metadata.distributions(path=list(path)):
        name = (item.metadata["Name"] or "").lower().replace("_", "-")
        versions.setdefault(name, item.version)
        if name == "torch":
            torch_cuda = _cuda_of_torch(item.version, item.requires or ())
    return versions, torch_cuda


def _cuda_of_torch(version: str, requires: Sequence[str]) -> int | None:
    """From its local version (``2.11.0+cu128``), else from what it requires; torch itself takes seconds to import."""
    if match := re.search(r"\+cu(\d\d)", version):
        return int(match[1])
    for requirement in requires:
        if match := re.match(r"nvidia-\w+-cu(\d\d)|(?:cuda-toolkit)\b[^;]*==(\d\d)\.", requirement):
            return int(match[1] or match[2])
    return None


def _built_for() -> int | None:
    """CUDA's major version of this ONNX Runtime, as its wheel wrote it down; nothing of it is imported."""
    spec = util.find_spec("onnxruntime")
    places = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    for place in places:
        try:
            text = (Path(place) / "capi" / "build_and_package_info.py").read_text(encoding="utf-8", errors="replace")
        except OSError:  # a build that does not write it
            continue
        if match := re.search(r"""^cuda_version\s*=\s*['"](\d+)""", text, re.MULTILINE):
            return int(match[1])
    return None


def _driver(file: Path) -> str | None:
    """The driver's version; ``NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06 …``."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:  # no such driver, or not Linux
        return None
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else None
