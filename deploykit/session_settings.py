"""The exact settings of an ONNX Runtime session, read back from one that runs, for an app that has no deploykit.

What is written is what the session says of itself, so that it is what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deploykit import __version__, environment
from deploykit.runtime import Session
from deploykit.runtime_plugins import Plugin

__all__ = ["CONFIG_KEYS", "SessionSettings"]

_SIMPLE = ("intra_op_num_threads", "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern")
_ENUMS = ("graph_optimization_level", "execution_mode")
CONFIG_KEYS = (
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.disable_prepacking",
    "session.use_device_allocator_for_initializers",
    "session.use_env_allocators",
    "session.set_denormal_as_zero",
)
"""Entries that are asked for, as ONNX Runtime cannot list those that are set."""


@dataclass(frozen=True)
class SessionSettings:
    """What makes a session, as plain values.

    Attributes:
        provider: Short name of what runs.
        providers: ONNX Runtime's names of the providers with their options, in order; empty for a plugin.
        options: Attributes of ``onnxruntime.SessionOptions``; enumerations by the name of the member.
        config_entries: For ``SessionOptions.add_session_config_entry``.
        plugin: What loads the provider where it comes as a plugin.
    """

    provider: str
    providers: tuple[tuple[str, Mapping[str, str]], ...]
    options: Mapping[str, Any]
    config_entries: Mapping[str, str] = field(default_factory=dict)
    plugin: Plugin | None = None

    @classmethod
    def of(cls, session: Session) -> SessionSettings:
        """Of a session that ``runtime.create_session`` made."""
        raw, plugin = session.raw, session.plugin
        made = raw.get_session_options()
        options = {name: getattr(made, name) for name in _SIMPLE}
        options |= {name: getattr(made, name).name for name in _ENUMS}
        of_providers = raw.get_provider_options()
        listed = () if plugin else tuple((name, dict(of_providers.get(name, {}))) for name in raw.get_providers())
        return cls(session.provider, listed, options, dict(_entries(made)), plugin)

    def to_document(self, model: str, model_sha256: str) -> dict[str, Any]:
        """The JSON document for the model's file beside it."""
        versions = environment.package_versions()
        return {
            "schema": "deploykit.session/1",
            "deploykit": __version__,
            "model": model,
            "model_sha256": model_sha256,
            "provider": self.provider,
            "providers": [[name, dict(options)] for name, options in self.providers],
            "plugin": asdict(self.plugin) if self.plugin else None,
            "options": dict(self.options),
            "config_entries": dict(self.config_entries),
            "versions": {name: version for name, version in versions.items() if name.startswith("onnxruntime")},
        }

    def to_python(self, model: str, measured: str) -> str:
        """A Python file with a function that makes the session; it needs ONNX Runtime and nothing else.

        Args:
            model: The model's file, relative to the folder of the Python file, with forward slashes.
            measured: What the settings were measured to be, in a sentence without quotation marks.
        """
        lines = [f'"""How to open {model} as deploykit measured it.', "", f"{measured}", '"""', ""]
        lines += ["from pathlib import Path", "", "import onnxruntime"]
        lines += [f"import {self.plugin.package}"] if self.plugin and self.plugin.package else []
        lines += ["", f"MODEL = Path(__file__).parent / {_text(model)}", "", "", "def create_session(model=MODEL):"]
        return "\n".join([*lines, *(f"    {line}" for line in self._body()), ""])

    def _body(self) -> Iterator[str]:
        yield "options = onnxruntime.SessionOptions()"
        for name, value in self.options.items():
            owner = _ENUM_OWNERS.get(name)
            yield f"options.{name} = {f'{owner}.{value}' if owner else repr(value)}"
        for key, entry in self.config_entries.items():
            yield f"options.add_session_config_entry({_text(key)}, {_text(entry)})"
        if self.plugin:
            yield from self._plugin_body(self.plugin)
            return
        if any(name.startswith(("CUDA", "Tensorrt")) for name, _ in self.providers):
            yield "onnxruntime.preload_dlls()  # finds CUDA in the pip packages"
        listed = (f"({_text(name)}, {_text(dict(options))})" for name, options in self.providers)
        yield f"providers = [{', '.join(listed)}]"
        yield "return onnxruntime.InferenceSession(str(model), options, providers=providers)"

    def _plugin_body(self, plugin: Plugin) -> Iterator[str]:
        """Registers the plugin's library once a process, and takes its device."""
        yield f"name = {_text(plugin.provider)}"
        if plugin.package:
            yield "if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):"
            yield f"    onnxruntime.register_execution_provider_library(name, {plugin.package}.get_library_path())"
        yield "devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]"
        if plugin.device:
            kind = f"onnxruntime.OrtHardwareDeviceType.{plugin.device}"
            yield f"devices = [device for device in devices if device.device.type == {kind}]"
        yield "if not devices:"
        yield '    raise RuntimeError(f"{name} offers no device on this machine")'
        yield f"options.add_provider_for_devices(devices[:1], {_text(dict(plugin.options))})"
        yield "return onnxruntime.InferenceSession(str(model), options)"


_ENUM_OWNERS = {
    "graph_optimization_level": "onnxruntime.GraphOptimizationLevel",
    "execution_mode": "onnxruntime.ExecutionMode",
}


def _text(value: str | dict[str, str]) -> str:
    """As Python has it; for texts and dicts of texts JSON is Python."""
    return json.dumps(value, ensure_ascii=False)


def _entries(options: Any) -> Iterator[tuple[str, str]]:
    for key in CONFIG_KEYS:
        try:
            yield key, str(options.get_session_config_entry(key))
        except RuntimeError:  # it is not set
            continue
