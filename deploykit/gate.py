"""The gate: whether a model keeps its limits, with three answers. It fails only where an interval lies beyond a limit.

Candidate and baseline are measured in the same job, in turns, in pairs of fresh processes. After three pairs, and again
each time that there are a third more, the interval of the slowdown is looked at: within the limit it is a pass, beyond
it a regression, and across it more is measured, until the budget ends. ``ratio`` says how sure the interval is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit import __version__, environment, stats
from deploykit.artifact import Preprocess
from deploykit.bench_options import BenchOptions
from deploykit.comparability import Mismatch, mismatches
from deploykit.contestant import Contestant, contestants_of
from deploykit.data.dataset import Dataset
from deploykit.duet import Duet, Part
from deploykit.errors import InputError
from deploykit.gate_baseline import Baseline, open_baseline
from deploykit.gate_checks import (
    Question,
    agreement_check,
    drop_check,
    latency_question,
    memory_question,
    size_check,
    slowdown_question,
    undecided,
)
from deploykit.gate_measurement import Measurement
from deploykit.gate_options import GateOptions, changed
from deploykit.latencies import latency_of, pooled, timer_note
from deploykit.paired_answers import PairedAnswers, answers_of_both
from deploykit.progress import Progress, silent
from deploykit.runtime import computed_in
from deploykit.verdicts import Check, PairTurns, Side, Verdict, worst

__all__ = ["GateOptions", "gate_onnx"]

_WAITED = 0.10  # share of the calls' time that others had the processor, from which on it is worth a word


def gate_onnx(
    candidate: str | os.PathLike[str],
    *,
    baseline: str | os.PathLike[str] | None = None,
    data: Dataset | None = None,
    preprocess: Preprocess | str | None = None,
    baseline_model: str | None = None,
    options: GateOptions | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> Verdict:
    """Checks every limit; ``changes`` replace single options: ``gate_onnx(new, baseline=old, max_slowdown=0.05)``.

    Without any limit a candidate may be 5 % slower than its baseline.

    Args:
        candidate: The model; never changed.
        baseline: Another model, measured beside it; or a record of ``bench`` (``.json``), whose timings are compared
            only where machine, runtime and setting are the same. Absolute limits need none.
        data: Labelled pictures, for ``max_drop`` and ``min_agreement``.
        preprocess: For models that do not say their own.
        baseline_model: Which model of a record, where it is not named as the candidate.
        options: Limits, setting and budget.
        progress: Called often, with the seconds that are spent.

    Returns:
        The record. It says ``inconclusive`` also where a stored timing is not comparable, with the key that differs.

    Raises:
        InputError: Limits that cannot be used, a relative one without a baseline, models with other inputs, a record of
            another kind, or a process that died or hangs.
        ModelFileError: A file is missing, damaged, or cannot be run.
        ProviderError: The provider is absent, cannot start or took no node.
    """
    chosen = changed(options or GateOptions(), changes)
    against = open_baseline(Path(candidate), baseline, chosen, baseline_model)
    chosen = chosen.completed(compared=against.kind != "none")
    _check_pictures(chosen, against, data)
    setting = _setting(chosen, against)
    models = [contestants_of(path, setting)[0] for path in (Path(candidate), against.path) if path is not None]
    _check_inputs(models)
    answers = None
    if chosen.needs_pictures and data is not None and against.path is not None:
        given: dict[str, Any] = {"preprocess": preprocess, "provider": models[0].setting.provider}
        answers = answers_of_both(candidate, against.path, data, **given, progress=progress)
    measurement = Measurement(models, setting, chosen, progress)
    checks = (*_exact_checks(chosen, models, against, answers), *_timed_checks(measurement, against))
    notes = (*data.notes, *answers.warnings) if answers and data else ()
    return _record(checks, measurement, against, answers, notes)


def _check_pictures(options: GateOptions, against: Baseline, data: Dataset | None) -> None:
    if not options.needs_pictures:
        return
    if data is None:
        raise InputError("--max-drop and --min-agreement compare predictions; give pictures with --data")
    if against.path is None:
        raise InputError(f"--max-drop and --min-agreement need the baseline's model; {against.source} is a record")


def _setting(options: GateOptions, against: Baseline) -> BenchOptions:
    """What was asked for, else what the record has, else one thread of the CPU and one picture."""
    stored = against.stored
    return BenchOptions(
        provider=options.provider or (stored.provider if stored else "cpu"),
        threads=options.threads or (stored.threads if stored else 1),
        batch=options.batch or (stored.batch if stored else 1),
        shape=options.shape,
        seed=options.seed,
        timeout_s=options.timeout_s,
    )


def _check_inputs(models: Sequence[Contestant]) -> None:
    """Raises: InputError where two models are not fed with arrays of the same shapes."""
    shapes = [[tuple(feed["shape"]) for feed in model.feeds] for model in models]
    if any(other != shapes[0] for other in shapes[1:]):
        told = " and ".join(f"{model.artifact.path} takes {_inputs(model)}" for model in models)
        raise InputError(f"{told}; a candidate and its baseline must take inputs of the same shapes")


def _inputs(model: Contestant) -> str:
    return ", ".join(f"{feed['name']} {'x'.join(map(str, feed['shape']))}" for feed in model.feeds)


def _exact_checks(
    options: GateOptions, models: Sequence[Contestant], against: Baseline, answers: PairedAnswers | None
) -> Iterator[Check]:
    """What is the same whenever it is looked at."""
    if options.max_size is not None:
        there = models[1].artifact.file_bytes if len(models) > 1 else against.stored_bytes
        yield size_check(options.max_size, models[0].artifact.file_bytes, there)
    if answers is not None and options.max_drop is not None:
        yield drop_check(options.max_drop, answers)
    if answers is not None and options.min_agreement is not None:
        yield agreement_check(options.min_agreement, answers)


def _timed_checks(measurement: Measurement, against: Baseline) -> list[Check]:
    """What takes measuring, as far as it can be compared."""
    questions = list(_questions(measurement.options, against))
    refusal = _refusal(measurement, against)
    refused = [question for question in questions if refusal and question.compares]
    measured = measurement.answer([question for question in questions if question not in refused])
    if unlike := _unlike_graph(measurement.duets, against):
        refused, refusal = [question for question in questions if question.compares], unlike
        measured = [check for check in measured if check.name not in {question.name for question in refused}]
    checks = {check.name: check for check in (*(undecided(item, refusal) for item in refused), *measured)}
    return [checks[question.name] for question in questions]


def _questions(options: GateOptions, against: Baseline) -> Iterator[Question]:
    if options.max_slowdown is not None:
        yield slowdown_question(options.max_slowdown, against.stored, options.seed)
    if options.max_latency_ms is not None:
        yield latency_question(options.max_latency_ms, options.seed)
    if options.max_memory is not None:
        yield memory_question(options.max_memory, against.stored, options.seed)


def _refusal(measurement: Measurement, against: Baseline) -> str:
    """Why a stored timing cannot be compared; empty where it can, or where nothing is stored."""
    if against.stored is None or against.record is None:
        return ""
    setting = measurement.models[0].setting
    here = {
        "provider": setting.provider,
        "threads": measurement.models[0].threads,
        "batch": setting.batch,
        "memory_mode": measurement.setting.memory,
        "provider_options": {},
        "io_binding": measurement.setting.binds(setting.provider),
    }
    found = mismatches(
        against.stored, against.record.environment, environment.describe(), here | _certain(here, against)
    )
    if found:  # before the noise: measuring again would not help
        return f"not comparable with {against.source}: " + "; ".join(map(str, found))
    if not against.stored.stable:
        return f"not comparable with {against.source}: it is marked unstable, {'; '.join(against.stored.warnings)}"
    return ""


def _certain(here: Mapping[str, Any], against: Baseline) -> dict[str, Any]:
    """What is known before measuring of what a provider will do, as far as the record knows it too.

    The candidate may have another precision than the model that was timed; what would differ for that one is a setting.
    """
    assert against.stored is not None
    known: dict[str, Any] = {} if here["provider"] == "cuda" else {"cuda_graph": False}  # CUDA may refuse one
    computed = computed_in(here["provider"], here["provider_options"], against.stored.precision)
    if here["provider"] == against.stored.provider and None not in (computed, against.stored.computed_in):
        known["computed_in"] = computed
    return known


def _unlike_graph(duets: Sequence[Duet], against: Baseline) -> str:
    """Why what was measured cannot be compared after all; empty where it can."""
    stored = against.stored
    if stored is None or all(duet.candidate.cuda_graph == stored.cuda_graph for duet in duets):
        return ""
    mismatch = Mismatch("cuda_graph", stored.cuda_graph, not stored.cuda_graph)
    return f"not comparable with {against.source}: {mismatch}"


def _record(
    checks: tuple[Check, ...],
    measurement: Measurement,
    against: Baseline,
    answers: PairedAnswers | None,
    notes: Sequence[str],
) -> Verdict:
    duets, models, setting = measurement.duets, measurement.models, measurement.models[0].setting
    return Verdict(
        deploykit=__version__,
        environment=environment.describe(),
        verdict=worst(checks),
        checks=checks,
        noise_floor=_noise_floor(checks),
        candidate=_side(models[0], [duet.candidate for duet in duets], answers.candidate_top1 if answers else None),
        baseline=_baseline_side(measurement, against, answers),
        baseline_kind=against.kind,
        provider=setting.provider,
        threads=models[0].threads,
        batch=setting.batch,
        pairs=len(duets),
        rounds=sum(duet.rounds for duet in duets),
        seconds=round(sum(duet.seconds for duet in duets), 3),
        budget_s=measurement.options.budget_s,
        looks=tuple(measurement.looks),
        turns=tuple(_turns(duet) for duet in duets if duet.rounds),
        warnings=tuple(dict.fromkeys((*notes, *_doubts(duets, setting.provider)))),
    )


def _noise_floor(checks: Sequence[Check]) -> float | None:
    """Half the width of the slowdown's interval."""
    for check in checks:
        if check.name == "slowdown" and check.ci_low is not None and check.ci_high is not None:
            return (check.ci_high - check.ci_low) / 2.0
    return None


def _side(model: Contestant, parts: Sequence[Part], top1: float | None) -> Side:
    blocks = [part.blocks for part in parts if part.blocks]
    return Side(
        model=model.artifact.name,
        model_sha256=model.artifact.sha256,
        precision=model.precision,
        file_bytes=model.artifact.file_bytes,
        latency_ms=latency_of(blocks) if blocks else None,
        peak_bytes=max((part.peak_bytes for part in parts), default=None),
        top1=top1,
    )


def _baseline_side(measurement: Measurement, against: Baseline, answers: PairedAnswers | None) -> Side | None:
    if against.stored is not None:
        stored = against.stored
        size = against.stored_bytes or 0
        figures = (stored.latency_ms, stored.memory.peak_bytes)
        return Side(stored.model, stored.model_sha256, stored.precision, size, *figures)
    if len(measurement.models) < 2:
        return None
    parts = [duet.baseline for duet in measurement.duets if duet.baseline is not None]
    return _side(measurement.models[1], parts, answers.baseline_top1 if answers else None)


def _turns(duet: Duet) -> PairTurns:
    sides = (duet.candidate, duet.baseline)
    medians = [tuple(round(value, 6) for value in side.turns_ms) if side else () for side in sides]
    return PairTurns(*medians)


def _doubts(duets: Sequence[Duet], provider: str) -> Iterator[str]:
    """What a reader of the figures has to know."""
    parts = [part for duet in duets for part in duet.parts]
    waits = [part.waited for part in parts if part.waited is not None and part.blocks]
    if waits and (share := sum(waits) / len(waits)) > _WAITED:
        yield f"others had the processor for {share:.0%} of the calls' time; the slowdown leaves that out"
    disturbed = [duet for duet in duets if duet.disturbances and duet.candidate.waited is None]
    if disturbed:
        yield f"{len(disturbed)} of {len(duets)} pairs were disturbed, as by this: {disturbed[0].disturbances[0]}"
    for part in parts:
        if part.provider != provider:
            yield f"provider {provider!r} could not be used; these are figures of {part.provider!r}"
        yield from part.notes
    if note := _short_call(parts):
        yield note


def _short_call(parts: Sequence[Part]) -> str | None:
    """Says so where calls are so short that what surrounds them hides a part of a slowdown."""
    timed = [part for part in parts if part.blocks]
    if not timed:
        return None
    shortest_ms = min(stats.median(pooled([part.blocks])) for part in timed)
    return timer_note(shortest_ms, min(part.timer_step_ns for part in timed))
