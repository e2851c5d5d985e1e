"""Export: a PyTorch module becomes an ONNX file with a dynamic batch axis, and only if both compute the same.

The file is written with opset 20 and IR 10, which ONNX Runtime reads since 1.18: the current and the two previous
minor versions do (``benchmarks/runtime_versions.py``).
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__
from deploykit.artifact import Artifact, ModelCard, check_model
from deploykit.checkpoint import check_finite
from deploykit.errors import InputError, ParityError
from deploykit.extras import require
from deploykit.files import atomic_folder, check_writable, destination
from deploykit.onnx_writer import append_metadata, write_model
from deploykit.runtime import create_session

if TYPE_CHECKING:
    import onnx_ir
    import torch

__all__ = ["ExportOptions", "export_onnx"]

_OPSETS = range(18, 24)


@dataclass(frozen=True)
class ExportOptions:
    """How to export, validated.

    Attributes:
        opset: ONNX operator set, 18 to 23.
        atol: Absolute tolerance of an output whose values reach 1; of smaller ones in proportion to their largest.
        rtol: Relative tolerance: ``|onnx - torch| <= atol + rtol * |torch|`` must hold for every output value.
        batch_sizes: Batch sizes at which both are compared; only one of them (2) is traced.
    """

    opset: int = 20
    atol: float = 1e-4
    rtol: float = 1e-4
    batch_sizes: tuple[int, ...] = (1, 2, 7)

    def __post_init__(self) -> None:
        if self.opset not in _OPSETS:
            raise InputError(f"opset {self.opset}; allowed: {_OPSETS.start} to {_OPSETS.stop - 1}")
        if not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in (self.atol, self.rtol)):
            raise InputError(f"tolerances {self.atol} and {self.rtol}; allowed: finite numbers of 0 or more")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"batch sizes {self.batch_sizes}; allowed: one or more, each at least 1")


def export_onnx(
    module: torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    example: torch.Tensor | NDArray[Any],
    card: ModelCard | None = None,
    options: ExportOptions | None = None,
    pictures: str = "example",
    overwrite: bool = False,
) -> Artifact:
    """Exports ``module`` and checks it against PyTorch before anything is written.

    Args:
        module: Takes one tensor whose first axis is the batch; its mode and weights are left as they are.
        output: The ``.onnx`` to write; weights above 2 GiB go to ``output + ".data"``.
        example: Real inputs (N, …), best ten or more: parity is measured on them.
        card: Preprocessing, labels and lineage to write into the file.
        options: Opset, tolerances and batch sizes.
        pictures: Where the example comes from, for the record.
        overwrite: Replace an existing file.

    Returns:
        The artifact of the written file, with ``parity``.

    Raises:
        ParityError: The outputs differ beyond the tolerance, or the batch axis became a constant; nothing is written.
        InputError: The module has NaN weights, fails on the example, gives NaN, or cannot be exported.
        OutputError: ``output`` exists or cannot be written.
    """
    torch = require("torch", extra="torch", purpose="exporting a module")
    require("onnxscript", extra="torch", purpose="exporting a module")
    options, card, target = options or ExportOptions(), card or ModelCard(task=None), destination(output)
    check_writable(target, overwrite=overwrite)
    inputs = torch.as_tensor(example).to(_device(module))
    check_finite(module.state_dict(), "the module", error=InputError)
    if inputs.ndim < 2 or not len(inputs):
        raise InputError(f"example of shape {tuple(inputs.shape)}; expected a batch (N, …) of one or more inputs")
    batches = _batches(inputs, options.batch_sizes)
    with _in_evaluation(module):
        expected = [_forward(module, batch) for batch in batches]
        _check_labels(card.labels, expected[0][0])
        model = _trace(module, _rows(inputs, 0, 2), options, outputs=len(expected[0]))
    _assert_dynamic_batch(model)
    with atomic_folder(target, overwrite=overwrite) as folder:
        trial = folder / target.name
        bare = write_model(model, trial)
        del model  # it may hold copies of weights
        parity = _parity(expected, _answers(trial, batches), options)
        card.artifact(version=__version__, precision="fp32", parity=parity | {"pictures": pictures}).stamp(bare)
        append_metadata(trial, bare)
        check_model(bare, trial)  # what is moved into place has been read back
        artifact = Artifact.of_model(bare, trial)
    return replace(artifact, path=target)


def _check_labels(labels: Sequence[str], logits: NDArray[Any]) -> None:
    if labels and logits.ndim == 2 and logits.shape[1] != len(labels):
        raise InputError(f"{len(labels)} labels for a module with {logits.shape[1]} classes; expected one for each")


def _device(module: torch.nn.Module) -> torch.device:
    import torch

    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextmanager
def _in_evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the block, every submodule's own mode afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def _rows(inputs: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """``count`` rows from ``start`` on; beyond the last, rolled copies, so that no two are equal."""
    import torch

    total = len(inputs)
    return torch.stack([inputs[i % total].roll(i // total, -1) for i in range(start, start + count)])


def _batches(inputs: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [_rows(inputs, start, size) for start, size in zip(starts, sizes, strict=True)]


def _forward(module: torch.nn.Module, batch: torch.Tensor) -> list[NDArray[Any]]:
    import torch

    try:
        with torch.inference_mode(), redirect_stdout(sys.stderr):  # what the module prints is not our answer
            made = module(batch)
    except Exception as problem:  # the user's own code may raise anything; it must not look like a bug of ours
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise InputError(f"the module fails on an input of shape {tuple(batch.shape)}: {reason}") from problem
    several = made.values() if isinstance(made, dict) else made if isinstance(made, (tuple, list)) else ()
    outputs = [made] if torch.is_tensor(made) else list(several)
    if not outputs or not all(torch.is_tensor(item) for item in outputs):
        raise InputError(
            f"the module returns {type(made).__name__}; expected one tensor, or a tuple or dict of tensors"
        )
    if not all(torch.isfinite(item).all() for item in outputs if item.is_floating_point()):
        raise InputError("the module gives NaN or infinite outputs on real pictures; its weights cannot be exported")
    return [item.cpu().numpy() for item in outputs]


def _answers(path: Path, batches: Sequence[torch.Tensor]) -> list[list[NDArray[Any]]]:
    """What ONNX Runtime computes; the session and its copy of the weights are gone afterwards."""
    session = create_session(path)
    return [session.run(batch.cpu().numpy()) for batch in batches]


def _trace(module: torch.nn.Module, batch: torch.Tensor, options: ExportOptions, *, outputs: int) -> onnx_ir.Model:
    """Runs torch's exporter with a batch of 2, since a batch of 1 can become a constant (pytorch #148886)."""
    import torch

    names = ["logits"] if outputs == 1 else [f"output_{index}" for index in range(outputs)]
    try:
        with _quiet_exporter(), torch.no_grad():  # a fifth faster
            program = torch.onnx.export(
                module,
                (batch,),
                dynamo=True,
                opset_version=options.opset,
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as problem:
        raise InputError(f"torch.onnx cannot export this module: {_first_cause(problem)}") from problem
    if program is None:
        raise InputError("torch.onnx returned no program for this module")
    _strip(program.model)
    return program.model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of its own deprecations, of packages that the module does not use, and dumps its graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_cause(problem: BaseException) -> str:
    """The exporter wraps what went wrong in pages of advice; the innermost cause says it in a line."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else 'no reason given'}"


def _strip(model: onnx_ir.Model) -> None:
    """Drops the exporter's notes to itself (a kilobyte of stack trace a node) and what it infers of inner values."""
    graph = model.graph
    graph.name = "deploykit"
    inner = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    for value in inner:
        value.type, value.shape = None, None
    everything = (model, graph, *graph, *inner, *graph.inputs, *graph.outputs, *graph.initializers.values())
    for item in everything:
        item.metadata_props.clear()
        item.doc_string = None


def _assert_dynamic_batch(model: onnx_ir.Model) -> None:
    batch = (model.graph.inputs[0].shape or (None,))[0]
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = list(value.shape or ())
        if not shape or isinstance(shape[0], int) or shape[0] != batch:
            raise ParityError(
                f"the batch axis of {value.name!r} is not the input's: shape {[str(axis) for axis in shape]}; the first"
                " axis of every input and output must be the free batch (look for .view or .reshape with a fixed first"
                " size)"
            )


def _parity(
    expected: Sequence[Sequence[NDArray[Any]]], received: Sequence[Sequence[NDArray[Any]]], options: ExportOptions
) -> dict[str, Any]:
    """Compares all outputs at all batch sizes. Raises ParityError; returns the ``deploykit.parity`` value."""
    max_abs, max_rel, same, samples = 0.0, 0.0, 0, 0
    for torch_outputs, onnx_outputs in zip(expected, received, strict=True):
        batch = len(torch_outputs[0])
        if len(torch_outputs) != len(onnx_outputs):
            raise ParityError(f"PyTorch gives {len(torch_outputs)} outputs, ONNX {len(onnx_outputs)}")
        for index, (wanted, got) in enumerate(zip(torch_outputs, onnx_outputs, strict=True)):
            if wanted.shape != got.shape:
                raise ParityError(f"output {index} at batch {batch}: PyTorch gives {wanted.shape}, ONNX {got.shape}")
            difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
            atol = options.atol * _scale(wanted)
            limit = atol + options.rtol * np.abs(wanted.astype(np.float64))
            if not (difference <= limit).all():  # NaN fails too
                raise ParityError(
                    f"output {index} at batch {batch}: ONNX differs from PyTorch by {difference.max():.3g}, allowed"
                    f" {atol:.3g} + {options.rtol:g} × |value|; nothing was written"
                )
            max_abs = max(max_abs, float(difference.max(initial=0.0)))
            max_rel = max(max_rel, float((difference / np.maximum(np.abs(wanted), 1e-3)).max(initial=0.0)))
        agreeing, count = _top1_agreement(torch_outputs[0], onnx_outputs[0])
        same, samples = same + agreeing, samples + count
    return {
        "max_abs": max_abs,
        "max_rel": max_rel,
        "top1_agreement": same / samples,
        "samples": samples,
        "batch_sizes": list(options.batch_sizes),
    }


def _scale(wanted: NDArray[Any]) -> float:
    """What an absolute tolerance is multiplied by: fixed, it would let anything pass for outputs far below 1."""
    return min(1.0, float(np.abs(wanted).max(initial=0.0))) or 1.0  # all zeros have no scale


def _top1_agreement(wanted: NDArray[Any], got: NDArray[Any]) -> tuple[int, int]:
    """Number of rows with the same largest value, and of rows; raises ParityError unless a difference is a near tie."""
    flat, other = wanted.reshape(len(wanted), -1), got.reshape(len(got), -1)
    rows = np.arange(len(flat))
    first, second = flat.argmax(1), other.argmax(1)
    # Values within the tolerance of each other may swap places; _parity has bounded how far.
    tied = np.isclose(flat[rows, first], flat[rows, second], rtol=1e-3, atol=1e-3 * _scale(wanted))
    if not tied.all():
        raise ParityError(f"top-1 differs in {int((~tied).sum())} of {len(flat)} samples; nothing was written")
    return int((first == second).sum()), len(flat)
