"""Which of the measured candidates is named, and why, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploykit.figures import byte_text, ratio_text
from deploykit.halving import Figures
from deploykit.race import ratio_of
from deploykit.ratio import Interval
from deploykit.tune_options import FLOAT_FORMS
from deploykit.tunings import Candidate

__all__ = ["Winner", "choose", "explain", "settled"]

_ALIKE, _NOTHING = 1.02, 1.01  # latencies within the one are alike if their intervals meet, within the other anyway
_MEMORY_ALIKE = 1.05
_WORTH = 0.98  # a rival that seems less faster than this is not worth more runs


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
    objective: str, candidates: Sequence[Candidate], figures: Mapping[int, Figures], *, confidence: float = 0.95
) -> Winner:
    """The best of those in the last runs.

    For latency the float model (as it is, or rewritten) is named unless another one is clearly faster: its whole
    interval. Among equally fast ones the most accurate is named, then the one that stands first.

    Args:
        objective: ``latency``, ``size`` or ``memory``.
        candidates: All.
        figures: Of the last runs, by place; all of them measured.
        confidence: Of the intervals.
    """
    last = _Last(candidates, figures, confidence)
    if objective == "latency":
        return last.fastest()
    if objective == "size":
        key = {place: float(candidates[place].file_bytes or 0) for place in figures}
    else:
        key = {place: float(found.measured.peak_bytes or 0) for place, found in figures.items()}
    slack = _MEMORY_ALIKE if objective == "memory" else 1.0
    least = min(key.values())
    best = last.first([place for place in figures if key[place] <= slack * least])
    if best is None:
        raise AssertionError("nothing was measured")
    return Winner(best, last.speed(best))


def settled(
    objective: str, candidates: Sequence[Candidate], figures: Mapping[int, Figures], *, confidence: float
) -> bool:
    """Whether more runs could not change what is named: a rival of the float model that seems faster is so clearly."""
    last = _Last(candidates, figures, confidence)
    champion, rival = last.first(last.floats), last.first(last.others)
    if objective != "latency" or champion is None or rival is None:
        return True
    ratio = last.ratio(rival, champion)
    return ratio.high < 1.0 or ratio.middle > _WORTH


@dataclass(frozen=True)
class _Last:
    """The last runs."""

    candidates: Sequence[Candidate]
    figures: Mapping[int, Figures]
    confidence: float

    def places(self, *recipes: str) -> list[int]:
        """Of the files that were made so."""
        return [place for place in self.figures if self.candidates[place].recipe in recipes]

    @property
    def floats(self) -> list[int]:
        """Those that compute in float32."""
        return self.places(*FLOAT_FORMS)

    @property
    def others(self) -> list[int]:
        """The rest."""
        return [place for place in self.figures if place not in self.floats]

    def ratio(self, one: int, other: int) -> Interval:
        """Latency of one over the other's."""
        measured = self.figures[one].measured, self.figures[other].measured
        return ratio_of(*measured, confidence=self.confidence)

    def first(self, places: Sequence[int]) -> int | None:
        """The fastest."""
        return min(places, key=lambda place: (self._latency(place), place), default=None)

    def _latency(self, place: int) -> float:
        ratio = self.figures[place].ratio
        return ratio.middle if ratio else math.inf

    def speed(self, best: int) -> Interval | None:
        """Latency of the float model in its fastest setting over the best one's; None where these are one."""
        fastest = self.first(self.places("float"))
        return None if fastest is None or fastest == best else self.ratio(fastest, best)

    def fastest(self) -> Winner:
        """By latency."""
        best = self.first(self.places("float"))
        for rivals in (self.places("rewritten"), self.others):
            rival = self.first(rivals)
            if rival is not None and (best is None or self.ratio(rival, best).high < 1.0):
                best = rival
        if best is None:
            raise AssertionError("nothing was measured")
        if best in self.others:
            best = self._most_accurate(best)
            return Winner(best, self.speed(best))
        nearest = self.first(self.others)
        return Winner(best, self.speed(best), nearest, None if nearest is None else self.ratio(best, nearest))

    def _most_accurate(self, best: int) -> int:
        """Of those that are as fast as the best one, and clearly faster than float."""
        alike = [place for place in self.others if _alike(self.ratio(place, best))]
        alike = [place for place in alike if all(self.ratio(place, other).high < 1.0 for other in self.floats)]
        return min([best, *alike], key=lambda place: (max(self.candidates[place].drop or 0.0, 0.0), place))


def _alike(slower: Interval) -> bool:
    return slower.middle <= _NOTHING or (slower.middle <= _ALIKE and slower.low <= 1.0)


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
    if best.recipe == "given":
        parts += [_faster(winner.speed, "its fastest setting")] if winner.speed else ["no setting is clearly faster"]
        return f"the model as it is {best.name.partition(' ')[2]}: {'; '.join(parts)}"
    parts += [_faster(winner.speed, "the float model")] if winner.speed else []
    if best.recipe in FLOAT_FORMS:
        form = "the float model" if best.recipe == "float" else "the rewritten float model"
        parts.append(_why_float(winner, candidates, max_drop, objective))
        return f"{form} {best.name.partition(' ')[2]}: {'; '.join(parts)}"
    share = f"{byte_text(best.file_bytes)}, {(best.file_bytes or 0) / float_bytes:.2f} of the float file's bytes"
    return f"{best.name}: {'; '.join([*parts, _lost(best, max_drop), share])}"


def _faster(speed: Interval, than: str) -> str:
    interval = f"(95 % interval {ratio_text(speed.low)} to {ratio_text(speed.high)})"
    if speed.low <= 1.0 <= speed.high:
        return f"as fast as {than} {interval}"
    if speed.middle < 1.0:
        return f"slower than {than}, {ratio_text(speed.middle)} as fast {interval}"
    return f"{ratio_text(speed.middle)} as fast as {than} {interval}"


def _lost(best: Candidate, max_drop: float) -> str:
    points, allowed = 100.0 * (best.drop or 0.0), f"{100.0 * max_drop:g}"
    if best.top1 is None:
        return f"another top-1 than the float model's on {points:.2f} % of the held-out samples, {allowed} % allowed"
    if points < 0:
        return f"{-points:.2f} points of top-1 won"
    return f"{points:.2f} points of top-1 lost of the {allowed} allowed"


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
