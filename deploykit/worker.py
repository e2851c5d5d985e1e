"""A fresh process that loads and times one model: both ends of the pipe that ``bench`` and ``doctor`` talk through.

The process imports numpy and ONNX Runtime and nothing else that is heavy, so that its memory is that of an app that
runs the model. It answers one JSON line on its standard output for each JSON line on its standard input; whatever
ONNX Runtime prints goes to its standard error. When the parent goes away, however it dies, the process ends.

Threads of ONNX Runtime spin for about 50 ms after a run. That is left on, as it is what an app gets: measured with
two threads on two cores, a 0.66 ms model takes 1.0 ms without it. Instead a worker answers only when its processor
time has stopped advancing, so that no worker ever measures while another one spins.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from deploykit import errors, process_memory
from deploykit.errors import DeploykitError, InputError, ProviderError

if TYPE_CHECKING:
    from deploykit.runtime import Session

__all__ = ["Worker"]

_SETTLE_LIMIT_S = 0.3
_SETTLE_STEP_S = 0.002
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
        command = [sys.executable, "-P", "-W", "ignore", "-m", "deploykit.worker"]
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
            raise _as_error(answer["error"], answer["message"])
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


# The process's end.


class _Served:
    """What the process holds: the session, its inputs and the resident memory before it was made."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.feeds: dict[str, Any] = {}
        self.peak_before = 0
        self.resident_before = 0

    def start(self, *, model: str, feeds: list[Mapping[str, Any]], seed: int, **options: Any) -> dict[str, Any]:
        """Loads ``model`` and runs it once; ``options`` go to ``runtime.create_session``."""
        import onnxruntime  # noqa: F401 - so that the library itself counts as held before

        from deploykit import runtime

        self.feeds = _make_feeds(feeds, seed)
        gc.collect()
        gc.disable()  # a collection inside a timed run would be charged to the model
        self.peak_before = process_memory.peak_bytes()
        process_memory.reset_peak()
        self.resident_before = process_memory.resident_bytes()
        self.session = runtime.create_session(model, **options)
        after_load = process_memory.resident_bytes()
        began = time.perf_counter_ns()
        self.session.run(self.feeds)
        first_run_ms = (time.perf_counter_ns() - began) / 1e6
        return {
            "load_ms": self.session.load_ms,
            "first_run_ms": first_run_ms,
            "after_load_bytes": max(0, after_load - self.resident_before),
            "provider": self.session.provider,
            "nodes_by_provider": self.session.nodes_by_provider,
            "threads": self.session.threads,
            "notes": list(self.session.notes),
        }

    def warm(self, *, min_runs: int, min_s: float, max_s: float) -> dict[str, Any]:
        """Runs until the latency no longer falls, for at least ``min_runs`` and ``min_s``, at most ``max_s``."""
        latencies: list[int] = []
        began = time.perf_counter()
        while True:
            latencies.append(self._time_once())
            spent = time.perf_counter() - began
            enough = len(latencies) >= min_runs and spent >= min_s
            if spent >= max_s or (enough and _levelled(latencies)):
                break
        _settle()
        tail = sorted(latencies[len(latencies) // 2 :])
        return {
            "median_ms": tail[len(tail) // 2] / 1e6,
            "levelled": _levelled(latencies),
            "cpu_s": time.process_time(),
        }

    def measure(self, *, runs: int, lead: int) -> dict[str, Any]:
        """``lead`` runs that are thrown away (caches are cold after another worker's turn), then ``runs`` timed."""
        for _ in range(lead):
            self._time_once()
        latencies = [self._time_once() for _ in range(runs)]
        _settle()
        return {"latencies_ns": latencies, "cpu_s": time.process_time()}

    def memory(self) -> dict[str, Any]:
        """Peak bytes since before the session was made, less what was resident then, and of the whole process."""
        peak = process_memory.peak_bytes()
        return {"peak_bytes": max(0, peak - self.resident_before), "process_peak_bytes": max(peak, self.peak_before)}

    def providers(self) -> dict[str, Any]:
        """Short names of the providers that ONNX Runtime lists here."""
        from deploykit import runtime

        return {"providers": runtime.provider_names()}

    def modules(self) -> dict[str, Any]:
        """The top-level modules that the process has imported."""
        return {"modules": sorted({name.partition(".")[0] for name in sys.modules})}

    def _time_once(self) -> int:
        assert self.session is not None
        run, feeds = self.session.raw.run, self.feeds
        began = time.perf_counter_ns()
        run(None, feeds)
        return time.perf_counter_ns() - began


def _levelled(latencies: list[int]) -> bool:
    """Whether the last third is no more than 3 % faster than the third before it, by medians."""
    third = len(latencies) // 3
    if third == 0:
        return False
    before, last = sorted(latencies[-2 * third : -third]), sorted(latencies[-third:])
    return last[third // 2] >= 0.97 * before[third // 2]


def _settle() -> None:
    """Waits until this process's threads have stopped spinning."""
    until = time.perf_counter() + _SETTLE_LIMIT_S
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(_SETTLE_STEP_S)
        if time.process_time() - before < _SETTLE_STEP_S / 4:
            return


def _make_feeds(feeds: list[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Inputs by element type: floats normal, bytes over their full range, wider integers zero (valid indices)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for feed in feeds:
        dtype, shape = np.dtype(feed["dtype"]), tuple(feed["shape"])
        if dtype.kind == "f":
            made[feed["name"]] = generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        elif dtype.itemsize == 1 and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            made[feed["name"]] = generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        else:
            made[feed["name"]] = np.zeros(shape, dtype)
    return made


def _serve() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a provider's library prints must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    served = _Served()
    while True:
        request = json.loads(commands.get())
        try:
            answer = getattr(served, request.pop("do"))(**request)
        except DeploykitError as problem:
            answer = {"error": type(problem).__name__, "message": str(problem)}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def _listen(commands: queue.Queue[str]) -> None:
    """Hands over the parent's lines. At the end of them the parent is gone: so is this process, even amid a run."""
    for line in sys.stdin:
        commands.put(line)
    os._exit(0)


if __name__ == "__main__":
    _serve()
