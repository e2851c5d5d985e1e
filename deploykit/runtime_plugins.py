"""Execution providers that come as a plugin beside any onnxruntime wheel: what loads them and what they are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PLUGINS", "Plugin", "plugin_of"]

PLUGINS = {"openvino": ("onnxruntime_ep_openvino", "OpenVINOExecutionProvider")}
"""Short name of a provider -> the package's import name, and ONNX Runtime's name of the provider."""


@dataclass(frozen=True)
class Plugin:
    """One plugin in one setting.

    Attributes:
        package: Import name; its ``get_library_path()`` is what ONNX Runtime registers.
        provider: ONNX Runtime's name.
        device: Member of ``OrtHardwareDeviceType``; fixed to the CPU, where the thread count means what it says.
        options: For ``SessionOptions.add_provider_for_devices``.
    """

    package: str
    provider: str
    device: str
    options: Mapping[str, str]


def plugin_of(provider: str, threads: int) -> Plugin | None:
    """The plugin of a provider by its short name; None for one that is part of ONNX Runtime."""
    if provider not in PLUGINS:
        return None
    package, name = PLUGINS[provider]
    # OpenVINO passes over other spellings of the thread option with no more than a warning.
    load_config = json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)}})
    return Plugin(package, name, "CPU", {"load_config": load_config})
