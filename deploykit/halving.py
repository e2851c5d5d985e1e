"""Successive halving: all candidates are measured briefly, the better half of them twice as long, and so on.

Each round is one interleaved run. The float model takes part in all of them, and latencies are compared as ratios to
its, so that rounds at different times compare. What is kept is what may be best: candidates are ranked by the lower end
of their interval (sequential halving: Karnin, Koren & Somekh 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deploykit.bench_options import BenchOptions
from deploykit.progress import Progress, silent
from deploykit.race import Entry, Measured, heats_of, race, ratio_of
from deploykit.ratio import Interval
from deploykit.result_cache import ResultCache

__all__ = ["FINALISTS", "Figures", "Rank", "Runner", "Tournament", "better_half"]

FINALISTS = 3  # besides those that take part in any case
PROCESSES = 3  # of each in the last run, so that what differs from one to the next shows


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
    """What the last run says of a runner, and its latency over the reference's in that run; None for the failed."""

    measured: Measured
    ratio: Interval | None
    round: int


Rank = Callable[[int, Figures], Any]


def better_half(ranks: Mapping[int, Any], *, least: int) -> list[int]:
    """The keys of the half (rounded up, at least ``least``) with the lowest ranks, in order."""
    count = max(least, (len(ranks) + 1) // 2)
    return sorted(sorted(ranks, key=lambda key: ranks[key])[:count])


@dataclass
class Tournament:
    """The rounds of one search.

    Attributes:
        runners: All that is measured.
        reference: Place of the float model, to whose latency the others' are compared.
        bench: How long the last run measures.
        cache: Keeps each run.
        machine: What the results depend on besides the files (``variants.machine_key``).
        rank: What is kept: a value of a runner's place and figures, less is better.
        in_time: Whether there is time for another round.
        progress: Called often.
        figures: Of all that were measured so far, by place.
    """

    runners: Sequence[Runner]
    reference: int
    bench: BenchOptions
    cache: ResultCache
    machine: Mapping[str, Any]
    rank: Rank
    in_time: Callable[[], bool] = lambda: True
    progress: Progress = silent
    figures: dict[int, Figures] = field(default_factory=dict)

    def run(self) -> list[int]:
        """All rounds and the last run; the places that took part in that one and were measured."""
        places, done = list(range(len(self.runners))), 0
        times = 1
        while FINALISTS * times < len(places):
            times *= 2
        while len(places) > FINALISTS and times > 1 and self.in_time():
            done += 1
            self._measure(places, _shorter(self.bench, times), done)
            ranks = self._ranks(places)
            kept = better_half(ranks, least=FINALISTS)
            places, times = sorted({*kept, *self._always(ranks)}), times // 2
        last = replace(self.bench, processes=max(PROCESSES, self.bench.processes))
        places = self._fitting(places, last.processes)
        self._measure(places, last, done + 1)
        return list(self._ranks(places))

    def _ranks(self, places: Sequence[int]) -> dict[int, Any]:
        """Of those that could be measured."""
        measured = {place: self.figures[place] for place in places}
        return {place: self.rank(place, found) for place, found in measured.items() if found.ratio is not None}

    def _fitting(self, places: Sequence[int], processes: int) -> list[int]:
        """Those that fit into memory at once for the last run: what takes part in any case, then the best."""
        ranks = self._ranks([place for place in places if place in self.figures])
        first = self._always(ranks) - {self.reference}
        others = [
            *sorted(first),
            *sorted(set(places) - first - {self.reference}, key=lambda place: ranks.get(place, 0)),
        ]
        sizes = [self.runners[place].file_bytes for place in others]
        heat = heats_of(sizes, self.runners[self.reference].file_bytes, processes=processes)[0]
        return sorted([self.reference, *(others[index] for index in heat)])

    def _always(self, ranks: Mapping[int, Any]) -> set[int]:
        """The reference, and the fastest of each mark."""
        kept = {self.reference}
        for mark in {mark for runner in self.runners for mark in runner.marks}:
            marked = [place for place in ranks if mark in self.runners[place].marks]
            kept |= {min(marked, key=self._latency)} if marked else set()
        return kept

    def _latency(self, place: int) -> float:
        ratio = self.figures[place].ratio
        return ratio.low if ratio else float("inf")

    def _measure(self, places: Sequence[int], options: BenchOptions, number: int) -> None:
        """One run, or several where not all fit into memory at once; the reference takes part in each."""
        others = [place for place in places if place != self.reference]
        always = self.runners[self.reference].file_bytes
        sizes = [self.runners[place].file_bytes for place in others]
        for heat in heats_of(sizes, always, processes=options.processes):
            chosen = [self.reference, *(others[index] for index in heat)]
            results = self._race(chosen, options)
            for place, result in zip(chosen, results, strict=True):
                ratio = None if result.problem or results[0].problem else ratio_of(result, results[0])
                self.figures[place] = Figures(result, ratio, number)

    def _race(self, places: Sequence[int], options: BenchOptions) -> list[Measured]:
        runners = [self.runners[place] for place in places]

        def make(_: object) -> Mapping[str, Any]:
            results = race([runner.entry for runner in runners], options, progress=self.progress)
            return {"results": [result.to_json() for result in results]}

        entries = [
            [runner.sha256, runner.entry.provider, runner.entry.threads, dict(runner.entry.session)]
            for runner in runners
        ]
        settings = {"machine": self.machine, "bench": asdict(options), "entries": entries}
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
