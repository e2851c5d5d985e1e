"""Execution providers that come as a plugin beside any onnxruntime wheel: where they are and what they are told.

A plugin's package has ``get_library_path()`` for ONNX Runtime to register, and ``get_ep_name()`` (onnxruntime.ai,
"Plugin Execution Provider Library Packaging Guidance"). Those in ``PLUGINS`` are known by name; any other installed
distribution called ``onnxruntime-ep-…`` is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util

__all__ = ["PLUGINS", "Plugin", "installed_plugins", "plugin_distributions", "plugin_of", "short_name"]

PLUGINS = {
    "openvino": ("onnxruntime_ep_openvino", "OpenVINOExecutionProvider"),
    "qnn": ("onnxruntime_qnn", "QNNExecutionProvider"),
    "webgpu": ("onnxruntime_ep_webgpu", "WebGpuExecutionProvider"),
}
"""Short name of a provider -> the package's import name, and ONNX Runtime's name of the provider."""

_DISTRIBUTION = re.compile(r"onnxruntime[-_.]ep[-_.].+", re.IGNORECASE)
_CUDA_ENDING = re.compile(r"_cu\d+$")  # onnxruntime-ep-nv-tensorrt-rtx-cu13 brings onnxruntime_ep_nv_tensorrt_rtx
_DEVICES = {"openvino": "CPU", "qnn": "NPU"}


@dataclass(frozen=True)
class Plugin:
    """One plugin in one setting.

    Attributes:
        package: Import name; its ``get_library_path()`` is what ONNX Runtime registers.
        provider: ONNX Runtime's name.
        device: Member of ``OrtHardwareDeviceType``; for OpenVINO fixed to the CPU, where the thread count means what
            it says; None takes the first device that the plugin offers.
        options: For ``SessionOptions.add_provider_for_devices``.
    """

    package: str
    provider: str
    device: str | None
    options: Mapping[str, str]


def short_name(name: str) -> str:
    """A provider's short name after ONNX Runtime's: in lower case, without ``ExecutionProvider``."""
    return name.removesuffix("ExecutionProvider").lower()


def installed_plugins() -> dict[str, tuple[str, str]]:
    """Those that are installed, as ``PLUGINS`` lists them. Packages that cannot be imported are left out."""
    found = {short: plugin for short, plugin in PLUGINS.items() if util.find_spec(plugin[0]) is not None}
    for package in _unlisted_packages():
        for name in _provider_names(package) or ():
            found.setdefault(short_name(name), (package, name))
    return found


def plugin_distributions(path: Sequence[str] | None = None) -> dict[str, tuple[str, bool]]:
    """Distributions that are called as plugins are: their version, and whether their package is there.

    Nothing is imported. ``path`` says where to look instead of ``sys.path``.
    """
    named = _distributions(path)
    known = {package.replace("_", "-") for package, _ in PLUGINS.values()}
    return {
        name: (version, util.find_spec(_package_of(name)) is not None)
        for name, version in sorted(named.items())
        if _DISTRIBUTION.fullmatch(name) or (name in known and not _is_whole_runtime(name, version))
    }


def _is_whole_runtime(name: str, version: str) -> bool:
    """Whether it is an ONNX Runtime of its own: onnxruntime-qnn was one before 2.0."""
    return name == "onnxruntime-qnn" and version.split(".")[0] in ("0", "1")


def plugin_of(provider: str, threads: int, options: Mapping[str, str] | None = None) -> Plugin | None:
    """The plugin of a provider by its short name; None for one that is part of ONNX Runtime or unknown.

    Args:
        provider: Short name.
        threads: Threads of one operator.
        options: What the user gives; OpenVINO's properties, which are in capitals, go into its ``load_config``.
    """
    package, name = PLUGINS.get(provider) or installed_plugins().get(provider) or (None, None)
    if package is None or name is None:
        return None
    given = dict(options or {})
    return Plugin(
        package, name, _DEVICES.get(provider), _openvino_options(threads, given) if provider == "openvino" else given
    )


def _openvino_options(threads: int, given: Mapping[str, str]) -> dict[str, str]:
    # OpenVINO passes over other spellings of the thread option with no more than a warning.
    properties = {"INFERENCE_NUM_THREADS": str(threads)}
    properties |= {key: value for key, value in given.items() if key.isupper()}
    others = {key: value for key, value in given.items() if not key.isupper()}
    return {**others, "load_config": json.dumps({"CPU": properties})}


def _unlisted_packages() -> list[str]:
    listed = {package for package, _ in PLUGINS.values()}
    packages = dict.fromkeys(_package_of(name) for name in _distributions() if _DISTRIBUTION.fullmatch(name))
    return [package for package in packages if package not in listed]


def _distributions(path: Sequence[str] | None = None) -> dict[str, str]:
    """Version by name, in lower case."""
    from importlib import metadata  # brings zipfile and email, 4 MB that a bench worker would be charged with

    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    return {(item.metadata["Name"] or "").lower(): item.version for item in found}


def _package_of(distribution: str) -> str:
    package = re.sub(r"[-.]", "_", distribution.lower())
    return package if util.find_spec(package) is not None else _CUDA_ENDING.sub("", package)


def _provider_names(package: str) -> list[str] | None:
    """ONNX Runtime's names of what a package provides; None when it is no plugin or broken."""
    try:
        module = import_module(package)
        module.get_library_path  # noqa: B018 - whether it is there; the file is looked for when it is registered
        names = module.get_ep_names() if hasattr(module, "get_ep_names") else [module.get_ep_name()]
    except (ImportError, AttributeError, OSError, RuntimeError):  # packages of others, as they come
        return None
    return [str(name) for name in names]
