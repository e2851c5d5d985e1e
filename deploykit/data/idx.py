"""MNIST and Fashion-MNIST from IDX files, compressed or not, wherever other tools have put them.

The format: http://yann.lecun.com/exdb/mnist/ (big-endian; magic 0x0803 for pictures, 0x0801 for labels).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Dataset
from deploykit.data.paths import is_file
from deploykit.errors import DataError

__all__ = ["IDX_SETS", "IdxSet", "file_in", "find_idx", "load_idx", "read_images", "read_labels", "unpacked"]

_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801
_STEMS = {"train": ("train-images-idx3", "train-labels-idx1"), "test": ("t10k-images-idx3", "t10k-labels-idx1")}


@dataclass(frozen=True)
class IdxSet:
    """A dataset of four IDX files.

    Attributes:
        name: As users write it.
        folders: Where it may lie below the data folder; `deploykit data prepare` writes to the first.
        labels: Names of the classes.
    """

    name: str
    folders: tuple[str, ...]
    labels: tuple[str, ...]


IDX_SETS: Mapping[str, IdxSet] = MappingProxyType(
    {
        "mnist": IdxSet("mnist", ("mnist", "MNIST/raw"), tuple("0123456789")),
        "fashion-mnist": IdxSet(
            "fashion-mnist",
            ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
            # https://github.com/zalandoresearch/fashion-mnist#labels
            (
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        ),
    }
)


def file_in(folder: Path, stem: str) -> Path | None:
    """The file of ``stem`` (such as ``train-images-idx3``) in ``folder``, in any of its four spellings."""
    stems = (stem, stem.replace("-idx", ".idx"))
    names = (f"{spelled}-ubyte{ending}" for ending in (".gz", "") for spelled in stems)
    return next((folder / name for name in names if is_file(folder / name)), None)


def find_idx(idx_set: IdxSet, data_dir: Path) -> Path | None:
    """The folder that holds all four files: below ``data_dir``, or ``data_dir`` itself; None when there is none."""
    stems = [stem for pair in _STEMS.values() for stem in pair]
    places = [data_dir / folder for folder in idx_set.folders]
    # Both datasets have the same four names: a folder that says it is the other one is not searched.
    others = {folder.split("/")[0] for other in IDX_SETS.values() if other != idx_set for folder in other.folders}
    if not others & {data_dir.name, data_dir.parent.name}:
        places.append(data_dir)
    return next((place for place in places if all(file_in(place, stem) for stem in stems)), None)


def load_idx(name: str, split: str, data_dir: Path) -> Dataset:
    """One split, or ``"all"``: train followed by test.

    Raises:
        DataError: Not there (where was looked and how to get it), or a damaged file, by name.
    """
    idx_set = IDX_SETS[name]
    folder = find_idx(idx_set, data_dir)
    if folder is None:
        looked = ", ".join(str(data_dir / place) for place in (*idx_set.folders, "")).rstrip("/")
        raise DataError(
            f"{name} was not found; looked in {looked}; run 'deploykit data prepare {name}', or name the folder that"
            " holds it with --data-dir or DEPLOYKIT_DATA"
        )
    parts = [_read_split(idx_set, folder, part) for part in _STEMS if split in (part, "all")]
    images, targets = (np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*parts, strict=True))
    return Dataset.from_arrays(
        name,
        images,
        targets,
        idx_set.labels,
        split=split,
        has_splits=True,
        whole=None if split == "all" else partial(load_idx, name, "all", data_dir),
    )


def _read_split(idx_set: IdxSet, folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path, labels_path = (file_in(folder, stem) for stem in _STEMS[split])
    if images_path is None or labels_path is None:
        raise DataError(f"{folder} has lost its {split} files; run 'deploykit data prepare {idx_set.name}'")
    images, targets = read_images(images_path), read_labels(labels_path)
    if len(images) != len(targets):
        raise DataError(f"{labels_path} holds {len(targets)} labels, but {images_path} holds {len(images)} pictures")
    if len(targets) and targets.max() >= len(idx_set.labels):
        raise DataError(f"{labels_path} holds label {targets.max()}; allowed: 0 to {len(idx_set.labels) - 1}")
    return images, targets


def read_images(path: Path) -> NDArray[np.uint8]:
    """``(N, H, W)``. Raises: DataError naming the file."""
    content = unpacked(path)
    count, height, width = _header(path, content, _IMAGES_MAGIC, 3)
    return _body(path, content, 16, count * height * width).reshape(count, height, width)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """``(N,)``. Raises: DataError naming the file."""
    content = unpacked(path)
    (count,) = _header(path, content, _LABELS_MAGIC, 1)
    return _body(path, content, 8, count)


def unpacked(path: Path) -> bytes:
    """The file's bytes, decompressed when they are gzip, whatever its ending. Raises: DataError."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except EOFError as problem:
        raise DataError(f"{path} is cut short: its gzip stream ends early; fetch it again") from problem
    except (gzip.BadGzipFile, zlib.error) as problem:
        raise DataError(f"{path} is damaged: {problem}; fetch it again") from problem
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def _header(path: Path, content: bytes, magic: int, axes: int) -> tuple[int, ...]:
    if len(content) < 4 * (1 + axes):
        raise DataError(f"{path} is cut short: {len(content)} bytes; an IDX header has {4 * (1 + axes)}")
    found, *shape = struct.unpack_from(f">{1 + axes}I", content)
    if found != magic:
        kind = "pictures" if magic == _IMAGES_MAGIC else "labels"
        raise DataError(f"{path} is not an IDX file of {kind}: it begins with {found:#010x}, expected {magic:#010x}")
    return tuple(shape)


def _body(path: Path, content: bytes, offset: int, expected: int) -> NDArray[np.uint8]:
    received = len(content) - offset
    if received != expected:
        fault = "is cut short" if received < expected else "is too long"
        raise DataError(f"{path} {fault}: {received} bytes after the header, which announces {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=offset)
