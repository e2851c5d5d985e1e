"""A tar archive of pictures, laid out as a folder would be, read where it lies."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploykit.data.archive import Archive, archive_stem, open_archive
from deploykit.data.class_names import class_names
from deploykit.data.dataset import Dataset
from deploykit.data.folder import assemble
from deploykit.data.layout import classes_in_names, is_picture_name, is_visible, sorted_names, split_of
from deploykit.data.path_table import PathTable
from deploykit.data.paths import printable
from deploykit.data.picture_files import Form

__all__ = ["TarFiles", "load_tar"]


@dataclass(frozen=True, eq=False)
class TarFiles:
    """Pictures as members of an archive; those of a compressed one come from memory."""

    archive: Archive
    top: str
    paths: PathTable
    offsets: array[int]
    sizes: array[int]

    def name(self, row: int) -> str:
        """The member and its archive."""
        return printable(f"{_joined(self.top, self.paths[row])} in {self.archive.path}")

    def content(self, row: int) -> bytes:
        """The member's bytes. Raises: DataError naming the archive."""
        return self.archive.read(self.offsets[row], self.sizes[row])

    def head(self, row: int) -> bytes:
        """The member's bytes."""
        return self.content(row)

    def digest(self, row: int) -> str:
        """Hexadecimal SHA-256 of the member."""
        return hashlib.sha256(self.content(row)).hexdigest()

    def file_bytes(self, row: int) -> int:
        """The member's length."""
        return self.sizes[row]


def load_tar(
    path: Path,
    split: str,
    *,
    form: Form | None = None,
) -> Dataset:
    """The pictures of a tar archive, with the layouts of ``load_folder``; one folder around all of them is entered.

    An uncompressed archive is read picture by picture. A compressed one is held in memory, unpacked, up to
    ``archive.MOST_UNPACKED_BYTES``.

    Args:
        path: The archive; gzip, xz and bzip2 are understood.
        split: ``"train"``, ``"test"`` or ``"all"``.
        form: Channels and common size where they are known.

    Raises:
        DataError: Damaged, cut short, too long, or see ``load_folder``.
    """
    archive = open_archive(path)
    listing = _Tar(printable(str(path)), _tree(archive))
    listing.enter_single_folders()
    return assemble(
        listing,
        split,
        name=printable(archive_stem(path) or path.stem),
        files_of=partial(_files_of, archive, listing.top),
        names=class_names(partial(_text, archive, listing.top)),
        whole=partial(load_tar, path, "all", form=form),
        form=form,
    )


def _files_of(archive: Archive, top: str, paths: PathTable) -> TarFiles:
    members = archive.members
    places = {name: place for place, name in enumerate(members.names)}
    rows = [places[_joined(top, path)] for path in paths]
    offsets, sizes = (array("q", (column[row] for row in rows)) for column in (members.offsets, members.sizes))
    return TarFiles(archive, top, paths, offsets, sizes)


def _text(archive: Archive, top: str, file: str) -> str | None:
    """The text of a file in the archive's top, None when it is not there."""
    members = archive.members
    name = _joined(top, file)
    if name not in members.names:
        return None
    place = members.names.index(name)
    return archive.read(members.offsets[place], members.sizes[place]).decode("utf-8-sig")


def _joined(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


@dataclass
class _Inside:
    """What lies directly in one folder."""

    folders: set[str] = field(default_factory=set)
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _tree(archive: Archive) -> dict[str, _Inside]:
    tree: dict[str, _Inside] = {"": _Inside()}
    members = archive.members
    for folder in members.folders:
        _make(tree, folder)
    for path in members.names:
        place, _, name = path.rpartition("/")
        inside = tree.get(place) or _make(tree, place)
        (inside.pictures if is_picture_name(name) else inside.others).append(name)
    tree[""].others += [name.rpartition("/")[2] for name in members.strays]
    return tree


def _make(tree: dict[str, _Inside], place: str) -> _Inside:
    """Adds a folder and those above it."""
    if place not in tree:
        above, _, name = place.rpartition("/")
        _make(tree, above).folders.add(name)
        tree[place] = _Inside()
    return tree[place]


@dataclass
class _Tar:
    """What lies in an archive, below ``top``."""

    name: str
    tree: dict[str, _Inside]
    top: str = ""

    def enter_single_folders(self) -> None:
        """Makes the top the folder that holds everything, as ``flowers/`` in flowers.tar does."""
        while True:
            inside, folders = self._inside(""), self.folders("")
            if inside.pictures or len(folders) != 1 or split_of(folders[0]):
                return
            if not self.folders(folders[0]) and not classes_in_names(self, folders[0]):
                return
            self.top = _joined(self.top, folders[0])

    def _inside(self, place: str) -> _Inside:
        return self.tree[_joined(self.top, place) if place else self.top]

    def folders(self, place: str) -> list[str]:
        return sorted_names(name for name in self._inside(place).folders if is_visible(name))

    def files(self, place: str) -> tuple[list[str], list[str]]:
        inside = self._inside(place)
        return sorted(inside.pictures), sorted(inside.others)

    def walk(self, place: str) -> Iterator[tuple[str, list[str], list[str]]]:
        yield place, *self.files(place)
        for folder in self.folders(place):
            yield from self.walk(f"{place}/{folder}")
