"""What a model answers, as finite numbers, and how near the answers of two models are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError
from deploykit.runtime import Session

__all__ = ["Difference", "compare_answers", "difference_of", "first_answers"]


def first_answers(
    session: Session, rows: NDArray[Any], model: str | os.PathLike[str], *, what: str
) -> NDArray[np.float64]:
    """The first output for preprocessed inputs (N, …), as it is but in float64.

    Args:
        session: Of the model.
        rows: (N, …) as the model takes them.
        model: The file, for messages.
        what: What the rows are, for messages, such as "real pictures".

    Raises:
        InputError: Not one row of numbers a sample, NaN or infinite values, or rows that the model does not take.
        ModelFileError: An operator fails while it runs.
    """
    problem: Exception | None = None
    answers = np.empty(0, object)
    try:
        answers = np.asarray(session.run_rows(rows))
    except (IndexError, TypeError, ValueError) as caught:  # no rows at all, sequences, maps, rows of several sizes
        problem = caught
    if problem or answers.dtype.kind not in "fiub" or answers.ndim < 1 or len(answers) != len(rows):
        received = "something else" if problem else f"{answers.dtype} of shape {answers.shape}"
        raise InputError(
            f"{model} answers {received} for {len(rows)} {what}; expected numbers of shape (N, …)"
        ) from problem
    values = answers.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{model} answers NaN or infinite values on {what}; all must be finite")
    return values


@dataclass(frozen=True)
class Difference:
    """How far the answers of one model are from those of another.

    Attributes:
        agreement: Fraction of the samples with the same top-1.
        max_abs: Largest absolute difference.
        snr_db: Signal-to-noise ratio in decibels; None where the answers are equal.
    """

    agreement: float
    max_abs: float
    snr_db: float | None


def compare_answers(
    wanted: tuple[Session, str | os.PathLike[str]],
    got: tuple[Session, str | os.PathLike[str]],
    batches: Iterable[NDArray[Any]],
    *,
    what: str,
) -> Difference:
    """The first outputs of two models, given with their files' names, over batches (n, …). Raises: InputError."""
    agreeing, rows, signal, noise, largest = 0, 0, 0.0, 0.0, 0.0
    for batch in batches:
        right, other = (
            first_answers(session, batch, name, what=what).reshape(len(batch), -1) for session, name in (wanted, got)
        )
        if right.shape != other.shape or not right.size:
            raise InputError(
                f"{got[1]} answers {other.shape} where {wanted[1]} answers {right.shape}; both must be alike"
            )
        agreeing, rows = agreeing + int((right.argmax(1) == other.argmax(1)).sum()), rows + len(batch)
        signal, noise = signal + float((right**2).sum()), noise + float(((right - other) ** 2).sum())
        largest = max(largest, float(np.abs(right - other).max()))
    snr = 10.0 * math.log10(signal / noise) if noise > 0.0 and signal > 0.0 else None
    return Difference(agreeing / rows, largest, snr)


def difference_of(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> Difference:
    """The same for answers (N, …) that are at hand."""
    right, other = wanted.reshape(len(wanted), -1), got.reshape(len(got), -1)
    signal, noise = float((right**2).sum()), float(((right - other) ** 2).sum())
    return Difference(
        agreement=float((right.argmax(1) == other.argmax(1)).mean()),
        max_abs=float(np.abs(right - other).max()),
        snr_db=10.0 * math.log10(signal / noise) if noise > 0.0 and signal > 0.0 else None,
    )
