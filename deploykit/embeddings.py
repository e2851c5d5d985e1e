"""The record of an app's folder (``embed``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deploykit.record import Record

__all__ = ["AppFile", "Embedding"]


@dataclass(frozen=True)
class AppFile:
    """One file of an app: its path in the folder with forward slashes, its bytes and their SHA-256."""

    file: str
    file_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Embedding(Record):
    """What an app's folder holds.

    Attributes:
        model: Name of the file that was embedded.
        model_sha256: Of it; the app's copy is the same.
        target: ``python``, ``web``, ``node``, ``c``, ``android`` or ``ios``.
        folder: Where it lies.
        prepared_by: ``graph`` where the model takes pixels, ``app`` where the app's code prepares them.
        classes: Number of classes.
        golden: Labels of the golden pictures.
        tolerance: Largest difference of an output that the self-test lets pass.
        runtime: Name of the runtime that the app is pinned to.
        runtime_version: Its version.
        ort_max_abs: Largest difference between the ``.ort`` file and the model on the golden pictures; None without.
        files: All files, in order of their names.
        total_bytes: Of all files.
    """

    kind: ClassVar[str] = "embedding"

    model: str
    model_sha256: str
    precision: str
    target: str
    folder: str
    prepared_by: str
    classes: int
    golden: tuple[str, ...]
    tolerance: float
    runtime: str
    runtime_version: str
    files: tuple[AppFile, ...]
    total_bytes: int
    ort_max_abs: float | None = None
