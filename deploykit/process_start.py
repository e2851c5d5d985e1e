"""When a process began, which together with its number tells it from others."""

from __future__ import annotations

__all__ = ["started"]


def started(pid: int) -> float | None:
    """Seconds since 1970; None when the process is gone, or dead and only not yet collected."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
