"""How to measure: which settings every model is measured in, how often and for how long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from deploykit.errors import InputError, UnknownNameError
from deploykit.providers import WEB
from deploykit.runtime import (
    check_memory,
    check_provider,
    check_provider_options,
    check_threads,
    check_unbound,
)

__all__ = ["PRESETS", "BenchOptions", "Setting", "preset"]

_HEADLINES = ("median", "p90")
_DEVICE_PROVIDERS = ("cuda", "tensorrt")  # computing in memory of their own, where copies can be left out
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Setting:
    """What one model is measured in: what an app would choose too.

    Attributes:
        provider: Short name of the execution provider (``runtime.PROVIDERS``), or ``web``.
        threads: Threads of one operator; None takes what affinity and the cgroup's quota allow.
        batch: Pictures in one call, for models whose batch axis is dynamic.
        session: Further arguments of ``runtime.create_session``.
    """

    provider: str = "cpu"
    threads: int | None = None
    batch: int = 1
    session: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. Raises InputError for values that cannot be used.

    Where ``provider``, ``threads`` or ``batch`` are several, every model is measured in every combination of them.

    Attributes:
        provider: Short names of execution providers (``runtime.PROVIDERS``), and ``web``: ONNX Runtime's WebAssembly
            in a headless Chromium.
        threads: Threads of one operator; None takes what affinity and the cgroup's quota allow.
        batch: Pictures in one call, for models whose batch axis is dynamic.
        samples: Timed calls of each model, at least.
        min_time_s: Seconds of timed calls of each model, at least.
        max_time_s: Seconds after which a model gets no further turn, though samples are missing.
        processes: Fresh processes of each model; layout in memory differs from one to the next.
        shape: Input shapes by input name, for dynamic axes that the file does not tell.
        seed: Fixes inputs and the order of turns.
        timeout_s: Seconds that one step (loading, one turn) may take before the worker is ended.
        allow_fallback: Whether a provider that cannot start may be replaced by the CPU; the record then says so.
        keep_going: Whether the others go on where one cannot be measured; the record's ``failures`` then say why.
        memory: ``"default"`` or ``"lean"`` (``runtime.create_session``); the copy that the latter loads is made before.
        provider_options: Options of the providers other than the CPU, in their own names.
        io_binding: Whether inputs and outputs stay in the device's memory, so that no copy is timed; None: where the
            provider computes in memory of its own.
        cuda_graph: Whether the CUDA provider, with ``io_binding``, captures and replays one graph where the model
            allows it.
        per_operator: Whether each model is also profiled, in one more process, after all are timed.
        energy: Whether the machine's energy counters are read around the timed calls.
        headline: The figure that stands first: ``"median"`` or ``"p90"``.
    """

    provider: str | Sequence[str] = "cpu"
    threads: int | Sequence[int | None] | None = None
    batch: int | Sequence[int] = 1
    samples: int = 200
    min_time_s: float = 1.0
    max_time_s: float = _LIMIT_S
    processes: int = 1
    shape: Mapping[str, tuple[int, ...]] | None = None
    seed: int = 0
    timeout_s: float = 120.0
    allow_fallback: bool = False
    keep_going: bool = False
    memory: str = "default"
    provider_options: Mapping[str, str] | None = None
    io_binding: bool | None = None
    cuda_graph: bool = True
    per_operator: bool = False
    energy: bool = False
    headline: str = "median"

    def __post_init__(self) -> None:
        self._check_providers()
        for threads in _several(self.threads):
            check_threads(threads)
        for name in ("batch", "samples", "processes"):
            for value in _several(getattr(self, name)):
                if value < 1:
                    raise InputError(f"{name} {value}; allowed: 1 or more")
        if not self.settings():
            raise InputError("no provider, threads or batch to measure with; allowed: one or more of each")
        check_memory(self.memory)
        providers = _several(self.provider)
        for provider in providers if set(providers) == {"cpu"} else set(providers) - {"cpu"}:
            check_provider_options(provider, self.provider_options or {})
            if not self.binds(provider):
                check_unbound(provider, self.provider_options or {})
        self._check_times()
        for name, shape in (self.shape or {}).items():
            if any(size < 1 for size in shape):
                raise InputError(f"shape {name}={shape}; allowed: sizes of 1 or more")
        if self.headline not in _HEADLINES:
            raise UnknownNameError("headline", self.headline, _HEADLINES)

    def _check_providers(self) -> None:
        for provider in _several(self.provider):
            check_provider(provider, also=(WEB,))
        ignored = {
            "provider options": bool(self.provider_options),
            "lean memory": self.memory != "default",
            "IO binding": self.io_binding is True,
            "time by operator": self.per_operator,
            "a fallback": self.allow_fallback,
        }
        if WEB in _several(self.provider) and any(ignored.values()):
            what = ", ".join(name for name, asked in ignored.items() if asked)
            raise InputError(f"provider 'web' has no {what}; leave that out, or measure 'web' in a run of its own")

    def _check_times(self) -> None:
        finite = all(map(math.isfinite, (self.min_time_s, self.max_time_s, self.timeout_s)))
        if not finite or self.min_time_s < 0 or self.max_time_s <= 0 or self.timeout_s <= 0:
            times = f"min_time_s {self.min_time_s}, max_time_s {self.max_time_s}, timeout_s {self.timeout_s}"
            raise InputError(f"{times}; allowed: positive, finite seconds")
        if self.max_time_s < self.min_time_s:
            raise InputError(f"max_time_s {self.max_time_s} is below min_time_s {self.min_time_s}")

    def settings(self) -> tuple[Setting, ...]:
        """Every combination of provider, threads and batch, each once."""
        grid = itertools.product(*(dict.fromkeys(_several(v)) for v in (self.provider, self.threads, self.batch)))
        return tuple(Setting(provider, threads, batch, self._session(provider)) for provider, threads, batch in grid)

    def _session(self, provider: str) -> dict[str, Any]:
        options = {} if provider == "cpu" else dict(self.provider_options or {})
        return {"allow_fallback": self.allow_fallback, "memory": self.memory, "provider_options": options}

    def binds(self, provider: str) -> bool:
        """Whether inputs and outputs stay in the memory of the provider's device."""
        return provider in _DEVICE_PROVIDERS if self.io_binding is None else self.io_binding

    def changed(self, **values: Any) -> BenchOptions:
        """These options with other values; None leaves an option as it is. Raises: InputError.

        Whoever asks for more samples or seconds and names no limit gets one that leaves room for them: a minute, or
        twice the seconds.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if given.keys() & {"samples", "min_time_s"} and "max_time_s" not in given:
            given["max_time_s"] = max(self.max_time_s, _LIMIT_S, 2.0 * given.get("min_time_s", 0.0))
        return replace(self, **given)


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


PRESETS: Mapping[str, BenchOptions] = MappingProxyType(
    {
        # LiteRT's benchmark tool: 50 runs and 1 s.
        "quick": BenchOptions(samples=50, min_time_s=1.0, max_time_s=4.0),
        # Repetitions belong to the level that varies most, processes (Kalibera & Jones 2013, section 6).
        "ci": BenchOptions(samples=300, min_time_s=3.0, processes=3),
        # MLPerf Inference, single stream: one query after the other, 1,024 or more of them, 90th percentile.
        "mlperf": BenchOptions(samples=1024, min_time_s=10.0, max_time_s=600.0, headline="p90"),
    }
)
"""Options by name, for the command line's ``--preset``."""


def preset(name: str) -> BenchOptions:
    """The options of a preset. Raises: UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]
