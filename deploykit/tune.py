"""Tuning: which file of a model, in which session, is best on this machine within an allowed loss of accuracy.

Cheap bounds come first (``shortlist``): what a provider cannot run, the size, and the accuracy under the provider that
is measured, as some compute float models in bfloat16. Only what is left is timed, by successive halving (``halving``).
The result of every step is kept in the folder by the digest of what decides it, so that a search that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, OutputError
from deploykit.files import remove_partials, removed_if_empty
from deploykit.halving import Figures, Rank, Runner, Tournament
from deploykit.lean_model import lean_copy
from deploykit.lock import folder_lock
from deploykit.pareto import beats, on_front, step_of
from deploykit.progress import Progress, silent
from deploykit.race import Entry
from deploykit.result_cache import ResultCache
from deploykit.runtime import create_session
from deploykit.session_settings import SessionSettings
from deploykit.shortlist import Shortlist
from deploykit.tune_options import FLOAT_FORMS, TuneOptions
from deploykit.tuned_folder import BEST, FRONT, LEAN, TunedFolder
from deploykit.tunings import Candidate, Tuning
from deploykit.variants import machine_key, one_file
from deploykit.winner import Winner, choose, explain, settled

__all__ = ["TuneOptions", "tune_onnx"]

_LATENCY_STEP, _MEMORY_STEP = 0.02, 0.05  # on the front, differences below these count as none
_MEMORY_BASE = 2**24  # nor does a megabyte, which two runs of a small model differ by


def tune_onnx(
    model: str | os.PathLike[str],
    data: Dataset,
    folder: str | os.PathLike[str],
    options: TuneOptions | None = None,
    *,
    held_out: Dataset | None = None,
    preprocess: Preprocess | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Tuning:
    """Finds the best file and session for a classifier on this machine; the model itself is never changed.

    Called again it goes on where it was interrupted: files, predictions and timings whose model, options, pictures,
    versions and machine are the same are not made again.

    Args:
        model: An ``.onnx`` classifier with one input. Of one that is quantized already only sessions are tried.
        data: Real pictures for calibration.
        folder: Gets ``best.onnx``, ``session.json`` and ``best_session.py`` with the settings for an app, ``front/``
            with the other files of the Pareto front, and ``tuning.json``, the record; ``lean/`` with a copy for this
            machine where a session with lean memory is best.
        options: What to try and how long.
        held_out: Pictures on which the loss of accuracy is measured; by default those of ``data`` next to the
            calibration samples.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        overwrite: Replace files of others, or the tuning of another model.
        progress: Called often.

    Returns:
        The record: the best candidate, why, and all others with their figures or the reason that they were rejected.

    Raises:
        ModelFileError: The model is unreadable or does not run.
        InputError: Data and model do not fit, or the preprocessing is unknown.
        ProviderError: None of the providers that were asked for can be used.
        OutputError: The folder holds something else, is in use, or cannot be written.
        DataError: Damaged pictures.
    """
    options, began, path = options or TuneOptions(), time.monotonic(), Path(model)
    source, place = Artifact.read(path), TunedFolder(Path(folder))
    with removed_if_empty(place.folder):
        _make(place.folder)
        with folder_lock(place.folder), removed_if_empty(place.cache):
            for part in (place.folder, place.folder / FRONT, place.folder / LEAN):
                remove_partials(part)
            place.check(path, source.sha256, overwrite=overwrite)
            cache = ResultCache(place.cache)
            single = one_file(path, cache)
            shortlist = Shortlist(
                source if single == path else Artifact.read(single),
                data,
                _beside(data, options) if held_out is None else held_out.take(options.held_out, seed=options.seed),
                options,
                cache,
                preprocess=preprocess,
                deadline=None if options.budget_s is None else began + options.budget_s,
                progress=progress,
            )
            shortlist.build()
            tuning, files = _tuned(shortlist, options, path)
            settings, opened, lean = _session(tuning.best, files[BEST], place.cache)
            session = settings.to_document(opened, str(tuning.best.model_sha256))
            seconds = round(time.monotonic() - began, 3)
            tuning = replace(tuning, model_sha256=source.sha256, session=session, seconds=seconds)
            place.write(tuning, files | lean, settings.to_python(opened, f"{tuning.best.name}."))
    return tuning


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"cannot write {folder}: {problem.strerror}; give another folder") from problem


def _beside(data: Dataset, options: TuneOptions) -> Dataset:
    """The pictures next to the calibration samples; these themselves where there are no others."""
    both = data.take(options.samples + options.held_out, seed=options.seed)
    if len(both) <= options.samples:
        note = "there are no pictures beside the calibration samples; the loss of accuracy was measured on these"
        return replace(both, notes=(*both.notes, note))
    rest = slice(options.samples, None)
    return replace(both, targets=both.targets[rest], rows=both.rows[rest])


def _tuned(shortlist: Shortlist, options: TuneOptions, model: Path) -> tuple[Tuning, dict[str, Path]]:
    """Measures what is left, and names the best; with the files to keep by their names in the folder."""
    tournament, last = _measured(shortlist, options)
    candidates, warnings = shortlist.candidates, list(shortlist.warnings)
    for place, found in tournament.figures.items():
        candidates[place] = _with_figures(candidates[place], found)
    allowed = {place: found for place, found in last.items() if candidates[place].rejected_because is None}
    if not allowed:
        warnings.append("nothing keeps within the allowed drop; the float model is named nevertheless")
    winner = choose(options.objective, candidates, allowed or last, confidence=tournament.confidence)
    _mark_front(candidates, winner)
    names, files = _kept(candidates, winner, shortlist.files)
    notes, source = shortlist.notes[candidates[winner.place].recipe], shortlist.source
    candidates[:] = [replace(item, file=names.get(item.recipe) if item.on_front else None) for item in candidates]
    if shortlist.quantized:
        candidates[:] = [replace(item, recipe="given") if item.recipe == "float" else item for item in candidates]
    best = candidates[winner.place]
    drop, speed = options.max_drop, winner.speed
    tuning = Tuning(
        deploykit=__version__,
        environment=environment.describe(),
        model=model.name,
        model_sha256=source.sha256,
        objective=options.objective,
        max_drop=drop,
        accuracy_by=shortlist.judge.by,
        best=best,
        why=explain(winner, candidates, source.file_bytes, drop, options.objective),
        candidates=tuple(candidates),
        session={},
        dataset=f"{shortlist.held_out.name}/{shortlist.held_out.split}",
        dataset_digest=shortlist.held_out.digest,
        held_out_samples=len(shortlist.held_out),
        calibration=f"{shortlist.data.name}/{shortlist.data.split}",
        calibration_digest=shortlist.data.take(options.samples, seed=options.seed).digest,
        effort=options.effort,
        speedup=speed.middle if speed else None,
        speedup_low=speed.low if speed else None,
        speedup_high=speed.high if speed else None,
        steps_done=len(shortlist.cache.made),
        steps_reused=len(shortlist.cache.reused),
        warnings=tuple(dict.fromkeys((*shortlist.held_out.notes, *warnings, *notes))),
    )
    return tuning, files


def _measured(shortlist: Shortlist, options: TuneOptions) -> tuple[Tournament, dict[int, Figures]]:
    """The tournament with the figures of all that were timed, and those of the last runs."""
    reference, candidates, deadline = _reference(shortlist), shortlist.candidates, shortlist.deadline
    runners = {place: _runner(shortlist, place) for place in {reference, *shortlist.open()}}

    def clear(figures: Mapping[int, Figures], confidence: float) -> bool:
        return settled(options.objective, candidates, figures, confidence=confidence)

    tournament = Tournament(
        runners,
        reference,
        shortlist.bench,
        shortlist.cache,
        machine_key(),
        rank=_rank(options.objective, runners),
        settled=clear,
        in_time=lambda: deadline is None or time.monotonic() < deadline,
        progress=shortlist.progress,
    )
    last = tournament.run()
    if reference not in last:
        raise InputError(f"the float model could not be measured: {tournament.figures[reference].measured.problem}")
    return tournament, {place: tournament.figures[place] for place in last}


def _reference(shortlist: Shortlist) -> int:
    """The float model as it is, on the first provider and with most threads: what all latencies are compared with."""
    floats = {
        place: item
        for place, item in enumerate(shortlist.candidates)
        if item.recipe == "float" and item.model_sha256 and not item.session
    }
    first = next(iter(floats.values())).provider
    return max((place for place in floats if floats[place].provider == first), key=lambda place: floats[place].threads)


def _runner(shortlist: Shortlist, place: int) -> Runner:
    item = shortlist.candidates[place]
    marks = [*(("fp32",) if item.recipe in FLOAT_FORMS else ()), *(("float",) if item.recipe == "float" else ())]
    entry = Entry(shortlist.files[item.recipe], item.provider, item.threads, item.session)
    return Runner(entry, str(item.model_sha256), int(item.file_bytes or 0), tuple(marks))


def _rank(objective: str, runners: Mapping[int, Runner]) -> Rank:
    """What the rounds keep, by the objective."""

    def rank(place: int, figures: Figures) -> tuple[float, ...]:
        latency = figures.ratio.low if figures.ratio else math.inf
        if objective == "size":
            return (runners[place].file_bytes, latency)
        if objective == "memory":
            return (figures.measured.peak_bytes or 0, latency)
        return (latency,)

    return rank


def _with_figures(item: Candidate, found: Figures) -> Candidate:
    measured = found.measured
    if measured.problem or found.ratio is None:
        return replace(item, rejected_because=item.rejected_because or measured.problem)
    return replace(
        item,
        latency_ms=measured.latency_ms,
        ci_low_ms=measured.ci_low_ms,
        ci_high_ms=measured.ci_high_ms,
        relative_latency=found.ratio.middle,
        peak_bytes=measured.peak_bytes,
        stable=measured.stable,
    )


def _mark_front(candidates: list[Candidate], winner: Winner) -> None:
    """Marks the front of latency, bytes, memory and drop, and the winner; the others get the reason."""
    places = [place for place, item in enumerate(candidates) if item.relative_latency and not item.rejected_because]
    points = {place: _point(candidates[place]) for place in places}
    for place, stays in zip(places, on_front(list(points.values())), strict=True):
        if stays or place == winner.place:
            candidates[place] = replace(candidates[place], on_front=True)
        else:
            better = next(other for other in places if other != place and beats(points[other], points[place]))
            reason = f"{candidates[better].name} is as good or better in latency, bytes, memory and accuracy"
            candidates[place] = replace(candidates[place], rejected_because=reason)
    candidates[winner.place] = replace(candidates[winner.place], on_front=True)


def _point(item: Candidate) -> tuple[float, ...]:
    """Less is better; what differs by noise only is equal."""
    return (
        step_of(item.relative_latency or 1.0, _LATENCY_STEP),
        item.file_bytes or 0,
        step_of((item.peak_bytes or 0) + _MEMORY_BASE, _MEMORY_STEP),
        max(item.drop or 0.0, 0.0),
    )


def _kept(
    candidates: Sequence[Candidate], winner: Winner, files: Mapping[str, Path]
) -> tuple[dict[str, str], dict[str, Path]]:
    """By recipe the name in the folder, and by that name the file, of all that lie on the front."""
    best = candidates[winner.place].recipe
    recipes = [best, *(item.recipe for item in candidates if item.on_front and item.recipe != best)]
    names = {recipe: BEST if recipe == best else f"{FRONT}/{recipe}.onnx" for recipe in recipes}
    return names, {name: files[recipe] for recipe, name in names.items()}


def _session(best: Candidate, path: Path, cache: Path) -> tuple[SessionSettings, str, dict[str, Path]]:
    """Settings of a session like the one that was measured, the name of the file that it opens, and further files.

    A session with lean memory opens a copy of the model with its weights beside it, which is for this ONNX Runtime on
    this kind of processor.
    """
    opened, further = path, dict[str, Path]()
    if best.session.get("memory") == "lean":
        opened = lean_copy(path, cache / LEAN, provider=best.provider)
        further = {f"{LEAN}/{file.name}": file for file in sorted(opened.parent.iterdir())}
    session = create_session(opened, best.provider, threads=best.threads, **best.session)
    return SessionSettings.of(session), f"{LEAN}/{opened.name}" if further else BEST, further
