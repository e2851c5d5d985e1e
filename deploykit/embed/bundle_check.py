"""Whether a bundle is what its manifest says: every file's digest, and the answers to the golden pictures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.answers import first_answers
from deploykit.data.picture import read_picture
from deploykit.embed.bundle import MANIFEST, SCHEMA
from deploykit.embed.feeding import Feeding
from deploykit.embeddings import BundleVerification, GoldenCheck
from deploykit.errors import DataError, DeploykitError, InputError
from deploykit.files import read_json, sha256_file
from deploykit.runtime import create_session

__all__ = ["is_bundle", "verify_bundle"]

_MOST_MANIFEST_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 20
# What zipfile raises over damaged, encrypted and unknown archives.
_OF_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError, ValueError)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is to be read as a bundle: by its ending, or by what the file is."""
    return str(path).lower().endswith(".zip") or (Path(path).is_file() and zipfile.is_zipfile(path))


def verify_bundle(path: str | os.PathLike[str]) -> BundleVerification:
    """Compares every file with the manifest, and the apps' models with their golden pictures.

    Raises: InputError when it is no bundle, so that nothing can be compared.
    """
    source = Path(path)
    with _opened(source) as archive:
        manifest = _manifest(archive, source)
        expected: dict[str, Mapping[str, Any]] = {item["file"]: item for item in manifest["files"]}
        problems = [*_misplaced(archive, expected), *_differences(archive, expected)]
        damaged = {problem.partition(":")[0] for problem in problems}
        golden: list[GoldenCheck] = []
        for app in manifest["apps"]:
            of_app = [name for name in expected if name.startswith(f"{app['folder']}/")]
            if not damaged & set(of_app):
                golden += _golden(archive, app["folder"], of_app, problems)
    problems += [_said(check) for check in golden if not check.passed]
    return BundleVerification(
        environment=environment.describe(),
        deploykit=__version__,
        bundle=source.name,
        bundle_sha256=sha256_file(source),
        files=len(expected),
        verdict="differs" if problems else "same",
        problems=tuple(problems),
        golden=tuple(golden),
    )


def _said(check: GoldenCheck) -> str:
    return (
        f"{check.app}/golden/{check.file}: {check.found} instead of {check.expected},"
        f" outputs differ by {check.max_abs:.3g}"
    )


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    if not source.is_file():
        raise InputError(f"no such file: {source}")
    try:
        archive = zipfile.ZipFile(source)
    except _OF_DAMAGE as problem:
        raise InputError(
            f"{source} is not a bundle: {problem}; it is damaged, cut short or of another kind"
        ) from problem
    with archive:
        yield archive


def _manifest(archive: zipfile.ZipFile, source: Path) -> dict[str, Any]:
    """The manifest, with a ``file``, ``file_bytes`` and ``sha256`` in each of ``files``, and a folder in each app."""
    try:
        if archive.getinfo(MANIFEST).file_size > _MOST_MANIFEST_BYTES:
            raise ValueError("it is too large")
        document = json.loads(archive.read(MANIFEST))
        schema = document["schema"]
        whole = all(
            isinstance(item["file"], str) and isinstance(item["file_bytes"], int) and isinstance(item["sha256"], str)
            for item in document["files"]
        ) and all(isinstance(app["folder"], str) for app in document["apps"])
    except (KeyError, TypeError, *_OF_DAMAGE) as problem:
        raise InputError(f"{source} is not a bundle: no usable {MANIFEST} ({problem})") from problem
    if schema != SCHEMA or not whole:
        raise InputError(f"{source}: {MANIFEST} has schema {schema!r}; this deploykit reads {SCHEMA!r}")
    return dict(document)


def _misplaced(archive: zipfile.ZipFile, expected: Mapping[str, Any]) -> Iterator[str]:
    names = [info.filename for info in archive.infolist() if info.filename != MANIFEST]
    for name in sorted(set(expected) - set(names)):
        yield f"{name}: is missing"
    for name in sorted(set(names) - set(expected)):
        yield f"{name}: is not in the manifest"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: stands in the archive more than once"


def _differences(archive: zipfile.ZipFile, expected: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    present = {info.filename: info for info in archive.infolist()}
    for name, item in expected.items():
        if name not in present:
            continue
        if present[name].file_size != item["file_bytes"]:
            yield f"{name}: {present[name].file_size} bytes instead of {item['file_bytes']}"
            continue
        try:
            found = _digest(archive, name)
        except _OF_DAMAGE as problem:
            yield f"{name}: cannot be unpacked ({problem})"
            continue
        if found != item["sha256"]:
            yield f"{name}: SHA-256 {found} instead of {item['sha256']}"


def _digest(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _golden(archive: zipfile.ZipFile, app: str, names: list[str], problems: list[str]) -> list[GoldenCheck]:
    """The golden test of one app, whose files have the right digests, natively; why it cannot run is a problem."""
    with tempfile.TemporaryDirectory(prefix="deploykit-") as temporary:
        wanted = [name for name in names if _is_needed(name.removeprefix(f"{app}/"))]
        for name in wanted:
            place = Path(temporary, *PurePosixPath(name.removeprefix(f"{app}/")).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as content, place.open("wb") as copy:
                shutil.copyfileobj(content, copy, _CHUNK_BYTES)
        try:
            return _checked(Path(temporary), app)
        except (DeploykitError, IndexError, KeyError, TypeError, ValueError, OSError) as problem:
            problems.append(f"{app}: the golden test cannot run ({' '.join(str(problem).split())})")
            return []


def _is_needed(name: str) -> bool:
    parts = PurePosixPath(name).parts
    in_golden = len(parts) == 2 and parts[0] == "golden" and parts[1] != ".."
    return in_golden or name in ("model.json", "model.onnx", "model.ort", "labels.txt")


def _checked(folder: Path, app: str) -> list[GoldenCheck]:
    facts, golden = read_json(folder / "model.json"), read_json(folder / "golden" / "golden.json")
    if facts["model"] not in ("model.onnx", "model.ort"):
        raise DataError(f"model.json names the model {facts['model']!r}; allowed: model.onnx, model.ort")
    if facts["model_sha256"] != sha256_file(folder / facts["model"]):
        raise DataError("model.json names another model than the one beside it")
    feeding = Feeding.from_json(facts["input"])
    session = create_session(folder / facts["model"], threads=1, spinning=False)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    checks = []
    for item in golden["pictures"]:
        rows = feeding.input(_golden_pixels(folder, item, feeding.channels))
        outputs = first_answers(session, rows, facts["model"], what="golden pictures").reshape(-1)
        worst = float(np.abs(outputs - np.array(item["outputs"], np.float32)).max())
        found = labels[int(outputs.argmax())]
        passed = found == item["label"] and worst <= golden["tolerance"]
        checks.append(GoldenCheck(app, item["file"], item["label"], found, worst, passed))
    return checks


def _golden_pixels(folder: Path, item: Mapping[str, Any], channels: int) -> NDArray[np.uint8]:
    name = item["file"]
    if PurePosixPath(name).name != name:
        raise DataError(f"golden.json names {name!r}; allowed: files beside it")
    path = folder / "golden" / name
    if path.suffix == ".bin":
        return np.fromfile(path, np.uint8).reshape(item["height"], item["width"], item["channels"])
    return read_picture(path, channels)
