"""Where the records were measured: which machines these are, what they are called, and in what they differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploykit.files import sha256_json

__all__ = [
    "MACHINE_KEYS",
    "Environments",
    "cpu_name",
    "difference_text",
    "differing",
    "onnxruntime_version",
    "provider_version",
]

# Times and memory of two environments that differ in one of these do not compare; of the system only its name counts,
# since a kernel's release changes by itself. Versions are kept beside the machine: they are of a row.
MACHINE_KEYS = ("machine", "cpu", "cpu_features", "available_cpus", "gpus", "os")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # two wheels of one runtime
# Providers with versions of their own: of a wheel, or of the runtime in a browser.
_VERSIONS = {"openvino": ("onnxruntime-ep-openvino",), "web": ("onnxruntime-web", "browser")}
_LONGEST = 60  # characters of a value in a message
_MOST_VALUES = 4


class Environments:
    """The distinct environments of the records, in the order in which they came, and the machines among them."""

    def __init__(self) -> None:
        self.found: list[Mapping[str, Any]] = []
        self._index: dict[str, int] = {}
        self._machine: list[int] = []
        self._machines: dict[str, int] = {}
        self._names: list[str] = []

    def index(self, environment: Mapping[str, Any]) -> int:
        """The environment's place in ``found``; a new one is added."""
        key = sha256_json(dict(environment))
        if key not in self._index:
            self._index[key] = len(self.found)
            self.found.append(environment)
            machine = sha256_json(_hardware(environment))
            self._machine.append(self._machines.setdefault(machine, len(self._machines)))
        return self._index[key]

    def machine(self, index: int) -> int:
        """The number of the machine of an environment."""
        return self._machine[index]

    @property
    def machines(self) -> int:
        """How many different machines there are."""
        return len(self._machines)

    def of_machine(self, machine: int) -> Mapping[str, Any]:
        """The first environment of a machine."""
        return self.found[self._machine.index(machine)]

    def names(self) -> list[str]:
        """What the machines are called: their processors, with a number where two have the same."""
        if len(self._names) != self.machines:
            cpus = [cpu_name(self.of_machine(machine)) for machine in range(self.machines)]
            seen = Counter(cpus)
            self._names = [cpu if seen[cpu] == 1 else f"{cpu} ({place + 1})" for place, cpu in enumerate(cpus)]
        return self._names


def _hardware(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(environment, key) for key in MACHINE_KEYS}


def _value(environment: Mapping[str, Any], key: str) -> Any:
    value = environment.get(key)
    return str(value).split(" ")[0] if key == "os" and value else value


def cpu_name(environment: Mapping[str, Any]) -> str:
    """The processor without trademarks and clock: ``Intel Xeon Platinum 8488C``."""
    name = re.sub(r"\((R|TM)\)|\bCPU\b|@.*$|\b\d+-Core Processor\b", " ", str(environment.get("cpu") or ""))
    return " ".join(name.split()) or str(environment.get("machine") or "unknown machine")


def onnxruntime_version(environment: Mapping[str, Any]) -> str | None:
    """The version of ONNX Runtime, whichever wheel brought it; None where the record does not say."""
    versions = environment.get("versions")
    found = [versions[name] for name in _RUNTIMES if versions.get(name)] if isinstance(versions, Mapping) else []
    return str(found[0]) if found else None


def provider_version(environment: Mapping[str, Any], provider: str | None) -> str | None:
    """The version of a provider that has one of its own, such as OpenVINO's plugin; None for all others."""
    versions = environment.get("versions")
    if not isinstance(versions, Mapping):
        return None
    return ", ".join(str(versions[name]) for name in _VERSIONS.get(provider or "", ()) if versions.get(name)) or None


def differing(environments: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys of the hardware that are not the same in all, each with its values in the order given."""
    values = {key: [_value(environment, key) for environment in environments] for key in MACHINE_KEYS}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def difference_text(values: Mapping[str, Sequence[Any]]) -> str:
    """``cpu (Intel Xeon | Cortex-A76) and machine (x86_64 | aarch64)``; of lists, what is not in all of them."""
    parts = [f"{key} ({' | '.join(_shown(found))})" for key, found in values.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _shown(values: Sequence[Any]) -> list[str]:
    lists = [value for value in values if isinstance(value, (list, tuple))]
    common = [item for item in lists[0] if all(item in other for other in lists)] if lists else []
    texts = list(dict.fromkeys(_text(value, common) for value in values))
    more = len(texts) - _MOST_VALUES
    return texts if more <= 0 else [*texts[:_MOST_VALUES], f"{more} more"]


def _text(value: Any, common: Iterable[Any]) -> str:
    if isinstance(value, (list, tuple)):
        kept = [item for item in value if item not in list(common)]
        value = " ".join(_named(item) for item in kept) or ("no more" if common else "none")
    text = "unknown" if value in (None, "") else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _named(item: Any) -> str:
    """A GPU by its name and driver, since two of one name may differ in that; anything else as it stands."""
    if not isinstance(item, Mapping):
        return str(item)
    return " ".join(str(item[key]) for key in ("name", "driver") if item.get(key)) or str(dict(item))
