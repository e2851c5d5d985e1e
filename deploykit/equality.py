"""Whether two ONNX models compute the same, by ONNX Runtime without its optimisations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError, ModelFileError, ParityError
from deploykit.figures import byte_text
from deploykit.runtime import Session, create_session, filled

if TYPE_CHECKING:
    import onnx

__all__ = ["TOLERANCE", "Equality", "check_equal"]

TOLERANCE = 1e-4
"""Largest difference of an output, over its largest value: twenty times what rewriting DenseNet-121 gives."""

_MOST_BYTES = 2**31  # of one protobuf message

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Equality:
    """How far apart two models were.

    Attributes:
        max_abs: Largest absolute difference over all outputs.
        max_rel: Largest absolute difference of an output, over its largest absolute value in the same run.
        samples: Rows that both were given.
    """

    max_abs: float
    max_rel: float
    samples: int


def check_equal(
    before: onnx.ModelProto | str | os.PathLike[str],
    after: onnx.ModelProto | str | os.PathLike[str],
    feeds: Iterable[Feed],
    *,
    tolerance: float = TOLERANCE,
) -> Equality:
    """Runs both on the same inputs, one model after the other, and compares all outputs.

    Args:
        before: A path, or a model in memory below 2 GiB. Where it fixes its batch and a feed has more rows, it is run
            several times.
        after: The same; its outputs have the names of ``before``'s.
        feeds: Arrays by input name, iterated twice.
        tolerance: Largest ``max_rel``.

    Raises:
        ParityError: An output differs by more, in shape, or in where it is NaN.
        ModelFileError: A model cannot be loaded, or fails while it runs.
        InputError: It does not take the feeds, or answers something else than tensors.
    """
    wanted = [_answers(session, feed) for session in (_opened(before),) for feed in feeds]
    session = _opened(after)
    max_abs, max_rel, samples = 0.0, 0.0, 0
    for feed, right in zip(feeds, wanted, strict=True):
        got = _answers(session, feed)
        if list(got) != list(right):
            raise ParityError(f"the model answers {', '.join(got)}; before it answered {', '.join(right)}")
        for name in right:
            largest, relative = _distance(name, right[name], got[name])
            if not relative <= tolerance:
                raise ParityError(
                    f"output {name!r} differs by {largest:.3g}, {relative:.3g} of its largest value; allowed"
                    f" {tolerance:g}"
                )
            max_abs, max_rel = max(max_abs, largest), max(max_rel, relative)
        samples += len(next(iter(feed.values())))
    return Equality(max_abs, max_rel, samples)


def _opened(model: onnx.ModelProto | str | os.PathLike[str]) -> Session:
    if isinstance(model, (str, os.PathLike)):
        return create_session(Path(model), optimize=False)
    if (size := model.ByteSize()) >= _MOST_BYTES:
        raise ModelFileError(f"the model has {byte_text(size)} in memory; allowed: below 2 GiB, or give its path")
    return create_session(model.SerializeToString(), optimize=False)


def _answers(session: Session, feed: Feed) -> dict[str, NDArray[Any]]:
    """All outputs by name; rows beyond a fixed batch are given in several runs, the last of them filled up."""
    rows, size = len(next(iter(feed.values()))), session.fixed_batch
    if not size or size == rows or any(len(array) != rows for array in feed.values()):
        outputs = session.run(feed)
    else:
        parts = [
            session.run({name: filled(array[start : start + size], size) for name, array in feed.items()})
            for start in range(0, rows, size)
        ]
        outputs = [np.concatenate(several) for several in zip(*parts, strict=True)]
    for spec, output in zip(session.outputs, outputs, strict=True):
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
            raise InputError(f"output {spec.name!r} is {spec.dtype}; only tensors of numbers can be compared")
    return {spec.name: output for spec, output in zip(session.outputs, outputs, strict=True)}


def _distance(name: str, wanted: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    """Largest absolute difference, and the same over the largest finite absolute value; infinite beside a NaN."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise ParityError(
            f"output {name!r} is {got.dtype} of shape {got.shape}; before it was {wanted.dtype} of shape {wanted.shape}"
        )
    right, other = wanted.astype(np.float64), got.astype(np.float64)
    same = (right == other) | (np.isnan(right) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(right - other))
    largest = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=0.0))
    return largest, largest / scale if scale else (np.inf if largest else 0.0)
