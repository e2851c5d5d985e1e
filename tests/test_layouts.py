"""Folders laid out as well-known collections are: Dogs vs. Cats, ImageNet, flowers; and very many files."""

import os
import pickle
import time

import numpy as np
import pytest
from picture_folders import SYNSETS, write_flat, write_imagenet, write_picture

from deploykit import data
from deploykit.errors import DataError


def test_class_in_the_file_name_is_understood_and_split(tmp_path):
    """As Kaggle's Dogs vs. Cats comes: train/cat.0.jpg, and test1 without classes."""
    write_flat(tmp_path / "train", {"cat": 10, "dog": 5})
    write_picture(tmp_path / "test1" / "1.jpg")
    (tmp_path / "sampleSubmission.csv").write_text("id,label")
    train, test = data.load(tmp_path, "train"), data.load(tmp_path, "test")
    assert train.labels == ("cat", "dog") and not train.has_splits
    assert np.bincount(train.targets).tolist() == [8, 4] and np.bincount(test.targets).tolist() == [2, 1]
    assert train.notes == ("not used beside train: test1",)
    assert data.load(tmp_path / "train", "all").targets.tolist() == [0] * 10 + [1] * 5
    names = [data.load(tmp_path, "all").reader.files.paths[row] for row in train.rows]
    assert all(("dog" in name) == (target == 1) for name, target in zip(names, train.targets, strict=True))


def test_class_in_the_file_name_with_a_test_folder(tmp_path):
    write_flat(tmp_path / "train", {"cat": 3, "dog": 3})
    write_flat(tmp_path / "test", {"dog": 2, "cat": 1})
    test = data.load(tmp_path, "test")
    assert test.has_splits and test.targets.tolist() == [0, 1, 1] and test.labels == ("cat", "dog")


@pytest.mark.parametrize("names", [["IMG_0001.jpg", "DSC_0002.jpg"], ["1.jpg", "2.jpg"], ["cat.1.jpg", "x.jpg"]])
def test_names_without_a_class_are_no_classes(tmp_path, names):
    for name in names:
        write_picture(tmp_path / name)
    with pytest.raises(DataError, match="holds no pictures in class/picture"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("LOC_synset_mapping.txt", SYNSETS),
        ("synset_words.txt", SYNSETS),
        (
            "imagenet_class_index.json",
            '{"0": ["n01440764", "tench"], "134": ["n02012849", "crane"], "517": ["n03126707", "crane"]}',
        ),
        ("imagenet_class_index.json", '{"n01440764": "tench", "n02012849": "crane", "n03126707": "crane"}'),
    ],
)
def test_imagenet_folders_get_unique_names_in_the_order_of_wnids(tmp_path, file, content):
    root = write_imagenet(tmp_path)
    assert data.load(root, "train").labels == ("n01440764", "n02012849", "n03126707")
    (root / file).write_text(content)
    train, test = data.load(root, "train"), data.load(root, "test")
    assert train.labels == test.labels == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert train.targets.tolist() == test.targets.tolist() == [0, 1, 2] and train.has_splits and train.notes == ()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("LOC_synset_mapping.txt", "<html>"),
        ("LOC_synset_mapping.txt", ""),
        ("imagenet_class_index.json", "[1, 2]"),
        ("imagenet_class_index.json", '{"0": 7}'),
        ("imagenet_class_index.json", '{"0": ["n01440764"'),
        ("synset_words.txt", "\udcff"),
    ],
)
def test_names_file_that_gives_none_is_named(tmp_path, file, content):
    root = write_imagenet(tmp_path)
    (root / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"{file} does not give names of classes") as caught:
        data.load(root, "train")
    assert "\n" not in str(caught.value)


def test_val_without_class_folders_is_pointed_at(tmp_path):
    root = write_imagenet(tmp_path)
    for folder in (root / "val").iterdir():
        for path in folder.iterdir():
            path.rename(root / "val" / path.name)
        folder.rmdir()
    with pytest.raises(DataError, match=r"has no test split; it has train \('val' holds no folders of classes\)"):
        data.load(root, "test")


def test_flowers_with_strays_and_copies_across_kinds(tmp_path):
    root = tmp_path / "flowers"
    for kind in ("daisy", "rose"):
        for number in range(10):
            write_picture(root / kind / f"{number}.jpg", (number, 0, 0))  # equal across kinds
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    train, test = data.load(root, "train"), data.load(root, "test")
    assert (len(train), len(test)) == (16, 4) and train.notes == (
        "passed over 1 file that is not a picture: .DS_Store",
    )
    assert not set(train.rows) & set(test.rows)
    assert np.array_equal(data.load(root, "test").rows, test.rows)  # the cut is always the same


def test_listing_many_files_is_quick_and_small(tmp_path):
    """100,000 files take about 0.4 s of one core; 4,000 here, with a generous bound."""
    for label in range(8):
        folder = tmp_path / f"n{label:08}"
        folder.mkdir()
        write_picture(folder / "0.png", size=(1, 1))
        for number in range(1, 500):
            os.link(folder / "0.png", folder / f"{folder.name}_{number}.png")
    start = time.process_time()
    dataset = data.load(tmp_path, "train")
    assert time.process_time() - start < 1
    assert len(dataset) == 3200 and len(pickle.dumps(dataset)) / 4_000 < 60  # bytes a picture
