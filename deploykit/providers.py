"""The execution providers by short names: which are here, what starts them, and why one does not.

ONNX Runtime lists providers that cannot start. Those that come as a plugin are registered here, once a process, where
their package is installed (``runtime_plugins``).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any

from deploykit import environment
from deploykit.cuda_diagnosis import CudaFinding, diagnose_cuda
from deploykit.cuda_facts import cuda_facts
from deploykit.errors import InputError, ProviderError, UnknownNameError
from deploykit.nvml import ON_NVIDIA
from deploykit.runtime_errors import failures, mapped, one_line
from deploykit.runtime_plugins import Plugin, installed_plugins, plugin_of, short_name

__all__ = [
    "LOG_FATAL",
    "PROVIDERS",
    "WEB",
    "add_plugin",
    "check_provider",
    "cuda_finding",
    "fix_of",
    "listed_name",
    "onnxruntime_module",
    "plugin_for",
    "provider_names",
    "short_name_of",
    "why_not",
]

PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Short name of a provider that deploykit knows -> ONNX Runtime's name; installed plugins add theirs."""

WEB = "web"
"""What ``bench`` calls ONNX Runtime in a browser (``web_worker``): no provider of the one that is installed here."""

_FIX = {
    "cuda": "it needs an NVIDIA GPU with its driver, and pip install 'deploykit[cuda]'; or use --provider cpu",
    "tensorrt": "it needs an NVIDIA GPU, CUDA and the TensorRT libraries; or use --provider cpu",
    "coreml": "it needs macOS; or use --provider cpu",
    "xnnpack": "it needs an onnxruntime built with it (Android, iOS); or use --provider cpu",
    "qnn": "it needs pip install onnxruntime-qnn on a Qualcomm device; or use --provider cpu",
    "openvino": "it needs pip install 'deploykit[openvino]' and an Intel processor; or use --provider cpu",
    "nvtensorrtrtx": "it needs an NVIDIA GPU of the RTX kind with its driver; or use --provider cpu",
    "webgpu": "it needs pip install onnxruntime-ep-webgpu and a GPU with its driver; or use --provider cpu",
}
_LIBRARIES = {"cuda": "libonnxruntime_providers_cuda.so", "tensorrt": "libonnxruntime_providers_tensorrt.so"}
_not_preloaded: list[str] = []  # of this process: why libraries of CUDA could not be loaded beforehand
LOG_FATAL = 4  # keeps ONNX Runtime's C++ warnings off stderr; what matters comes back as an exception


def onnxruntime_module() -> Any:
    """ONNX Runtime, with its log kept quiet."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(LOG_FATAL)
    return onnxruntime


def check_provider(name: str, *, also: Sequence[str] = ()) -> None:
    """Raises: UnknownNameError for a name that is neither in ``PROVIDERS`` nor of an installed plugin nor in ``also``.

    InputError for ``WEB`` where it is not in ``also``.
    """
    if name in also:
        return
    if name == WEB:
        raise InputError("provider 'web' runs models in a browser, which only bench can; choose another one here")
    if name not in PROVIDERS and name not in _further_names():
        raise UnknownNameError("provider", name, [*PROVIDERS, *also, *_further_names()])


def provider_names() -> list[str]:
    """Short names of the providers that this installation lists; whether one starts, only a session can tell."""
    listed, plugins = set(onnxruntime_module().get_available_providers()), installed_plugins()
    known = [name for name, long in PROVIDERS.items() if long in listed or name in plugins]
    return [*known, *_further_names()]


def short_name_of(name: str) -> str:
    """The short name of a provider after ONNX Runtime's."""
    return next((short for short, long in PROVIDERS.items() if long == name), None) or short_name(name)


def fix_of(provider: str, said: str = "") -> str:
    """What to do where the provider cannot be used; ends a message.

    For CUDA the mismatch is named that what was ``said`` and what is installed point to (``cuda_diagnosis``).
    """
    if provider in _LIBRARIES and said:
        finding = cuda_finding(said)
        return finding.fix if finding.problem in said else f"{finding.problem}: {finding.fix}"
    return _FIX.get(provider, "see its package for what it needs; or use --provider cpu")


def cuda_finding(said: str) -> CudaFinding:
    """What keeps CUDA from starting here, and what mends it."""
    return diagnose_cuda(cuda_facts(said, preload=_not_preloaded))


def plugin_for(provider: str, threads: int, options: dict[str, str]) -> Plugin | None:
    """The plugin that loads the provider; None for one that is part of this ONNX Runtime."""
    plugin = plugin_of(provider, threads, options)
    if plugin and not _installed(plugin) and plugin.provider in onnxruntime_module().get_available_providers():
        return None  # another wheel of ONNX Runtime, with the provider built in
    if plugin is None and provider not in PROVIDERS:  # registered by someone else in this process
        name = next(device.ep_name for device in _devices() if short_name(device.ep_name) == provider)
        return Plugin("", name, None, options)
    return plugin


def add_plugin(plugin: Plugin, provider: str, session_options: Any) -> None:
    """Registers the plugin's library where it is not yet, and adds its device to ``session_options``.

    Raises: ProviderError when the package is absent, its library cannot be loaded, or it has no device here.
    """
    if not _installed(plugin):
        raise ProviderError(f"provider {provider!r} is not installed; {fix_of(provider)}")
    if provider in ON_NVIDIA:
        _preload(onnxruntime_module(), provider)
    with mapped(f"provider {provider!r} cannot be registered", provider, fix_of(provider)):
        _register(plugin)
    found = [device for device in _devices() if device.ep_name == plugin.provider]
    fitting = [device for device in found if plugin.device in (None, device.device.type.name)]
    if not fitting:
        cpu = environment.describe()["cpu"]
        raise ProviderError(
            f"provider {provider!r} is installed but offers no device here (processor: {cpu}); {fix_of(provider)}"
        )
    with mapped(f"provider {provider!r} cannot start", provider, fix_of(provider)):
        session_options.add_provider_for_devices(fitting[:1], dict(plugin.options))


def listed_name(provider: str) -> str:
    """ONNX Runtime's name of a provider that is part of it. Raises: ProviderError when this one lacks it."""
    runtime = onnxruntime_module()
    if PROVIDERS[provider] not in runtime.get_available_providers():
        said = f"provider {provider!r} is not in this onnxruntime, which has {', '.join(provider_names())}"
        raise ProviderError(f"{said}; {fix_of(provider, said if provider == 'cuda' else '')}")
    if provider in _LIBRARIES:
        _preload(runtime, provider)
    return PROVIDERS[provider]


def _preload(runtime: Any, provider: str) -> None:
    """Loads CUDA and cuDNN out of NVIDIA's packages, where the loader does not look; what fails is kept for the error.

    Order matters: what is loaded here is what the provider's library finds a moment later.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints what it does not find
        runtime.preload_dlls()
    lines = [line.removeprefix("Failed to load ") for line in printed.getvalue().splitlines() if "Failed" in line]
    _not_preloaded[:] = [line.split(": ", 1)[-1] for line in lines]
    if provider == "tensorrt":
        _preload_tensorrt()


def _preload_tensorrt() -> None:
    """TensorRT's libraries out of its pip package, which ``preload_dlls`` does not know."""
    spec = util.find_spec("tensorrt_libs")
    for place in spec.submodule_search_locations or () if spec else ():
        for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
            try:
                ctypes.CDLL(str(Path(place) / name), mode=ctypes.RTLD_GLOBAL)
            except OSError as problem:
                _not_preloaded.append(one_line(problem))


def why_not(provider: str, session: Any) -> str:
    """Why an ``InferenceSession`` runs nothing on ``provider``, which ONNX Runtime only writes to its log."""
    if any(short_name_of(name) == provider for name in session.get_providers()):
        return "started but took no node of this model"
    if problem := _library_problem(provider):
        return f"cannot start here: {problem}"
    return "cannot start here"


def _further_names() -> list[str]:
    """Providers beyond ``PROVIDERS``: of installed plugins, and what this process has devices of."""
    devices = [short_name(device.ep_name) for device in _devices()]
    return [name for name in dict.fromkeys([*installed_plugins(), *devices]) if name not in PROVIDERS]


def _devices() -> Any:
    runtime = onnxruntime_module()
    return runtime.get_ep_devices() if hasattr(runtime, "get_ep_devices") else ()


def _installed(plugin: Plugin) -> bool:
    return not plugin.package or util.find_spec(plugin.package) is not None


def _register(plugin: Plugin) -> None:
    if not plugin.package or any(device.ep_name == plugin.provider for device in _devices()):
        return
    try:
        path = import_module(plugin.package).get_library_path()
    except (ImportError, AttributeError, OSError) as problem:  # a package of others, as it comes
        raise ProviderError(
            f"the package {plugin.package} is broken: {one_line(problem)}; install it again"
        ) from problem
    try:
        onnxruntime_module().register_execution_provider_library(plugin.provider, path)
    except failures().Fail as problem:
        if "already registered" not in str(problem):  # in a process where it has no device
            raise


def _library_problem(provider: str) -> str | None:
    library = Path(onnxruntime_module().__file__).parent / "capi" / _LIBRARIES.get(provider, "")
    if not library.is_file():
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as problem:
        return one_line(problem)
    return None
