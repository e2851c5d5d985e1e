"""What timed calls amount to: percentiles with their intervals, and what makes them doubtful.

Everything here takes the calls as they were timed: a list for every process, in it a list for every turn, in it the
milliseconds of the calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from deploykit import stats
from deploykit.timings import Latency

__all__ = ["doubts", "latency_of", "pooled", "timer_note"]

Turns = Sequence[Sequence[float]]

_MAX_SPREAD = 0.10  # robust coefficient of variation
_MAX_DRIFT = 0.05  # second half against the first
_MIN_SAMPLES = 20  # below, the percentiles and the interval mean little
_SHORT_CALL_MS = 0.02  # the loop itself takes about a hundredth of it
_TIMER_STEPS = 100  # a call shorter than so many steps of the timer is not resolved


def pooled(processes: Sequence[Turns]) -> list[float]:
    """The calls of all turns of all processes."""
    return list(itertools.chain.from_iterable(itertools.chain.from_iterable(processes)))


def latency_of(processes: Sequence[Turns], *, timer_step_ns: int = 0) -> Latency:
    """Percentiles of all calls, with 95 % intervals over processes and turns (``stats.bootstrap_percentiles``).

    Each interval reaches one step of the timer further to both sides: by so much a call may be longer or shorter than
    it was timed, all of them alike where the step is long against a call.
    """
    step_ms = timer_step_ns / 1e6
    values = pooled(processes)
    p50, p90, p99 = (stats.percentile(values, q) for q in (50, 90, 99))
    of_p50, of_p90, of_p99 = stats.bootstrap_percentiles(processes)
    # An estimate interpolates between two calls, a resampled one does not: it may lie just outside.
    return Latency(
        median=p50,
        mean=sum(values) / len(values),
        p50=p50,
        p90=p90,
        p99=p99,
        min=min(values),
        ci_low=max(0.0, min(of_p50[0], p50) - step_ms),
        ci_high=max(of_p50[1], p50) + step_ms,
        samples=len(values),
        p90_ci_low=max(0.0, min(of_p90[0], p90) - step_ms),
        p90_ci_high=max(of_p90[1], p90) + step_ms,
        p99_ci_low=max(0.0, min(of_p99[0], p99) - step_ms),
        p99_ci_high=max(of_p99[1], p99) + step_ms,
    )


def doubts(processes: Sequence[Turns], *, samples: int, min_time_s: float) -> Iterator[str]:
    """What makes the latency doubtful, beside the ``samples`` and seconds of calls that were asked for."""
    values = pooled(processes)
    seconds = sum(values) / 1000.0
    if len(values) < samples or seconds < min_time_s:
        asked = f"{samples} samples and {min_time_s:g} s"
        yield f"only {len(values)} samples in {seconds:.1f} s of calls; {asked} were asked for"
    elif len(values) < _MIN_SAMPLES:
        yield f"only {len(values)} samples; {_MIN_SAMPLES} are the least that percentiles mean something for"
    if (spread := stats.relative_spread(values)) > _MAX_SPREAD:
        yield f"the latencies spread by {spread:.0%} (robust standard deviation over median)"
    for turns in processes:
        half = len(turns) // 2
        if half and abs(drift := _middle(turns[half:]) / _middle(turns[:half]) - 1.0) > _MAX_DRIFT:
            yield f"the second half of the measurement is {abs(drift):.0%} {'slower' if drift > 0 else 'faster'}"


def timer_note(median_ms: float, timer_step_ns: int) -> str | None:
    """Says so where a call is too short for the timer, or of the order of what the loop around it costs."""
    if median_ms * 1e6 < _TIMER_STEPS * timer_step_ns:
        return f"a call takes {median_ms * 1000:.3g} µs, and the timer steps by {timer_step_ns / 1000:.3g} µs"
    if median_ms < _SHORT_CALL_MS:
        return f"a call takes {median_ms * 1000:.1f} µs, of which Python's call into ONNX Runtime is a good part"
    return None


def _middle(turns: Turns) -> float:
    return stats.median(list(itertools.chain.from_iterable(turns)))
