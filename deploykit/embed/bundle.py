"""A bundle: one archive of apps, the same bytes for the same files, with a manifest of digests, lineage and records."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit import __version__
from deploykit.embed.lineage import Measured
from deploykit.embeddings import App, Bundle
from deploykit.files import atomic_path, dump_json, sha256_file

__all__ = ["MANIFEST", "RECORDS", "SCHEMA", "write_bundle"]

MANIFEST, RECORDS = "manifest.json", "records"
SCHEMA = "deploykit.bundle/1"

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP archive can say
_UNIX, _MODE = 3, 0o100644  # a plain file that everyone may read, whoever packs it and wherever


def write_bundle(path: Path, apps: Mapping[App, Path], measured: Measured, *, overwrite: bool = True) -> Bundle:
    """Packs apps, each in a folder of its target's name, and the records of the model.

    Neither times nor owners nor the order of folders go into the archive: the same files give the same bytes.

    Args:
        path: The archive.
        apps: What was written, and where it lies.
        measured: The model's lineage and records.
        overwrite: Whether an archive that is there may be replaced.

    Raises: OutputError.
    """
    records = {f"{RECORDS}/{name}": source for name, source in measured.records.items()}
    files = {f"{app.target}/{file.file}": place / file.file for app, place in apps.items() for file in app.files}
    members = dict(sorted({**files, **records}.items()))
    manifest = dump_json(_manifest(apps, measured, members)) + "\n"
    with atomic_path(path, overwrite=overwrite) as aside, zipfile.ZipFile(aside, "w") as archive:
        archive.writestr(_entry(MANIFEST), manifest.encode())
        for name, source in members.items():
            _pack(archive, name, source)
    return Bundle(str(path), path.stat().st_size, sha256_file(path), tuple(sorted(measured.records)))


def _manifest(apps: Mapping[App, Path], measured: Measured, members: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "deploykit": __version__,
        "apps": [
            {"folder": app.target, "target": app.target, "runtime": app.runtime, "runtime_version": app.runtime_version}
            for app in apps
        ],
        "lineage": [dict(step) for step in measured.lineage],
        "records": [f"{RECORDS}/{name}" for name in sorted(measured.records)],
        "files": [
            {"file": name, "file_bytes": source.stat().st_size, "sha256": sha256_file(source)}
            for name, source in members.items()
        ],
    }


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = _UNIX, _MODE << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _pack(archive: zipfile.ZipFile, name: str, source: Path) -> None:
    """One file, read in parts, so that a large model does not have to be held."""
    entry = _entry(name)
    entry.file_size = source.stat().st_size  # tells zipfile whether it needs 64-bit sizes
    with source.open("rb") as content, archive.open(entry, "w") as packed:
        while chunk := content.read(1 << 20):
            packed.write(chunk)
