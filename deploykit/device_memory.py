"""Memory on an NVIDIA GPU that this very process takes, by NVML: weights, activations, and CUDA's own context.

ONNX Runtime's arena keeps what it has taken, so that what is read after the runs is near the peak.
"""

from __future__ import annotations

import os
from typing import Any

from deploykit.nvml import ON_NVIDIA, open_gpu

__all__ = ["DeviceMemory", "open_device_memory"]


class DeviceMemory:
    """What this process holds on one GPU, in bytes; made before CUDA starts in it.

    NVML lists processes by the host's numbers, so that in a container this one may not be found. Then what the whole
    board has taken since is counted instead, other programs included, and ``counted`` says ``"board"``. That holds only
    as long as nothing else is loaded there.

    Attributes:
        counted: ``"process"`` or ``"board"``.
        missing: Why there is no figure, to end a message; empty where there is one.
    """

    def __init__(self, nvml: Any, device: Any) -> None:
        self._nvml, self._device = nvml, device
        self._before = self._on_board()
        self._most = {"process": 0, "board": 0}
        self.counted = "board"
        self.missing = ""

    @property
    def most_bytes(self) -> int | None:
        """The largest of all readings of the kind that ``counted`` says; None where one of them failed."""
        return None if self.missing else self._most[self.counted]

    def read(self, *, alone: bool) -> None:
        """Reads once more; the board only where nothing else was loaded since this was made (``alone``)."""
        try:
            own = self._of_this_process()
            if own is not None:
                self.counted = "process"
                self._most["process"] = max(self._most["process"], own)
            elif alone:
                self._most["board"] = max(self._most["board"], self._on_board() - self._before)
        except self._nvml.NVMLError as problem:  # it has told before: the GPU is lost, or the driver is being replaced
            self.missing = f"the GPU's memory cannot be read: {problem}"

    def _on_board(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used)

    def _of_this_process(self) -> int | None:
        """None where the process is not listed, or its memory is not told (Windows' WDDM, MIG)."""
        try:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._device)
        except self._nvml.NVMLError:  # not supported, or not permitted
            return None
        for process in listed:
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        return None


def open_device_memory(provider: str) -> DeviceMemory | str:
    """The meter for what runs on a provider, or why there is none; empty for providers without NVIDIA's memory."""
    if provider not in ON_NVIDIA:
        return ""
    opened = open_gpu()
    if isinstance(opened, str):
        return f"the GPU's memory {opened}"
    nvml, device = opened
    try:
        return DeviceMemory(nvml, device)
    except nvml.NVMLError as problem:
        return f"the GPU's memory cannot be read: {problem}"
