"""Quantization: one recipe makes one smaller file, which is compared with the float model before it is kept."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.answers import compare_answers
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.calibrate import Calibration, calibration_from_arrays, calibration_from_dataset
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, ModelFileError, UnknownNameError
from deploykit.figures import byte_text, percent_text
from deploykit.files import atomic_path, check_writable
from deploykit.graph.precision import QUANTIZED_OPERATORS
from deploykit.graph.weights import check_weights, stored_bytes
from deploykit.progress import Progress, silent
from deploykit.results import Quantization
from deploykit.runtime import create_session, filled
from deploykit.runtime_errors import mapped, one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["RECIPES", "QuantizeOptions", "Recipe", "quantize_onnx"]

_OLDEST_OPSET = 13  # the first whose DequantizeLinear takes one scale a channel
_OLDEST_IR = 4  # below, every weight has to be an input of the graph, and the new scales are none
_MOST_BYTES = 2**31  # of one protobuf message
_SEEDS = 2**32
_SAME_ANSWERS = 0.99  # of the samples, with and without the runtime's optimisations
_OWN_KEYS = ("onnx.infer", "onnx.quant.pre_process")  # what ONNX Runtime's quantizer writes of itself


@dataclass(frozen=True)
class Recipe:
    """How a recipe rounds: the arguments of ONNX Runtime's static quantizer that decide it."""

    name: str
    summary: str
    activation: str
    weight: str
    per_channel: bool
    reduce_range: bool


RECIPES = {
    "int8": Recipe(
        "int8",
        "static QDQ, uint8 activations, 7-bit per-channel weights: the same answers on every CPU",
        activation="QUInt8",
        weight="QInt8",
        per_channel=True,
        # Without VNNI, x86 adds two products of u8 × s8 in 16 bits and saturates (VPMADDUBSW); weights of 7 bits
        # cannot: 2 · 255 · 64 < 2¹⁵. docs/decisions.md has the figures.
        reduce_range=True,
    ),
}


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, validated.

    Attributes:
        recipe: Name in ``RECIPES``.
        samples: Calibration samples taken from a dataset, balanced over its classes.
        seed: Fixes which ones; from 0 to 2³² − 1.
        batch_size: Samples a calibration call, unless the model fixes it.
    """

    recipe: str = "int8"
    samples: int = 256
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UnknownNameError("recipe", self.recipe, RECIPES)
        if self.samples < 1:
            raise InputError(f"{self.samples} calibration samples; allowed: 1 or more")
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}; allowed: 1 or more")
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_SEEDS - 1}")


def quantize_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calibration: Dataset | Iterable[NDArray[Any]],
    recipe: str | None = None,
    preprocess: Preprocess | str | None = None,
    options: QuantizeOptions | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Quantization:
    """Quantizes a float model; the input file is never changed.

    Args:
        model: A float ``.onnx`` with one input.
        output: The ``.onnx`` to write.
        calibration: Real pictures, preprocessed as the model says; or batches (n, …) of inputs ready to be fed.
        recipe: Short for ``options.recipe``.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        options: Recipe, number of samples, seed.
        overwrite: Replace an existing file.
        progress: Called after each calibration batch.

    Returns:
        The record: sizes, and the difference from the float model on the calibration samples.

    Raises:
        ModelFileError: The model is unreadable, holds NaN weights, or has nothing to quantize.
        InputError: The model is quantized already, or the samples do not fit it.
        DataError: No samples, or damaged ones.
        OutputError: ``output`` exists or cannot be written.
    """
    options, start, target = options or QuantizeOptions(), time.perf_counter(), Path(output)
    options = replace(options, recipe=recipe) if recipe else options
    chosen = RECIPES[options.recipe]
    if target.resolve() == Path(model).resolve():
        raise InputError(f"{target} is the model itself, which is never changed; give another output path")
    check_writable(target, overwrite=overwrite)
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    _check_quantizable(source, parent)
    samples = _samples(parent, calibration, options, preprocess)
    quantized = _quantize(source, parent, samples, chosen, options, progress)
    child = replace(parent, version=__version__, precision="int8", recipe=chosen.name, parity=None)
    replace(child, parent_sha256=parent.sha256, preprocess=samples.preprocess or parent.preprocess).stamp(quantized)
    with atomic_path(target, overwrite=overwrite) as aside:
        aside.write_bytes(quantized.SerializeToString(deterministic=True))
        made = replace(Artifact.read(aside), path=target)  # checked before it is moved into place
        figures = _compared(parent, aside, samples)
    warnings = _doubts(parent, made, figures)
    return _record(parent, made, replace(samples, warnings=(*samples.warnings, *warnings)), figures, start)


def _samples(
    parent: Artifact,
    calibration: Dataset | Iterable[NDArray[Any]],
    options: QuantizeOptions,
    preprocess: Preprocess | str | None,
) -> Calibration:
    if not isinstance(calibration, Dataset):
        return calibration_from_arrays(parent, calibration)
    return calibration_from_dataset(
        parent, calibration, samples=options.samples, seed=options.seed, preprocess=preprocess
    )


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
        calibration=samples.name,
        calibration_digest=samples.digest,
        calibration_samples=len(samples),
        file_bytes=child.file_bytes,
        parent_bytes=stored_bytes(parent.path),
        compared_samples=len(samples),
        seconds=round(time.perf_counter() - start, 3),
        warnings=samples.warnings,
        **figures,
    )


def _check_quantizable(model: onnx.ModelProto, parent: Artifact) -> None:
    operators = {node.op_type for node in model.graph.node}
    if found := sorted(operators & QUANTIZED_OPERATORS):
        raise InputError(f"{parent.path} is quantized already (it has {', '.join(found)}); give the float model")
    # Weights that are Constant nodes count too: ONNX Runtime's pre-processing makes initializers of them.
    if not any(constant.is_float for constant in check_weights(model, parent.path).stored.values()):
        raise ModelFileError(f"{parent.path} has no float weights; there is nothing to quantize")
    if model.ByteSize() >= _MOST_BYTES:
        raise ModelFileError(f"{parent.path} has {byte_text(model.ByteSize())} with its weights; allowed: below 2 GiB")
    if parent.inputs and parent.inputs[0].dtype != "float32":
        raise InputError(f"{parent.path} takes {parent.inputs[0].dtype}; the recipes quantize float32 models")


class _Reader:
    """ONNX Runtime's calibration reader: one batch after another, with progress."""

    def __init__(self, name: str, samples: Calibration, size: int, progress: Progress) -> None:
        self._feeds = self._read(name, samples, size, progress)

    @staticmethod
    def _read(name: str, samples: Calibration, size: int, progress: Progress) -> Iterator[dict[str, NDArray[Any]]]:
        done, total = 0, len(samples)
        for batch in samples.batches(size):
            done += len(batch)
            progress("calibrate", done, total)
            # A model with a fixed batch gets its last one filled up with copies, which widen no range.
            yield {name: filled(batch, size)}

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _quantize(
    model: onnx.ModelProto,
    parent: Artifact,
    samples: Calibration,
    recipe: Recipe,
    options: QuantizeOptions,
    progress: Progress,
) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    CalibrationDataReader.register(_Reader)  # an abstract base class that our reader need not inherit at import
    shape = parent.inputs[0].shape
    size = shape[0] if shape and isinstance(shape[0], int) else min(options.batch_size, len(samples))
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder, _quiet(), _one_line(parent.path):
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "made.onnx"
        # Given as a path: a model in memory would have its weights moved into a file that is gone afterwards.
        quant_pre_process(str(_one_file(model, parent, Path(folder))), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            _Reader(parent.inputs[0].name, samples, size, progress),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType[recipe.activation],
            weight_type=QuantType[recipe.weight],
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
        )
        quantized: onnx.ModelProto = onnx.load(made)
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise ModelFileError(f"{parent.path} has no operator that {recipe.name} can quantize")
    _restore_frame(quantized, model)
    return quantized


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizer advises through the root logger and stderr; our records say what matters."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # fatal, as ``runtime`` has it
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What ONNX and ONNX Runtime raise at models that they did not foresee, as ModelFileError."""
    import onnx

    foreseen = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, onnx.version_converter.ConvertError)
    unforeseen = (AssertionError, AttributeError, LookupError, TypeError)
    try:
        with mapped(f"cannot quantize {path}", "cpu", ""):
            yield
    except (*foreseen, *unforeseen) as problem:
        reason = one_line(problem) or type(problem).__name__
        raise ModelFileError(f"cannot quantize {path}: {reason}") from problem


def _one_file(model: onnx.ModelProto, parent: Artifact, folder: Path) -> Path:
    """A copy in ``folder`` as ONNX Runtime's pre-processing needs it.

    Its weights lie in it, none of them is an input of the graph, and its operator set is new enough for one scale a
    channel.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model if parent.opset >= _OLDEST_OPSET else _raised(model, parent))
    copy.ir_version = max(copy.ir_version, _OLDEST_IR)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in [value for value in copy.graph.input if value.name in weights]:
        copy.graph.input.remove(value)
    onnx.save(copy, path := folder / "one-file.onnx")
    return path


def _raised(model: onnx.ModelProto, parent: Artifact) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.version_converter.convert_version(model, _OLDEST_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as problem:
        raise ModelFileError(
            f"{parent.path} has opset {parent.opset}, which ONNX cannot raise to the {_OLDEST_OPSET} that quantization"
            f" needs ({one_line(problem)}); export it with opset {_OLDEST_OPSET} or later"
        ) from problem


def _restore_frame(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Keeps other tools' metadata of the float model, and drops value infos, which only add bytes."""
    own = {entry.key: entry.value for entry in quantized.metadata_props if entry.key in _OWN_KEYS}
    quantized.ir_version = max(quantized.ir_version, _OLDEST_IR)
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    for key, value in ({entry.key: entry.value for entry in model.metadata_props} | own).items():
        quantized.metadata_props.add(key=key, value=value)


def _compared(parent: Artifact, candidate: Path, samples: Calibration) -> dict[str, Any]:
    """The record's figures: the first output against the float model's, and against itself without optimisations."""
    what, name = "calibration samples", f"the quantized {parent.path.name}"
    before, after = create_session(parent.path), create_session(candidate)
    size = before.fixed_batch or 64
    figures = asdict(compare_answers((before, parent.path), (after, name), samples.batches(size), what=what))
    plain = create_session(candidate, optimize=False)
    alike = compare_answers((plain, name), (after, name), samples.batches(size), what=what)
    return {**figures, "unoptimised_agreement": alike.agreement}


def _doubts(parent: Artifact, child: Artifact, figures: dict[str, Any]) -> Iterator[str]:
    """What a reader has to know of the quantized file."""
    float_bytes = stored_bytes(parent.path)
    if child.file_bytes >= float_bytes:
        yield (
            f"the quantized file is not smaller: {byte_text(child.file_bytes)}, the float file has"
            f" {byte_text(float_bytes)}; scales and nodes outweigh what the weights save"
        )
    if figures["unoptimised_agreement"] < _SAME_ANSWERS:
        yield (
            f"with and without ONNX Runtime's optimisations only {percent_text(figures['unoptimised_agreement'])} of"
            " the samples have the same top-1; its integer kernels may be wrong on this processor"
        )
    if parent.opset < _OLDEST_OPSET:
        yield f"the operator set was raised from {parent.opset} to {child.opset}, which quantization needs"
