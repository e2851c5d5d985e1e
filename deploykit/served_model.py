"""The fresh process that loads and times one model, at its own end of the pipe; ``worker`` is the other.

The process imports numpy and ONNX Runtime and nothing else that is heavy, so that its memory is that of an app that
runs the model. It answers one JSON line on its standard output for each JSON line on its standard input; whatever
ONNX Runtime prints goes to its standard error. When the parent goes away, however it dies, the process ends.

Threads of ONNX Runtime spin for about 50 ms after a run. That is left on, as it is what an app gets: measured with
two threads on two cores, a 0.66 ms model takes 1.0 ms without it. Instead a worker answers only when its threads
sleep, so that no worker ever measures while another one spins.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import process_memory
from deploykit.errors import DeploykitError, ModelFileError, ProviderError

if TYPE_CHECKING:
    from deploykit.device_memory import DeviceMemory
    from deploykit.energy import Meter
    from deploykit.runtime import Session

__all__ = ["ServedModel", "serve"]

_SETTLE_LIMIT_S = 1.0
_SETTLE_STEP_S = 0.002
_QUIET_STEPS = 2
_PROFILE_S, _PROFILE_WARM_S = 0.5, 0.1
_MIN_PROFILE_RUNS, _MAX_PROFILE_RUNS = 10, 200
_MAX_PROFILE_EVENTS = 50_000  # about 1 KB each in the file


class ServedModel:
    """What the process holds: the session, its inputs and the resident memory before it was made.

    Every public method is a command of the parent; it takes and gives what JSON holds.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._call: Callable[[], object] = int
        self._meters: list[Meter] = []
        self._device: DeviceMemory | str = ""
        self._measuring_bytes = 0
        self._peak_before = 0
        self._resident_before = 0

    def start(
        self,
        *,
        model: str,
        feeds: list[Mapping[str, Any]],
        seed: int,
        io_binding: bool = False,
        cuda_graph: bool = False,
        powercap: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Loads ``model`` and runs it once; ``options`` go to ``runtime.create_session``.

        With ``io_binding`` inputs and outputs stay in the device's memory; with ``cuda_graph`` the provider is asked to
        replay one captured graph. Where it refuses, the answer is only ``graph_refused``, the reason: what a second
        attempt in this process would hold on the device and at its peak would not be the model's alone. ``powercap``
        is the folder of the processors' energy counters, None where energy is not asked for.
        """
        self._measuring_bytes = _import_all()
        from deploykit.device_memory import open_device_memory
        from deploykit.random_inputs import make_feeds

        arrays = make_feeds(feeds, seed)
        self._device = open_device_memory(options.get("provider", "cpu"))
        gc.collect()
        gc.disable()  # a collection inside a timed run would be charged to the model
        self._peak_before = process_memory.peak_bytes()
        process_memory.reset_peak()
        self._resident_before = process_memory.resident_bytes()
        try:
            loaded = self._load(model, arrays, _capturing(options) if cuda_graph else options, io_binding=io_binding)
        except (ProviderError, ModelFileError) as problem:
            if not cuda_graph:
                raise
            return {"graph_refused": str(problem)}
        return {**loaded, **self._open_meters(powercap)}

    def _load(
        self, model: str, arrays: dict[str, Any], options: Mapping[str, Any], *, io_binding: bool
    ) -> dict[str, Any]:
        from deploykit.runtime import create_session

        session = create_session(model, **options)
        after_load, load_peak = process_memory.resident_bytes(), process_memory.peak_bytes()
        self._read_device(alone=True)
        began = time.perf_counter_ns()
        self._session, self._call = session, _first_run(session, arrays, io_binding=io_binding)
        first_run_ms = (time.perf_counter_ns() - began) / 1e6
        self._read_device(alone=True)
        return {
            "load_ms": session.load_ms,
            "first_run_ms": first_run_ms,
            "after_load_bytes": max(0, after_load - self._resident_before),
            "load_peak_bytes": max(0, load_peak - self._resident_before),
            "provider": session.provider,
            "nodes_by_provider": session.nodes_by_provider,
            "threads": session.threads,
            "cuda_graph": io_binding and _captures(session),
            "notes": list(session.notes),
        }

    def _open_meters(self, powercap: str | None) -> dict[str, Any]:
        assert self._session is not None
        if powercap is None:
            return {"energy_sources": [], "energy_missing": ""}
        from deploykit.energy import find_meters

        self._meters, missing = find_meters(self._session.provider, Path(powercap))
        return {"energy_sources": [name for meter in self._meters for name in meter.sources], "energy_missing": missing}

    def warm(self, *, min_runs: int, min_s: float, max_s: float) -> dict[str, Any]:
        """Runs until the latency no longer falls, for at least ``min_runs`` and ``min_s``, at most ``max_s``."""
        from deploykit.disturbances import timer_step_ns

        latencies: list[int] = []
        began = time.perf_counter()
        while True:
            latencies.append(self._time_once())
            spent = time.perf_counter() - began
            enough = len(latencies) >= min_runs and spent >= min_s
            if spent >= max_s or (enough and _levelled(latencies)):
                break
        _settle()
        return {
            "median_ms": _median(latencies[len(latencies) // 2 :]) / 1e6,
            "levelled": _levelled(latencies),
            "cpu_s": time.process_time(),
            "timer_step_ns": timer_step_ns(),
        }

    def measure(self, *, runs: int, lead: int) -> dict[str, Any]:
        """``lead`` runs that are thrown away (caches are cold after another worker's turn), then ``runs`` timed."""
        from deploykit.disturbances import clock_khz

        for _ in range(lead):
            self._call()
        self._spent_uj()
        latencies, busy = zip(*(self._time_busy() for _ in range(runs)), strict=True)
        energy_uj, clock = self._spent_uj(), clock_khz()
        _settle()
        return {
            "latencies_ns": latencies,
            "busy_ns": busy,
            "energy_uj": energy_uj,
            "clock_khz": clock,
            "cpu_s": time.process_time(),
        }

    def memory(self) -> dict[str, Any]:
        """Resident bytes now, and their peak since before the session was made, less what was resident then.

        ``process_peak_bytes`` is the peak of the whole process since it began, less what the measuring code takes.
        """
        peak, steady = process_memory.peak_bytes(), process_memory.resident_bytes()
        return {
            "peak_bytes": max(0, peak - self._resident_before),
            "steady_bytes": max(0, steady - self._resident_before),
            "process_peak_bytes": max(peak, self._peak_before) - self._measuring_bytes,
            **self._read_device(alone=False),
        }

    def _read_device(self, *, alone: bool) -> dict[str, Any]:
        """The most that the process held on the GPU so far; null where nothing runs there, or it cannot be read.

        ``alone`` says that no other model was loaded since this one began to be.
        """
        from deploykit.nvml import ON_NVIDIA

        nothing = {"device_bytes": None, "device_counted": None}
        if isinstance(self._device, str):
            return nothing | {"device_missing": self._device}
        if self._session is not None and self._session.provider not in ON_NVIDIA:
            return nothing | {"device_missing": ""}
        self._device.read(alone=alone)
        if missing := self._device.missing:
            return nothing | {"device_missing": missing}
        return {
            "device_bytes": self._device.most_bytes,
            "device_counted": self._device.counted,
            "device_missing": "",
        }

    def profile(self, *, top: int) -> dict[str, Any]:
        """Time by operator, of a session that was started with a ``profile_prefix``; it profiles nothing afterwards."""
        from dataclasses import asdict

        from deploykit.operators import read_profile
        from deploykit.runtime import PROVIDERS

        assert self._session is not None
        warm = 1  # the first run is profiled too
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < _PROFILE_WARM_S or warm < 3:
            self._call()
            warm += 1
        nodes = sum(self._session.nodes_by_provider.values()) or 1
        runs = int(min(_PROFILE_S / spent * warm, _MAX_PROFILE_RUNS, _MAX_PROFILE_EVENTS / nodes))
        for _ in range(max(runs, _MIN_PROFILE_RUNS)):
            self._call()
        written = Path(self._session.raw.end_profiling())
        short = {long: name for name, long in PROVIDERS.items()}
        return asdict(read_profile(written, skip=warm, top=top, names=short))

    def providers(self) -> dict[str, Any]:
        """Short names of the providers that ONNX Runtime lists here."""
        from deploykit.runtime import provider_names

        return {"providers": provider_names()}

    def modules(self) -> dict[str, Any]:
        """The modules that the process has imported."""
        return {"modules": sorted(sys.modules)}

    def _time_once(self) -> int:
        call = self._call
        began = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - began

    def _time_busy(self) -> tuple[int, int]:
        """The latency of a call, and for how much of it this thread had a processor."""
        before = time.thread_time_ns()
        latency = self._time_once()
        return latency, time.thread_time_ns() - before

    def _spent_uj(self) -> int | None:
        return sum(meter.spent_uj() for meter in self._meters) if self._meters else None


def _import_all() -> int:
    """Imports what is needed: first what an app that runs a model has, then the rest, whose resident bytes it returns.

    After this the library itself counts as held before the model.
    """
    import numpy as np  # noqa: F401
    import onnxruntime  # noqa: F401

    of_an_app = process_memory.resident_bytes()
    import deploykit.device_memory
    import deploykit.disturbances
    import deploykit.io_binding
    import deploykit.random_inputs
    import deploykit.runtime  # noqa: F401

    return process_memory.resident_bytes() - of_an_app


def _capturing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a session that captures one CUDA graph, which ONNX Runtime refuses where a node runs off the GPU.

    Whoever sets the option has the last word.
    """
    told = {"enable_cuda_graph": "1", **(options.get("provider_options") or {})}
    return {**options, "provider_options": told, "allow_fallback": False}


def _captures(session: Session) -> bool:
    """Whether the CUDA provider captures a graph, by what it reports, else by what it was told."""
    from deploykit.provider_options import captures_graph
    from deploykit.runtime import PROVIDERS

    reported = session.raw.get_provider_options().get(PROVIDERS["cuda"], {})
    return captures_graph(session.provider, {**session.provider_options, **reported})


def _first_run(session: Session, arrays: dict[str, Any], *, io_binding: bool) -> Callable[[], object]:
    """Runs once, with ONNX Runtime's errors as ours, and gives the call that is timed from then on."""
    if io_binding:
        from deploykit.io_binding import BoundRun

        return BoundRun(session, arrays)
    session.run(arrays)
    return partial(session.raw.run, None, arrays)


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def _levelled(latencies: list[int]) -> bool:
    """Whether the last third is no more than 3 % faster than the third before it, by medians."""
    third = len(latencies) // 3
    return third > 0 and _median(latencies[-third:]) >= 0.97 * _median(latencies[-2 * third : -third])


def _settle() -> None:
    """Waits until this process's threads have stopped spinning."""
    until = time.perf_counter() + _SETTLE_LIMIT_S
    quiet = 0
    while quiet < _QUIET_STEPS and time.perf_counter() < until:
        before = time.process_time()
        time.sleep(_SETTLE_STEP_S)
        used = time.process_time() - before >= _SETTLE_STEP_S / 4
        quiet = 0 if used or _others_run() else quiet + 1


def _others_run() -> bool:
    """Whether another thread of this process wants a processor; False where the system does not tell.

    Processor time alone does not tell it on a busy machine, where a thread that spins may wait for its turn.
    """
    own = str(threading.get_native_id())
    try:
        states = [_state(Path(task.path) / "stat") for task in os.scandir("/proc/self/task") if task.name != own]
    except OSError:  # not Linux
        return False
    return "R" in states


def _state(stat: Path) -> str:
    """The state of a thread in /proc (proc(5)): the letter after its name in brackets, which may hold spaces."""
    try:
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return ""


def serve() -> None:
    """Answers the parent until it is gone; the process does nothing else."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a provider's library prints must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    served = ServedModel()
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
