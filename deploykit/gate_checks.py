"""How each limit is decided: by the bounds of an interval, or exactly where nothing is random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.duet import Duet, Part
from deploykit.errors import InputError
from deploykit.limits import Limit
from deploykit.paired_answers import PairedAnswers
from deploykit.ratio import Interval, hierarchical_interval, normal_quantile
from deploykit.timings import Timing
from deploykit.verdicts import INCONCLUSIVE, PASS, REGRESSION, Check

__all__ = [
    "BETWEEN_RUNS",
    "Question",
    "agreement_check",
    "drop_check",
    "latency_question",
    "memory_question",
    "size_check",
    "slowdown_question",
    "undecided",
]

BETWEEN_RUNS = 0.032
"""Standard deviation of the ratio of medians of two runs, one after the other, of one model on one machine: what a
stored record cannot tell (docs/decisions.md). ``benchmarks/gate.py`` measures it anew."""

Estimate = Callable[[Sequence[Duet], float], Interval]
"""What is asked, in logarithms, of duets and a confidence; raises ValueError for fewer than two duets."""


@dataclass(frozen=True)
class Question:
    """A limit that timing or memory decides, whose estimate gets surer with every duet.

    Attributes:
        name: As ``Check.name``.
        unit: As ``Check.unit``; fractions are of ratios.
        limit: In that unit.
        estimate: Computes the interval, in logarithms.
        stored: The baseline's figure where a record gives it.
        between_runs: Whether the noise between two runs is in the interval.
        remark: What has to be known besides.
    """

    name: str
    unit: str
    limit: float
    estimate: Estimate
    stored: float | None = None
    between_runs: bool = False
    remark: str = ""

    @property
    def compares(self) -> bool:
        """Whether it is about the ratio to a baseline."""
        return self.unit == "fraction"

    def check(self, duets: Sequence[Duet], confidence: float) -> Check:
        """The answer so far. Raises: ValueError for fewer than two duets."""
        if self.name == "memory" and not all(part.peak_bytes for duet in duets for part in duet.parts):
            return undecided(self, "the system does not tell how much memory a process has held")
        if self.between_runs and (disturbances := _disturbances(duets)):
            return undecided(self, f"a record compares with a quiet machine only; {disturbances[0]}")
        logs = self.estimate(duets, confidence)
        measured, low, high = (self._figure(value) for value in (logs.middle, logs.low, logs.high))
        verdict = PASS if high <= self.limit else REGRESSION if low > self.limit else INCONCLUSIVE
        return Check(self.name, self.unit, self.limit, measured, low, high, verdict, *self._sides(duets), self.remark)

    def hopeless(self, check: Check, confidence: float) -> bool:
        """Whether measuring longer cannot decide: wherever the estimate settles, the noise between runs covers it."""
        if not self.between_runs or check.measured is None or check.ci_high is None:
            return False
        middle, high = math.log1p(check.measured), math.log1p(check.ci_high)
        between = normal_quantile((1.0 + confidence) / 2.0) * BETWEEN_RUNS
        own = math.sqrt(max(0.0, (high - middle) ** 2 - between**2))  # what more pairs of processes would take away
        return abs(math.log1p(self.limit) - middle) + own < between

    def _figure(self, logarithm: float) -> float:
        return math.expm1(logarithm) if self.unit == "fraction" else math.exp(logarithm)

    def _sides(self, duets: Sequence[Duet]) -> tuple[float | None, float | None]:
        """Both models' own figures."""
        figure = {"memory": _peak, "latency": _latency_of}.get(self.name, _middle)
        baselines = [duet.baseline for duet in duets if duet.baseline is not None]
        there = figure(baselines) if baselines else self.stored
        return figure([duet.candidate for duet in duets]), there


def _middle(parts: Sequence[Part]) -> float:
    return float(np.exp(np.mean([np.median(part.round_logs()) for part in parts])))


def _disturbances(duets: Sequence[Duet]) -> list[str]:
    """What went on besides, where it is in the timings: where turns do not stand for the time with a processor."""
    return [text for duet in duets for text in duet.disturbances if duet.candidate.waited is None]


def _latency_of(parts: Sequence[Part]) -> float:
    medians = [np.median([np.median(block) for block in part.blocks]) for part in parts]
    return float(np.exp(np.mean(np.log(medians))))


def _peak(parts: Sequence[Part]) -> float:
    return float(np.exp(np.mean([math.log(part.peak_bytes) for part in parts])))


def slowdown_question(limit: float, stored: Timing | None, seed: int) -> Question:
    """How much slower the candidate is: than the baseline that plays along, or than a stored timing."""

    def together(duets: Sequence[Duet], confidence: float) -> Interval:
        return hierarchical_interval([duet.log_ratios() for duet in duets], confidence=confidence, seed=seed)

    if stored is None:
        return Question("slowdown", "fraction", limit, together)
    before = _stored_latency(stored)

    def afterwards(duets: Sequence[Duet], confidence: float) -> Interval:
        reach = normal_quantile((1.0 + confidence) / 2.0)
        ends = _scaled(before, reach / normal_quantile(0.975))
        turns = [duet.candidate.round_logs() for duet in duets]
        now = hierarchical_interval(turns, confidence=confidence, seed=seed)
        return now.minus(ends).widened(reach * BETWEEN_RUNS)

    remark = f"against a record; two runs differ by {BETWEEN_RUNS:.1%} (standard deviation), which is in the interval"
    return Question("slowdown", "fraction", limit, afterwards, stored.latency_ms.median, True, remark)


def _stored_latency(stored: Timing) -> Interval:
    """In logarithms, with the record's own bounds of 95 %."""
    latency = stored.latency_ms
    return Interval(math.log(latency.median), math.log(latency.ci_low), math.log(latency.ci_high))


def _scaled(interval: Interval, factor: float) -> Interval:
    middle = interval.middle
    low, high = middle - factor * (middle - interval.low), middle + factor * (interval.high - middle)
    return Interval(middle, low, high)


def latency_question(limit_ms: float, seed: int) -> Question:
    """How long a call of the candidate takes here and now, with what others take from it."""

    def estimate(duets: Sequence[Duet], confidence: float) -> Interval:
        turns = [np.log([np.median(block) for block in duet.candidate.blocks]) for duet in duets]
        return hierarchical_interval(turns, confidence=confidence, seed=seed)

    return Question("latency", "ms", limit_ms, estimate)


def memory_question(limit: Limit, stored: Timing | None, seed: int) -> Question:
    """How many bytes a fresh process of the candidate holds at its peak: in all, or more than the baseline's."""

    def absolute(duets: Sequence[Duet], confidence: float) -> Interval:
        peaks = [[math.log(duet.candidate.peak_bytes)] for duet in duets]
        return hierarchical_interval(peaks, confidence=confidence, seed=seed)

    def together(duets: Sequence[Duet], confidence: float) -> Interval:
        pairs = [(duet.candidate.peak_bytes, duet.baseline.peak_bytes) for duet in duets if duet.baseline]
        ratios = [[math.log(one / other)] for one, other in pairs]
        return hierarchical_interval(ratios, confidence=confidence, seed=seed)

    if not limit.relative:
        return Question("memory", "bytes", limit.value, absolute)
    if stored is None:
        return Question("memory", "fraction", limit.value, together)
    peak = stored.memory.peak_bytes
    if not peak:
        raise InputError(f"the record has no peak memory of {stored.model}; limit it in bytes instead, such as 50MB")

    def afterwards(duets: Sequence[Duet], confidence: float) -> Interval:
        now = absolute(duets, confidence)
        # The record has one process's peak, which varies as much as each of those here.
        one = (now.high - now.middle) * math.sqrt(len(duets))
        return now.minus(Interval(math.log(peak), math.log(peak) - one, math.log(peak) + one))

    return Question("memory", "fraction", limit.value, afterwards, float(peak))


def size_check(limit: Limit, candidate_bytes: int, baseline_bytes: int | None) -> Check:
    """The file's size, which is exact."""
    unit, measured = "bytes", float(candidate_bytes)
    if limit.relative:
        assert baseline_bytes is not None
        unit, measured = "fraction", candidate_bytes / baseline_bytes - 1.0
    verdict = PASS if measured <= limit.value else REGRESSION
    return Check("size", unit, limit.value, measured, measured, measured, verdict, candidate_bytes, baseline_bytes)


def drop_check(limit: float, answers: PairedAnswers) -> Check:
    """The top-1 lost on these pictures decides: the same pictures give the same verdict."""
    lost = answers.drop()
    verdict = PASS if lost.middle <= limit + 1e-12 else REGRESSION  # 3 of 1,000 are 0.3 points, not a bit more
    sides = (answers.candidate_top1, answers.baseline_top1)
    remark = f"on {answers.samples} pictures, which decide; the bounds are for others like them"
    return Check("drop", "fraction", limit, lost.middle, lost.low, lost.high, verdict, *sides, remark)


def agreement_check(limit: float, answers: PairedAnswers) -> Check:
    """The agreement on these pictures decides."""
    found = answers.agreeing_interval()
    verdict = PASS if found.middle >= limit - 1e-12 else REGRESSION
    remark = f"on {answers.samples} pictures, which decide; the bounds are for others like them"
    return Check("agreement", "fraction", limit, found.middle, found.low, found.high, verdict, remark=remark)


def undecided(question: Question, remark: str) -> Check:
    """The check of a question that cannot be answered."""
    return Check(question.name, question.unit, question.limit, None, None, None, INCONCLUSIVE, remark=remark)
