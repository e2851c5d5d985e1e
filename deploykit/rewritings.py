"""The record of a rewritten model: what was changed, and that it computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from deploykit.record import Record

__all__ = ["Rewriting"]


@dataclass(frozen=True, kw_only=True)
class Rewriting(Record):
    """What rewrites did to a model (``rewrite``); both were run by ONNX Runtime without its optimisations.

    Attributes:
        changes: Places that each rewrite changed, by its name; those that found nothing are 0.
        opset_before: Version of the standard operators, None where the model has none of them.
        tolerance: Largest ``max_rel`` that was allowed.
        random_samples: Rows of seeded random inputs that both models were given.
        max_abs: Largest absolute difference of an output on them.
        max_rel: Largest difference of an output on them, over its largest value.
        samples_name: Where the real inputs come from; None where none were given.
        real_samples: Rows of real inputs.
        real_max_abs: As ``max_abs``, on the real inputs.
        real_max_rel: As ``max_rel``, on the real inputs.
    """

    kind: ClassVar[str] = "rewriting"

    model: str
    model_sha256: str
    parent: str
    parent_sha256: str
    changes: Mapping[str, int]
    nodes_before: int
    nodes_after: int
    opset_before: int | None
    opset_after: int | None
    file_bytes: int
    parent_bytes: int
    tolerance: float
    random_samples: int
    max_abs: float
    max_rel: float
    samples_name: str | None = None
    real_samples: int = 0
    real_max_abs: float | None = None
    real_max_rel: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
