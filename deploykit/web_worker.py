"""A fresh browser for one model: what ``worker`` is for a process that runs ONNX Runtime, with WebAssembly.

Answers the questions of ``served_model`` by driving a page (``templates/bench``), which does the timing. Everything
runs on the page's own thread and its workers, as in the apps of ``embed``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from deploykit import onnxruntime_web, process_memory
from deploykit.browser import Browser, find_browser
from deploykit.errors import DeploykitError, ModelFileError, ProviderError
from deploykit.graph.weights import external_files
from deploykit.page_server import PageServer
from deploykit.random_inputs import make_feeds

__all__ = ["WebWorker", "check_web"]

_PAGE = Path(__file__).parent / "templates" / "bench"
_LOOK_S = 0.25  # how often is seen whether the browser still runs
_SETTLE_LIMIT_S, _SETTLE_STEP_S, _QUIET_STEPS = 1.0, 0.005, 2
_BRANDS = ("Google Chrome", "Microsoft Edge", "HeadlessChrome", "Chromium")


def check_web() -> tuple[str, onnxruntime_web.WebRuntime]:
    """The browser's program and the runtime's files, which npm may have to bring first.

    Raises:
        ProviderError: There is no browser.
        InputError: There is no onnxruntime-web, and npm cannot get it.
    """
    program = find_browser()
    instead = f"or copy {onnxruntime_web.cached_folder()} from a machine that has it"
    return program, onnxruntime_web.web_runtime(instead=instead)


class WebWorker:
    """A context manager that starts a browser, and always ends it.

    Args:
        name: The model's name, for messages.
        timeout_s: Seconds that any single answer may take, the browser's start included.

    Attributes:
        renderer: The process id of the page's process, once it is known.

    Raises: ProviderError and InputError, as ``check_web``.
    """

    def __init__(self, name: str, *, timeout_s: float = 120.0) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._program, self._runtime = check_web()
        self._server = PageServer(self._own_files())
        self._browser: Browser | None = None
        self.renderer: int | None = None
        self._deadline = 0.0
        self._cpu_s = 0.0
        self._resident_before: int | None = None
        self._peak_before: int | None = None
        self._peak_seen: int | None = None

    def __enter__(self) -> WebWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command, as ``worker.Worker.ask`` gives it.

        Raises:
            ModelFileError: The runtime cannot load or run the model.
            ProviderError: The browser died or gave no answer in ``timeout_s`` seconds, or runs other threads than
                asked for.
        """
        self._deadline = time.monotonic() + self._timeout_s
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "start": self._start,
            "warm": self._warm,
            "measure": self._measure,
            "memory": self._memory,
            "outputs": self._outputs,
        }
        return commands[do](**arguments)

    def _start(
        self, *, model: str, feeds: Sequence[Mapping[str, Any]], seed: int, threads: int, **_: Any
    ) -> dict[str, Any]:
        weights = self._add_files(Path(model), feeds, seed)
        self._browser = Browser(self._program, self._server.url)
        prepared = self._page("start", "prepare", threads=threads)
        self._page("start", "feed", feeds=list(feeds))
        self._before_load()
        loaded = self._page("start", "load", model="model.onnx", weights=weights)
        after_load, load_peak = self._held(), self._peak()
        first = self._page("start", "first")
        if first["threads"] != threads:
            raise self._error(f"runs {first['threads']} threads, but {threads} were asked for")
        return {
            "load_ms": loaded["load_ms"],
            "first_run_ms": first["first_run_ms"],
            "after_load_bytes": after_load,
            "load_peak_bytes": load_peak,
            "provider": "web",
            "nodes_by_provider": {},
            "threads": first["threads"],
            "cuda_graph": False,
            "energy_sources": [],
            "energy_missing": "the machine's counters are not read around calls in a browser",
            "notes": list(self._notes()),
            "versions": {
                onnxruntime_web.PACKAGE: prepared["onnxruntime_web"] or self._runtime.version,
                "browser": _browser_text(prepared["browser"]),
            },
        }

    def _warm(self, **limits: float) -> dict[str, Any]:
        answer = self._page("warm", "warm", **limits)
        return answer | {"cpu_s": self._settled()}

    def _measure(self, *, runs: int, lead: int) -> dict[str, Any]:
        answer = self._page("measure", "measure", runs=runs, lead=lead)
        # A page has no clock of the processor's time.
        return answer | {"busy_ns": [], "energy_uj": None, "clock_khz": None, "cpu_s": self._settled()}

    def _memory(self) -> dict[str, Any]:
        peak = self._peak()  # before garbage goes
        self._page("memory", "collect")
        whole = [value for value in (self._peak_before, self._peak_seen) if value is not None]
        return {"peak_bytes": peak, "steady_bytes": self._held(), "process_peak_bytes": max(whole, default=None)}

    def _outputs(self) -> dict[str, Any]:
        """What the model answers to the inputs that are timed, one flat list for each output."""
        return self._page("outputs", "outputs")

    # ---- what the page gets and answers ----

    def _own_files(self) -> dict[str, Path | bytes]:
        page: dict[str, Path | bytes] = {name: _PAGE / name for name in ("index.html", "bench.js")}
        return page | dict(self._runtime.files) | {"start.onnx": _one_node()}

    def _add_files(self, model: Path, feeds: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, str]]:
        """Hands the server model and inputs; gives the weights beside the model as the page asks for them."""
        files = dict(self._server.files) | {"model.onnx": model}
        for place, array in enumerate(make_feeds(feeds, seed).values()):
            files[f"feeds/{place}"] = array.tobytes()
        weights = []
        for place, path in enumerate(external_files(model)):
            files[f"weights/{place}"] = path
            weights.append({"path": path.relative_to(model.parent).as_posix(), "file": f"weights/{place}"})
        self._server.files = files
        return weights

    def _page(self, do: str, command: str, **arguments: Any) -> dict[str, Any]:
        """The page's answer to a command that is part of ``do``."""
        self._server.send({"do": command, **arguments})
        answer = self._answer(do)
        if "error" in answer and command == "prepare":
            raise self._error(f"cannot start onnxruntime-web: {answer['error']}")
        if "error" in answer:
            raise ModelFileError(
                f"{self.name}: onnxruntime-web cannot {_DOING.get(command, command)}: {answer['error']}"
            )
        return answer

    def _answer(self, do: str) -> dict[str, Any]:
        assert self._browser is not None
        while (left := self._deadline - time.monotonic()) > 0:
            if (answer := self._server.answer(min(left, _LOOK_S))) is not None:
                return answer
            if (code := self._browser.exit_code) is not None:
                raise self._error(f"ended with exit code {code} during {do!r}{self._browser.last_words()}")
            if self.renderer and process_memory.resident_bytes_of(self.renderer) in (None, 0):
                raise self._error(f"lost the page during {do!r}, perhaps for lack of memory")
        self._end()
        raise self._error(f"gave no answer to {do!r} within {self._timeout_s:g} s and was ended; raise the time limit")

    def _error(self, reason: str) -> DeploykitError:
        return ProviderError(f"{self.name}: the browser that ran it on provider 'web' {reason}")

    def _end(self) -> None:
        if self._browser is not None:
            self._browser.end()
        self._server.close()

    # ---- what it takes ----

    def _before_load(self) -> None:
        assert self._browser is not None
        self._settled()
        self.renderer = renderer = self._browser.renderer()
        if renderer is None:
            return
        self._peak_before = process_memory.peak_bytes_of(renderer)
        self._resident_before = process_memory.resident_bytes_of(renderer)
        self._peak_seen = self._resident_before if process_memory.reset_peak_of(renderer) else None

    def _held(self) -> int | None:
        """Resident bytes of the page's process, less what it held before the model."""
        return self._less_before(process_memory.resident_bytes_of(self.renderer) if self.renderer else None)

    def _peak(self) -> int | None:
        """Of the same, the most so far; Linux's counter alone falls when memory is given back page by page."""
        now = process_memory.peak_bytes_of(self.renderer) if self.renderer else None
        if now is not None and self._peak_seen is not None:
            self._peak_seen = max(self._peak_seen, now)
        return self._less_before(self._peak_seen)

    def _less_before(self, held: int | None) -> int | None:
        return None if held is None or self._resident_before is None else max(0, held - self._resident_before)

    def _notes(self) -> list[str]:
        if self.renderer is None:
            return ["no memory: the system does not tell which process is the page's"]
        if self._peak_seen is None:
            return ["no peak of memory: the system does not let the counter of the page's process be reset"]
        return []

    def _settled(self) -> float:
        """Waits until no thread of the browser wants a processor; its processor seconds so far."""
        assert self._browser is not None
        until, quiet = time.monotonic() + _SETTLE_LIMIT_S, 0
        while quiet < _QUIET_STEPS and time.monotonic() < until:
            time.sleep(_SETTLE_STEP_S)
            quiet = 0 if self._browser.is_busy() else quiet + 1
        self._peak()
        self._cpu_s = max(self._cpu_s, self._browser.cpu_s())  # of processes that have ended, no more is known
        return self._cpu_s


_DOING = {"feed": "be given the inputs", "load": "load the model", "first": "run the model", "warm": "run the model"}


def _browser_text(versions: Mapping[str, str]) -> str:
    """Name and version, of the names under which a browser is known."""
    name = next((brand for brand in _BRANDS if brand in versions), None) or next(iter(versions), "unknown")
    return f"{name} {versions.get(name, '')}".strip()


def _one_node() -> bytes:
    """A model of one node, by which the runtime is started."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "start", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    content: bytes = model.SerializeToString()
    return content
