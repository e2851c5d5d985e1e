"""Successive halving: all candidates are measured briefly, the better half of them twice as long, and so on.

Each round is one interleaved run. The float model takes part in all of them, and latencies are compared as ratios to
its, so that rounds at different times compare. What is kept is what may be best: candidates are ranked by the lower end
of their interval (sequential halving: Karnin, Koren & Somekh 2013). The last ones are measured in several runs, each in
fresh processes, until it is clear which is best or no more runs are worth their time (``ratio``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deploykit.bench_options import BenchOptions
from deploykit.progress import Progress, silent
from deploykit.race import Entry, Measured, heats_of, joined, race, ratio_of
from deploykit.ratio import Interval, look_confidence, look_sizes
from deploykit.result_cache import ResultCache

__all__ = ["FINALISTS", "MOST_RUNS", "Figures", "Rank", "Runner", "Tournament", "better_half"]

FINALISTS = 3  # besides those that take part in any case
MOST_RUNS = 8  # of the last ones; looked at after 3, 4, 6 and 8


@dataclass(frozen=True)
class Runner:
    """A file in a session.

    Attributes:
        entry: What is started.
        sha256: Of the file.
        file_bytes: Of the file.
        marks: The fastest of each mark takes part in all rounds.
    """

    entry: Entry
    sha256: str
    file_bytes: int
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What the last run or runs say of a runner, and its latency over the reference's there; None for the failed."""

    measured: Measured
    ratio: Interval | None


Rank = Callable[[int, Figures], Any]
Settled = Callable[[Mapping[int, Figures], float], bool]


def better_half(ranks: Mapping[int, Any], *, least: int) -> list[int]:
    """The keys of the half (rounded up, at least ``least``) with the lowest ranks, in order."""
    count = max(least, (len(ranks) + 1) // 2)
    return sorted(sorted(ranks, key=lambda key: ranks[key])[:count])


@dataclass
class Tournament:
    """The rounds of one search.

    Attributes:
        runners: All that is measured, by place.
        reference: Place of the float model, to whose latency the others' are compared.
        bench: How long one of the last runs measures.
        cache: Keeps each run.
        machine: What the results depend on besides the files (``variants.machine_key``).
        rank: What is kept: a value of a runner's place and figures, less is better.
        settled: Whether the figures of the last ones, at a confidence, leave nothing open.
        in_time: Whether there is time for more than the least.
        progress: Called often.
        figures: Of all that were measured so far, by place.
        confidence: Of the last look.
    """

    runners: Mapping[int, Runner]
    reference: int
    bench: BenchOptions
    cache: ResultCache
    machine: Mapping[str, Any]
    rank: Rank
    settled: Settled
    in_time: Callable[[], bool]
    progress: Progress = silent
    figures: dict[int, Figures] = field(default_factory=dict)
    confidence: float = 0.95

    def run(self) -> list[int]:
        """All rounds and the last runs; the places that took part in these and were measured, in order."""
        return self._last(self._fitting(self._rounds()))

    def _rounds(self) -> list[int]:
        """Places that are left over."""
        places, times = sorted(self.runners), 1
        while FINALISTS * times < len(places):
            times *= 2
        while len(places) > FINALISTS and times > 1 and self.in_time():
            self._measure(places, _shorter(self.bench, times))
            ranks = self._ranks(places)
            kept = better_half(ranks, least=FINALISTS)
            places, times = sorted({*kept, *self._always(ranks)}), times // 2
        return places

    def _last(self, places: Sequence[int]) -> list[int]:
        """Several runs of the same, looked at after some."""
        options, runs = replace(self.bench, processes=1), list[list[Measured]]()
        for look, size in enumerate(look_sizes(), start=1):
            while len(runs) < size:
                runs.append(self._race(places, options, len(runs)))
            self.confidence = look_confidence(look)
            self._note(places, [joined(several) for several in zip(*runs, strict=True)])
            left = {place: self.figures[place] for place in self._ranks(places)}
            if size >= MOST_RUNS or not self.in_time() or self.settled(left, self.confidence):
                break
        return sorted(left)

    def _ranks(self, places: Sequence[int]) -> dict[int, Any]:
        """Of those that could be measured."""
        measured = {place: self.figures[place] for place in places}
        return {place: self.rank(place, found) for place, found in measured.items() if found.ratio is not None}

    def _always(self, ranks: Mapping[int, Any]) -> set[int]:
        """The reference, and the fastest of each mark."""
        kept = {self.reference}
        for mark in {mark for runner in self.runners.values() for mark in runner.marks}:
            marked = [place for place in ranks if mark in self.runners[place].marks]
            kept |= {min(marked, key=self._latency)} if marked else set()
        return kept

    def _latency(self, place: int) -> float:
        ratio = self.figures[place].ratio
        return ratio.low if ratio else math.inf

    def _fitting(self, places: Sequence[int]) -> list[int]:
        """The reference first, and of the others those that fit into memory beside it, the most promising first."""
        ranks = self._ranks([place for place in places if place in self.figures])
        others = [place for place in places if place != self.reference]
        if ranks:
            best, always = min(ranks, key=lambda place: ranks[place]), self._always(ranks)
            others.sort(key=lambda place: (place != best, place not in always, ranks[place]))
        sizes = [self.runners[place].file_bytes for place in others]
        heat = heats_of(sizes, self.runners[self.reference].file_bytes)[0]
        return [self.reference, *sorted(others[index] for index in heat)]

    def _measure(self, places: Sequence[int], options: BenchOptions) -> None:
        """One run, or several where not all fit into memory at once; the reference takes part in each."""
        others = [place for place in places if place != self.reference]
        sizes = [self.runners[place].file_bytes for place in others]
        for heat in heats_of(sizes, self.runners[self.reference].file_bytes):
            chosen = [self.reference, *(others[index] for index in heat)]
            self._note(chosen, self._race(chosen, options))

    def _note(self, places: Sequence[int], results: Sequence[Measured]) -> None:
        """The figures of one run, or of several that were joined; the reference's stand first."""
        for place, result in zip(places, results, strict=True):
            failed = result.problem or results[0].problem
            ratio = None if failed else ratio_of(result, results[0], confidence=self.confidence)
            self.figures[place] = Figures(result, ratio)

    def _race(self, places: Sequence[int], options: BenchOptions, number: int = 0) -> list[Measured]:
        """One interleaved run, in the order of ``places``; ``number`` tells runs of the same apart."""
        runners = [self.runners[place] for place in places]

        def make(_: object) -> Mapping[str, Any]:
            seeded = replace(options, seed=options.seed + number)
            results = race([runner.entry for runner in runners], seeded, progress=self.progress)
            return {"results": [result.to_json() for result in results]}

        entries = [
            [runner.sha256, runner.entry.provider, runner.entry.threads, dict(runner.entry.session)]
            for runner in runners
        ]
        settings = {"machine": self.machine, "bench": asdict(options), "entries": entries, "number": number}
        values = self.cache.get("run", settings, make, keep=_all_measured).values
        return [Measured.from_json(result) for result in values["results"]]


def _all_measured(values: Mapping[str, Any]) -> bool:
    """What failed may do so for lack of memory, and not the next time."""
    return all(result["problem"] is None for result in values["results"])


def _shorter(options: BenchOptions, times: int) -> BenchOptions:
    """A fraction of the samples and seconds, in one process each."""
    return replace(
        options,
        samples=max(5, options.samples // times),
        min_time_s=options.min_time_s / times,
        max_time_s=max(options.max_time_s / times, 1.0),
        processes=1,
    )
