"""CIFAR-10 (Krizhevsky 2009) from its binary or its Python version, unpacked or in their archives, or as JPEGs.

The formats: https://www.cs.toronto.edu/~kriz/cifar.html. Copies as JPEG have lost much; they are a dataset of their
own, ``cifar10-jpeg``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.data.archive import archive_stem, read_members
from deploykit.data.dataset import Dataset
from deploykit.data.folder import load_folder
from deploykit.data.paths import is_file, printable
from deploykit.data.plain_pickle import read_plain_pickle
from deploykit.data.tar import load_tar
from deploykit.errors import DataError

__all__ = [
    "CIFAR10_ARCHIVE",
    "CIFAR10_FOLDER",
    "CIFAR10_LABELS",
    "find_cifar10",
    "find_cifar10_jpeg",
    "is_cifar10",
    "load_cifar10",
    "load_cifar10_at",
    "load_cifar10_jpeg",
]

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar10"  # below the data folder: where `data prepare` writes
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"

_SIDE = 32  # pixels
_PIXEL_BYTES = 3 * _SIDE * _SIDE  # three planes: red, green, blue
_RECORD_BYTES = 1 + _PIXEL_BYTES  # the label before the picture
_MOST_BATCH_BYTES = 64 << 20  # a batch of 10,000 has 31 MB
_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_PUBLISHED = {"train": 50_000, "test": 10_000}
_JPEG_NOTE = "CIFAR-10 (JPEG): pictures compressed anew; never compare its results with published CIFAR-10 figures"
_JPEG_FOLDERS = ("cifar10_jpeg", "cifar10-jpeg", "CIFAR-10-images", CIFAR10_FOLDER, "")
_JPEG_STEMS = ("cifar10_jpeg", "cifar10-jpeg", "CIFAR-10-images")

_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class _Version:
    """One of the publisher's two forms.

    Attributes:
        folder: What its archive unpacks to.
        archive: Its archive's name.
        ending: Of the batches' files.
        parse: Pictures ``(N, 3072)`` and labels ``(N,)`` from a batch's bytes and name.
    """

    folder: str
    archive: str
    ending: str
    parse: Callable[[bytes, str], _Arrays]


def _binary_batch(content: bytes, name: str) -> _Arrays:
    """Records of one label and 3,072 pixels."""
    if not content or len(content) % _RECORD_BYTES:
        raise DataError(
            f"{name} is cut short or no CIFAR-10 batch: {len(content)} bytes; records have {_RECORD_BYTES} each"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python_batch(content: bytes, name: str) -> _Arrays:
    """A pickled dict with ``data`` and ``labels``; the pickle is read as data, never run."""
    batch = read_plain_pickle(content, name)
    if not isinstance(batch, dict):
        raise DataError(f"{name} holds a {type(batch).__name__}; a CIFAR-10 batch is a dict with data and labels")
    entries = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    images, labels = entries.get("data"), entries.get("labels")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXEL_BYTES:
        raise DataError(f"{name} holds no data of shape (N, {_PIXEL_BYTES}); is it a batch of CIFAR-10?")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{name} holds no list of labels; is it a batch of CIFAR-10?")
    if len(labels) != len(images):
        raise DataError(f"{name} holds {len(images)} pictures but {len(labels)} labels; one each is needed")
    return images, np.array(labels, dtype=np.int64)


_BINARY = _Version("cifar-10-batches-bin", CIFAR10_ARCHIVE, ".bin", _binary_batch)
_PYTHON = _Version("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _python_batch)
_VERSIONS = (_BINARY, _PYTHON)


def _version_at(path: Path) -> _Version | None:
    """Which version a folder of batches or an archive is; None when it is none."""
    for version in _VERSIONS:
        names = (version.archive, version.archive.removesuffix(".gz"))
        first_batches = [path / (batches[0] + version.ending) for batches in _BATCHES.values()]
        if any(is_file(batch) for batch in first_batches) or (path.name in names and is_file(path)):
            return version
    return None


def is_cifar10(path: Path) -> bool:
    """Whether ``path`` is a folder of the batches or one of the two archives, by name."""
    return _version_at(path) is not None


def find_cifar10(data_dir: Path) -> Path | None:
    """The folder of the batches or the archive: in ``data_dir``, in its ``cifar10``, or ``data_dir`` itself."""
    bases = (data_dir, data_dir / CIFAR10_FOLDER)
    places = [base / version.folder for base in bases for version in _VERSIONS] + list(bases)
    places += [base / version.archive for base in bases for version in _VERSIONS]
    return next((place for place in places if is_cifar10(place)), None)


def load_cifar10(split: str, data_dir: Path) -> Dataset:
    """The originals; where only the JPEG copies are there, those, under their own name and with a note.

    Raises:
        DataError: Not there (where was looked and how to get it), damaged, or a pickle of more than data.
    """
    place = find_cifar10(data_dir)
    if place is not None:
        return load_cifar10_at(place, split)
    if find_cifar10_jpeg(data_dir) is not None:
        return load_cifar10_jpeg(split, data_dir)
    looked = ", ".join(str(data_dir / name) for version in _VERSIONS for name in (version.folder, version.archive))
    raise DataError(
        f"cifar10 was not found; looked in {data_dir} and {data_dir / CIFAR10_FOLDER} for {looked}; run 'deploykit data"
        " prepare cifar10', or name the folder that holds it with --data-dir or DEPLOYKIT_DATA"
    )


def load_cifar10_at(place: Path, split: str) -> Dataset:
    """The originals from a folder of batches or from an archive; see ``load_cifar10``."""
    version = _version_at(place)
    if version is None:
        raise DataError(f"{place} holds no batches of CIFAR-10; expected data_batch_1 to 5 and test_batch")
    parts = [part for part in _BATCHES if split in (part, "all")]
    wanted = [batch + version.ending for part in parts for batch in _BATCHES[part]]
    read = _from_folder if place.is_dir() else read_members
    contents = dict(read(place, set(wanted), _MOST_BATCH_BYTES))
    if missing := [batch for batch in wanted if batch not in contents]:
        raise DataError(f"{place} lacks {', '.join(missing)}; run 'deploykit data prepare cifar10'")
    batches = [version.parse(contents.pop(batch), printable(f"{place}/{batch}")) for batch in wanted]
    targets = np.concatenate([labels for _, labels in batches])
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(CIFAR10_LABELS):
        wrong = targets[(targets < 0) | (targets >= len(CIFAR10_LABELS))][0]
        raise DataError(f"{place} holds label {wrong}; allowed: 0 to {len(CIFAR10_LABELS) - 1}")
    expected = sum(_PUBLISHED[part] for part in parts)
    notes = () if len(targets) == expected else (f"cifar10 {split}: {len(targets)} pictures; published: {expected}",)
    return Dataset.from_arrays(
        "cifar10",
        _upright(batches),
        targets,
        CIFAR10_LABELS,
        split=split,
        has_splits=True,
        whole=None if split == "all" else partial(load_cifar10_at, place, "all"),
        notes=notes,
    )


def _upright(batches: list[_Arrays]) -> NDArray[np.uint8]:
    """``(N, 32, 32, 3)`` from batches of ``(N, 3072)``, which are given up one by one."""
    images = np.empty((sum(len(pixels) for pixels, _ in batches), _SIDE, _SIDE, 3), np.uint8)
    end = len(images)
    while batches:
        pixels, _ = batches.pop()
        planes = pixels.reshape(-1, 3, _SIDE, _SIDE)
        images[end - len(planes) : end] = planes.transpose(0, 2, 3, 1)
        end -= len(planes)
    return images


def _from_folder(folder: Path, wanted: set[str], most_bytes: int) -> Iterator[tuple[str, bytes]]:
    for batch in wanted:
        path = folder / batch
        if is_file(path):
            try:
                if path.stat().st_size > most_bytes:
                    raise DataError(f"{path} is no CIFAR-10 batch: {path.stat().st_size} bytes")
                yield batch, path.read_bytes()
            except OSError as problem:
                raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def find_cifar10_jpeg(data_dir: Path) -> Path | None:
    """The folder or the archive of the JPEG copies, in ``data_dir`` or ``data_dir`` itself."""
    for name in _JPEG_FOLDERS:
        cars = data_dir / name / "train" / CIFAR10_LABELS[-1]
        if cars.is_dir() and any(path.suffix.lower() in (".jpg", ".jpeg") for path in cars.iterdir()):
            return data_dir / name
    archives = sorted(path for path in data_dir.glob("*.t*") if archive_stem(path) in _JPEG_STEMS and is_file(path))
    return archives[0] if archives else None


def load_cifar10_jpeg(split: str, data_dir: Path) -> Dataset:
    """The JPEG copies, ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, in a folder or a tar archive.

    Raises:
        DataError: Not there, damaged, or with other classes.
    """
    place = find_cifar10_jpeg(data_dir)
    if place is None:
        looked = ", ".join(str(data_dir / name) for name in (*_JPEG_FOLDERS[:-1], "cifar10_jpeg.tar.xz"))
        raise DataError(
            f"cifar10-jpeg was not found; looked in {looked}; it is a folder with train/<class>/*.jpg and"
            " test/<class>/*.jpg, or a tar archive of it; name the folder that holds it with --data-dir"
        )
    form = (3, (_SIDE, _SIDE))
    found = load_folder(place, split, form=form) if place.is_dir() else load_tar(place, split, form=form)
    if found.labels != CIFAR10_LABELS or not found.has_splits:
        raise DataError(f"{place} holds the classes {', '.join(found.labels[:5])}; expected those of CIFAR-10")
    return replace(
        found,
        name="cifar10-jpeg",
        whole=None if split == "all" else partial(load_cifar10_jpeg, "all", data_dir),
        notes=(_JPEG_NOTE, *found.notes),
    )
