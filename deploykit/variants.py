"""The files of one model that are candidates: as it is, rewritten, and by each recipe; each made once."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.data.dataset import Dataset
from deploykit.errors import DataError, DeploykitError, ModelFileError, OutputError
from deploykit.figures import byte_text
from deploykit.files import sha256_file
from deploykit.graph.weights import external_files
from deploykit.progress import Progress, silent
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.recipes import RECIPES, timed_here
from deploykit.result_cache import CachedResult, ResultCache
from deploykit.results import Quantization
from deploykit.rewriting import rewrite_onnx
from deploykit.tune_options import TuneOptions

__all__ = ["Variant", "Variants", "machine_key", "one_file", "preprocess_key"]

_MOST_BYTES = 2**31  # of one protobuf message
_COMPARED = 16  # real pictures on which the rewritten model has to answer alike


@dataclass(frozen=True)
class Variant:
    """One file.

    Attributes:
        recipe: How it was made.
        path: Where it lies.
        sha256: Its digest.
        file_bytes: Its size.
        problem: Why it is no candidate; the other fields then say nothing.
        notes: What a user should know of it.
    """

    recipe: str
    path: Path
    sha256: str = ""
    file_bytes: int = 0
    problem: str | None = None
    notes: tuple[str, ...] = ()


def machine_key() -> dict[str, Any]:
    """What the results of measurements depend on besides the models: the processor, the threads, the versions."""
    here = environment.describe()
    names = ("os", "machine", "cpu", "cpu_features", "available_cpus", "gpus", "versions")
    return {"deploykit": __version__, **{name: here[name] for name in names}}


def preprocess_key(preprocess: Preprocess | str | None) -> Any:
    """As a JSON value."""
    return preprocess.to_json() if isinstance(preprocess, Preprocess) else preprocess


def one_file(model: Path, cache: ResultCache) -> Path:
    """The model itself, or a copy with the weights in it where they lie in files beside it.

    Raises: ModelFileError for 2 GiB and more, which do not fit into one file.
    """
    beside = external_files(model)
    if not beside:
        return model

    def make(folder: Path) -> Mapping[str, Any]:
        proto = load_model(model)
        if (size := proto.ByteSize()) >= _MOST_BYTES:
            raise ModelFileError(f"{model} has {byte_text(size)} with its weights; allowed: below 2 GiB")
        (folder / model.name).write_bytes(proto.SerializeToString(deterministic=True))
        return {}

    digests = [sha256_file(file) for file in (model, *beside)]
    return cache.get("joined", {"name": model.name, "files": digests}, make).folder / model.name


class Variants:
    """Makes the files of one model, each by its name.

    Args:
        source: The float model, in one file.
        calibration: Real pictures, preprocessed as the model says.
        options: Recipe-independent options.
        cache: Keeps the files.
        preprocess: For foreign models.
        timed: Whether a form with more layers in float is taken where it is faster on the CPU.
        progress: Called while files are made.
    """

    def __init__(
        self,
        source: Artifact,
        calibration: Dataset,
        options: TuneOptions,
        cache: ResultCache,
        *,
        preprocess: Preprocess | str | None = None,
        timed: bool = True,
        progress: Progress = silent,
    ) -> None:
        self.source, self.calibration, self.options, self.cache = source, calibration, options, cache
        self.preprocess, self.timed, self.progress = preprocess, timed, progress

    def make(self, recipe: str) -> Variant:
        """The file of a recipe or form, made only where it is not there yet.

        What a model cannot become is told by ``problem``.

        Raises:
            OutputError: The folder cannot be written.
            DataError: A damaged picture.
        """
        if recipe == "float":
            return Variant(recipe, self.source.path, self.source.sha256, self.source.file_bytes)
        if recipe == "rewritten":
            return self._variant(recipe, self._cached(recipe, self._common, self._rewritten))
        options = self._quantization(recipe)
        settings = self._common | {"recipe": recipe, "max_drop": options.max_drop, "timed": options.never_slower}
        settings |= {name: getattr(options, name) for name in ("effort", "samples", "held_out", "seed")}
        return self._variant(recipe, self._cached(recipe, settings, lambda path: self._quantized(path, options)))

    @cached_property
    def _common(self) -> dict[str, Any]:
        pictures = self.calibration.take(self.options.samples + self.options.held_out, seed=self.options.seed)
        return {
            "model": self.source.sha256,
            "preprocess": preprocess_key(self.preprocess),
            "pictures": pictures.digest,
            "machine": machine_key(),
        }

    def _quantization(self, recipe: str) -> QuantizeOptions:
        options, chosen = self.options, RECIPES[recipe]
        return QuantizeOptions(
            recipe=recipe,
            effort=options.effort,
            max_drop=min(options.max_drop, 0.999) if chosen.budgeted else None,
            never_slower=self.timed and timed_here(chosen, None, platform.machine()),
            samples=options.samples,
            held_out=options.held_out,
            seed=options.seed,
        )

    def _cached(
        self, recipe: str, settings: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> CachedResult:
        def guarded(folder: Path) -> Mapping[str, Any]:
            path = folder / f"{recipe}.onnx"
            try:
                told = {"problem": None, **make(path)}
            except (OutputError, DataError):  # of the disk or the pictures, not of this recipe
                raise
            except DeploykitError as problem:
                told = {"problem": str(problem), "failed": True}
            if told["problem"]:
                path.unlink(missing_ok=True)
                return told
            return {**told, "sha256": sha256_file(path), "file_bytes": path.stat().st_size}

        # What failed may be mended by the next time; what was decided stays.
        return self.cache.get(recipe, settings, guarded, keep=lambda values: not values.get("failed"))

    def _variant(self, recipe: str, result: CachedResult) -> Variant:
        values, path = result.values, result.folder / f"{recipe}.onnx"
        if values["problem"]:
            return Variant(recipe, path, problem=values["problem"])
        return Variant(recipe, path, values["sha256"], values["file_bytes"], notes=tuple(values["notes"]))

    def _rewritten(self, path: Path) -> Mapping[str, Any]:
        pictures = self.calibration.take(_COMPARED, seed=self.options.seed)
        record = rewrite_onnx(self.source.path, path, samples=pictures, preprocess=self.preprocess)
        nothing = None if any(record.changes.values()) else "no rewrite finds anything to change in this model"
        return {"problem": nothing, "notes": list(record.warnings)}

    def _quantized(self, path: Path, options: QuantizeOptions) -> Mapping[str, Any]:
        record = self._recorded(path, options)
        if record.kept_float and options.never_slower:  # small it is nevertheless: what it is worth, the timing tells
            record = self._recorded(path, replace(options, never_slower=False))
        kept = _why_float(record.warnings) if record.kept_float else None
        return {"problem": kept, "notes": list(record.warnings)}

    def _recorded(self, path: Path, options: QuantizeOptions) -> Quantization:
        return quantize_onnx(
            self.source.path,
            path,
            calibration=self.calibration,
            preprocess=self.preprocess,
            options=options,
            overwrite=True,
            progress=self.progress,
        )


def _why_float(warnings: Sequence[str]) -> str:
    """The quantizer's own reason for keeping the float model."""
    return next((text for text in warnings if "the float model is kept" in text), "; ".join(warnings))
