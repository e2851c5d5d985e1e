"""A folder of pictures, ``split/class/picture`` or ``class/picture``, decoded when they are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deploykit.data.class_names import NAME_FILES, class_names, named_labels, text_in
from deploykit.data.dataset import Dataset, split_rows
from deploykit.data.layout import Listing, find_layout, is_picture_name, is_visible, sorted_names, split_of
from deploykit.data.path_table import PathTable
from deploykit.data.paths import printable
from deploykit.data.picture import PICTURE_ENDINGS, picture_bytes, read_picture
from deploykit.data.picture_files import FileReader, Form, PictureFiles, common_form
from deploykit.errors import DataError
from deploykit.files import sha256_file

__all__ = ["PICTURE_ENDINGS", "FolderFiles", "assemble", "load_folder", "read_picture"]


@dataclass(frozen=True, eq=False)
class FolderFiles:
    """Pictures as files below ``root``."""

    root: Path
    paths: PathTable

    def _path(self, row: int) -> Path:
        return self.root / self.paths[row]

    def name(self, row: int) -> str:
        """The file's path."""
        return printable(str(self._path(row)))

    def content(self, row: int) -> bytes:
        """The file's bytes. Raises: DataError naming it."""
        return picture_bytes(self._path(row))

    def head(self, row: int) -> Path:
        """The file."""
        return self._path(row)

    def digest(self, row: int) -> str:
        """Hexadecimal SHA-256 of the file. Raises: DataError naming it."""
        try:
            return sha256_file(self._path(row))
        except OSError:
            picture_bytes(self._path(row))  # says why
            raise

    def file_bytes(self, row: int) -> int:
        """The file's length, 0 when it is gone."""
        try:
            return self._path(row).stat().st_size
        except OSError:
            return 0


def load_folder(root: Path, split: str, *, form: Form | None = None) -> Dataset:
    """A folder whose subfolders are classes, or are ``train``/``test`` (or ``val``) folders of classes.

    Classes are the sorted names of their folders, shown by the names that a file of ``class_names.NAME_FILES`` in
    ``root`` gives them. Pictures may also carry their class in their name, ``cat.0.jpg``. Without split folders, train
    and test are a fixed 80/20 cut through each class. Files that are not pictures are passed over with one note.

    Args:
        root: The folder.
        split: ``"train"``, ``"test"`` or ``"all"``.
        form: Channels and common size where they are known; otherwise the files' heads are read.

    Raises:
        DataError: No pictures, fewer than two classes, a class without pictures, or no such split.
    """
    return assemble(
        _Folder(root),
        split,
        name=printable(root.resolve().name or str(root)),
        files_of=partial(FolderFiles, root),
        names=class_names(partial(text_in, root)),
        whole=partial(load_folder, root, "all", form=form),
        form=form,
    )


def assemble(
    listing: Listing,
    split: str,
    *,
    name: str,
    files_of: Callable[[PathTable], PictureFiles],
    names: dict[str, str],
    whole: Callable[[], Dataset],
    form: Form | None = None,
) -> Dataset:
    """The dataset of one split of what ``listing`` holds.

    Args:
        listing: What lies where.
        split: ``"train"``, ``"test"`` or ``"all"``.
        name: Of the dataset.
        files_of: The files of paths.
        names: Name of a class by its folder; the folder's own where it is missing.
        whole: See ``Dataset``.
        form: Channels and common size where they are known; otherwise the files' heads are read.

    Raises:
        DataError: See ``load_folder``.
    """
    layout = find_layout(listing, frozenset(NAME_FILES))
    if layout.has_splits and split not in ("all", *layout.parts):
        hint = "".join(
            f" ({printable(folder)!r} holds no folders of classes)"
            for folder in listing.folders("")
            if split_of(folder) == split
        )
        raise DataError(
            f"{listing.name} has no {split} split; it has {', '.join(layout.parts)}{hint}; allowed: these or all"
        )
    chosen = [part for key, part in layout.parts.items() if not layout.has_splits or split in (key, "all")]
    numbers = {label: number for number, label in enumerate(layout.labels)}
    paths = chosen[0].paths if len(chosen) == 1 else chosen[0].paths.joined(chosen[1].paths)
    places = [np.array([numbers.get(label, -1) for label in part.labels], dtype=np.int64) for part in chosen]
    targets = np.concatenate([place[part.targets] for place, part in zip(places, chosen, strict=True)])
    rows = np.arange(len(paths), dtype=np.int64) if layout.has_splits else split_rows(targets, split)
    files = files_of(paths)
    channels, size = form or common_form(files)
    return Dataset(
        name=name,
        split=split,
        labels=named_labels(layout.labels, names),
        targets=targets[rows],
        channels=channels,
        size=size,
        has_splits=layout.has_splits,
        reader=FileReader(files, channels, size),
        rows=rows,
        whole=None if split == "all" else whole,
        notes=layout.notes,
    )


@dataclass(frozen=True)
class _Folder:
    """What lies below ``root`` on the disk."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def folders(self, place: str) -> list[str]:
        return self._scan(place)[0]

    def files(self, place: str) -> tuple[list[str], list[str]]:
        _, pictures, others = self._scan(place)
        return pictures, others

    def walk(self, place: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Links to folders are followed at ``place`` itself only, so that the walk ends."""
        folders, pictures, others = self._scan(place, follow=False)
        yield place, pictures, others
        for folder in folders:
            yield from self.walk(f"{place}/{folder}")

    def _scan(self, place: str, *, follow: bool = True) -> tuple[list[str], list[str], list[str]]:
        """Names of visible folders, pictures and other files. One system call for all of them, as a rule."""
        folders, pictures, others = [], [], []
        try:
            with os.scandir(self.root / place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=follow):
                        if is_visible(entry.name):
                            folders.append(entry.name)
                    elif is_picture_name(entry.name) and not _is_special(entry):
                        pictures.append(entry.name)
                    else:
                        others.append(entry.name)
        except OSError as problem:
            shown = printable(str(problem.filename or self.root / place))
            raise DataError(f"cannot read {shown}: {problem.strerror or problem}") from problem
        return sorted_names(folders), sorted(pictures), sorted(others)


def _is_special(entry: os.DirEntry[str]) -> bool:
    """A pipe, socket or device, whose reading may never end. A link to nothing is a picture that is missing."""
    if entry.is_file(follow_symlinks=False):
        return False
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
