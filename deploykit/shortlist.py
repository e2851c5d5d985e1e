"""The candidates that are worth timing: those that run here, whose files could be made, and that lose little enough."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deploykit import environment
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.bench_options import BenchOptions
from deploykit.candidates import Here, candidates_of, providers_tried
from deploykit.data.dataset import Dataset
from deploykit.errors import DataError, DeploykitError, OutputError, ProviderError
from deploykit.figures import byte_text, percent_text
from deploykit.graph.precision import QUANTIZED_OPERATORS
from deploykit.graph.weights import nodes_of
from deploykit.pareto import on_front
from deploykit.predictions import Judge, predicted
from deploykit.preprocess import preprocess_for
from deploykit.progress import Progress, silent
from deploykit.race import Entry, batch_of, race
from deploykit.result_cache import ResultCache
from deploykit.tune_options import TuneOptions
from deploykit.tunings import Candidate
from deploykit.variants import Variant, Variants, machine_key, preprocess_key

__all__ = ["Shortlist"]

_MATRICES = ("Gemm", "MatMul")


class Shortlist:
    """Narrows the grid down by what costs little; whatever is rejected says why.

    Args:
        source: The model, in one file.
        data: Calibration pictures.
        held_out: Pictures on which the loss of accuracy is measured.
        options: What to try.
        cache: Keeps files and predictions.
        preprocess: For foreign models.
        deadline: When ``time.monotonic()`` passes it, nothing more is made; None has no end.
        progress: Called often.
    """

    def __init__(
        self,
        source: Artifact,
        data: Dataset,
        held_out: Dataset,
        options: TuneOptions,
        cache: ResultCache,
        *,
        preprocess: Preprocess | str | None = None,
        deadline: float | None = None,
        progress: Progress = silent,
    ) -> None:
        self.source, self.data, self.held_out, self.options, self.cache = source, data, held_out, options, cache
        self.preprocess, self.deadline, self.progress = preprocess, deadline, progress
        self.candidates: list[Candidate] = []
        self.files: dict[str, Path] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.warnings: list[str] = []
        self.quantized = False  # the model is, so that only sessions are tried

    def build(self) -> None:
        """Fills ``candidates``, and by recipe ``files`` and ``notes``, what the making of each file warned of.

        Raises:
            ProviderError: No provider that was asked for can be used.
            ModelFileError, InputError, DataError, OutputError: As ``tune.tune_onnx``.
        """
        preprocess_for(self.source, self.preprocess)  # raises before anything is measured
        self.candidates = candidates_of(self.options, self._here())
        recipes = list(dict.fromkeys(self.candidates[place].recipe for place in self.open()))
        for done, recipe in enumerate(recipes):
            self.progress("tune: files", done, len(recipes), recipe)
            if recipe == "mixed" and (reason := self._mixed_is_idle()):
                self._reject(self._of(recipe), reason)
            else:
                self._add_file(recipe)
                self._check_accuracy(recipe)
        self.progress("tune: files", len(recipes), len(recipes))
        if self.options.objective == "size":
            self._drop_larger()

    def open(self) -> list[int]:
        """Places of the candidates that nothing speaks against."""
        return [place for place, item in enumerate(self.candidates) if item.rejected_because is None]

    @cached_property
    def judge(self) -> Judge:
        """Knows the float model's predictions on the CPU."""
        answers, width = self._predictions(self.source.path, self.source.sha256, "cpu")
        judge = Judge.of(answers, width, self.source, self.held_out)
        if judge.targets is None:
            self.warnings.append(
                f"the classes of {self.held_out.name} are not the model's; the loss was measured as predictions that"
                " differ from the float model's"
            )
        elif judge.guesses(width):
            self.warnings.append(
                f"the float model is right on {percent_text(judge.right)} of the held-out samples, about chance among"
                f" {width} classes; a loss of top-1 says little then"
            )
        return judge

    @cached_property
    def bench(self) -> BenchOptions:
        """How the last runs measure this model: with the copies to a device that an app's plain call has too."""
        return replace(self.options.bench, batch=batch_of(self.source), seed=self.options.seed, io_binding=False)

    @cached_property
    def _variants(self) -> Variants:
        on_cpu = any(self.candidates[place].provider == "cpu" for place in self.open())
        timed = on_cpu and self.options.objective == "latency"
        given = (self.source, self.data, self.options, self.cache)
        return Variants(*given, preprocess=self.preprocess, timed=timed, progress=self.progress)

    def _of(self, recipe: str) -> list[int]:
        return [place for place in self.open() if self.candidates[place].recipe == recipe]

    def _reject(self, places: list[int], reason: str) -> None:
        for place in places:
            self.candidates[place] = replace(self.candidates[place], rejected_because=reason)

    def _here(self) -> Here:
        """What runs here, and of what the model consists."""
        operators = {node.op_type for node in nodes_of(load_model(self.source.path, external_data=False).graph)}
        if found := sorted(operators & QUANTIZED_OPERATORS):
            self.quantized = True
            self.warnings.append(
                f"the model is quantized already (it has {', '.join(found)}): only sessions were tried, no recipes"
            )
        asked = providers_tried(self.options)
        trials = {name: self._trial(self.source.path, self.source.sha256, name, {}) for name in asked}
        problems = {name: problem for name, problem in trials.items() if problem is not None}
        if len(problems) == len(asked):
            raise ProviderError("; ".join(problems.values()))
        return Here.now(problems=problems, matrices=bool(operators & set(_MATRICES)), quantized=bool(found))

    def _trial(self, path: Path, sha256: str, provider: str, session: Mapping[str, Any]) -> str | None:
        """Why a file does not run on a provider; found out in a process of its own, which may crash."""

        def make(_: object) -> Mapping[str, Any]:
            brief = replace(self.bench, samples=1, min_time_s=0.0, processes=1)
            entry = Entry(path, provider, environment.available_cpus(), session)
            return {"problem": race([entry], brief)[0].problem}

        settings = {"model": sha256, "provider": provider, "session": dict(session), "batch": self.bench.batch}
        settings |= {"machine": machine_key()}
        # What failed may be mended, or a lack of memory over, by the next time.
        found = self.cache.get("trial", settings, make, keep=lambda values: values["problem"] is None)
        return None if found.values["problem"] is None else str(found.values["problem"])

    def _add_file(self, recipe: str) -> None:
        places = self._of(recipe)
        if recipe != "float" and self.deadline is not None and time.monotonic() >= self.deadline:
            self._reject(places, f"not tried, as the {self.options.budget_s:g} s allowed had passed")
            return
        variant: Variant = self._variants.make(recipe)
        if variant.problem:
            self._reject(places, variant.problem)
            return
        self.files[recipe], self.notes[recipe] = variant.path, variant.notes
        for place in places:
            self.candidates[place] = replace(
                self.candidates[place], file_bytes=variant.file_bytes, model_sha256=variant.sha256
            )

    def _check_accuracy(self, recipe: str) -> None:
        """Under each provider, with and without optimisations; threads and memory do not change the arithmetic."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for place in self._of(recipe):
            item = self.candidates[place]
            groups.setdefault((item.provider, bool(item.session.get("optimize", True))), []).append(place)
        for places in groups.values():
            self._check_group(places)

    def _check_group(self, places: list[int]) -> None:
        item = self.candidates[places[0]]
        path, sha256 = self.files[item.recipe], str(item.model_sha256)
        if item.provider != "cpu" and (problem := self._trial(path, sha256, item.provider, item.session)):
            self._reject(places, problem)
            return
        try:
            answers, _ = self._predictions(path, sha256, item.provider, optimize=item.session.get("optimize", True))
        except (DataError, OutputError):  # of the pictures or the disk, not of this candidate
            raise
        except DeploykitError as problem:
            if item.recipe == "float" and item.provider == "cpu":
                raise
            self._reject(places, str(problem))
            return
        loss = self.judge.loss(answers)
        for place in places:
            found = replace(self.candidates[place], top1=loss.top1, agreement=loss.agreement, drop=loss.drop)
            self.candidates[place] = found
        if loss.drop > self.options.max_drop + 1e-12:
            what = "points of top-1" if loss.top1 is not None else "points of agreement with the float model"
            lost, allowed = 100.0 * loss.drop, 100.0 * self.options.max_drop
            self._reject(places, f"loses {lost:.2f} {what} on {len(self.held_out)} samples; allowed are {allowed:g}")

    def _predictions(self, path: Path, sha256: str, provider: str, *, optimize: bool = True) -> tuple[list[int], int]:
        def make(_: object) -> Mapping[str, Any]:
            answers, width = predicted(
                path,
                self.held_out,
                provider=provider,
                preprocess=self.preprocess,
                optimize=optimize,
                progress=self.progress,
            )
            return {"answers": answers, "width": width}

        settings = {"model": sha256, "provider": provider, "optimize": optimize, "pictures": self.held_out.digest}
        settings |= {"preprocess": preprocess_key(self.preprocess), "machine": machine_key()}
        values = self.cache.get("predictions", settings, make).values
        return values["answers"], values["width"]

    def _mixed_is_idle(self) -> str | None:
        """Why layers need not be left in float; None where int8 loses too much, or was not asked for."""
        whole = [item for item in self.candidates if item.recipe == "int8" and item.provider == "cpu"]
        if not whole:
            return None
        if "int8" not in self.files:
            return f"int8 is of no use here: {whole[0].rejected_because}"
        kept = all(item.drop is not None and item.drop <= self.options.max_drop for item in whole)
        return "int8 keeps within the allowed drop with all its layers" if kept else None

    def _drop_larger(self) -> None:
        """For size: files that are larger than another that loses no more; one setting of them is not better."""
        places = [place for place in self.open() if self.candidates[place].recipe != "float"]
        found = {place: self.candidates[place] for place in self.open()}
        points = {place: (float(item.file_bytes or 0), item.drop or 0.0) for place, item in found.items()}
        files = {str(item.model_sha256): points[place] for place, item in found.items()}
        best = dict(zip(files, on_front(list(files.values())), strict=True))
        for place in places:
            if not best[str(found[place].model_sha256)]:
                size = byte_text(found[place].file_bytes)
                self._reject([place], f"{size}, while a smaller file loses no more")
