"""The limits that a model has to keep, and how long may be measured to find out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from deploykit.errors import InputError, UnknownNameError
from deploykit.limits import Limit, parse_bytes, parse_milliseconds, parse_share
from deploykit.providers import WEB
from deploykit.runtime import PROVIDERS, check_threads

__all__ = ["DEFAULT_SLOWDOWN", "GateOptions", "changed", "parse_limit"]

DEFAULT_SLOWDOWN = 0.05
"""What a model that is compared without any limit may be slower, as a fraction."""

_FLAGS = "--max-slowdown, --max-latency, --max-size, --max-memory, --max-drop, --min-agreement"
_SEEDS = 2**32


@dataclass(frozen=True)
class GateOptions:
    """Limits and setting, validated. Limits that are None are not checked.

    Attributes:
        max_slowdown: Fraction by which the latency may exceed the baseline's; negative where it has to be faster.
        max_latency_ms: Most milliseconds of a call (median).
        max_size: Most bytes of the file, absolute or relative to the baseline's.
        max_memory: Most peak bytes of a fresh process (less what it held before the model), absolute or relative.
        max_drop: Fraction of top-1 that may be lost against the baseline on the same pictures.
        min_agreement: Fraction of the pictures that must get the baseline's top-1.
        provider: Short name of the execution provider; None takes the stored record's, or the CPU.
        threads: Threads of one operator; None takes the stored record's, or 1, whose timing is disturbed least.
        batch: Pictures in one call; None takes the stored record's, or 1.
        shape: Input shapes by input name, for dynamic axes that the files do not tell.
        budget_s: Seconds that latency and memory may be measured.
        turns_s: Seconds of turns of each pair of processes, at most a tenth of the budget; about as long as starting
            them takes is best.
        seed: Fixes inputs, order of turns and resampling.
        timeout_s: Seconds that one step (loading, one turn) may take.
        confidence: Of each timed check, all its looks together.
        self_test: Whether the candidate is compared with itself, to the end of the budget.
    """

    max_slowdown: float | None = None
    max_latency_ms: float | None = None
    max_size: Limit | None = None
    max_memory: Limit | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    provider: str | None = None
    threads: int | None = None
    batch: int | None = None
    shape: Mapping[str, tuple[int, ...]] | None = None
    budget_s: float = 60.0
    turns_s: float = 2.0
    seed: int = 0
    timeout_s: float = 120.0
    confidence: float = 0.95
    self_test: bool = False

    def __post_init__(self) -> None:
        self._check_limits()
        if self.provider == WEB:
            raise InputError("gate does not measure in a browser; give another --provider than 'web'")
        if self.provider is not None and self.provider not in PROVIDERS:
            raise UnknownNameError("provider", self.provider, PROVIDERS)
        check_threads(self.threads)
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch {self.batch}; allowed: 1 or more")
        for name in ("budget_s", "turns_s", "timeout_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name):g}; allowed: more than 0 seconds, and finite")
        if not 0.5 <= self.confidence < 1.0:
            raise InputError(f"confidence {self.confidence:g}; allowed: from 0.5 to below 1")
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_SEEDS - 1}")

    def _check_limits(self) -> None:
        if self.max_slowdown is not None:
            Limit(self.max_slowdown, relative=True)
        if self.max_latency_ms is not None:
            Limit(self.max_latency_ms)
        if self.max_drop is not None and not 0.0 <= self.max_drop < 1.0:
            raise InputError(f"largest drop {self.max_drop:g}; allowed: 0 to below 1, that is below 100 points")
        if self.min_agreement is not None and not 0.0 < self.min_agreement <= 1.0:
            raise InputError(f"least agreement {self.min_agreement:g}; allowed: a fraction above 0, up to 1")

    @property
    def needs_pictures(self) -> bool:
        """Whether a limit is about predictions."""
        return self.max_drop is not None or self.min_agreement is not None

    def comparing(self) -> list[str]:
        """The flags of the limits that need a baseline."""
        relative = {"--max-size": self.max_size, "--max-memory": self.max_memory}
        alone = {
            "--max-slowdown": self.max_slowdown,
            "--max-drop": self.max_drop,
            "--min-agreement": self.min_agreement,
        }
        found = [flag for flag, value in alone.items() if value is not None]
        return [*found, *(flag for flag, limit in relative.items() if limit is not None and limit.relative)]

    def completed(self, *, compared: bool) -> GateOptions:
        """With a limit where none was given: a slowdown, if there is something to compare with.

        Raises: InputError naming the flags.
        """
        if not compared and (flags := self.comparing()):
            verb = "compares" if len(flags) == 1 else "compare"
            raise InputError(f"{', '.join(flags)} {verb} with a baseline; give one with --baseline")
        given = [getattr(self, item.name) for item in fields(self) if item.name.startswith(("max_", "min_"))]
        if any(value is not None for value in given):
            needs = self.max_slowdown is None and self.self_test
            return replace(self, max_slowdown=DEFAULT_SLOWDOWN) if needs else self
        if not compared:
            raise InputError(f"no limit to keep and no baseline; give --baseline, or one or more of {_FLAGS}")
        return replace(self, max_slowdown=DEFAULT_SLOWDOWN)


def changed(options: GateOptions, changes: Mapping[str, Any]) -> GateOptions:
    """These options with other values; limits may be texts, as on the command line: ``max_size="10MB"``.

    Raises: InputError.
    """
    return replace(options, **{name: parse_limit(name, value) for name, value in changes.items()})


def parse_limit(name: str, value: Any, label: str | None = None) -> Any:
    """The value of an option from what a user wrote: a text, a number, or what it already is.

    Args:
        name: The option.
        value: What was written.
        label: What to call it in messages.

    Raises: InputError.
    """
    if name in ("max_size", "max_memory"):
        if isinstance(value, str):
            return parse_bytes(value, label or name)
        return Limit(value) if isinstance(value, (int, float)) else value
    if not isinstance(value, str):
        return value
    if name in ("max_slowdown", "min_agreement", "max_drop"):
        return parse_share(value, label or name)
    return parse_milliseconds(value, label or name) if name == "max_latency_ms" else value
