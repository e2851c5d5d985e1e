"""NVIDIA's management library: the GPU that CUDA takes first in this process.

NVML counts GPUs by their place on the bus and does not heed CUDA_VISIBLE_DEVICES. CUDA counts the fastest first, unless
CUDA_DEVICE_ORDER is PCI_BUS_ID (docs.nvidia.com, "CUDA Environment Variables").
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

__all__ = ["ON_NVIDIA", "counted_alike", "first_visible", "open_gpu"]

ON_NVIDIA = ("cuda", "tensorrt", "nvtensorrtrtx")
"""Short names of the providers that compute on an NVIDIA GPU; the last one is a plugin."""


def open_gpu() -> tuple[Any, Any] | str:
    """``pynvml`` and its handle of the first GPU that this process sees, or why there is none."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return "needs pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        device = _device(nvml)
    except nvml.NVMLError as problem:
        return f"cannot be read: {problem}"
    return device if isinstance(device, str) else (nvml, device)


def first_visible() -> int | str | None:
    """CUDA's first device by CUDA_VISIBLE_DEVICES: its number, or a UUID; None where the variable hides all.

    The list ends at the first entry that is none, so that ``-1`` and an empty text hide all.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return 0
    first = visible.split(",")[0].strip()
    if first.isascii() and first.isdigit():
        return int(first)
    return first if first.startswith(("GPU-", "MIG-")) else None


def counted_alike(gpus: Sequence[object]) -> bool:
    """Whether CUDA's number of a GPU is also its place on the bus: it is told to count so, or all are of one kind."""
    return os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(set(gpus)) <= 1


def _device(nvml: Any) -> Any:
    """The handle, or why it is not known which GPU CUDA takes."""
    first = first_visible()
    if first is None:
        return "cannot be read: CUDA_VISIBLE_DEVICES hides all GPUs"
    if isinstance(first, str):
        return _by_uuid(nvml, first)
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if not counted_alike([nvml.nvmlDeviceGetName(handle) for handle in handles]):
        return (
            "cannot be read: the GPUs differ, and CUDA counts the fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or "
            "CUDA_VISIBLE_DEVICES to a UUID (nvidia-smi -L)"
        )
    if first >= len(handles):
        return f"cannot be read: CUDA_VISIBLE_DEVICES begins with {first}, and there are {len(handles)} GPUs"
    return handles[first]


def _by_uuid(nvml: Any, wanted: str) -> Any:
    """CUDA takes the beginning of a UUID too, where it is of one GPU alone."""
    if wanted.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(wanted.encode())
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    found = [handle for handle in handles if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(wanted)]
    return found[0] if len(found) == 1 else f"cannot be read: {len(found)} GPUs are called {wanted}"


def _text(value: str | bytes) -> str:
    """Older versions of pynvml give bytes."""
    return value.decode() if isinstance(value, bytes) else value
