"""The lock on a folder, against processes that live, that are gone and that were never here."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit.errors import OutputError
from deploykit.lock import LOCK, folder_lock

HOLD = """
import sys
from deploykit.lock import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_one_process_at_a_time_and_free_after_it(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    with pytest.raises(OutputError, match=f"in use by process {process.pid};") as refused, folder_lock(tmp_path):
        pass
    assert "\n" not in str(refused.value)
    assert (tmp_path / LOCK).exists()
    process.communicate(timeout=30)
    assert process.returncode == 0 and not list(tmp_path.iterdir())
    with folder_lock(tmp_path), pytest.raises(OutputError, match=str(os.getpid())), folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("collected", [True, False])
def test_a_killed_holder_is_succeeded(tmp_path: Path, collected: bool) -> None:
    process = _holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in the table of processes
    if collected:
        process.wait()
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    process.communicate()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, ValueError])
def test_it_is_removed_however_the_block_ends(tmp_path: Path, ending: type[BaseException]) -> None:
    with pytest.raises(ending), folder_lock(tmp_path):
        raise ending
    assert not list(tmp_path.iterdir())


def test_a_number_given_to_another_process_since_is_no_holder(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "started": 1.0}))
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_of_another_machine_nobody_here_can_tell(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1.0}))
    with pytest.raises(OutputError, match=r"process 1 on elsewhere \(remove .*deploykit.lock"), folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "one", "host": 1}'])
def test_a_damaged_lock_is_taken_over_once_its_writer_had_time(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(OutputError, match="just starting"), folder_lock(tmp_path):
        pass
    os.utime(tmp_path / LOCK, (time.time() - 60, time.time() - 60))
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"), folder_lock(tmp_path / "file" / "none"):
        pass
