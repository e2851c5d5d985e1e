"""Calibration samples: real inputs that a static recipe measures its ranges on, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Artifact, Preprocess
from deploykit.data.dataset import Dataset
from deploykit.errors import DataError, InputError
from deploykit.preprocess import apply, preprocess_for

__all__ = ["FEWEST_SAMPLES", "Calibration", "calibration_from_arrays", "calibration_from_dataset"]

FEWEST_SAMPLES = 32
"""Below this number of samples the ranges of activations are unreliable, and a warning says so."""


@dataclass(frozen=True)
class Calibration:
    """Preprocessed inputs for one model.

    Attributes:
        inputs: (N, …) as the model takes them.
        name: Where they come from.
        digest: Identity of the samples, None for arrays.
        warnings: What makes the ranges doubtful.
        preprocess: How the pictures were prepared, None for arrays.
    """

    inputs: NDArray[Any]
    name: str
    digest: str | None
    warnings: tuple[str, ...] = ()
    preprocess: Preprocess | None = None

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """Slices of ``size`` samples, the last one shorter."""
        for start in range(0, len(self.inputs), size):
            yield self.inputs[start : start + size]


def calibration_from_dataset(
    artifact: Artifact, data: Dataset, *, samples: int = 256, seed: int = 0, preprocess: Preprocess | str | None = None
) -> Calibration:
    """A class-balanced selection of a dataset, by the model's own preprocessing.

    Raises:
        DataError: A damaged picture.
        InputError: The model's preprocessing is unknown, or the result does not fit its input.
    """
    if samples < 1:
        raise InputError(f"{samples} calibration samples; allowed: 1 or more")
    chosen = data.take(samples, seed=seed)
    wanted = preprocess_for(artifact, preprocess)
    inputs = np.concatenate([apply(wanted, pictures) for pictures, _ in chosen.batches(64)])
    missing = sorted(set(range(len(data.labels))) - set(chosen.targets.tolist()))
    warnings = list(data.notes)
    if missing:
        some = ", ".join(data.labels[index] for index in missing[:5])
        warnings.append(f"{len(missing)} of {len(data.labels)} classes have no calibration sample: {some}")
    checked = _checked(artifact, inputs, f"{data.name}/{data.split}", chosen.digest, warnings)
    return replace(checked, preprocess=wanted)


def calibration_from_arrays(
    artifact: Artifact, batches: Iterable[NDArray[Any]], *, name: str = "arrays"
) -> Calibration:
    """Batches (n, …) of inputs that are preprocessed already. Raises: InputError, DataError for none."""
    arrays = [np.asarray(batch) for batch in batches]
    if not arrays or not sum(len(array) for array in arrays):
        raise DataError("no calibration samples; best are 128 or more")
    return _checked(artifact, np.concatenate(arrays), name, None, [])


def _checked(
    artifact: Artifact, inputs: NDArray[Any], name: str, digest: str | None, warnings: list[str]
) -> Calibration:
    if len(artifact.inputs) != 1:
        raise InputError(
            f"{artifact.path} has {len(artifact.inputs)} inputs; quantization feeds models with exactly one"
        )
    shape, expected = artifact.inputs[0].shape, artifact.inputs[0].dtype
    if shape is not None and not _fits(inputs.shape[1:], shape[1:]):
        raise InputError(
            f"calibration samples have shape {inputs.shape[1:]}; {Path(artifact.path).name} takes {tuple(shape[1:])}"
        )
    if inputs.dtype != np.dtype(expected):
        raise InputError(f"calibration samples are {inputs.dtype}; {Path(artifact.path).name} takes {expected}")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError(f"calibration samples of {name} hold NaN or infinite values; all must be finite")
    if len(inputs) < FEWEST_SAMPLES:
        warnings = [*warnings, f"only {len(inputs)} calibration samples; {FEWEST_SAMPLES} or more give reliable ranges"]
    return Calibration(inputs, name, digest, tuple(warnings))


def _fits(received: tuple[int, ...], expected: tuple[int | str | None, ...]) -> bool:
    return len(received) == len(expected) and all(
        size == got for size, got in zip(expected, received, strict=True) if isinstance(size, int)
    )
