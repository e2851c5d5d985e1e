"""How to measure: which settings every model is measured in, how often and for how long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploykit.errors import InputError, UnknownNameError
from deploykit.runtime import PROVIDERS, check_threads

__all__ = ["BenchOptions", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What one model is measured in: what an app would choose too.

    Attributes:
        provider: Short name of the execution provider (``runtime.PROVIDERS``).
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
        provider: Short names of execution providers (``runtime.PROVIDERS``).
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
    """

    provider: str | Sequence[str] = "cpu"
    threads: int | Sequence[int | None] | None = None
    batch: int | Sequence[int] = 1
    samples: int = 200
    min_time_s: float = 1.0
    max_time_s: float = 60.0
    processes: int = 1
    shape: Mapping[str, tuple[int, ...]] | None = None
    seed: int = 0
    timeout_s: float = 120.0
    allow_fallback: bool = False
    keep_going: bool = False

    def __post_init__(self) -> None:
        for provider in _several(self.provider):
            if provider not in PROVIDERS:
                raise UnknownNameError("provider", provider, PROVIDERS)
        for threads in _several(self.threads):
            check_threads(threads)
        for name in ("batch", "samples", "processes"):
            for value in _several(getattr(self, name)):
                if value < 1:
                    raise InputError(f"{name} {value}; allowed: 1 or more")
        if not self.settings():
            raise InputError("no provider, threads or batch to measure with; allowed: one or more of each")
        finite = all(map(math.isfinite, (self.min_time_s, self.max_time_s, self.timeout_s)))
        if not finite or self.min_time_s < 0 or self.max_time_s <= 0 or self.timeout_s <= 0:
            times = f"min_time_s {self.min_time_s}, max_time_s {self.max_time_s}, timeout_s {self.timeout_s}"
            raise InputError(f"{times}; allowed: positive, finite seconds")
        if self.max_time_s < self.min_time_s:
            raise InputError(f"max_time_s {self.max_time_s} is below min_time_s {self.min_time_s}")
        for name, shape in (self.shape or {}).items():
            if any(size < 1 for size in shape):
                raise InputError(f"shape {name}={shape}; allowed: sizes of 1 or more")

    def settings(self) -> tuple[Setting, ...]:
        """Every combination of provider, threads and batch, each once."""
        session = {"allow_fallback": self.allow_fallback}
        grid = itertools.product(*(dict.fromkeys(_several(v)) for v in (self.provider, self.threads, self.batch)))
        return tuple(Setting(provider, threads, batch, session) for provider, threads, batch in grid)

    def changed(self, **values: Any) -> BenchOptions:
        """These options with other values; None leaves an option as it is. Raises: InputError."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
