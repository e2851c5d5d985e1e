"""Memory of this very process, in bytes: what it holds now and at its peak, on Linux, macOS and Windows.

Of another process, as far as the system shows it: a sandboxed one hides from all but the superuser.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_bytes", "peak_bytes_of", "reset_peak", "reset_peak_of", "resident_bytes", "resident_bytes_of"]


def _status_bytes(key: str, process: int | str = "self") -> int | None:
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or the process has ended
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
    """Lets ``peak_bytes`` count from now on, where the system can; otherwise it counts from the process's start."""
    _reset("self")


def resident_bytes_of(pid: int) -> int | None:
    """Resident memory of another process; None where it has ended or the system does not show it."""
    resident = _status_bytes("VmRSS", pid)
    if resident is None:
        import psutil

        try:
            resident = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
    return resident


def peak_bytes_of(pid: int) -> int | None:
    """Peak resident memory of another process since its start or the last reset; None where it is not shown."""
    return _status_bytes("VmHWM", pid)


def reset_peak_of(pid: int) -> bool:
    """Lets ``peak_bytes_of`` count from now on; whether the system permitted it."""
    return _reset(pid)


def _reset(process: int | str) -> bool:
    try:
        Path(f"/proc/{process}/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM
    except OSError:  # not Linux, or not permitted
        return False
    return True
