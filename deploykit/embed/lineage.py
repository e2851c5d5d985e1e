"""Where a model came from and what was measured of it, out of its metadata and of the records beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import InputError
from deploykit.files import read_json

__all__ = ["Measured", "measured_beside"]

_MOST_BYTES = 1 << 26  # of a record; larger JSON files are others
_MAKERS = ("quantization", "rewriting", "compression")  # kinds of records that tell what a file was made from


@dataclass(frozen=True)
class Measured:
    """A model's ancestors, itself first, and the records that are about them.

    Attributes:
        lineage: JSON objects: ``sha256, model, parent_sha256`` and what else is known of each.
        records: Paths of the records, by the name that each gets in an archive.
    """

    lineage: tuple[Mapping[str, Any], ...]
    records: Mapping[str, Path]


def measured_beside(artifact: Artifact, given: Sequence[Path] = ()) -> Measured:
    """The records in the model's folder, or in ``given`` files and folders, that are about it or what it was made from.

    Raises: InputError when a given file is no record, or is about other models.
    """
    found = list(_documents(given or [artifact.path.parent]))
    lineage = [_own(artifact)]
    known = {artifact.sha256} | ({artifact.parent_sha256} if artifact.parent_sha256 else set())
    while step := next((item for item in map(_made, found) if item and item["sha256"] in known - _told(lineage)), None):
        lineage.append(step)
        known.add(step["parent_sha256"])
    about = [(path, text) for path, text in found if any(digest in text for digest in known)]
    paths = {path for path, _ in about}
    if strange := [path for path in given if path.is_file() and path not in paths]:
        raise InputError(f"{strange[0]} is no record of {artifact.path.name} or of what it was made from")
    return Measured(tuple(lineage), _named(sorted(paths)))


def _documents(places: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The JSON files of deploykit, with their texts; a file that was given must be one."""
    for place in places:
        if not place.exists():
            raise InputError(f"no such file or folder: {place}; expected records of measurements")
        for path in sorted(place.glob("*.json")) if place.is_dir() else [place]:
            if place.is_dir() and path.stat().st_size > _MOST_BYTES:
                continue
            try:
                document = read_json(path)
            except InputError:
                if place.is_dir():
                    continue  # somebody else's
                raise
            if str(document.get("schema", "")).startswith("deploykit."):
                yield path, json.dumps(document)
            elif place.is_file():
                raise InputError(f"{path} has schema {document.get('schema')!r}; expected a record of deploykit")


def _own(artifact: Artifact) -> dict[str, Any]:
    return {
        "sha256": artifact.sha256,
        "model": artifact.path.name,
        "parent_sha256": artifact.parent_sha256,
        "network": artifact.network,
        "dataset": artifact.dataset,
        "precision": artifact.precision,
        "recipe": artifact.recipe,
        "deploykit": artifact.version,
        "parity": artifact.parity and dict(artifact.parity),
        "training": artifact.training and dict(artifact.training),
    }


def _told(lineage: Sequence[Mapping[str, Any]]) -> set[str]:
    """Files of which the making is told; the first one's metadata lack the maker's name, so a record may follow it."""
    return {str(item["sha256"]) for item in lineage[1:]}


def _made(document: tuple[Path, str]) -> dict[str, Any] | None:
    """A step of the lineage, where the record tells one."""
    content = json.loads(document[1])
    kind = str(content["schema"]).removeprefix("deploykit.").split("/")[0]
    if kind not in _MAKERS or not content.get("model_sha256") or not content.get("parent_sha256"):
        return None
    keys = ("model", "parent", "parent_sha256", "recipe", "method", "calibration", "deploykit")
    return {"sha256": content["model_sha256"], "made_by": kind, **{key: content[key] for key in keys if key in content}}


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Names that differ, in order: those of the files, with a number where two are the same."""
    named: dict[str, Path] = {}
    for path in paths:
        name, number = path.name, 1
        while name in named:
            number += 1
            name = f"{path.stem}.{number}{path.suffix}"
        named[name] = path
    return named
