"""The records of apps: what ``embed`` wrote, and what ``verify`` found in a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deploykit.record import Record

__all__ = ["App", "AppFile", "Bundle", "BundleVerification", "Embedding", "GoldenCheck"]


@dataclass(frozen=True)
class AppFile:
    """One file of an app: its path in the folder with forward slashes, its bytes and their SHA-256."""

    file: str
    file_bytes: int
    sha256: str


@dataclass(frozen=True)
class App:
    """One app's folder.

    Attributes:
        target: ``python``, ``web``, ``node``, ``c``, ``android`` or ``ios``.
        folder: Where it lies; in a bundle that was written without a folder, its name in the archive.
        runtime: Name of the package that runs the model.
        runtime_version: The version that the app is pinned to.
        files: All files, in order of their names.
        total_bytes: Of all files.
        ort_max_abs: Largest difference between the ``.ort`` file and the model on the golden pictures; None without.
    """

    target: str
    folder: str
    runtime: str
    runtime_version: str
    files: tuple[AppFile, ...]
    total_bytes: int
    ort_max_abs: float | None = None


@dataclass(frozen=True)
class Bundle:
    """An archive of apps: its path, bytes and SHA-256, and the names of the measurement records in it."""

    file: str
    file_bytes: int
    sha256: str
    records: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Embedding(Record):
    """What was written for a model (``embed``).

    Attributes:
        model: Name of the file that was embedded.
        model_sha256: Of it; the apps' copies are the same.
        prepared_by: ``graph`` where the model takes pixels, ``app`` where the apps' code prepares them.
        classes: Number of classes.
        golden: Labels of the golden pictures.
        tolerance: Largest difference of an output that the self-test lets pass.
        apps: One for each target.
        bundle: The archive of all; None without.
    """

    kind: ClassVar[str] = "embedding"

    model: str
    model_sha256: str
    precision: str
    prepared_by: str
    classes: int
    golden: tuple[str, ...]
    tolerance: float
    apps: tuple[App, ...]
    bundle: Bundle | None = None


@dataclass(frozen=True)
class GoldenCheck:
    """What the model of an app in a bundle answers to a golden picture.

    Attributes:
        app: Folder of the app.
        file: The picture.
        expected: The label that it has to give.
        found: The label that it gives.
        max_abs: Largest difference of an output.
        passed: Whether the labels are the same and the outputs within the tolerance.
    """

    app: str
    file: str
    expected: str
    found: str
    max_abs: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class BundleVerification(Record):
    """Whether a bundle is what its manifest says (``verify app.zip``).

    Attributes:
        bundle: Name of the file.
        bundle_sha256: Of it.
        files: How many the manifest names.
        verdict: ``same`` or ``differs``.
        problems: What differs, in words.
        golden: The answers to the golden pictures, of apps whose files are right.
    """

    kind: ClassVar[str] = "bundle-verification"

    bundle: str
    bundle_sha256: str
    files: int
    verdict: str
    problems: tuple[str, ...]
    golden: tuple[GoldenCheck, ...]
