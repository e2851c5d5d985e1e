"""TensorFlow's 3,670 photos of five flowers: https://www.tensorflow.org/datasets/catalog/tf_flowers.

Kaggle's "flowers" and its relatives are larger collections of the same five kinds: folders like any other.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from deploykit.data.dataset import Dataset
from deploykit.data.folder import load_folder
from deploykit.data.paths import is_file
from deploykit.data.tar import load_tar
from deploykit.errors import DataError

__all__ = ["FLOWERS_FOLDER", "FLOWERS_LABELS", "find_flowers", "load_flowers"]

FLOWERS_FOLDER = "flower-photos"  # below the data folder: where `data prepare` writes
FLOWERS_LABELS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
_PLACES = ("flower_photos", f"{FLOWERS_FOLDER}/flower_photos")  # unpacked
_ARCHIVES = ("flower_photos.tgz", f"{FLOWERS_FOLDER}/flower_photos.tgz")


def find_flowers(data_dir: Path) -> Path | None:
    """The folder ``flower_photos`` or its archive; None when neither is there."""
    folders = (data_dir / place for place in (*_PLACES, FLOWERS_FOLDER))
    unpacked = next((folder for folder in folders if (folder / FLOWERS_LABELS[0]).is_dir()), None)
    return unpacked or next((data_dir / name for name in _ARCHIVES if is_file(data_dir / name)), None)


def load_flowers(split: str, data_dir: Path) -> Dataset:
    """The photos, of various sizes, cut 80/20 through each class, the same everywhere.

    Raises:
        DataError: Not there (how to get it), damaged, or with other classes.
    """
    place = find_flowers(data_dir)
    if place is None:
        looked = ", ".join(str(data_dir / name) for name in (*_PLACES, *_ARCHIVES))
        raise DataError(
            f"flower-photos was not found; looked for {looked}; run 'deploykit data prepare flower-photos', or name the"
            " folder that holds it with --data-dir or DEPLOYKIT_DATA"
        )
    found = load_folder(place, split) if place.is_dir() else load_tar(place, split)
    if found.labels != FLOWERS_LABELS:
        raise DataError(f"{place} holds the classes {', '.join(found.labels)}; expected {', '.join(FLOWERS_LABELS)}")
    return replace(
        found, name="flower-photos", whole=None if split == "all" else partial(load_flowers, "all", data_dir)
    )
