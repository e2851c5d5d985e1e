"""The record of whether a model keeps the limits that it was given (``gate``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from deploykit.figures import MISSING, byte_text, millisecond_text, percent_text
from deploykit.record import Record
from deploykit.timings import Latency

__all__ = ["INCONCLUSIVE", "PASS", "REGRESSION", "Check", "Look", "PairTurns", "Side", "Verdict", "worst"]

PASS, REGRESSION, INCONCLUSIVE = "pass", "regression", "inconclusive"


@dataclass(frozen=True)
class Check:
    """One limit, and what was measured of it.

    Attributes:
        name: ``slowdown``, ``latency``, ``size``, ``memory``, ``drop`` or ``agreement``.
        unit: Of ``limit``, ``measured`` and the bounds: ``fraction``, ``ms`` or ``bytes``. A fraction is what the
            candidate has more than the baseline (``slowdown``, ``size``, ``memory``), the top-1 that it lost
            (``drop``), or the predictions that are the baseline's (``agreement``, the only limit from below).
        limit: What is allowed.
        measured: The estimate; None where there is none.
        ci_low: Lower bound, by which a timed check decides; beside ``drop`` it is for information.
        ci_high: Upper bound.
        verdict: ``pass``, ``regression`` or ``inconclusive``.
        candidate: The candidate's figure: ms, bytes, top-1.
        baseline: The baseline's.
        remark: Why it is inconclusive, or what has to be known besides.
    """

    name: str
    unit: str
    limit: float
    measured: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str
    candidate: float | None = None
    baseline: float | None = None
    remark: str = ""

    @property
    def limit_text(self) -> str:
        """The limit as people read it."""
        return self._text(self.limit)

    @property
    def measured_text(self) -> str:
        """What was measured, with its interval where that has a width."""
        if self.measured is None:
            return MISSING
        bounds = (self.ci_low, self.ci_high)
        if None in bounds or self.ci_low == self.ci_high:
            return self._text(self.measured)
        low, high = self._text(self.ci_low), self._text(self.ci_high)
        number, _, unit = low.rpartition(" ")
        return f"{self._text(self.measured)} ({number if high.endswith(f' {unit}') else low} to {high})"

    @property
    def sentence(self) -> str:
        """The check in one line."""
        word = "required" if self.name == "agreement" else "allowed"
        reason = f": {self.remark}" if self.remark else ""
        return f"{self.name} {self.measured_text}; {word}: {self.limit_text}{reason}"

    def _text(self, value: float | None) -> str:
        return MISSING if value is None else _TEXTS.get(self.name, _TEXTS[self.unit])(value)


_TEXTS: dict[str, Callable[[float], str]] = {
    "fraction": lambda value: f"{100.0 * value:+.2f} %",
    "ms": millisecond_text,
    "bytes": byte_text,
    "drop": lambda value: f"{100.0 * value:.2f} points",
    "agreement": percent_text,
}


@dataclass(frozen=True)
class Look:
    """What the first timed check said after so many pairs of processes: its estimate and bounds then."""

    pairs: int
    seconds: float
    confidence: float
    measured: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Side:
    """One of the two models; what was not measured is None."""

    model: str
    model_sha256: str
    precision: str
    file_bytes: int
    latency_ms: Latency | None = None
    peak_bytes: int | None = None
    top1: float | None = None


@dataclass(frozen=True)
class PairTurns:
    """The medians of the turns of one pair of processes, in milliseconds, that ratios are of.

    With one thread on the CPU they hold the time for which a call had a processor, otherwise its latency.
    """

    candidate_ms: tuple[float, ...]
    baseline_ms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """Whether every limit holds.

    Attributes:
        verdict: ``regression`` when one limit is exceeded, else ``inconclusive`` when one could not be decided, else
            ``pass``.
        noise_floor: Half the width of the slowdown's interval, as a fraction: smaller changes are not seen. None where
            latencies were not compared.
        candidate: The model that was asked for.
        baseline: What it was compared with, None where it was with nothing.
        baseline_kind: ``model``, ``record``, ``itself`` (``--self-test``) or ``none``.
        pairs: Pairs of fresh processes.
        rounds: Rounds of turns in all of them.
        seconds: Spent on them.
        looks: What was seen on the way.
        turns: What the slowdown was computed from, pair by pair.
    """

    kind: ClassVar[str] = "verdict"

    verdict: str
    checks: tuple[Check, ...]
    noise_floor: float | None
    candidate: Side
    baseline: Side | None
    baseline_kind: str
    provider: str
    threads: int
    batch: int
    pairs: int
    rounds: int
    seconds: float
    budget_s: float
    looks: tuple[Look, ...] = ()
    turns: tuple[PairTurns, ...] = ()
    warnings: tuple[str, ...] = ()


def worst(checks: tuple[Check, ...]) -> str:
    """The verdict of all checks together."""
    verdicts = {check.verdict for check in checks}
    return next((name for name in (REGRESSION, INCONCLUSIVE) if name in verdicts), PASS)
