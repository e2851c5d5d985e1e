"""Energy counters of the machine: processors by RAPL, NVIDIA GPUs by NVML.

A counter is of the whole package or board: what idle cores, other programs and the memory's refresh use is in it. So
the difference over the timed calls is what the machine spent while it computed them, not what the model alone needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.nvml import ON_NVIDIA, open_gpu

__all__ = ["POWERCAP", "Meter", "NvmlMeter", "RaplMeter", "find_meters", "open_nvml", "open_rapl"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Zone:
    """One zone of Linux' power capping framework (Documentation/power/powercap/powercap.rst)."""

    name: str
    counter: Path
    range_uj: int

    def read_uj(self) -> int:
        """The counter as it stands."""
        return int(self.counter.read_text(encoding="ascii"))

    def since(self, before: int, after: int) -> int:
        """Microjoules between two readings; the counter begins anew at ``range_uj``, at most once in between."""
        return after - before if after >= before else after + self.range_uj - before


class RaplMeter:
    """Processor packages and, where it is counted apart, memory; the counters advance about once a millisecond."""

    def __init__(self, zones: Sequence[Zone]) -> None:
        self._zones = tuple(zones)
        self.sources = tuple(zone.name for zone in zones)
        self._last = [zone.read_uj() for zone in zones]

    def spent_uj(self) -> int:
        """Microjoules since the last call, or since the meter was made."""
        now = [zone.read_uj() for zone in self._zones]
        spent = sum(zone.since(before, after) for zone, before, after in zip(self._zones, self._last, now, strict=True))
        self._last = now
        return spent


class NvmlMeter:
    """One NVIDIA GPU, by NVML's counter of millijoules (Volta and later)."""

    def __init__(self, nvml: Any, device: Any) -> None:
        self._nvml, self._device = nvml, device
        self.sources = ("gpu",)
        self._last = self._read_uj()

    def spent_uj(self) -> int:
        """Microjoules since the last call, or since the meter was made."""
        now = self._read_uj()
        spent, self._last = now - self._last, now
        return spent

    def _read_uj(self) -> int:
        return 1000 * int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))


Meter = RaplMeter | NvmlMeter


def find_meters(provider: str, powercap: Path = POWERCAP) -> tuple[list[Meter], str]:
    """The meters for what runs on a provider, and why there is none where there is none.

    On the CPU the processors' counters suffice; what runs on an NVIDIA GPU needs the GPU's, since the processors'
    alone would pass for all of it.
    """
    opened: list[Meter | str] = [open_nvml()] if provider in ON_NVIDIA else []
    opened.append(open_rapl(powercap))
    meters = [meter for meter in opened if not isinstance(meter, str)]
    reasons = "; ".join(reason for reason in opened if isinstance(reason, str))
    return ([], reasons) if isinstance(opened[0], str) else (meters, "")


def open_rapl(powercap: Path = POWERCAP) -> RaplMeter | str:
    """The processors' meter, or why there is none.

    ``core`` and ``uncore`` are parts of their package and ``psys`` contains it, so none of them is added;
    ``intel-rapl-mmio`` shows the same packages again. AMD's processors appear as ``intel-rapl`` too.
    """
    named = [(_text(folder / "name"), folder) for folder in sorted(powercap.glob("intel-rapl:*"))]
    chosen = [(name, folder) for name, folder in named if name.startswith("package") or name == "dram"]
    if not chosen:
        return f"no processor counts its energy in {powercap}"
    for _, folder in chosen:
        for file in (folder / "energy_uj", folder / "max_energy_range_uj"):
            if not os.access(file, os.R_OK):  # root's alone since Linux 5.10 (CVE-2020-8694)
                return f"{file} may not be read; it takes root, or chmod a+r by root"
    zones = [Zone(name, folder / "energy_uj", int(_text(folder / "max_energy_range_uj"))) for name, folder in chosen]
    return RaplMeter(zones)


def open_nvml() -> NvmlMeter | str:
    """The meter of the first NVIDIA GPU that this process sees, or why there is none."""
    opened = open_gpu()
    if isinstance(opened, str):
        return f"the GPU's energy {opened}"
    nvml, device = opened
    try:
        return NvmlMeter(nvml, device)
    except nvml.NVMLError as problem:  # before Volta
        return f"the GPU's energy cannot be read: {problem}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a zone without this file
        return ""
