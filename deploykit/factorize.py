"""Low rank as a stage: an ONNX file's large fully connected layers become pairs of thin ones, with a record."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.compressions import Compression
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, ModelFileError
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.figures import byte_text
from deploykit.files import atomic_path, check_writable, deflated_size
from deploykit.graph.low_rank import LowRank, check_rank, low_rank
from deploykit.graph.weights import check_weights, external_files, stored_bytes
from deploykit.progress import Progress, silent
from deploykit.runtime import create_session

if TYPE_CHECKING:
    import onnx

__all__ = ["FactorizeOptions", "factorize_onnx"]

_MOST_BYTES = 2**31  # of one protobuf message


@dataclass(frozen=True)
class FactorizeOptions:
    """How thin, validated.

    Attributes:
        rank: The rank of every large matrix; or, below 1, the share of its squared singular values that is kept.
        threads: Of the runtime that measures the accuracy.
    """

    rank: float = 0.95
    threads: int | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)


def factorize_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    options: FactorizeOptions | None = None,
    data: Dataset | None = None,
    preprocess: Preprocess | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Compression:
    """Factorises the large constant matrices of a float model; the input file is never changed.

    Args:
        model: A float ``.onnx``; ``graph.low_rank`` says which of its matrices are replaced.
        output: The ``.onnx`` to write.
        options: The rank.
        data: Pictures on which both models are measured; accuracies are None without.
        preprocess: For foreign models: a ``Preprocess`` or the name of a preset.
        overwrite: Replace an existing file.
        progress: Called after each batch of pictures.

    Returns:
        The record: shape, rank, energy, error and multiply-accumulates of each layer, sizes, and accuracies.

    Raises:
        ModelFileError: The model is unreadable, holds NaN weights, or stays too large for one file.
        InputError: It is quantized, has no matrix that becomes smaller, or the pictures do not fit it.
        OutputError: ``output`` exists or cannot be written.
    """
    options, start, target = options or FactorizeOptions(), time.perf_counter(), Path(output)
    if target.resolve() == Path(model).resolve():
        raise InputError(f"{target} is the model itself, which is never changed; give another output path")
    check_writable(target, overwrite=overwrite)
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    check_weights(source, parent.path)
    made = _rewritten(source, parent, options)
    del source  # half a gigabyte, for VGG-16
    child = replace(parent, version=__version__, parity=None, graph_parity=None, parent_sha256=parent.sha256)
    child.stamp(made.model)
    with atomic_path(target, overwrite=overwrite) as aside:
        aside.write_bytes(made.model.SerializeToString(deterministic=True))
        written = Artifact.read(aside)
        create_session(aside)  # checked before it is moved into place
        figures = _measured(parent, aside, data, preprocess, options, progress) if data is not None else {}
    return _record(parent, replace(written, path=target), made, figures, start)


def _rewritten(source: onnx.ModelProto, parent: Artifact, options: FactorizeOptions) -> LowRank:
    try:
        made = low_rank(source, options.rank)
    except InputError as problem:
        raise InputError(f"{parent.path}: {problem}") from problem
    if made.model.ByteSize() >= _MOST_BYTES:
        raise ModelFileError(f"{parent.path} would still have {byte_text(made.model.ByteSize())}; allowed: below 2 GiB")
    return made


def _measured(
    parent: Artifact,
    made: Path,
    data: Dataset,
    preprocess: Preprocess | str | None,
    options: FactorizeOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Top-1 of both files, and how often they agree."""
    how: dict[str, Any] = {"preprocess": preprocess, "options": EvaluateOptions(threads=options.threads)}
    before = evaluate_onnx(parent.path, data, progress=progress, **how)
    after = evaluate_onnx(made, data, reference=parent.path, progress=progress, **how)
    return {
        "dataset": after.dataset,
        "samples": after.samples,
        "top1_before": before.top1,
        "top1": after.top1,
        "agreement": after.agreement,
    }


def _record(parent: Artifact, child: Artifact, made: LowRank, figures: dict[str, Any], start: float) -> Compression:
    return Compression(
        deploykit=__version__,
        environment=environment.describe(),
        model=child.path.name,
        model_sha256=child.sha256,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        method="low-rank",
        precision=child.precision or "fp32",
        file_bytes=child.file_bytes,
        parent_bytes=stored_bytes(parent.path),
        download_bytes=deflated_size(child.path),
        parent_download_bytes=sum(map(deflated_size, (parent.path, *external_files(parent.path)))),
        seconds=round(time.perf_counter() - start, 3),
        factored=made.layers,
        warnings=made.whole,
        **figures,
    )
