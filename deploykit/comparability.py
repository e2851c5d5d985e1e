"""Whether a stored timing may be compared with one that is made here: same machine, same runtime, same setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.nvml import ON_NVIDIA
from deploykit.timings import Timing

__all__ = ["Mismatch", "mismatches"]

_MACHINE = ("machine", "cpu", "cpu_features", "physical_cores", "logical_cores", "available_cpus")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # two builds of one version; only one of them is installed
# Of what else decides the times of a provider.
_VERSIONS = {"openvino": ("onnxruntime-ep-openvino",), "web": ("onnxruntime-web", "browser")}
_SETTING = (
    "provider",
    "threads",
    "batch",
    "memory_mode",
    "provider_options",
    "io_binding",
    "cuda_graph",
    "computed_in",
)


@dataclass(frozen=True)
class Mismatch:
    """A key that differs, with both values."""

    key: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.there)} in the record, {_text(self.here)} here"


def mismatches(
    stored: Timing,
    stored_environment: Mapping[str, Any],
    environment: Mapping[str, Any],
    setting: Mapping[str, Any],
) -> tuple[Mismatch, ...]:
    """The keys by which a stored timing and one made here must agree and do not, the machine's first.

    The operating system's and Python's versions are left out: hosted machines change them from week to week, and what
    they cost is within the noise between two runs.

    Args:
        stored: The timing.
        stored_environment: The ``environment`` of its record.
        environment: ``environment.describe()`` of this machine.
        setting: Of what is going to be measured; the keys of ``_SETTING`` that it has are compared.
    """
    there, here = _facts(stored_environment, stored.provider), _facts(environment, stored.provider)
    pairs: Iterator[tuple[str, Any, Any]] = ((key, there[key], here[key]) for key in here)
    found = [Mismatch(*pair) for pair in pairs if pair[1] != pair[2]]
    chosen = [(key, getattr(stored, key), setting[key]) for key in _SETTING if key in setting]
    return (*found, *(Mismatch(*pair) for pair in chosen if pair[1] != pair[2]))


def _facts(environment: Mapping[str, Any], provider: str) -> dict[str, Any]:
    versions = environment.get("versions") or {}
    facts = {key: environment.get(key) for key in _MACHINE}
    if provider != "web":  # a browser runs another one
        facts["onnxruntime"] = next((versions[name] for name in _RUNTIMES if name in versions), None)
    facts.update((name, versions.get(name)) for name in _VERSIONS.get(provider, ()))
    if provider in ON_NVIDIA:
        gpus = environment.get("gpus") or []
        facts["gpu"] = [gpu.get("name") for gpu in gpus]
        facts["gpu driver"] = next((gpu.get("driver") for gpu in gpus), None)
    return facts


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
