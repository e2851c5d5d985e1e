"""The data room: names, IDX files, folders, .npz and what a Dataset promises."""

import gzip
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_folders import write_picture
from PIL import Image

from deploykit import data
from deploykit.data.dataset import Dataset, split_rows
from deploykit.data.download import DOWNLOADS
from deploykit.data.folder import read_picture
from deploykit.errors import DataError, InputError, UnknownNameError


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx_set(folder: Path, *, dot: str = "-", ending: str = "-ubyte.gz", train: int = 30, test: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for stem, count in (("train", train), ("t10k", test)):
        images = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        targets = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{stem}-images{dot}idx3", images), (f"{stem}-labels{dot}idx1", targets)):
            content = idx_bytes(array)
            (folder / (name + ending)).write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)


def small(count=20, classes=4) -> Dataset:
    images = np.arange(count * 12, dtype=np.uint32).astype(np.uint8).reshape(count, 2, 2, 3)
    return Dataset.from_arrays("small", images, np.arange(count) % classes)


# Dataset


def test_batches_give_every_sample_once_in_order():
    dataset = small(23)
    parts = list(dataset.batches(5))
    assert [len(targets) for _, targets in parts] == [5, 5, 5, 5, 3]
    assert np.array_equal(np.concatenate([pictures for pictures, _ in parts]), dataset.pictures(range(23)))
    assert np.array_equal(np.concatenate([targets for _, targets in parts]), dataset.targets)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 3))
def test_take_is_balanced_and_never_repeats(targets, count, seed):
    dataset = Dataset.from_arrays(
        "drawn", np.zeros((len(targets), 2, 2, 1), np.uint8), np.array(targets), tuple("abcde")
    )
    part = dataset.take(count, seed=seed)
    assert len(part) == min(count, len(targets))
    assert len(set(part.rows.tolist())) == len(part)
    assert np.array_equal(part.targets, dataset.targets[part.rows])
    taken, there = np.bincount(part.targets, minlength=5), np.bincount(dataset.targets, minlength=5)
    fullest = taken.max()
    # A class may lag behind the fullest by more than one only when it has no more pictures.
    assert all(mine >= fullest - 1 or mine == all_of for mine, all_of in zip(taken, there, strict=True))
    assert np.array_equal(dataset.take(count + 5, seed=seed).rows[: len(part)], part.rows)


def test_take_depends_on_the_seed_and_repeats():
    dataset = small(200)
    assert np.array_equal(dataset.take(20, seed=1).rows, dataset.take(20, seed=1).rows)
    assert not np.array_equal(dataset.take(20, seed=1).rows, dataset.take(20, seed=2).rows)


def test_digest_changes_with_a_pixel_a_label_and_a_name():
    images, targets = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1])
    first = Dataset.from_arrays("d", images, targets, ("a", "b")).digest
    assert first == Dataset.from_arrays("other name", images.copy(), targets, ("a", "b")).digest
    changed = images.copy()
    changed[3, 1, 1] = 1
    others = [
        Dataset.from_arrays("d", changed, targets, ("a", "b")).digest,
        Dataset.from_arrays("d", images, targets[::-1], ("a", "b")).digest,
        Dataset.from_arrays("d", images, targets, ("a", "c")).digest,
        Dataset.from_arrays("d", images.reshape(4, 1, 4, 1), targets, ("a", "b")).digest,
    ]
    assert len({first, *others}) == 5


def test_part_keeps_the_source_digest():
    dataset = small()
    assert dataset.take(5).source_digest == dataset.source_digest == dataset.digest
    assert dataset.take(5).digest != dataset.digest


@pytest.mark.parametrize(
    ("images", "targets", "labels", "match"),
    [
        (np.zeros((3, 2, 2, 1), np.float32), np.zeros(3, int), None, "float32"),
        (np.zeros((3, 2, 2, 4), np.uint8), np.zeros(3, int), None, "4 channels"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(2, int), None, "3 pictures but 2 labels"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 2]), ("a", "b"), "label 2 is out of range"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.array([0, -1, 0]), ("a", "b"), "label -1 is out of range"),
        (np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, int), None, "no pictures"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3), None, "float64"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.full(3, 2**63, np.uint64), None, "label 9223372036854775808 is out of"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, targets, labels, match):
    with pytest.raises(DataError, match=match):
        Dataset.from_arrays("bad", images, targets, labels)


def test_zero_batch_or_sample_is_refused():
    with pytest.raises(InputError, match="batch size 0"):
        next(small().batches(0))
    with pytest.raises(InputError, match="0 samples"):
        small().take(0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_split_is_a_partition_of_80_to_20_in_each_class(targets):
    targets = np.array(targets, dtype=np.int64)
    train, test = split_rows(targets, "train"), split_rows(targets, "test")
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(targets)))
    for number in set(targets.tolist()):
        there, tested = (targets == number).sum(), (targets[test] == number).sum()
        assert tested == (max(1, round(0.2 * there)) if there > 1 else 0)


# Names and paths


def test_unknown_name_offers_the_near_match():
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'") as caught:
        data.load("mnits")
    assert caught.value.near_match == "mnist"


@pytest.mark.parametrize("name", ["shapes-colour", "shapes@x", "shapes-@3"])
def test_mistyped_shapes_is_an_unknown_name(name):
    with pytest.raises(UnknownNameError, match="did you mean 'shapes"):
        data.load(name)


@pytest.mark.parametrize("source", ["./nothing-here", "nothing.npz", "some/where"])
def test_path_that_does_not_exist_is_no_name(source):
    with pytest.raises(DataError, match="no such folder or file"):
        data.load(source)


@pytest.mark.parametrize("where", ["source", "data_dir", "environment"])
@pytest.mark.parametrize(
    ("path", "match"),
    [("~no-such-user/x", "no home folder is known for ~no-such-user"), ("/" + "long/" * 3000, "File name too long")],
)
def test_path_that_cannot_be_looked_at_is_one_short_line(monkeypatch, where, path, match):
    if where == "environment":
        monkeypatch.setenv("DEPLOYKIT_DATA", path)
    arguments = {"source": (path, None), "data_dir": ("mnist", path), "environment": ("mnist", None)}[where]
    with pytest.raises(DataError, match=match) as caught:
        data.load(arguments[0], data_dir=arguments[1])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_long_name_without_a_slash_is_refused():
    with pytest.raises(DataError, match=r"File name too long|\(5000 characters\)"):
        data.load("a" * 5000)


def test_unknown_split_is_refused():
    with pytest.raises(InputError, match="split 'validation'; allowed: train, test, all"):
        data.load("shapes", "validation")


def test_other_file_is_refused(tmp_path):
    file = tmp_path / "pictures.zip"
    file.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is a file; allowed: a folder of pictures, an \.npz"):
        data.load(file)


def test_name_wins_over_a_folder_unless_written_with_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        for number in range(5):
            write_picture(tmp_path / "shapes-color" / label / f"{number}.png")
    assert data.load("shapes-color").labels[0] == "red"
    assert data.load("./shapes-color").labels == ("a", "b")


def test_names_and_descriptions_agree(tmp_path):
    rows = data.describe(tmp_path)
    assert [row["name"] for row in rows] == data.names()
    for row in rows:
        if row["name"].startswith("shapes"):
            dataset = data.load(row["name"], "test")
            assert len(dataset) == row["test"] == row["train"] / 6
            assert len(dataset.labels) == row["classes"]
            assert [dataset.channels, *dataset.size] == row["input"]
        else:
            assert row["found"] is None
            assert ("deploykit data prepare " + row["name"] == row["how"]) == (row["name"] in DOWNLOADS)


def test_default_folder_is_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path))
    assert data.default_data_dir() == tmp_path
    monkeypatch.delenv("DEPLOYKIT_DATA")
    assert data.default_data_dir().name == "deploykit"


def test_import_is_light():
    code = (
        "import sys, deploykit.data, deploykit.preprocess; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'pooch', 'requests', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# IDX


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", ""])
@pytest.mark.parametrize(("dot", "ending"), [("-", "-ubyte.gz"), ("-", "-ubyte"), (".", "-ubyte"), (".", "-ubyte.gz")])
def test_mnist_is_found_in_all_spellings(tmp_path, folder, dot, ending):
    write_idx_set(tmp_path / folder, dot=dot, ending=ending)
    train, test = (data.load("mnist", split, data_dir=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test), len(data.load("mnist", "all", data_dir=tmp_path))) == (30, 10, 40)
    assert train.size == (28, 28) and train.channels == 1 and train.has_splits
    assert train.labels == tuple("0123456789")
    assert train.source_digest == test.source_digest and train.digest != test.digest
    expected = np.random.RandomState(0).randint(0, 256, (30, 28, 28)).astype(np.uint8)
    assert np.array_equal(train.pictures([29, 0])[..., 0], expected[[29, 0]])


@pytest.mark.parametrize("folder", ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_is_found_and_is_not_taken_for_mnist(tmp_path, folder):
    write_idx_set(tmp_path / folder)
    dataset = data.load("fashion-mnist", data_dir=tmp_path)
    assert dataset.labels[0] == "T-shirt/top" and dataset.labels[9] == "Ankle boot"
    assert data.load("fashion-mnist", data_dir=tmp_path / folder).digest == dataset.digest
    with pytest.raises(DataError, match="mnist was not found"):
        data.load("mnist", data_dir=tmp_path / folder)


def test_missing_mnist_says_where_was_looked_and_what_to_do(tmp_path):
    write_idx_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        data.load("mnist", data_dir=tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "MNIST/raw") in message and "deploykit data prepare mnist" in message
    assert "\n" not in message


IDX_FAULTS = {
    "gzip_cut_short": (lambda content: gzip.compress(content)[:-200], "is cut short: its gzip stream"),
    "gzip_garbled": (lambda content: b"\x1f\x8b\x08\x00" + b"\xff" * 500, "is damaged"),
    "plain_cut_short": (lambda content: content[:-1], "is cut short: 7839 bytes"),
    "too_long": (lambda content: content + b"\0", "is too long"),
    "wrong_magic": (lambda content: b"\0\0\x0c\x03" + content[4:], "begins with 0x00000c03, expected 0x00000803"),
    "empty": (lambda content: b"", "is cut short: 0 bytes"),
    "header_only_in_part": (lambda content: content[:10], "is cut short: 10 bytes"),
    "other_count": (lambda content: idx_bytes(np.zeros((9, 28, 28), np.uint8)), "holds 10 labels, but .* 9 pictures"),
    "a_web_page": (lambda content: b"<html>404</html>", "is not an IDX file of pictures"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_damaged_idx_file_is_named(tmp_path, fault):
    damage, match = IDX_FAULTS[fault]
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match=match) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert path.name in str(caught.value)


def test_label_out_of_range_names_the_file(tmp_path):
    write_idx_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(idx_bytes(np.full(10, 10, np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz holds label 10; allowed: 0 to 9"):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "per_class"), [("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])])
def test_real_mnist(name, per_class):
    test, train = data.load(name, "test"), data.load(name, "train")
    assert np.bincount(test.targets).tolist() == per_class  # as published for the test set
    assert len(train) == 60_000
    # Mean and deviation of the training pixels that all MNIST examples use.
    pixels = train.pictures(slice(None)) / 255.0
    assert pixels.mean() == pytest.approx(0.1307, abs=1e-4) and pixels.std() == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.realdata
def test_real_fashion_mnist():
    test, train = data.load("fashion-mnist", "test"), data.load("fashion-mnist", "train")
    assert np.bincount(test.targets).tolist() == [1000] * 10 and np.bincount(train.targets).tolist() == [6000] * 10
    assert (train.pictures(slice(None)) / 255.0).mean() == pytest.approx(0.2860, abs=1e-4)


# Folders


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "Bäume und Blüten"
    for label in ("Ahörn", "Zeder 2", "birke"):
        for number in range(10):
            write_picture(root / label / f"bild {number:02}.PNG", (number, 100, 200), (9, 7))
    return root


def test_flat_folder_is_split_and_covers_everything(flat):
    train, test, everything = (data.load(flat, split) for split in ("train", "test", "all"))
    assert everything.labels == ("Ahörn", "Zeder 2", "birke") and everything.name == flat.name
    assert (len(train), len(test), len(everything)) == (24, 6, 30)
    assert not set(train.rows) & set(test.rows)
    assert np.bincount(test.targets).tolist() == [2, 2, 2]
    assert not train.has_splits and train.size == (7, 9) and train.channels == 3 and train.notes == ()
    assert train.source_digest == test.source_digest == everything.digest
    picture = everything.pictures([13])[0]
    assert picture.shape == (7, 9, 3) and picture[0, 0].tolist() == [3, 100, 200]


def test_digest_follows_the_files(flat):
    before = data.load(flat, "all").digest
    assert data.load(flat, "all").digest == before
    write_picture(flat / "birke" / "bild 03.PNG", (1, 2, 3))
    changed = data.load(flat, "all").digest
    (flat / "birke" / "bild 03.PNG").rename(flat / "birke" / "bild 99.PNG")
    assert len({before, changed, data.load(flat, "all").digest}) == 3


@pytest.mark.parametrize("second", ["test", "val", "valid", "Validation"])
def test_split_folders_are_followed(tmp_path, second):
    for part, count in (("train", 3), (second, 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                write_picture(tmp_path / part / label / f"{number}.jpg")
    train, test = data.load(tmp_path, "train"), data.load(tmp_path, "test")
    assert (len(train), len(test), len(data.load(tmp_path, "all"))) == (6, 4, 10)
    assert train.has_splits and test.labels == ("cat", "dog") and test.targets.tolist() == [0, 0, 1, 1]


def test_val_is_not_used_beside_test_and_is_named(tmp_path):
    for part in ("train", "test", "val"):
        for label in ("cat", "dog"):
            write_picture(tmp_path / part / label / f"{part}.png")
    dataset = data.load(tmp_path, "all")
    assert len(dataset) == 4 and dataset.notes == ("not used beside the splits: val",)


def test_missing_split_is_named(tmp_path):
    for label in ("cat", "dog"):
        write_picture(tmp_path / "train" / label / "a.png")
    with pytest.raises(DataError, match="has no test split; it has train"):
        data.load(tmp_path, "test")


def test_class_called_train_is_a_class(tmp_path):
    for label in ("train", "car"):
        write_picture(tmp_path / label / "a.png")
    assert data.load(tmp_path, "all").labels == ("car", "train")


def test_class_missing_from_one_split_keeps_the_numbers(tmp_path):
    for part, label in (("train", "a"), ("train", "b"), ("train", "c"), ("test", "a"), ("test", "c")):
        write_picture(tmp_path / part / label / "x.png")
    test = data.load(tmp_path, "test")
    assert test.targets.tolist() == [0, 2] and test.labels == ("a", "b", "c")
    assert test.notes == ("the test split has no pictures of b",)


def test_stray_files_are_passed_over_with_one_note(flat):
    for name in (".DS_Store", "Thumbs.db", "read me.txt", "birke/.DS_Store", "birke/._bild 00.PNG", "birke/list.csv"):
        (flat / name).write_bytes(b"\0\0\0\1Bud1")
    (flat / ".git").mkdir()
    dataset = data.load(flat, "all")
    assert len(dataset) == 30
    assert dataset.notes == (
        "passed over 6 files that are not pictures: .DS_Store, ._bild 00.PNG, Thumbs.db, list.csv, read me.txt",
    )


def test_class_folder_that_is_not_utf8_is_refused(flat):
    try:
        (flat / "birke").rename(os.fsdecode(os.fsencode(flat) + b"/b\xefrke"))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"b\\udcefrke: the name of a class folder is not UTF-8; rename it") as caught:
        data.load(flat)
    assert str(caught.value).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_pipe_and_socket_named_as_pictures_are_passed_over(flat, monkeypatch):
    monkeypatch.chdir(flat)  # a socket's path has to be short
    os.mkfifo("birke/pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("birke/socket.jpg")
        dataset = data.load(flat, "all")
    assert len(dataset) == 30 and dataset.digest
    assert dataset.notes == ("passed over 2 files that are not pictures: pipe.png, socket.jpg",)
    os.mkfifo("pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz is a pipe, socket or device"):
        data.load(flat / "pipe.npz")


def test_dangling_link_is_named(flat):
    (flat / "birke" / "gone.png").symlink_to(flat / "nowhere.png")
    with pytest.raises(DataError) as caught:
        data.load(flat, "all")
    message = f"{flat / 'birke' / 'gone.png'} is not a readable picture: it is a link to a file that is not there"
    assert str(caught.value) == f"{message}; replace or remove it"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_jpeg_cut_short_is_called_so(tmp_path, share):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.jpg is not a readable picture: the file is cut short"):
        read_picture(path, 3)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda root: None, "holds no pictures in class/picture"),
        (lambda root: write_picture(root / "loose.png"), "holds no pictures in class/picture"),
        (lambda root: write_picture(root / "cat" / "a.png"), "holds one class, 'cat'"),
        (lambda root: write_picture(root / "top" / "cat" / "a.png"), "the folder of the classes cat"),
        (
            lambda root: [write_picture(root / n / "a.png") for n in "ab"] + [(root / "empty").mkdir()],
            "class folder 'empty' holds no pictures",
        ),
    ],
)
def test_folder_without_enough_is_refused(tmp_path, build, match):
    build(tmp_path)
    with pytest.raises(DataError, match=match):
        data.load(tmp_path, "all")


def test_pictures_of_different_sizes_come_as_a_list(tmp_path):
    for label, size in (("a", (9, 7)), ("b", (4, 5))):
        write_picture(tmp_path / label / "x.png", size=size)
    dataset = data.load(tmp_path, "all")
    assert dataset.size is None
    assert [picture.shape for picture in dataset.pictures([1, 0])] == [(5, 4, 3), (7, 9, 3)]


def test_grey_pictures_make_a_grey_dataset(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("L", (4, 4), 77).save(tmp_path / label / "x.png")
    dataset = data.load(tmp_path, "all")
    assert dataset.channels == 1 and dataset.pictures([0]).shape == (1, 4, 4, 1) and dataset.pictures([0]).max() == 77


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "gif", "tif", "ppm"])
def test_truncated_picture_is_named(tmp_path, ending):
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.fromarray(noise).save(tmp_path / label / f"whole.{ending}")
    bad = tmp_path / "b" / f"whole.{ending}"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is not a readable picture") as caught:
        data.load(tmp_path, "all").pictures([0, 1])
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\xff" * 30, b"\xff\xd8\xff"]
)
def test_file_that_only_ends_like_a_picture_is_named(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png is not a readable picture"):
        read_picture(path, 3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["jpg", "png", "bmp", "webp", "gif", "tif"]), st.integers(0, 2**31), st.integers(1, 8))
def test_garbled_picture_is_read_or_named(tmp_path_factory, ending, seed, count):
    path = tmp_path_factory.getbasetemp() / f"garbled.{ending}"
    random = np.random.RandomState(seed)
    Image.fromarray(random.randint(0, 256, (12, 12, 3)).astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for place in random.randint(0, min(len(content), 120), count):
        content[place] = random.randint(256)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata are for the user
        try:
            assert read_picture(path, 3).dtype == np.uint8
        except DataError as problem:
            assert path.name in str(problem)


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">2I", 30_000, 30_000)  # width and height of the IHDR chunk
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.png is too large a picture"):
        read_picture(path, 3)


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 250  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.fromarray(pixels).save(tmp_path / label / "x.jpg", exif=exif, quality=95)
    dataset = data.load(tmp_path, "all")
    assert dataset.size == (16, 8)
    upright = dataset.pictures([0])[0]
    assert upright[:6].mean() > 240 and upright[10:].mean() < 10


def save_palette(path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    image.save(path, transparency=bytes([0, 128]))


PICTURE_KINDS = {
    "rgba": lambda path: Image.new("RGBA", (4, 4), (200, 30, 60, 128)).save(path),
    "palette_with_transparency": save_palette,
    "bilevel": lambda path: Image.new("1", (4, 4), 1).save(path),
    "grey_alpha": lambda path: Image.new("LA", (4, 4), (77, 9)).save(path),
    "16_bit": lambda path: Image.fromarray(np.full((4, 4), 51400, np.uint16)).save(path),
    "cmyk": lambda path: Image.new("CMYK", (8, 8), (0, 0, 0, 55)).save(path.with_suffix(".jpg"), quality=95),
}
EXPECTED = {
    "rgba": (200, 30, 60),
    "palette_with_transparency": (200, 30, 60),
    "bilevel": (255, 255, 255),
    "grey_alpha": (77, 77, 77),
    "16_bit": (200, 200, 200),  # 51400 / 257
    "cmyk": (200, 200, 200),
}


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_kinds_of_pictures_become_8_bit_rgb(tmp_path, kind):
    PICTURE_KINDS[kind](tmp_path / "x.png")
    path = next(tmp_path.iterdir())
    pixels = read_picture(path, 3)
    assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    assert np.abs(pixels.reshape(-1, 3).astype(int) - EXPECTED[kind]).max() <= 1
    assert read_picture(path, 1).shape[-1] == 1


def test_floating_point_picture_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_picture(tmp_path / "x.tif", 3)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions that bind")
def test_unreadable_folder_is_named(flat):
    flat.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot read"):
            data.load(flat)
    finally:
        flat.chmod(0o755)


# .npz


def save_npz(path: Path, **changes) -> Path:
    arrays = {"images": np.arange(10 * 4 * 3, dtype=np.uint8).reshape(10, 2, 2, 3), "labels": np.arange(10) % 2}
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz_is_split_when_it_does_not_say(tmp_path):
    path = save_npz(tmp_path / "some pictures.npz", label_names=np.array(["cat", "dog"]))
    train, test = data.load(path, "train"), data.load(path, "test")
    assert (train.name, train.labels, len(train), len(test)) == ("some pictures", ("cat", "dog"), 8, 2)
    assert train.source_digest == test.source_digest == data.load(path, "all").digest
    assert not train.has_splits


def test_npz_split_array_is_followed(tmp_path):
    path = save_npz(
        tmp_path / "x.npz", split=np.array(["train"] * 7 + ["test"] * 3), images=np.zeros((10, 3, 5), np.uint8)
    )
    test = data.load(path, "test")
    assert len(test) == 3 and test.has_splits and test.channels == 1 and test.size == (3, 5)
    assert test.targets.tolist() == [1, 0, 1] and test.labels == ("0", "1")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": np.arange(9) % 2}, "10 images but 9 labels"),
        ({"images": np.zeros((10, 2, 2, 3))}, "images are float64 of shape"),
        ({"images": np.zeros((10, 3, 8, 8), np.uint8)}, r"uint8 of shape \(10, 3, 8, 8\)"),
        ({"labels": np.zeros(10)}, "labels are float64"),
        ({"labels": np.zeros((10, 2), int)}, r"labels are int64 of shape \(10, 2\)"),
        ({"labels": None}, "lacks labels; it holds images"),
        ({"images": None, "x_train": np.zeros(3)}, "lacks images; it holds labels, x_train"),
        ({"label_names": np.array(["one"])}, "label 1 is out of range"),
        ({"label_names": np.array(["one", "one"])}, "a name twice"),
        ({"label_names": np.array([1, 2])}, "label_names is int64"),
        ({"split": np.array(["train"] * 9 + ["dev"])}, "allowed: 10 of train, test"),
        ({"split": np.array(["train"] * 10)}, "has no test split; it has train"),
        ({"labels": np.array([None] * 10)}, "not a readable .npz of plain arrays"),
        ({"labels": np.array([-1] * 10)}, "out of range"),
        ({"labels": np.array([10**12] * 10)}, "label 1000000000000 is out of range; allowed: class numbers from 0 to"),
        ({"labels": np.array([0, 100_000] * 5)}, "label 100000 is out of range"),
        ({"labels": np.array([2**63] * 10, np.uint64)}, "label 9223372036854775808 is out of range"),
        (
            {"labels": np.array([0, 2**63] * 5, np.uint64), "label_names": np.array(["a", "b"])},
            "label 9223372036854775808 is out of range",
        ),
        ({"label_names": np.array(["a", "\ud800"])}, r"class name '\\ud800' is not UTF-8"),
    ],
)
def test_bad_npz_says_what_it_holds(tmp_path, changes, match):
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(DataError, match=match):
        data.load(path, "test")


def test_truncated_npz_is_named_at_every_length(tmp_path):
    path = save_npz(tmp_path / "x.npz")
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"x\.npz is not a readable"):
            data.load(path)


def test_npy_named_npz_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as handle:
        np.save(handle, np.zeros(3))
    with pytest.raises(DataError, match="holds one array"):
        data.load(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"just some text\n", b""])
def test_other_file_named_npz_is_refused_without_advice_to_unpickle(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"x\.npz is not a readable \.npz: it (begins with b'just s'|is empty)"
    ) as caught:
        data.load(path)
    assert "pickle" not in str(caught.value)


def test_npz_of_objects_is_refused_without_advice_to_unpickle(tmp_path):
    path = save_npz(tmp_path / "x.npz", labels=np.array([None] * 10))
    with pytest.raises(DataError, match="it holds pickled Python objects") as caught:
        data.load(path)
    assert "allow_pickle" not in str(caught.value)
