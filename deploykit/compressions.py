"""The record of what a compression took away: zeros of a checkpoint, or ranks of an ONNX file's matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deploykit.record import Record

__all__ = ["Compression", "FactoredLayer", "PrunedLayer"]


@dataclass(frozen=True)
class PrunedLayer:
    """A layer's weights, biases left out: how many there are, and how many of them are zero."""

    name: str
    op: str
    shape: tuple[int, ...]
    weights: int
    zeros: int


@dataclass(frozen=True)
class FactoredLayer:
    """A matrix that became the product of two.

    Attributes:
        name: Of the layer.
        inputs: Values that it takes.
        outputs: Values that it gives.
        rank: Values between the two.
        energy: Share of the squared singular values that is kept.
        relative_error: Frobenius norm of what is lost, over that of the matrix: √(1 - energy).
        macs_before: Multiply-accumulates for one row of inputs.
        macs_after: The same of both factors.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    energy: float
    relative_error: float
    macs_before: int
    macs_after: int


@dataclass(frozen=True, kw_only=True)
class Compression(Record):
    """What ``compress`` did to a model; accuracies are of the test split where one was given.

    Attributes:
        model: The new file, with its SHA-256.
        parent: The file that it was made from, with its SHA-256.
        method: ``"prune"`` or ``"low-rank"``.
        download_bytes: The file after deflate.
        epochs: Of fine-tuning.
        top1_before: What the parent gets right.
        top1: What the new file gets right.
        agreement: Share of the pictures with the same top-1 before and after.
    """

    kind: ClassVar[str] = "compression"

    model: str
    model_sha256: str
    parent: str
    parent_sha256: str
    method: str
    file_bytes: int
    parent_bytes: int
    download_bytes: int
    parent_download_bytes: int
    seconds: float
    precision: str = "fp32"
    pruned: tuple[PrunedLayer, ...] = ()
    factored: tuple[FactoredLayer, ...] = ()
    epochs: int = 0
    dataset: str | None = None
    samples: int | None = None
    top1_before: float | None = None
    top1: float | None = None
    agreement: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """The method, by the name that a quantization has for it."""
        return self.method
