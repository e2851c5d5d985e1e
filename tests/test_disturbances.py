"""The room ``disturbances``: counters in files as Linux has them, and a machine that is really busy."""

import subprocess
import sys
import time

import pytest

from deploykit.disturbances import (
    Disturbances,
    clock_khz,
    clock_warning,
    quota_periods,
    thermal_events,
    timer_step_ns,
)


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def throttled(root, cpu, core, package):
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
    written(folder / "core_throttle_count", f"{core}\n")
    written(folder / "package_throttle_count", f"{package}\n")


def test_nothing_is_known_of_an_empty_machine(tmp_path):
    assert (thermal_events(tmp_path), quota_periods(tmp_path), clock_khz(tmp_path)) == (None, None, None)


def test_throttling_counts_each_core_and_a_package_once(tmp_path):
    throttled(tmp_path, 0, 3, 7)
    throttled(tmp_path, 1, 1, 7)
    assert thermal_events(tmp_path) == 3 + 1 + 7


@pytest.mark.parametrize(
    ("group", "stat"),
    [
        ("0::/app.slice\n", "sys/fs/cgroup/app.slice/cpu.stat"),
        ("0::/elsewhere\n", "sys/fs/cgroup/cpu.stat"),  # a container sees its own group as the top
        ("4:cpu,cpuacct:/app\n", "sys/fs/cgroup/cpu,cpuacct/app/cpu.stat"),
    ],
    ids=["v2", "container", "v1"],
)
def test_the_quota_of_the_control_group(tmp_path, group, stat):
    written(tmp_path / "proc/self/cgroup", group)
    written(tmp_path / stat, "usage_usec 5\nnr_periods 200\nnr_throttled 31\nthrottled_usec 7\n")
    assert quota_periods(tmp_path) == (200, 31)


def test_a_group_without_a_quota(tmp_path):
    written(tmp_path / "proc/self/cgroup", "0::/\n")
    written(tmp_path / "sys/fs/cgroup/cpu.stat", "usage_usec 5\nnr_periods 0\nnr_throttled 0\n")
    assert quota_periods(tmp_path) is None


def test_the_clock_of_the_cpu_that_the_process_ran_on(tmp_path):
    fields = ["0"] * 50
    fields[36] = "3"  # the 39th of proc(5), two of which stand before the closing bracket
    written(tmp_path / "proc/self/stat", f"4711 (a (name) 9) {' '.join(fields)}\n")
    written(tmp_path / "sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq", "2900000\n")
    assert clock_khz(tmp_path) == 2900000


def test_a_clock_that_wanders_is_said_and_a_single_odd_reading_is_not():
    assert clock_warning([]) is None
    assert clock_warning([3_000_000] * 19 + [1_200_000]) is None
    assert clock_warning([3_400_000] * 10 + [2_100_000] * 10) == "the processor's clock went from 2.10 to 3.40 GHz"


def test_counters_that_advance_are_warned_of(tmp_path):
    throttled(tmp_path, 0, 3, 7)
    written(tmp_path / "proc/self/cgroup", "0::/\n")
    stat = written(tmp_path / "sys/fs/cgroup/cpu.stat", "nr_periods 200\nnr_throttled 31\n")
    disturbances = Disturbances(tmp_path)
    quiet = disturbances.warnings(0.0)
    assert not any("quota" in line or "heat" in line for line in quiet)
    throttled(tmp_path, 0, 5, 9)
    stat.write_text("nr_periods 300\nnr_throttled 51\n")
    lines = disturbances.warnings(0.0)
    assert "the control group's CPU quota stopped us in 20 of 100 periods; use fewer threads" in lines
    assert "the processor slowed down 4 times because of heat or power limits" in lines


def test_others_that_compute_are_noticed_and_we_are_not():
    """Another process computes for longer than we look; what we use ourselves, and say that we do, does not count."""
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        busy.stdout.readline()
        disturbances = Disturbances()
        began = time.process_time()
        while time.process_time() - began < 0.5:
            pass
        warned = disturbances.warnings(0.0)
        explained = disturbances.warnings(1000.0)
    finally:
        busy.kill()
        busy.communicate()
    assert any("other processes used" in line for line in warned)
    assert not any("other processes used" in line for line in explained)


def test_the_timer_steps_by_less_than_a_millisecond():
    assert 0 < timer_step_ns() < 1_000_000
