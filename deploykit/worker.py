"""A fresh process for one model, at the parent's end of the pipe: ``bench`` and ``doctor`` talk through it.

What runs in the process is ``served_model``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from deploykit import errors
from deploykit.errors import DeploykitError, InputError, ProviderError

__all__ = ["Worker"]

_ERROR_CHARACTERS = 200
_GOODBYE_S = 2.0


class Worker:
    """The parent's end: a context manager that starts the process and always ends it.

    Args:
        name: The model's name, for messages.
        provider: The provider it is started for; decides the kind of error when the process dies.
        timeout_s: Seconds that any single answer may take.
    """

    def __init__(self, name: str, *, provider: str = "cpu", timeout_s: float = 120.0) -> None:
        self.name = name
        self._provider = provider
        self._timeout_s = timeout_s
        self._answers: queue.Queue[str] = queue.Queue()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        # -P and the package's own folder: what lies in the current folder must not shadow numpy or deploykit.
        command = [sys.executable, "-P", "-W", "ignore", "-c", "from deploykit.served_model import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=_environment()
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(patiently=kind is None)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command and returns its answer.

        Raises:
            DeploykitError: What the command raised there; InputError (ProviderError for a provider other than the
                CPU) when the process died or gave no answer in ``timeout_s`` seconds.
        """
        self.send(do, **arguments)
        return self.answer(do)

    def send(self, do: str, **arguments: Any) -> None:
        """Sends a command without waiting for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as problem:  # it is gone: the pipe is closed
            raise self._died(do) from problem

    def answer(self, do: str) -> dict[str, Any]:
        """Waits for the answer to the command ``do``. Raises: as ``ask``."""
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty as problem:
            self._end(patiently=False)
            reason = f"gave no answer to {do!r} within {self._timeout_s:g} s and was ended; raise the time limit"
            raise self._error(reason) from problem
        if not line:
            raise self._died(do)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._raised(answer["error"], answer["message"])
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.decode())
        self._answers.put("")  # the end: the process has closed its side

    def _died(self, do: str) -> DeploykitError:
        code = self._process.wait()
        if code >= 0:
            return self._error(f"ended with exit code {code} during {do!r}{self._last_words()}")
        number = -code
        known = number in signal.valid_signals()
        name = signal.Signals(number).name if known else f"signal {number}"
        cause = ", perhaps by the system for lack of memory" if name == "SIGKILL" else ""
        return self._error(f"was killed by {name} during {do!r}{cause}{self._last_words()}")

    def _error(self, reason: str) -> DeploykitError:
        kind = InputError if self._provider == "cpu" else ProviderError
        return kind(f"{self.name}: the process that ran it on provider {self._provider!r} {reason}")

    def _raised(self, kind: str, message: str) -> DeploykitError:
        """What was raised there, with the model's name where it is the model's fault and not said."""
        named = self.name in message or kind not in ("InputError", "ModelFileError")
        return _as_error(kind, message if named else f"{self.name}: {message}")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:_ERROR_CHARACTERS]}" if lines else ""

    def _end(self, *, patiently: bool) -> None:
        for pipe in (self._process.stdin, self._process.stdout if not self._reader.is_alive() else None):
            if pipe is not None and not pipe.closed:
                _close(pipe)  # the end of its input tells the process to stop
        try:
            self._process.wait(timeout=_GOODBYE_S if patiently else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            _close(self._process.stdout)
        self._log.close() if not self._log.closed else None


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # a flush into a process that is gone
        return


def _environment() -> dict[str, str]:
    """The parent's environment; numpy's own thread pools stay out of the memory figures."""
    package = str(Path(__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}


def _as_error(kind: str, message: str) -> DeploykitError:
    # Built without __init__, since some of the classes compose their message from other arguments.
    error: DeploykitError = getattr(errors, kind).__new__(getattr(errors, kind))
    error.args = (message,)
    return error
