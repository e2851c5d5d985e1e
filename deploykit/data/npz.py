"""Pictures in one ``.npz``: ``images`` and ``labels``, and if wished ``label_names`` and ``split``."""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Dataset, check_label_numbers, split_rows
from deploykit.data.paths import printable
from deploykit.errors import DataError

__all__ = ["load_npz"]

_KEYS = ("images", "labels", "label_names", "split")


def load_npz(path: Path, split: str) -> Dataset:
    """Reads ``images`` (uint8; NHWC or NHW), ``labels`` (integers), ``label_names`` and ``split`` (texts).

    Nothing is unpickled. Without a ``split`` array of "train" and "test", train and test are a fixed 80/20 cut through
    each class.

    Raises:
        DataError: Says what was received and what is allowed.
    """
    arrays = _read(path)
    images, targets = arrays["images"], arrays["labels"]
    if len(images) != len(targets) or images.ndim == 0:
        raise DataError(f"{path} holds {len(images)} images but {len(targets)} labels; one label an image is needed")
    names = _label_names(path, arrays)
    part = _rows(path, arrays, split)
    return Dataset.from_arrays(
        printable(path.stem),
        images[part],
        targets[part],
        names,
        split=split,
        has_splits="split" in arrays,
        whole=None if split == "all" else partial(load_npz, path, "all"),
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as handle:  # numpy leaves a file open that it opened itself and found damaged
            _check_beginning(path, handle.read(6))
            handle.seek(0)
            arrays = _arrays(path, np.load(handle, allow_pickle=False))
    except (
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        MemoryError,
    ) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        if "allow_pickle" in reason:  # advice that would run whatever the file holds
            reason = "it holds pickled Python objects"
        raise DataError(f"{path} is not a readable .npz of plain arrays: {reason}") from problem
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem
    _check(path, arrays)
    return arrays


def _check_beginning(path: Path, start: bytes) -> None:
    if not start.startswith((b"PK", b"\x93NUMPY")):
        fault = f"it begins with {start!r}, a ZIP archive with b'PK'" if start else "it is empty"
        raise DataError(f"{path} is not a readable .npz: {fault}; write it with numpy.savez")


def _arrays(path: Path, content: Any) -> dict[str, NDArray[Any]]:
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one array; expected an .npz with images and labels (numpy.savez)")
    with content:
        if missing := [key for key in _KEYS[:2] if key not in content.files]:
            received = ", ".join(content.files) or "nothing"
            raise DataError(f"{path} lacks {' and '.join(missing)}; it holds {received}; allowed: {', '.join(_KEYS)}")
        return {key: content[key] for key in _KEYS if key in content.files}


def _check(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    images, targets = arrays["images"], arrays["labels"]
    shape_fits = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if images.dtype != np.uint8 or not shape_fits or 0 in images.shape[1:]:
        raise DataError(
            f"{path}: images are {images.dtype} of shape {images.shape};"
            " allowed: uint8, 0 to 255, of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {targets.dtype} of shape {targets.shape}; allowed: integers of shape (N,)")
    check_label_numbers(str(path), targets)


def _label_names(path: Path, arrays: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    targets = arrays["labels"]
    if "label_names" not in arrays:
        return tuple(str(number) for number in range(int(targets.max(initial=0)) + 1))
    names = _texts(path, "label_names", arrays["label_names"])
    if len(set(names)) != len(names):
        raise DataError(f"{path}: label_names holds a name twice: {', '.join(names)}")
    return names


def _rows(path: Path, arrays: dict[str, NDArray[Any]], split: str) -> NDArray[np.int64]:
    targets = arrays["labels"].astype(np.int64)
    if "split" not in arrays:
        return split_rows(targets, split)
    splits = np.array(_texts(path, "split", arrays["split"]))
    if len(splits) != len(targets) or not set(splits) <= {"train", "test"}:
        found = ", ".join(sorted(set(splits.tolist()))[:5])
        raise DataError(f"{path}: split holds {len(splits)} of {found}; allowed: {len(targets)} of train, test")
    if split == "all":
        return split_rows(targets, split)
    rows = np.flatnonzero(splits == split).astype(np.int64)
    if not len(rows):
        raise DataError(f"{path} has no {split} split; it has {', '.join(sorted(set(splits.tolist())))}")
    return rows


def _texts(path: Path, key: str, values: NDArray[Any]) -> tuple[str, ...]:
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise DataError(f"{path}: {key} is {values.dtype} of shape {values.shape}; allowed: texts of shape (N,)")
    return tuple(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)
