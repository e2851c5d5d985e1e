"""Memory of this very process, in bytes: what it holds now and at its peak, on Linux, macOS and Windows."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]


def _status_bytes(key: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return None
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def resident_bytes() -> int:
    """Resident memory of this process."""
    resident = _status_bytes("VmRSS")
    if resident is None:
        import psutil

        resident = int(psutil.Process().memory_info().rss)
    return resident


def peak_bytes() -> int:
    """Peak resident memory since the last reset where the system can reset it, otherwise since the start."""
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Lets ``peak_bytes`` count from now on, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM
    except OSError:  # not Linux, or not permitted: the peak then counts from the process's start
        return
