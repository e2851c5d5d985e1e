"""Calibration samples: real inputs that a static recipe measures its ranges on, checked whenever they are read.

They are decoded and preprocessed batch by batch, so that their number costs time but no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact, Preprocess, TensorSpec
from deploykit.data.dataset import Dataset
from deploykit.errors import DataError, InputError
from deploykit.figures import amount_text
from deploykit.input_doubts import Extent, other_layout
from deploykit.preprocess import preprocess_for
from deploykit.sample_rows import PictureRows, Rows, rows_of

__all__ = ["FEWEST_SAMPLES", "Calibration", "calibration_from_arrays", "calibration_from_dataset"]

FEWEST_SAMPLES = 32
"""Below this number of samples the ranges of activations are unreliable, and a warning says so."""

_LOOKED_AT = 32  # samples that are compared with the model's preprocessing before the others are read


@dataclass(frozen=True)
class Calibration:
    """Preprocessed inputs for one model; ``len()`` is their number.

    Attributes:
        rows: Gives them, as often as it is asked.
        count: Their number.
        name: Where they come from.
        digest: Identity of the samples, None for arrays.
        taken: The model's input, which they have to fit.
        model: The model's file, for messages.
        warnings: What makes the ranges doubtful.
        preprocess: How the pictures were prepared, None for arrays.
    """

    rows: Rows
    count: int
    name: str
    digest: str | None
    taken: TensorSpec
    model: str
    warnings: tuple[str, ...] = ()
    preprocess: Preprocess | None = None

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """All samples (n, …), ``size`` at a time, the last batch shorter; read, prepared and checked anew each time.

        Args:
            size: Samples a batch at most.
            part: Only these, beginning at a multiple of ``size``.

        Raises:
            InputError: Shape or type do not fit the model.
            DataError: NaN or infinite values, a damaged picture, or more or fewer samples than before.
        """
        seen, wanted = 0, self.count if part is None else len(part)
        for batch in self.rows.batches(size, part):
            _check(batch, self.taken, self.model, self.name)
            seen += len(batch)
            yield batch
        if seen != wanted:
            raise DataError(f"{self.name} gave {seen} calibration samples after {wanted}; they must stay the same")


def calibration_from_dataset(
    artifact: Artifact, data: Dataset, *, samples: int = 256, seed: int = 0, preprocess: Preprocess | str | None = None
) -> Calibration:
    """A class-balanced selection of a dataset, by the model's own preprocessing.

    The first pictures are read at once, the others when they are used.

    Raises:
        DataError: A damaged picture.
        InputError: The model's preprocessing is unknown, or the result does not fit its input.
    """
    if samples < 1:
        raise InputError(f"{samples} calibration samples; allowed: 1 or more")
    taken = _only_input(artifact)
    chosen = data.take(samples, seed=seed)
    wanted = preprocess_for(artifact, preprocess)
    rows = PictureRows(chosen, wanted)
    name = f"{data.name}/{data.split}"
    first = next(rows.batches(_LOOKED_AT))
    _check(first, taken, str(artifact.path), name)
    warnings = [*data.notes, *_missing_classes(chosen), *_doubts(first, artifact), *_too_few(len(chosen))]
    return Calibration(
        rows, len(chosen), name, chosen.digest, taken, str(artifact.path), tuple(warnings), preprocess=wanted
    )


def calibration_from_arrays(
    artifact: Artifact, batches: Iterable[NDArray[Any]], *, name: str = "arrays"
) -> Calibration:
    """Batches (n, …) of inputs that are preprocessed already.

    Args:
        artifact: The model that is to be fed.
        batches: A list, or anything that can be iterated again, is read whenever samples are needed; a generator is
            written to a temporary file.
        name: What to call the samples in messages.

    Raises:
        InputError: Shape or type do not fit the model.
        DataError: No samples, or NaN or infinite values.
    """
    taken, rows = _only_input(artifact), rows_of(batches)
    count, warnings = 0, list[str]()
    for batch in rows.batches(_LOOKED_AT):
        _check(batch, taken, str(artifact.path), name)
        warnings += _doubts(batch, artifact) if not count else ()
        count += len(batch)
    if not count:
        raise DataError("no calibration samples; best are 128 or more")
    return Calibration(rows, count, name, None, taken, str(artifact.path), (*warnings, *_too_few(count)))


def _only_input(artifact: Artifact) -> TensorSpec:
    if len(artifact.inputs) != 1:
        raise InputError(
            f"{artifact.path} has {len(artifact.inputs)} inputs; quantization feeds models with exactly one"
        )
    return artifact.inputs[0]


def _check(batch: NDArray[Any], taken: TensorSpec, model: str, name: str) -> None:
    shape, file = taken.shape, Path(model).name
    if shape is not None and not _fits(batch.shape[1:], shape[1:]):
        raise InputError(
            f"calibration samples have shape {batch.shape[1:]}; {file} takes {tuple(shape[1:])}"
            f"{_turned(batch.shape[1:], shape[1:])}"
        )
    if batch.dtype != np.dtype(taken.dtype):
        raise InputError(f"calibration samples are {batch.dtype}; {file} takes {taken.dtype}")
    if batch.dtype.kind == "f" and not np.isfinite(batch).all():
        raise DataError(f"calibration samples of {name} hold NaN or infinite values; all must be finite")


def _fits(received: tuple[int, ...], expected: tuple[int | str | None, ...]) -> bool:
    return len(received) == len(expected) and all(
        size == got for size, got in zip(expected, received, strict=True) if isinstance(size, int)
    )


def _turned(received: tuple[int, ...], expected: tuple[int | str | None, ...]) -> str:
    """A hint, where the samples would fit with their channels at the other end."""
    if len(received) == 3 and _fits((received[2], *received[:2]), expected):
        return "; they are NHWC, transpose them to NCHW"
    if len(received) == 3 and _fits((*received[1:], received[0]), expected):
        return "; they are NCHW, transpose them to NHWC"
    return ""


def _missing_classes(chosen: Dataset) -> Iterator[str]:
    missing = sorted(set(range(len(chosen.labels))) - set(chosen.targets.tolist()))
    if missing:
        some = ", ".join(chosen.labels[index] for index in missing[:5])
        yield f"{len(missing)} of {len(chosen.labels)} classes have no calibration sample: {some}"


def _doubts(first: NDArray[Any], artifact: Artifact) -> Iterator[str]:
    pre = artifact.preprocess
    if pre is None or not first.size:
        return
    yield from Extent.of(first).doubts(pre)
    if doubt := other_layout(first, pre):
        yield doubt


def _too_few(count: int) -> Iterator[str]:
    if count < FEWEST_SAMPLES:
        yield f"only {amount_text(count, 'calibration sample')}; {FEWEST_SAMPLES} or more give reliable ranges"
