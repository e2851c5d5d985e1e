"""An app's folder: written beside its place, moved there whole, and never over what is not an app of ours."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploykit.embed.content import SCHEMA, AppContent
from deploykit.embeddings import AppFile
from deploykit.errors import InputError, OutputError
from deploykit.files import check_writable, read_json, sha256_file

__all__ = ["check_folder", "files_of", "write_folder"]


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Before the work: whether an app may be written there.

    Raises: OutputError when it holds anything, unless that is an app of ours and ``overwrite`` is true.
    """
    check_writable(folder.parent / f".{folder.name}.deploykit", overwrite=True)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise OutputError(f"cannot write {folder}: it is a file or a link; give the path of a folder")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{folder} exists already; give another folder or --overwrite")
    if not _is_app(folder):
        raise OutputError(f"{folder} is no app's folder, and is not replaced; give another folder")


def _is_app(folder: Path) -> bool:
    try:
        return read_json(folder / "model.json").get("schema") == SCHEMA
    except InputError:
        return False


def write_folder(folder: Path, content: AppContent, *, overwrite: bool) -> tuple[AppFile, ...]:
    """Writes the files and returns what lies there. Raises: OutputError."""
    check_folder(folder, overwrite=overwrite)
    with _beside(folder) as aside:
        for name, data in content.contents.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(data)
        for name, source in content.copies.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, aside / name)
    return files_of(folder)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` when the block ends without an exception."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:80]}.") as temporary:
            aside, before = Path(temporary) / "new", Path(temporary) / "old"
            aside.mkdir()
            yield aside
            if folder.exists():
                folder.rename(before)
            try:
                aside.rename(folder)
            except OSError:
                with suppress(OSError):
                    before.rename(folder)
                raise
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise OutputError(f"cannot write {folder}: {reason}; choose a folder with free space") from problem


def files_of(folder: Path) -> tuple[AppFile, ...]:
    """Every file below ``folder``, in order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(AppFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path)) for path in paths)
