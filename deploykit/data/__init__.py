"""Pictures with labels, by name, from a folder, a tar archive or an ``.npz``; one source a file.

``load("mnist")`` gives a `Dataset`; ``names()`` lists what has a name; ``prepare("mnist")`` downloads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploykit.data.archive import TAR_ENDINGS, archive_stem
from deploykit.data.cifar import is_cifar10, load_cifar10_at
from deploykit.data.dataset import Dataset, Pictures
from deploykit.data.download import DOWNLOADS, fetch
from deploykit.data.folder import load_folder
from deploykit.data.named import NAMED_SETS, NamedSet
from deploykit.data.npz import load_npz
from deploykit.data.paths import user_path
from deploykit.data.shapes import PER_CLASS, SIDE, TASKS, load_shapes, task_for_classes
from deploykit.data.tar import load_tar
from deploykit.errors import DataError, InputError, UnknownNameError
from deploykit.progress import Progress, silent

__all__ = ["SHAPES_CLASSES", "Dataset", "Pictures", "default_data_dir", "describe", "load", "names", "prepare"]

SHAPES_CLASSES = frozenset(len(task.labels) for task in TASKS.values())
"""Class counts that name one of the tasks of ``shapes``."""

_SPLITS = ("train", "test", "all")
_SEEDED = re.compile(r"(shapes[a-z-]*)(?:@(\d{1,9}))?")
_PATHS = "a folder of pictures, an .npz, a .tar of pictures"


def names() -> list[str]:
    """The datasets that have a name; those of shapes also take a seed number, as in ``shapes-color@7``."""
    return ["shapes", *TASKS, *NAMED_SETS]


def default_data_dir() -> Path:
    """Where named datasets lie unless said otherwise: ``DEPLOYKIT_DATA``, or the user's cache folder."""
    if named := os.environ.get("DEPLOYKIT_DATA"):
        return user_path(named)
    import pooch

    return Path(pooch.os_cache("deploykit"))


def load(
    source: str | os.PathLike[str],
    split: str = "test",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    classes: int | None = None,
) -> Dataset:
    """Pictures with labels.

    Args:
        source: A name of ``names()``, a folder of pictures, a tar archive of one, or an ``.npz``. A name wins over a
            folder of the same name; write ``./mnist`` for the folder.
        split: ``"train"``, ``"test"`` or ``"all"``.
        data_dir: Where named datasets lie; ``default_data_dir()`` when None.
        classes: Number of the network's outputs, which tells what ``shapes`` alone means.

    Raises:
        UnknownNameError: Neither a name nor a path that exists.
        DataError: Not found, damaged, or without such a split.
        InputError: ``split`` is none of the three.
    """
    if split not in _SPLITS:
        raise InputError(f"split {split!r}; allowed: {', '.join(_SPLITS)}")
    text = os.fspath(source)
    if text in NAMED_SETS:
        return NAMED_SETS[text].load(split, _data_dir(data_dir))
    seeded = _SEEDED.fullmatch(text)
    if seeded and seeded[1] in ("shapes", *TASKS):
        task = task_for_classes(classes) if seeded[1] == "shapes" else seeded[1]
        return load_shapes(task, split, int(seeded[2] or 0))
    return _load_path(text, user_path(source), split)


def _load_path(text: str, path: Path, split: str) -> Dataset:
    if is_cifar10(path):
        return load_cifar10_at(path, split)
    if path.is_dir():
        return load_folder(path, split)
    if path.is_file():
        if archive_stem(path) is not None:
            return load_tar(path, split)
        if path.suffix.lower() != ".npz":
            endings = ", ".join(TAR_ENDINGS)
            raise DataError(f"{path} is a file; allowed: {_PATHS} ({endings}), or one of {', '.join(names())}")
        return load_npz(path, split)
    if path.exists():
        raise DataError(f"{path} is a pipe, socket or device; allowed: {_PATHS}, or a dataset's name")
    if len(path.parts) > 1 or path.suffix or "/" in text or os.sep in text:
        raise DataError(f"no such folder or file: {path}; allowed: {_PATHS}, or a dataset's name")
    raise UnknownNameError("dataset", text, names())


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    return default_data_dir() if data_dir is None else user_path(data_dir)


def describe(data_dir: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """What ``deploykit data list`` shows of each named dataset.

    Keys: ``name, classes, input`` ([channels, height, width], null where pictures differ), ``train, test`` (samples),
    ``found`` (path or None), ``how`` (where it comes from, or how to get it).
    """
    rows = [_describe_shapes(name) for name in ("shapes", *TASKS)]
    return rows + [_describe_named(named, _data_dir(data_dir)) for named in NAMED_SETS.values()]


def _describe_shapes(name: str) -> dict[str, Any]:
    task = TASKS[task_for_classes(None) if name == "shapes" else name]
    what = "by the network's classes: 6 color, 5 shape, 9 both; " if name == "shapes" else ""
    return {
        "name": name,
        "classes": len(task.labels),
        "input": [task.channels, SIDE, SIDE],
        **{split: count * len(task.labels) for split, count in PER_CLASS.items()},
        "found": None,
        "how": f"{what}generated; {name}@7 gives other pictures",
    }


def _describe_named(named: NamedSet, folder: Path) -> dict[str, Any]:
    found = named.find(folder)
    return {
        "name": named.name,
        "classes": named.classes,
        "input": list(named.input),
        **named.samples,
        "found": None if found is None else str(found),
        "how": "ready" if found else named.get,
    }


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
    mirrors: Sequence[str] | None = None,
) -> Path:
    """Downloads a named dataset unless it is there, checks it, and returns its folder.

    Args:
        name: A key of ``DOWNLOADS``, such as ``"mnist"`` or ``"cifar10"``.
        data_dir: See ``load``.
        progress: Told the bytes of each file.
        mirrors: Addresses of folders that hold the files. When None: ``DEPLOYKIT_MIRROR``, an address below which the
            datasets lie in folders of their name, or else the public mirrors.

    Raises:
        UnknownNameError: No such dataset.
        DataError: All mirrors failed, or there is nothing to download.
        OutputError: The folder cannot be written to.
    """
    seeded = _SEEDED.fullmatch(name)
    if seeded and seeded[1] in ("shapes", *TASKS):
        raise DataError(f"{name} is generated, there is nothing to download; allowed: {', '.join(DOWNLOADS)}")
    if name in NAMED_SETS and name not in DOWNLOADS:
        raise DataError(
            f"{name} has no download; {NAMED_SETS[name].get}, below {_data_dir(data_dir)}; allowed:"
            f" {', '.join(DOWNLOADS)}"
        )
    if name not in DOWNLOADS:
        raise UnknownNameError("dataset to download", name, DOWNLOADS)
    named, root = NAMED_SETS[name], _data_dir(data_dir)
    found = named.find(root)
    if found is not None and named.complete(found):
        return found
    if mirrors is None and (address := os.environ.get("DEPLOYKIT_MIRROR")):
        mirrors = (f"{address.rstrip('/')}/{name}/",)
    return fetch(DOWNLOADS[name], named.place(root), mirrors=mirrors, progress=progress)
