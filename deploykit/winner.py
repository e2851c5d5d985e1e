"""Which of the measured candidates is named, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploykit.figures import byte_text, ratio_text
from deploykit.halving import Figures
from deploykit.race import ratio_of
from deploykit.ratio import Interval
from deploykit.tune_options import FLOAT_FORMS
from deploykit.tunings import Candidate

__all__ = ["Winner", "choose", "explain"]

_ALIKE, _NOTHING = 1.02, 1.01  # latencies within the one are alike if their intervals meet, within the other anyway
_MEMORY_ALIKE = 1.05


@dataclass(frozen=True)
class Winner:
    """What is named.

    Attributes:
        place: Of the candidate.
        speed: Latency of the float model in its fastest setting over the winner's, in the last run; None for itself.
        nearest: The fastest candidate that is not float, where float was named although it was measured.
        nearest_speed: The float model's latency over that one's.
    """

    place: int
    speed: Interval | None = None
    nearest: int | None = None
    nearest_speed: Interval | None = None


def choose(
    objective: str, candidates: Sequence[Candidate], figures: Mapping[int, Figures], finalists: Sequence[int]
) -> Winner:
    """The best of those in the last run.

    For latency the float model (as it is, or rewritten) is named unless another one is clearly faster: its whole
    interval. Among equally fast ones the most accurate is named, then the one that stands first.

    Args:
        objective: ``latency``, ``size`` or ``memory``.
        candidates: All.
        figures: Of those that were measured, by place.
        finalists: Places of the last run, all of them measured.
    """
    if objective == "latency":
        return _fastest(candidates, figures, finalists)
    if objective == "size":
        key = {place: float(candidates[place].file_bytes or 0) for place in finalists}
    else:
        key = {place: float(figures[place].measured.peak_bytes or 0) for place in finalists}
    slack = _MEMORY_ALIKE if objective == "memory" else 1.0
    least = min(key.values())
    alike = [place for place in finalists if key[place] <= slack * least]
    best = min(alike, key=lambda place: (_latency(figures, place), place))
    return Winner(best, _speed(candidates, figures, finalists, best))


def _fastest(candidates: Sequence[Candidate], figures: Mapping[int, Figures], finalists: Sequence[int]) -> Winner:
    def ratio(one: int, other: int) -> Interval:
        return ratio_of(figures[one].measured, figures[other].measured)

    as_it_is = [place for place in finalists if candidates[place].recipe == "float"]
    rewritten = [place for place in finalists if candidates[place].recipe in FLOAT_FORMS and place not in as_it_is]
    others = [place for place in finalists if candidates[place].recipe not in FLOAT_FORMS]
    best = _first(as_it_is, figures)
    for rivals in (rewritten, others):
        rival = _first(rivals, figures)
        if rival is not None and (best is None or ratio(rival, best).high < 1.0):
            best = rival
    if best is None:
        raise AssertionError("no finalists")
    if best in others:
        floats = [*as_it_is, *rewritten]
        alike = [place for place in others if _alike(ratio(place, best))]
        alike = [place for place in alike if all(ratio(place, other).high < 1.0 for other in floats)]
        best = min([best, *alike], key=lambda place: (max(candidates[place].drop or 0.0, 0.0), place))
        return Winner(best, _speed(candidates, figures, finalists, best))
    nearest = _first(others, figures)
    beaten = None if nearest is None else ratio(best, nearest)
    return Winner(best, _speed(candidates, figures, finalists, best), nearest, beaten)


def _alike(slower: Interval) -> bool:
    return slower.middle <= _NOTHING or (slower.middle <= _ALIKE and slower.low <= 1.0)


def _first(places: Sequence[int], figures: Mapping[int, Figures]) -> int | None:
    return min(places, key=lambda place: (_latency(figures, place), place), default=None)


def _latency(figures: Mapping[int, Figures], place: int) -> float:
    ratio = figures[place].ratio
    return ratio.middle if ratio else float("inf")


def _speed(
    candidates: Sequence[Candidate], figures: Mapping[int, Figures], finalists: Sequence[int], best: int
) -> Interval | None:
    """The float model's latency over the best one's; None where the best one is the float model."""
    floats = [place for place in finalists if candidates[place].recipe == "float"]
    fastest = _first(floats, figures)
    if fastest is None or fastest == best:
        return None
    return ratio_of(figures[fastest].measured, figures[best].measured)


def explain(winner: Winner, candidates: Sequence[Candidate], float_bytes: int, max_drop: float, objective: str) -> str:
    """The sentence.

    Args:
        winner: Of ``choose``.
        candidates: All.
        float_bytes: Of the float model's file.
        max_drop: Fraction that was allowed.
        objective: What was searched for.
    """
    best = candidates[winner.place]
    parts = [f"{byte_text(best.peak_bytes)} of memory at the peak"] if objective == "memory" else []
    parts += [_faster(winner.speed)] if winner.speed else []
    if best.recipe in FLOAT_FORMS:
        form = "the float model" if best.recipe == "float" else "the rewritten float model"
        parts.append(_why_float(winner, candidates, max_drop, objective))
        return f"{form} {best.name.partition(' ')[2]}: {'; '.join(parts)}"
    share = f"{byte_text(best.file_bytes)}, {(best.file_bytes or 0) / float_bytes:.2f} of the float file's bytes"
    return f"{best.name}: {'; '.join([*parts, _lost(best, max_drop), share])}"


def _faster(speed: Interval) -> str:
    interval = f"(95 % interval {ratio_text(speed.low)} to {ratio_text(speed.high)})"
    if speed.low <= 1.0 <= speed.high:
        return f"as fast as the float model {interval}"
    if speed.middle < 1.0:
        return f"slower than the float model, {ratio_text(speed.middle)} as fast {interval}"
    return f"{ratio_text(speed.middle)} as fast as the float model {interval}"


def _lost(best: Candidate, max_drop: float) -> str:
    points = 100.0 * (best.drop or 0.0)
    allowed = f"of the {100.0 * max_drop:g} allowed"
    if best.top1 is None:
        return f"another top-1 than the float model's on {points:.2f} % of the held-out samples {allowed}"
    if points < 0:
        return f"{-points:.2f} points of top-1 won"
    return f"{points:.2f} points of top-1 lost {allowed}"


def _why_float(winner: Winner, candidates: Sequence[Candidate], max_drop: float, objective: str) -> str:
    """Why nothing else is named."""
    if winner.nearest is not None and winner.nearest_speed is not None:
        near, speed = candidates[winner.nearest], winner.nearest_speed
        interval = f"{ratio_text(speed.low)} to {ratio_text(speed.high)}"
        return f"no other file is clearly faster: {near.name} is {ratio_text(speed.middle)} as fast ({interval})"
    lost = [item for item in candidates if item.drop is not None and item.drop > max_drop]
    if lost:
        near = min(lost, key=lambda item: item.drop or 0.0)
        loss = f"{near.recipe} on {near.provider} loses {100.0 * (near.drop or 0.0):.2f}"
        return f"no other file keeps within the {100.0 * max_drop:g} points allowed: {loss}"
    better = {"latency": "faster", "size": "smaller", "memory": "less hungry for memory"}[objective]
    return f"no other file that runs here is {better}"
