"""Quantization: one recipe makes one smaller file, which is compared with the float model before it is kept."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.answers import compare_answers
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.calibrate import Calibration, calibration_from_arrays, calibration_from_dataset
from deploykit.data.dataset import Dataset
from deploykit.equality import check_equal
from deploykit.errors import InputError, ModelFileError, ParityError, UnknownNameError
from deploykit.figures import byte_text, percent_text
from deploykit.files import atomic_path, check_writable, deflated_size
from deploykit.float_model import FloatModel, opened_float_model
from deploykit.graph.precision import QUANTIZED_OPERATORS
from deploykit.graph.weights import check_weights, stored_bytes
from deploykit.integer_model import EFFORTS, IntegerModels
from deploykit.progress import Progress, silent
from deploykit.quantization_options import QuantizeOptions
from deploykit.quantization_search import Choice, HeldOut, best_ranges, never_slower, within_budget
from deploykit.ranks import ALONE, Ranks, agree
from deploykit.raw_pictures import inputs_of
from deploykit.recipes import RECIPES, Recipe, timed_here
from deploykit.results import Quantization
from deploykit.runtime import create_session
from deploykit.runtime_errors import mapped, one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["RECIPES", "QuantizeOptions", "Recipe", "help_quantize", "quantize_onnx"]

_MOST_BYTES = 2**31  # of one protobuf message
_TAKEN = ("float32", "uint8")
_CHECKED = 4  # samples on which the rewritten graph has to answer as before
_SAME_ANSWERS = 0.99  # of the samples, with and without the runtime's optimisations
_WRONG_KERNELS = "its integer kernels may be wrong on this processor"
_ROUNDING_DB = 30.0  # beside saturating kernels the difference is near the answers themselves; rounding leaves 40 dB


def quantize_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calibration: Dataset | Iterable[NDArray[Any]],
    recipe: str | None = None,
    preprocess: Preprocess | str | None = None,
    options: QuantizeOptions | None = None,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Quantization:
    """Quantizes a float model; the input file is never changed.

    Args:
        model: A float ``.onnx`` with one input.
        output: The ``.onnx`` to write. Where no integer form meets the options, it is the float model.
        calibration: Real pictures, preprocessed as the model says; or batches (n, …) of inputs ready to be fed.
        recipe: Short for ``options.recipe``.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        options: Recipe, effort, budget, number of samples, seed.
        overwrite: Replace an existing file.
        ranks: Processes that share the calibration, of which this one is the first; the others ``help_quantize``.
        progress: Called after each calibration batch.

    Returns:
        The record: sizes, what was chosen and why, and the difference from the float model on the calibration samples.

    Raises:
        ModelFileError: The model is unreadable, holds NaN weights, or has nothing to quantize.
        InputError: The model is quantized already, or the samples do not fit it.
        DataError: No samples, or damaged ones.
        OutputError: ``output`` exists or cannot be written.
        RankError: Another process is gone.
    """
    options, start, target = options or QuantizeOptions(), time.perf_counter(), Path(output)
    options = replace(options, recipe=recipe) if recipe else options
    if target.resolve() == Path(model).resolve():
        raise InputError(f"{target} is the model itself, which is never changed; give another output path")
    check_writable(target, overwrite=overwrite)
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    _check_quantizable(source, parent)
    samples, held_out = _samples(parent, calibration, options, preprocess)
    _agree(parent, samples, options, ranks)
    without = {*options.without, *options.chosen.not_rewritten}
    with (
        _one_line(parent.path),
        opened_float_model(source, parent, batch_size=options.batch_size, without=without) as prepared,
    ):
        choice, quantized = _chosen(prepared, samples, held_out, options, ranks, progress)
    _stamp(quantized, source, parent, samples, options.chosen, choice)
    with atomic_path(target, overwrite=overwrite) as aside:
        aside.write_bytes(quantized.SerializeToString(deterministic=True))
        made = replace(Artifact.read(aside), path=target)  # checked before it is moved into place
        figures = _compared(parent, aside, samples)
    warnings = (*samples.warnings, *choice.notes, *_of_held_out(held_out), *_doubts(parent, made, figures, choice))
    figures |= _figures_of(choice, options, held_out)
    return _record(parent, made, replace(samples, warnings=warnings), figures, start)


def help_quantize(
    model: str | os.PathLike[str],
    *,
    calibration: Dataset,
    preprocess: Preprocess | str | None = None,
    options: QuantizeOptions | None = None,
    ranks: Ranks,
    progress: Progress = silent,
) -> None:
    """What the other processes do while rank 0 is in ``quantize_onnx``: measure their shares of the samples.

    Args:
        model: As there, like the rest.
        calibration: As there; the same pictures on every process.
        preprocess: As there.
        options: As there.
        ranks: The processes; this one is not the first.
        progress: As there.

    Raises: as there.
    """
    options = options or QuantizeOptions()
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    _check_quantizable(source, parent)
    samples, _ = _samples(parent, calibration, replace(options, max_drop=None), preprocess)
    _agree(parent, samples, options, ranks)
    without = {*options.without, *options.chosen.not_rewritten}
    with (
        _one_line(parent.path),
        opened_float_model(source, parent, batch_size=options.batch_size, without=without) as prepared,
    ):
        kept = _known_layers(prepared, options.keep_float)
        list(_forms(prepared, samples, kept, options, ranks, progress))


def _agree(parent: Artifact, samples: Calibration, options: QuantizeOptions, ranks: Ranks) -> None:
    """Raises: InputError when another process has another model, other samples or options."""
    recipe = {"recipe": options.chosen.name, "effort": options.effort, "batch size": options.batch_size}
    agree(ranks, {"model": parent.sha256, "samples": samples.digest, **recipe})


def _samples(
    parent: Artifact,
    calibration: Dataset | Iterable[NDArray[Any]],
    options: QuantizeOptions,
    preprocess: Preprocess | str | None,
) -> tuple[Calibration, HeldOut | None]:
    if not isinstance(calibration, Dataset):
        samples = calibration_from_arrays(parent, calibration)
        return samples, None if options.max_drop is None else HeldOut(list(samples.batches(64)), None)
    samples = calibration_from_dataset(
        parent, calibration, samples=options.samples, seed=options.seed, preprocess=preprocess
    )
    return samples, None if options.max_drop is None else _held_out(parent, calibration, samples, options)


def _held_out(parent: Artifact, data: Dataset, samples: Calibration, options: QuantizeOptions) -> HeldOut:
    """The pictures next to the calibration samples; those samples themselves where there are no others."""
    both = data.take(len(samples) + options.held_out, seed=options.seed)
    rest = slice(len(samples) if len(both) > len(samples) else 0, None)
    seen = replace(both, targets=both.targets[rest], rows=both.rows[rest])
    if samples.preprocess is None:
        raise AssertionError("samples of a dataset were preprocessed")
    batches = [inputs for pictures, _ in seen.batches(64) for inputs in inputs_of(samples.preprocess, pictures)]
    known = tuple(seen.labels) == tuple(parent.labels) if parent.labels else False
    return HeldOut(batches, np.asarray(seen.targets) if known else None)


def _chosen(
    prepared: FloatModel,
    samples: Calibration,
    held_out: HeldOut | None,
    options: QuantizeOptions,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Choice, onnx.ModelProto]:
    import onnx

    _check_rewritten(prepared, samples)
    kept = _known_layers(prepared, options.keep_float)
    forms = list(_forms(prepared, samples, kept, options, ranks, progress))  # all, as other processes wait for it
    # The form with the least noise on the answers.
    models, choice = min(((form, best_ranges(form)) for form in forms), key=lambda pair: pair[1].noise_db)
    if held_out is not None and options.max_drop is not None:
        choice = within_budget(models, choice, held_out, options.max_drop, progress=progress)
    timed = options.never_slower and timed_here(options.chosen, options.target, platform.machine())
    if timed and not choice.kept_float:
        with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
            choice = never_slower(models, choice, Path(folder))
    if not choice.kept_float:
        choice = replace(choice, rewrites=models.model.changes, border_levels=models.model.border_levels)
        return choice, models.build(choice.method, without=choice.float_layers)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(prepared.proto)
    return replace(choice, rewrites=prepared.changes), quantized


def _forms(
    prepared: FloatModel,
    samples: Calibration,
    kept: tuple[str, ...],
    options: QuantizeOptions,
    ranks: Ranks,
    progress: Progress,
) -> Iterator[IntegerModels]:
    """The integer models of the graph as it is and, where that is tried, with its channels equalised; each calibrated.

    Every process of ``ranks`` has to ask for all of them.
    """
    chosen, effort = options.chosen, EFFORTS[options.effort]
    prepared = prepared.reading_pixels() if chosen.reads_pixels else prepared
    for form in (prepared, prepared.equalized() if effort.equalized and chosen.grid else None):
        if form is None:
            continue
        models = IntegerModels(
            form, chosen, samples, effort=options.effort, keep_float=kept, ranks=ranks, progress=progress
        )
        if ranks.world > 1 and chosen.precision != "fp16":
            models.calibrate()
        yield models


def _check_rewritten(prepared: FloatModel, samples: Calibration) -> None:
    """The rewritten graph answers as the user's does, on real samples. Raises: ParityError."""
    batch = next(samples.batches(_CHECKED))
    try:
        check_equal(samples.model, prepared.path, [{prepared.input: batch}])
    except ParityError as problem:
        changed = ", ".join(name for name, count in prepared.changes.items() if count) or "none"
        raise ParityError(
            f"the rewritten graph ({changed}) differs: {problem}; --without leaves a rewrite out"
        ) from None


def _known_layers(prepared: FloatModel, names: Iterable[str]) -> tuple[str, ...]:
    layers = {node.name for node in prepared.proto.graph.node}
    for name in names:
        if name not in layers:
            raise UnknownNameError("layer", name, layers)
    return tuple(names)


def _stamp(
    quantized: onnx.ModelProto,
    source: onnx.ModelProto,
    parent: Artifact,
    samples: Calibration,
    recipe: Recipe,
    choice: Choice,
) -> None:
    """Other tools' metadata stay; value infos go, which only add bytes."""
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    for entry in source.metadata_props:
        quantized.metadata_props.add(key=entry.key, value=entry.value)
    mixed = recipe.precision == "int8" and choice.float_layers
    precision = "fp32" if choice.kept_float else "mixed" if mixed else recipe.precision
    child = replace(parent, version=__version__, precision=precision, recipe=recipe.name, parity=None)
    child = replace(child, graph_parity=None)  # measured with the file before
    replace(child, parent_sha256=parent.sha256, preprocess=samples.preprocess or parent.preprocess).stamp(quantized)


def _record(
    parent: Artifact, child: Artifact, samples: Calibration, figures: dict[str, Any], start: float
) -> Quantization:
    return Quantization(
        deploykit=__version__,
        environment=environment.describe(),
        model=child.path.name,
        model_sha256=child.sha256,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        recipe=str(child.recipe),
        precision=str(child.precision),
        calibration=samples.name,
        calibration_digest=samples.digest,
        calibration_samples=len(samples),
        file_bytes=child.file_bytes,
        parent_bytes=stored_bytes(parent.path),
        download_bytes=deflated_size(child.path),
        compared_samples=len(samples),
        seconds=round(time.perf_counter() - start, 3),
        warnings=samples.warnings,
        **figures,
    )


def _figures_of(choice: Choice, options: QuantizeOptions, held_out: HeldOut | None) -> dict[str, Any]:
    return {
        "effort": options.effort,
        "ranges": choice.method,
        "rewrites": {name: count for name, count in choice.rewrites.items() if count},
        "float_layers": choice.float_layers,
        "kept_float": choice.kept_float,
        "sensitivity": tuple(asdict(harm) for harm in choice.ranking),
        "held_out_samples": 0 if held_out is None else sum(map(len, held_out.batches)),
        "held_out_drop": choice.drop,
        "speedup": choice.speed,
        "border_levels": choice.border_levels,
    }


def _check_quantizable(model: onnx.ModelProto, parent: Artifact) -> None:
    operators = {node.op_type for node in model.graph.node}
    if found := sorted(operators & QUANTIZED_OPERATORS):
        raise InputError(f"{parent.path} is quantized already (it has {', '.join(found)}); give the float model")
    # Weights that are Constant nodes count too: a rewrite makes initializers of them.
    if not any(constant.is_float for constant in check_weights(model, parent.path).stored.values()):
        raise ModelFileError(f"{parent.path} has no float weights; there is nothing to quantize")
    if model.ByteSize() >= _MOST_BYTES:
        raise ModelFileError(f"{parent.path} has {byte_text(model.ByteSize())} with its weights; allowed: below 2 GiB")
    if parent.inputs and parent.inputs[0].dtype not in _TAKEN:
        raise InputError(
            f"{parent.path} takes {parent.inputs[0].dtype}; the recipes quantize models that take float32, or pixels as"
            " uint8"
        )


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What ONNX and ONNX Runtime raise at models that they did not foresee, as ModelFileError."""
    import onnx

    foreseen = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, onnx.version_converter.ConvertError)
    try:
        with mapped(f"cannot quantize {path}", "cpu", ""):
            yield
    except foreseen as problem:
        raise ModelFileError(f"cannot quantize {path}: {one_line(problem)}") from problem


def _compared(parent: Artifact, candidate: Path, samples: Calibration) -> dict[str, Any]:
    """The record's figures: the first output against the float model's, and against itself without optimisations."""
    what, name = "calibration samples", f"the quantized {parent.path.name}"
    before, after = create_session(parent.path), create_session(candidate)
    size = before.fixed_batch or 64
    figures = asdict(compare_answers((before, parent.path), (after, name), samples.batches(size), what=what))
    plain = create_session(candidate, optimize=False)
    alike = compare_answers((plain, name), (after, name), samples.batches(size), what=what)
    return {**figures, "unoptimised_agreement": alike.agreement, "unoptimised_snr_db": alike.snr_db}


def _of_held_out(held_out: HeldOut | None) -> Iterator[str]:
    if held_out is not None and held_out.targets is None:
        yield (
            "the drop on held-out samples is disagreement with the float model: the pictures' classes are not known to"
            " be the model's"
        )


def _doubts(parent: Artifact, child: Artifact, figures: Mapping[str, Any], choice: Choice) -> Iterator[str]:
    """What a reader has to know of the quantized file."""
    float_bytes = stored_bytes(parent.path)
    if child.file_bytes >= float_bytes and not choice.kept_float:
        yield (
            f"the quantized file is not smaller: {byte_text(child.file_bytes)}, the float file has"
            f" {byte_text(float_bytes)}; scales and nodes outweigh what the weights save"
        )
    if figures["unoptimised_agreement"] < _SAME_ANSWERS:
        near = figures["unoptimised_snr_db"] >= _ROUNDING_DB
        yield (
            f"with and without ONNX Runtime's optimisations only {percent_text(figures['unoptimised_agreement'])} of"
            " the samples have the same top-1; "
            + ("its answers lie so close together that rounding decides" if near else _WRONG_KERNELS)
        )
    if child.opset != parent.opset:
        yield f"the operator set was raised from {parent.opset} to {child.opset}, which quantization needs"
