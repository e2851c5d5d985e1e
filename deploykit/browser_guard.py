"""The process between a command and its browser: it ends the browser when the command is gone, however that died.

``browser`` starts it as ``python -I -S browser_guard.py PROFILE PROGRAM ARGUMENT…``: a script that stands alone. It
writes the browser's process id to its standard output. When its standard input ends, or the browser does, it ends what
is left of the browser and removes the folder PROFILE. On Linux the browser's orphans become its own, so that none stays
as a zombie where the first process of a container reaps late.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

__all__ = ["guard"]

_GRACE_S = 3.0  # for the browser to end its processes itself
_REAP_S = 2.0
_ADOPT_ORPHANS = 36  # prctl(2): PR_SET_CHILD_SUBREAPER


def guard(profile: str, command: list[str]) -> int:
    """Runs ``command`` until it ends or the standard input does; returns its exit code."""
    _adopt_orphans()
    browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()
    threading.Thread(target=_end_with_parent, args=(browser, ended), daemon=True).start()
    with suppress(OSError):  # the command is gone already: the thread will notice
        os.write(1, f"{browser.pid}\n".encode())
    code = browser.wait()
    ended.set()
    _kill_group(browser.pid)
    _reap()
    shutil.rmtree(profile, ignore_errors=True)
    return code


def _end_with_parent(browser: subprocess.Popen[bytes], ended: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    browser.terminate()
    if not ended.wait(_GRACE_S):
        browser.kill()


def _kill_group(leader: int) -> None:
    """Ends what the browser has left behind: its processes are in one group of their own."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)


def _reap() -> None:
    """Waits until all that was adopted has ended."""
    if not hasattr(os, "WNOHANG"):
        return
    until = time.monotonic() + _REAP_S
    while time.monotonic() < until:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # there are none
            return
        if not ended:
            time.sleep(0.01)


if __name__ == "__main__":
    os._exit(guard(sys.argv[1], sys.argv[2:]) & 0xFF)  # the other thread may still be reading
