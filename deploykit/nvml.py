"""NVIDIA's management library: the GPU that CUDA takes first in this process."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ["open_gpu"]


def open_gpu() -> tuple[Any, Any] | str:
    """``pynvml`` and its handle of the first GPU that this process sees, or why there is none."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return "needs pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        return nvml, _visible_device(nvml, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    except nvml.NVMLError as problem:
        return f"cannot be read: {problem}"


def _visible_device(nvml: Any, visible: str) -> Any:
    """NVML's handle of CUDA's first device; NVML itself does not heed CUDA_VISIBLE_DEVICES."""
    first = visible.split(",")[0].strip()
    if first and not first.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first.encode())
    return nvml.nvmlDeviceGetHandleByIndex(int(first or 0))
