"""A part's process: begun, waited for, and ended with all that it has started, also on a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 10.0  # after its time a part may still finish what it is writing
EVERY_S = 3.0  # so often the file takes over what the running part has


def supervise(command: list[str], until: float, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Runs a part until it ends, or until its time and a grace are over; what it died of, if it did.

    Calls ``meanwhile`` every few seconds.
    """
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # an empty one is "."
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = wait_for(process, until + GRACE_S, meanwhile)
        finally:
            end_group(process)
        log.seek(0)
        text = log.read().decode(errors="replace")
    return "" if code in (0, None) else f"exit code {code}: {last_line(text)}"


def wait_for(process: subprocess.Popen[bytes], end: float, meanwhile: Callable[[], None]) -> int | None:
    """Its exit code; None where it still runs at the end."""
    while True:
        try:
            return process.wait(timeout=max(0.1, min(EVERY_S, end - time.time())))
        except subprocess.TimeoutExpired:
            if time.time() >= end:
                return None
        meanwhile()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what the part has started, and the part where it still runs."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(text: str) -> str:
    """The last line that says something, at a bounded length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def end_on_signals() -> None:
    """Lets signals end the script by an exception, so that the running part, in a session of its own, is ended too."""
    signals = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    signals = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has it

    def end(number: int, frame: object) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in signals:
        signal.signal(number, end)
