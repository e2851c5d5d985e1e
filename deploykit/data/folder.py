"""A folder of pictures, ``split/class/picture`` or ``class/picture``, decoded when they are read."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Dataset, Pictures, split_rows
from deploykit.data.paths import printable
from deploykit.errors import DataError
from deploykit.files import sha256_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PICTURE_ENDINGS", "FolderReader", "load_folder", "read_picture"]

PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_LOOK_AT_ALL = 10_000  # pictures whose headers are read to learn size and channels (about 0.1 ms each)
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap height and width
_CUT_SHORT = re.compile("truncat|cut short|broken data stream|unexpected end|not enough", re.IGNORECASE)


@dataclass
class _Found:
    """What a walk through the folder brings."""

    paths: list[str] = field(default_factory=list)  # relative to the root, with /
    classes: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class FolderReader:
    """Decodes pictures below ``root``; ``size`` is theirs when all have the same, else None."""

    root: Path
    paths: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None

    def read(self, rows: NDArray[np.int64]) -> Pictures:
        """An array when all pictures of the folder have one size, a list otherwise."""
        pictures = [read_picture(self.root / self.paths[row], self.channels) for row in rows]
        if self.size is None:
            return pictures
        return np.stack(pictures) if pictures else np.zeros((0, *self.size, self.channels), np.uint8)

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """SHA-256 over relative names and file bytes; the same on systems that store accents differently."""
        digest = hashlib.sha256()
        for row in rows:
            name = unicodedata.normalize("NFC", self.paths[row])
            digest.update(f"{name}\0{sha256_file(self.root / self.paths[row])}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def load_folder(root: Path, split: str) -> Dataset:
    """A folder whose subfolders are classes, or are ``train``/``test`` (or ``val``) folders of classes.

    Classes are the sorted names of their folders. Without split folders, train and test are a fixed 80/20 cut through
    each class. Files that are not pictures are passed over with one note.

    Raises:
        DataError: No pictures, fewer than two classes, a class without pictures, or no such split.
    """
    splits = _split_folders(root)
    found = {part: _walk(root, folder) for part, folder in (splits or {"all": root}).items()}
    labels = _labels(root, found)
    if splits and split not in ("all", *found):
        raise DataError(f"{root} has no {split} split; it has {', '.join(found)}; allowed: these or all")
    chosen = [part for name, part in found.items() if not splits or split in (name, "all")]
    numbers = {label: number for number, label in enumerate(labels)}
    paths = tuple(path for part in chosen for path in part.paths)
    targets = np.array([numbers[label] for part in chosen for label in part.classes], dtype=np.int64)
    rows = np.arange(len(paths), dtype=np.int64) if splits else split_rows(targets, split)
    channels, size = _look(root, paths)
    return Dataset(
        name=printable(root.resolve().name or str(root)),
        split=split,
        labels=labels,
        targets=targets[rows],
        channels=channels,
        size=size,
        has_splits=bool(splits),
        reader=FolderReader(root, paths, channels, size),
        rows=rows,
        whole=None if split == "all" else partial(load_folder, root, "all"),
        notes=_notes(root, splits, found, labels),
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        inside = [item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")]
    except OSError as problem:
        raise DataError(f"cannot read {folder}: {problem.strerror or problem}") from problem
    return sorted(inside, key=lambda item: unicodedata.normalize("NFC", item.name))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of ``train`` and ``test``; empty when the subfolders are classes. ``val`` stands in for ``test``."""
    named: dict[str, Path] = {}
    for folder in _subfolders(root):
        part = _SPLIT_NAMES.get(folder.name.lower())
        # A class may be called "train": a split has classes inside.
        if part and part not in named and _subfolders(folder):
            named[part] = folder
    if "test" not in named and "val" in named:
        named["test"] = named["val"]
    return {part: named[part] for part in ("train", "test") if part in named}


def _walk(root: Path, top: Path) -> _Found:
    found = _Found(strays=[item.name for item in sorted(top.iterdir()) if not item.is_dir()])
    for folder in _subfolders(top):
        if folder.name != printable(folder.name):
            raise DataError(f"{printable(str(folder))}: the name of a class folder is not UTF-8; rename it")
        label = unicodedata.normalize("NFC", folder.name)
        before = len(found.paths)
        for place, inside, names in os.walk(folder, onerror=_refuse):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix.lower() in PICTURE_ENDINGS and not name.startswith(".") and not _is_special(path):
                    found.paths.append(path.relative_to(root).as_posix())
                else:
                    found.strays.append(name)
        found.classes += [label] * (len(found.paths) - before)
    return found


def _refuse(problem: OSError) -> None:
    raise DataError(f"cannot read {problem.filename}: {problem.strerror or problem}") from problem


def _is_special(path: Path) -> bool:
    """A pipe, socket or device, whose reading may never end. A link to nothing is a picture that is missing."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _labels(root: Path, found: dict[str, _Found]) -> tuple[str, ...]:
    """Names of the classes of all splits. Raises: DataError."""
    labels = sorted({label for part in found.values() for label in part.classes})
    endings = " ".join(sorted(PICTURE_ENDINGS))
    if not labels:
        raise DataError(f"{root} holds no pictures in class/picture or split/class/picture layout; endings: {endings}")
    tops = {Path(path).parts[0] for part in found.values() for path in part.paths} if "all" in found else set()
    empty = [folder.name for folder in _subfolders(root) if folder.name not in tops] if tops else []
    if empty:
        raise DataError(
            f"{root}: class folder {empty[0]!r} holds no pictures; add some or remove it; endings: {endings}"
        )
    if len(labels) < 2:
        inside = [folder.name for folder in _subfolders(root / labels[0])] if (root / labels[0]).is_dir() else []
        hint = f"; is {root / labels[0]} the folder of the classes {', '.join(inside[:5])}?" if inside else ""
        raise DataError(f"{root} holds one class, {labels[0]!r}; at least two folders of pictures are needed{hint}")
    return tuple(labels)


def _notes(root: Path, splits: dict[str, Path], found: dict[str, _Found], labels: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    strays = [name for part in found.values() for name in part.strays]
    if strays:
        names = sorted({printable(name) for name in strays})
        more = ", ..." if len(names) > 5 else ""
        files = "1 file that is not a picture" if len(strays) == 1 else f"{len(strays)} files that are not pictures"
        notes.append(f"passed over {files}: {', '.join(names[:5])}{more}")
    for part, content in found.items() if splits else ():
        if missing := sorted(set(labels) - set(content.classes)):
            notes.append(f"the {part} split has no pictures of {', '.join(missing[:5])}")
    unused = [printable(folder.name) for folder in _subfolders(root) if splits and folder not in splits.values()]
    if unused:
        notes.append(f"not used beside the splits: {', '.join(unused[:5])}")
    return tuple(notes)


def _look(root: Path, paths: tuple[str, ...]) -> tuple[int, tuple[int, int] | None]:
    """Channels (1 when every picture looked at is grey) and the common size, from the files' headers."""
    step = -(-len(paths) // _LOOK_AT_ALL)
    sizes: set[tuple[int, int]] = set()
    grey = True
    for path in paths[:: max(1, step)]:
        with _opened(root / path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            sizes.add((width, height) if turned else (height, width))
            grey = grey and image.mode in _GREY_MODES
        if not grey and len(sizes) > 1:
            break
    return (1 if grey else 3), (sizes.pop() if len(sizes) == 1 and step <= 1 else None)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open picture; whatever Pillow says of a damaged one becomes a DataError that names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise DataError(f"{path} is too large a picture: {problem}; make it smaller or remove it") from problem
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error) as problem:
        reason = _reason(path, problem)
        raise DataError(f"{path} is not a readable picture: {reason}; replace or remove it") from problem


def _reason(path: Path, problem: Exception) -> str:
    if path.is_symlink() and not path.exists():
        return "it is a link to a file that is not there"
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.strerror or type(problem).__name__
    said = " ".join(str(problem).split()).replace(f" {str(path)!r}", "") or type(problem).__name__
    return f"the file is cut short ({said})" if _CUT_SHORT.search(said) else said


def read_picture(path: Path, channels: int) -> NDArray[np.uint8]:
    """One picture as ``(H, W, channels)``, turned upright as its EXIF data say; of an animation the first frame.

    Transparency is dropped, 16-bit grey becomes 8-bit by ``round(value * 255 / 65535)``.

    Raises:
        DataError: Damaged, cut short, too large, or of a kind that has no 8-bit form; names the file.
    """
    from PIL import ImageOps

    with _opened(path) as opened:
        image = _eight_bit(ImageOps.exif_transpose(opened))
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # Pillow warns when it goes to RGB at once
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)  # Pillow's own conversion clips at 255
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"pixels from {wide.min()} to {wide.max()}; allowed: 8 or 16 bits a channel")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; allowed: 8 or 16 bits a channel")
    return image
