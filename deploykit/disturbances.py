"""What disturbs a measurement: other load, a hypervisor, a quota, heat, the processor's clock.

Nothing here is needed to measure; every counter that the system does not have, or does not show, is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.environment import cgroup_folders

__all__ = ["Disturbances", "clock_khz", "clock_warning", "quota_periods", "thermal_events", "timer_step_ns"]

_MAX_OTHERS = 0.10  # processor time of other processes, as a fraction of the machine
_MAX_STOLEN = 0.025  # the same of the hypervisor
_MAX_THROTTLED = 0.01  # periods of the quota in which the group had to wait
_MAX_CLOCK_CHANGE = 0.08
_SPINS, _SPIN_ROUNDS = 25, 20_000  # 25 loops of about half a millisecond
_STAT_PROCESSOR = 39  # proc(5): the field of /proc/PID/stat that names the CPU last run on


class Disturbances:
    """Counts from when it is made until it is asked."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = _Reading.take(root)

    def warnings(self, own_s: float) -> list[str]:
        """One line for each disturbance; ``own_s`` are processor seconds of our other processes since the start."""
        return list(_changes(self._before, _Reading.take(self._root), own_s))


@dataclass(frozen=True)
class _Reading:
    """Counters of the machine at one moment."""

    at_s: float
    busy_s: float
    stolen_s: float
    own_s: float
    spin_ms: float
    thermal: int | None
    quota: tuple[int, int] | None

    @classmethod
    def take(cls, root: Path) -> _Reading:
        spin_ms = _spin_ms()
        busy_s, stolen_s = _busy_seconds()
        return cls(
            at_s=time.monotonic(),
            busy_s=busy_s,
            stolen_s=stolen_s,
            own_s=time.process_time(),
            spin_ms=spin_ms,
            thermal=thermal_events(root),
            quota=quota_periods(root),
        )


def _changes(before: _Reading, after: _Reading, own_s: float) -> Iterator[str]:
    machine_s = (os.cpu_count() or 1) * (after.at_s - before.at_s)
    others_s = after.busy_s - before.busy_s - (after.own_s - before.own_s) - own_s
    if (share := others_s / machine_s) > _MAX_OTHERS:
        yield f"other processes used {share:.0%} of the machine's processors"
    if (share := (after.stolen_s - before.stolen_s) / machine_s) > _MAX_STOLEN:
        yield f"the hypervisor took {share:.0%} of the machine's processors away"
    if before.quota and after.quota and after.quota[0] > before.quota[0]:
        periods, throttled = (now - then for now, then in zip(after.quota, before.quota, strict=True))
        if throttled / periods > _MAX_THROTTLED:
            yield f"the control group's CPU quota stopped us in {throttled} of {periods} periods; use fewer threads"
    if before.thermal is not None and after.thermal is not None and after.thermal > before.thermal:
        yield f"the processor slowed down {after.thermal - before.thermal} times because of heat or power limits"
    if abs(change := after.spin_ms / before.spin_ms - 1.0) > _MAX_CLOCK_CHANGE:
        kind = "slower" if change > 0 else "faster"
        yield f"the processor computed {abs(change):.0%} {kind} after the measurement than before"


def _spin_ms() -> float:
    """Milliseconds of a fixed loop, the least of several: what the clock allows when nothing interrupts."""
    least = float("inf")
    for _ in range(_SPINS):
        began = time.perf_counter_ns()
        for _ in range(_SPIN_ROUNDS):
            pass
        least = min(least, (time.perf_counter_ns() - began) / 1e6)
    return least


def _busy_seconds() -> tuple[float, float]:
    """Processor seconds of all processes since the machine started, and those that a hypervisor took."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return sum(times) - idle - stolen - guest, stolen


def thermal_events(root: Path = Path("/")) -> int | None:
    """How often cores and packages have slowed down; None where it is not counted (x86 Linux only).

    Every core of a package shows the package's counter; the largest stands for all packages.
    """
    folders = list((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
    cores = [_number(folder / "core_throttle_count") for folder in folders]
    packages = [_number(folder / "package_throttle_count") for folder in folders]
    known = [count for count in (*cores, *packages) if count is not None]
    if not known:
        return None
    return sum(count or 0 for count in cores) + max((count or 0 for count in packages), default=0)


def quota_periods(root: Path = Path("/")) -> tuple[int, int] | None:
    """Periods of this control group's CPU quota, and those in which it had to wait; None without a quota."""
    for folder in cgroup_folders(root, "cpu"):
        counters = dict(line.split()[:2] for line in _text(folder / "cpu.stat").splitlines() if line.count(" ") == 1)
        if int(counters.get("nr_periods", 0)):
            return int(counters["nr_periods"]), int(counters.get("nr_throttled", 0))
    return None


def clock_khz(root: Path = Path("/")) -> int | None:
    """The clock of the CPU that this process last ran on; None where the kernel does not show it."""
    fields = _text(root / "proc/self/stat").rpartition(")")[2].split()  # a name in brackets may hold spaces
    if len(fields) < _STAT_PROCESSOR - 2:
        return None
    cpu = fields[_STAT_PROCESSOR - 3]  # two fields stand before the bracket, and they count from 1
    return _number(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")


def clock_warning(clocks_khz: Sequence[int]) -> str | None:
    """Says so when the clock wandered from turn to turn; a tenth of the readings at each end may be odd."""
    if not clocks_khz:
        return None
    ordered = sorted(clocks_khz)
    cut = len(ordered) // 10
    low, high = ordered[cut], ordered[len(ordered) - 1 - cut]
    if high - low <= _MAX_CLOCK_CHANGE * high:
        return None
    return f"the processor's clock went from {low / 1e6:.2f} to {high / 1e6:.2f} GHz"


def timer_step_ns() -> int:
    """The smallest time that the timer tells apart: the least of several steps from one reading to the next other."""
    least = 1_000_000_000
    for _ in range(50):
        began = now = time.perf_counter_ns()
        while now == began:
            now = time.perf_counter_ns()
        least = min(least, now - began)
    return least


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not Linux, or not readable here
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
