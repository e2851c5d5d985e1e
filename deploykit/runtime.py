"""The only place that creates ONNX Runtime sessions: providers by short names, threads, and honest placement.

ONNX Runtime lists providers that cannot start, and a session that cannot start one falls back to the CPU without a
word. Here the placement of every node is read back, and a provider that took none is an error.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import environment
from deploykit.artifact import TensorSpec, check_is_file
from deploykit.errors import InputError, ProviderError, UnknownNameError
from deploykit.runtime_errors import failures, mapped, one_line
from deploykit.runtime_plugins import PLUGINS, plugin_of
from deploykit.runtime_views import DTYPES, view_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PROVIDERS", "Session", "check_threads", "create_session", "provider_names"]

PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Short name of a provider -> ONNX Runtime's name."""

_SHORT = {long: short for short, long in PROVIDERS.items()}

_FIX = {
    "cuda": "it needs an NVIDIA GPU with its driver, and pip install 'deploykit[cuda]'; or use --provider cpu",
    "tensorrt": "it needs an NVIDIA GPU, CUDA and the TensorRT libraries; or use --provider cpu",
    "coreml": "it needs macOS; or use --provider cpu",
    "xnnpack": "it needs an onnxruntime built with it (Android, iOS); or use --provider cpu",
    "qnn": "it needs pip install onnxruntime-qnn on a Qualcomm device; or use --provider cpu",
    "openvino": "it needs pip install 'deploykit[openvino]' and an Intel processor; or use --provider cpu",
}
_MOST_THREADS = 1024
_LOG_FATAL = 4  # keeps ONNX Runtime's C++ warnings off stderr; what matters comes back as an exception


def provider_names() -> list[str]:
    """Short names of the providers that this installation lists; whether one starts, only a session can tell."""
    listed = set(_runtime().get_available_providers())
    return [name for name, long in PROVIDERS.items() if long in listed or _plugin_installed(name)]


class Session:
    """An ONNX Runtime session that knows where its nodes run; made by ``create_session``.

    Attributes:
        raw: The ``onnxruntime.InferenceSession``, for IO binding and tight loops.
        inputs: Names, element types and shapes of the inputs.
        outputs: The same of the outputs.
        provider: Short name of what really runs: the provider asked for if it took a node, otherwise ``"cpu"``.
        nodes_by_provider: Number of nodes by short name after optimisation and fusion; empty when not known.
        threads: Threads of one operator, the calling one counted.
        load_ms: Milliseconds from the path to a session that is ready to run.
        notes: What a reader of figures has to know, such as a provider that computes in another precision.
    """

    def __init__(self, raw: Any, *, asked: str, threads: int, load_ms: float, placed: bool) -> None:
        self.raw = raw
        self.inputs = tuple(_tensor(value) for value in raw.get_inputs())
        self.outputs = tuple(_tensor(value) for value in raw.get_outputs())
        self.nodes_by_provider = _placement(raw) if placed else {}
        took_part = self.nodes_by_provider or {_SHORT.get(name, name): 1 for name in raw.get_providers()}
        self.provider = asked if took_part.get(asked) else "cpu"
        self.threads = threads
        self.load_ms = load_ms
        self.notes = _notes(self.provider, placed)

    def run(self, feeds: NDArray[Any] | Mapping[str, NDArray[Any]]) -> list[np.ndarray[Any, Any]]:
        """Runs the model once on an array (for the only input) or on arrays by input name; returns all outputs.

        Raises:
            InputError: Missing or unknown inputs, wrong element type or shape.
            ModelFileError: An operator fails while it runs.
            ProviderError: The provider, which is not the CPU, fails while it runs.
        """
        named = feeds if isinstance(feeds, Mapping) else {self.inputs[0].name: feeds}
        with mapped("cannot run the model", self.provider, _FIX.get(self.provider, "")):
            outputs: list[np.ndarray[Any, Any]] = self.raw.run(None, named)
        return outputs

    def run_views(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As ``run`` on the CPU, by name and without a copy: the arrays are the runtime's memory, free when they go.

        Outputs that are no plain tensors are left out.
        """
        binding = self.raw.io_binding()
        with mapped("cannot run the model", self.provider, ""):
            for name, values in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
            for output in self.outputs:
                binding.bind_output(output.name, "cpu")
            self.raw.run_with_iobinding(binding)
        views = zip(self.outputs, map(view_of, binding.get_outputs()), strict=True)
        return {output.name: view for output, view in views if view is not None}

    @property
    def fixed_batch(self) -> int | None:
        """The size that the model fixes its first axis to, None where it is free."""
        shape = self.inputs[0].shape
        return shape[0] if shape and isinstance(shape[0], int) else None

    def run_rows(self, rows: NDArray[Any]) -> np.ndarray[Any, Any]:
        """The first output for any number of rows; where the model fixes its batch, the last one is filled up and cut.

        Raises: as ``run``.
        """
        size = self.fixed_batch or len(rows)
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([self.run(filled(chunk, size))[0][: len(chunk)] for chunk in chunks])


def filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """``rows`` with copies of the last one up to ``size`` rows."""
    short = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows


def create_session(
    model: str | os.PathLike[str] | bytes,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    optimize: bool = True,
    spinning: bool = True,
    allow_fallback: bool = False,
    record_placement: bool = True,
    weights_folder: Path | None = None,
    profile_prefix: str | None = None,
) -> Session:
    """Loads a model on one provider.

    Args:
        model: A path, or the bytes of a model.
        provider: A short name of ``PROVIDERS``. Nodes that it cannot take run on the CPU, and are counted.
        threads: Threads of one operator; None takes what affinity and the cgroup's quota allow.
        optimize: Whether ONNX Runtime rewrites and fuses the graph.
        spinning: Whether idle threads wait actively (about 50 ms after a run): faster runs, busy neighbours.
        allow_fallback: Whether a provider that cannot start or took no node may be replaced by the CPU.
        record_placement: Whether to read back where the nodes were placed.
        weights_folder: Where the files with the weights lie that the bytes of a model name.
        profile_prefix: What the name of the profile begins with that ONNX Runtime then writes; None writes none.

    Raises:
        UnknownNameError: No such provider.
        InputError: ``threads`` below 1 or above 1024.
        ModelFileError: Missing, damaged, or with operators that have no kernel here.
        ProviderError: The provider is absent, cannot start or took no node, with the reason and the fix.
    """
    if provider not in PROVIDERS:
        raise UnknownNameError("provider", provider, PROVIDERS)
    check_threads(threads)
    count = environment.available_cpus() if threads is None else threads
    source = _source(model)
    options = _session_options(count, optimize, spinning)
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    if record_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if weights_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
    began = time.perf_counter()
    raw = _start(source, provider, options, count, allow_fallback)
    load_ms = (time.perf_counter() - began) * 1000.0
    placed = record_placement and hasattr(raw, "get_provider_graph_assignment_info")
    session = Session(raw, asked=provider, threads=count, load_ms=load_ms, placed=placed)
    if session.provider != provider and not allow_fallback:
        raise ProviderError(f"provider {provider!r} {_why_not(provider, raw)}; {_FIX[provider]}")
    return session


def check_threads(threads: int | None) -> None:
    """Raises: InputError for fewer than one thread, or more than any machine has use for."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"threads {threads}; allowed: 1 to {_MOST_THREADS}")


def _runtime() -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    return onnxruntime


def _source(model: str | os.PathLike[str] | bytes) -> str | bytes:
    if isinstance(model, bytes):
        return model
    check_is_file(Path(model))
    return str(Path(model))


def _session_options(threads: int, optimize: bool, spinning: bool) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return options


def _start(source: str | bytes, provider: str, options: Any, threads: int, allow_fallback: bool) -> Any:
    """The raw session on ``provider``, or on the CPU when it cannot be had and ``allow_fallback`` permits that."""
    what = "the model's bytes" if isinstance(source, bytes) else source
    arguments: dict[str, Any] = {"providers": [PROVIDERS["cpu"]]}
    try:
        if provider in PLUGINS:
            _add_plugin(provider, options, threads)
            arguments = {}
        elif provider != "cpu":
            arguments = {"providers": [(_listed(provider), _provider_options(provider, threads)), PROVIDERS["cpu"]]}
        with mapped(f"cannot load {what}", provider, _FIX.get(provider, "")):
            # Without enable_fallback=0 onnxruntime prints to stdout and quietly starts on the CPU.
            return _runtime().InferenceSession(source, options, enable_fallback=0, **arguments)
    except ProviderError:
        if not allow_fallback:
            raise
    with mapped(f"cannot load {what}", "cpu", ""):
        return _runtime().InferenceSession(source, options, enable_fallback=0, providers=[PROVIDERS["cpu"]])


def _listed(provider: str) -> str:
    if PROVIDERS[provider] not in _runtime().get_available_providers():
        have = ", ".join(provider_names())
        raise ProviderError(f"provider {provider!r} is not in this onnxruntime, which has {have}; {_FIX[provider]}")
    if provider in ("cuda", "tensorrt"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            _runtime().preload_dlls()
    return PROVIDERS[provider]


def _provider_options(provider: str, threads: int) -> dict[str, str]:
    # XNNPACK keeps a thread pool of its own (onnxruntime docs, XNNPACK provider).
    return {"intra_op_num_threads": str(threads)} if provider == "xnnpack" else {}


def _plugin_installed(provider: str) -> bool:
    return provider in PLUGINS and util.find_spec(PLUGINS[provider][0]) is not None


def _add_plugin(provider: str, options: Any, threads: int) -> None:
    """Registers a plugin provider's library once a process and adds its device to ``options``."""
    from importlib import import_module

    runtime, long, plugin = _runtime(), PROVIDERS[provider], plugin_of(provider, threads)
    if plugin is None or not _plugin_installed(provider):
        raise ProviderError(f"provider {provider!r} is not installed; {_FIX[provider]}")
    if not any(device.ep_name == long for device in runtime.get_ep_devices()):
        with contextlib.suppress(failures().Fail):  # registered already, in a process where it has no device
            runtime.register_execution_provider_library(long, import_module(plugin.package).get_library_path())
    kind = getattr(runtime.OrtHardwareDeviceType, plugin.device)
    found = [device for device in runtime.get_ep_devices() if device.ep_name == long]
    devices = [device for device in found if device.device.type == kind]
    if not devices:
        cpu = environment.describe()["cpu"]
        raise ProviderError(
            f"provider {provider!r} is installed but offers no device on this CPU ({cpu}); {_FIX[provider]}"
        )
    with mapped(f"provider {provider!r} cannot start", provider, _FIX.get(provider, "")):
        options.add_provider_for_devices(devices, dict(plugin.options))


def _placement(raw: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in raw.get_provider_graph_assignment_info():
        counts[_SHORT.get(part.ep_name, part.ep_name)] += len(part.get_nodes())
    return dict(counts)


def _notes(provider: str, placed: bool) -> tuple[str, ...]:
    notes = []
    if not placed and provider != "cpu":
        notes.append("placement of single nodes is unknown: this onnxruntime does not record it")
    if provider == "openvino" and {"amx_bf16", "avx512_bf16"} & set(environment.cpu_features()):
        notes.append("OpenVINO computes float models in bfloat16 on this CPU")
    if provider == "cuda":
        notes.append("CUDA computes float32 convolutions in TF32 on Ampere and later")
    return tuple(notes)


def _why_not(provider: str, raw: Any) -> str:
    """The reason that onnxruntime only writes to its log: the library that it could not load, or no GPU."""
    if PROVIDERS[provider] in raw.get_providers():
        return "started but took no node of this model"
    if problem := _library_problem(provider):
        return f"cannot start here: {problem}"
    if provider in ("cuda", "tensorrt") and not environment.describe()["gpus"]:
        return "cannot start here: no NVIDIA GPU was found"
    return "cannot start here"


def _library_problem(provider: str) -> str | None:
    import ctypes

    name = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt": "libonnxruntime_providers_tensorrt.so"}.get(
        provider
    )
    library = Path(_runtime().__file__).parent / "capi" / (name or "")
    if name is None or not library.is_file():
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as problem:
        return one_line(problem)
    return None


def _tensor(value: Any) -> TensorSpec:
    """ONNX Runtime's ``tensor(float)`` as numpy's ``float32``; other kinds of values as ``unknown``."""
    match = re.fullmatch(r"tensor\((\w+)\)", value.type)
    dtype = DTYPES.get(match[1], match[1]) if match else "unknown"
    return TensorSpec(value.name, dtype, None if value.shape is None else tuple(value.shape))
