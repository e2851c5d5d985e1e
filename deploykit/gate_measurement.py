"""Measuring until the questions of a gate are answered: pairs of fresh processes, with a look from time to time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deploykit.bench_options import BenchOptions
from deploykit.contestant import Contestant
from deploykit.duet import Duet, play
from deploykit.gate_checks import Question, undecided
from deploykit.gate_options import GateOptions
from deploykit.progress import Progress
from deploykit.ratio import look_confidence, look_sizes
from deploykit.verdicts import INCONCLUSIVE, Check, Look

__all__ = ["Measurement"]

_TURNS_SHARE = 0.1  # of the budget, at most, for the turns of one pair


@dataclass
class Measurement:
    """The duets so far, and what was seen of them.

    Attributes:
        models: Candidate, and baseline if one plays along.
        setting: Inputs, provider, threads, batch.
        options: Budget, confidence, seed; whether it is a self-test, which goes on when all is answered.
        progress: Told the seconds that are spent.
    """

    models: Sequence[Contestant]
    setting: BenchOptions
    options: GateOptions
    progress: Progress
    duets: list[Duet] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _looked: int = 0

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return time.monotonic() - self.began

    def answer(self, questions: Sequence[Question]) -> list[Check]:
        """Measures until each question is decided or the budget is spent. Raises: DeploykitError."""
        answers = {question.name: undecided(question, "") for question in questions}
        waiting = list(questions)
        for pairs in look_sizes():
            if not waiting or not self._play_until(pairs, timed=any(item.name != "memory" for item in questions)):
                break
            waiting = self._look(waiting, answers)
        return [self._explained(question, answers[question.name]) for question in questions]

    def _play_until(self, pairs: int, *, timed: bool) -> bool:
        """Plays as many duets, as far as there is time; whether there is something new to look at."""
        before = len(self.duets)
        while len(self.duets) < pairs and self._has_time():
            self.duets.append(self._play(timed=timed))
        return len(self.duets) > max(before, 1)

    def _has_time(self) -> bool:
        """Whether another pair, if it takes as long as those before, is done before the budget ends."""
        if not self.duets:
            return True
        return self.seconds + sum(duet.seconds for duet in self.duets) / len(self.duets) <= self.options.budget_s

    def _play(self, *, timed: bool) -> Duet:
        seconds = min(self.options.turns_s, _TURNS_SHARE * self.options.budget_s) if timed else 0.0
        turn_seed = self.options.seed + len(self.duets)
        return play(self.models, self.setting, turn_seed=turn_seed, seconds=seconds, in_time=self._in_time)

    def _in_time(self) -> bool:
        spent, budget = self.seconds, self.options.budget_s
        seen = self.looks[-1] if self.looks else None
        note = f"{seen.measured:+.3g} ({seen.ci_low:+.3g} to {seen.ci_high:+.3g})" if seen else ""
        self.progress("gate", int(min(spent, budget)), int(budget), note)
        return spent < budget

    def _look(self, waiting: Sequence[Question], answers: dict[str, Check]) -> list[Question]:
        """Answers what can be answered; the questions that stay open."""
        self._looked += 1
        confidence = look_confidence(self._looked, self.options.confidence)
        for question in waiting:
            answers[question.name] = question.check(self.duets, confidence)
        self._note(answers[waiting[0].name], confidence)
        return [
            question
            for question in waiting
            if self.options.self_test
            or (
                answers[question.name].verdict == INCONCLUSIVE
                and not question.hopeless(answers[question.name], confidence)
            )
        ]

    def _note(self, check: Check, confidence: float) -> None:
        if check.measured is not None and check.ci_low is not None and check.ci_high is not None:
            bounds = (check.measured, check.ci_low, check.ci_high)
            self.looks.append(Look(len(self.duets), round(self.seconds, 3), confidence, *bounds))

    def _explained(self, question: Question, check: Check) -> Check:
        """With the reason, where it is inconclusive and none is said yet."""
        if check.verdict != INCONCLUSIVE or (check.measured is None and check.remark):
            return check
        seconds = f"{self.seconds:.0f} s"
        reason = f"the limit lies within the interval after {len(self.duets)} pairs of processes in {seconds}"
        if len(self.duets) < 2:
            reason = f"one pair of processes in {seconds} tells nothing; raise --budget"
        elif question.name == "slowdown" and any(duet.disturbances for duet in self.duets) and self._several_threads():
            reason += "; a timing with --threads 1 is disturbed less"
        return replace(check, remark=f"{reason}; {question.remark}" if question.remark else reason)

    def _several_threads(self) -> bool:
        return self.models[0].threads > 1
