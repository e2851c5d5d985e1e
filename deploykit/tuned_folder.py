"""The folder that a search leaves: the best file, how to open it, the other files of the front, and the record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, OutputError
from deploykit.files import atomic_path, check_writable, read_json, write_json, write_text
from deploykit.tunings import Tuning

__all__ = ["BEST", "FRONT", "LEAN", "RECORD", "SESSION", "SNIPPET", "TunedFolder"]

BEST, RECORD, SESSION, SNIPPET = "best.onnx", "tuning.json", "session.json", "best_session.py"
FRONT, LEAN = "front", "lean"
_HIDDEN, _WRITTEN = ".tune", "written.json"
_SCHEMA = "deploykit.tuned-folder/1"
_WAY_OUT = "give another folder or --overwrite"


@dataclass(frozen=True)
class TunedFolder:
    """One folder for the tuning of one model; results of its steps lie in a hidden folder within."""

    folder: Path

    @property
    def cache(self) -> Path:
        """Where the results of steps lie."""
        return self.folder / _HIDDEN

    def check(self, model: Path, model_sha256: str, *, overwrite: bool) -> None:
        """Before the work: whether everything can be written, and nothing of others would be replaced.

        Raises:
            OutputError: The folder cannot be written, holds files of others, or the tuning of another model.
            InputError: The model itself would be replaced, or what is remembered of the folder is unreadable.
        """
        if model.resolve() in {(self.folder / name).resolve() for name in (BEST, *self._further())}:
            raise InputError(f"{model} lies where the results go, and is never changed; give another folder")
        check_writable(self.folder / RECORD)
        if overwrite:
            return
        written = self._written()
        for name in (BEST, RECORD, SESSION, SNIPPET, *self._further()):
            if not (self.folder / name).exists():
                continue
            if name not in written.get("files", ()):
                raise OutputError(f"{self.folder / name} exists and is not of a tuning here; {_WAY_OUT}")
            if written.get("model_sha256") != model_sha256:
                raise OutputError(
                    f"{self.folder} holds the tuning of another model, {written.get('model')}; {_WAY_OUT}"
                )

    def write(self, tuning: Tuning, files: Mapping[str, Path], snippet: str) -> None:
        """Replaces what an earlier tuning wrote; the record last.

        Args:
            tuning: The record.
            files: By name in the folder what is to be copied there; the best one is ``BEST``.
            snippet: Python that opens the best one.

        Raises: OutputError.
        """
        names = [*files, SNIPPET, SESSION, RECORD]
        self._forget(names)
        owner = {"schema": _SCHEMA, "model": tuning.model, "model_sha256": tuning.model_sha256}
        write_json(self.cache / _WRITTEN, {**owner, "files": names})  # before them, so that nothing of ours is strange
        for name, path in files.items():
            with atomic_path(self.folder / name) as aside:
                shutil.copyfile(path, aside)
        write_json(self.folder / SESSION, dict(tuning.session))
        write_text(self.folder / SNIPPET, snippet)
        write_json(self.folder / RECORD, tuning.to_document())

    def _forget(self, names: Sequence[str]) -> None:
        """Removes files of an earlier front, or of lean memory, that are not part of this tuning."""
        for name in self._written().get("files", ()):
            if name not in names and name.startswith((f"{FRONT}/", f"{LEAN}/")):
                (self.folder / name).unlink(missing_ok=True)

    def _further(self) -> list[str]:
        """What lies in the folders for the front and for lean memory."""
        folders = [self.folder / name for name in (FRONT, LEAN)]
        found = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return sorted(f"{path.parent.name}/{path.name}" for path in found)

    def _written(self) -> Mapping[str, Any]:
        path = self.cache / _WRITTEN
        if not path.exists():
            return {}
        document = read_json(path)
        if document.get("schema") != _SCHEMA or not isinstance(document.get("files"), list):
            raise InputError(f"{path} has schema {document.get('schema')!r}; this deploykit reads {_SCHEMA!r}")
        return document
