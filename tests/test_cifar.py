"""CIFAR-10 in all forms in which it lies about, and pickles that hold more than data."""

import io
import os
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit import data
from deploykit.data.cifar import CIFAR10_LABELS
from deploykit.data.dataset import Dataset
from deploykit.data.plain_pickle import read_plain_pickle
from deploykit.errors import DataError

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
COUNT = 7  # pictures a batch


def planes(number: int) -> np.ndarray:
    """``(7, 3072)`` of batch ``number``."""
    return np.random.RandomState(number).randint(0, 256, (COUNT, 3072)).astype(np.uint8)


def labels(number: int) -> list[int]:
    return [(number + place) % 10 for place in range(COUNT)]


def python2_batch(images: np.ndarray, targets: list[int], title: bytes = b"training batch 1 of 5") -> bytes:
    """A batch as Python 2's cPickle wrote the published files: protocol 2, texts as str, numpy.core.multiarray."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    count = struct.pack("<H", len(images))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87q\x09Rq\x0a(K\x01"
        + b"M" + count + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0bU\x02u1K\x00K\x01\x87q\x0cRq\x0d(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89T" + struct.pack("<I", images.nbytes)
        + images.tobytes() + b"q\x0ftq\x10b"
    )  # fmt: skip
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(title) + b"q\x03"
        + text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in targets) + b"e"
        + text(b"data") + b"q\x06" + array
        + text(b"filenames") + b"q\x11]q\x12(" + text(b"a_s_000001.png") + text(b"b_s_000002.png") + b"eu."
    )  # fmt: skip


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        records = np.concatenate([np.array(labels(number), np.uint8)[:, None], planes(number)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_LABELS))
    return folder


def write_python(folder: Path, write=python2_batch) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(write(planes(number), labels(number)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_LABELS)}, protocol=0))
    (folder / "readme.html").write_text("<html>")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


FORMS = {
    "binary": lambda root: write_binary(root / "cifar-10-batches-bin"),
    "binary_below_cifar10": lambda root: write_binary(root / "cifar10" / "cifar-10-batches-bin"),
    "binary_archive": lambda root: pack(write_binary(root / "cifar-10-batches-bin"), root / "cifar-10-binary.tar.gz"),
    "python": lambda root: write_python(root / "cifar-10-batches-py"),
    "python_archive": lambda root: pack(
        write_python(root / "cifar-10-batches-py"), root / "cifar10" / "cifar-10-python.tar.gz"
    ),
    "the_folder_itself": lambda root: [
        path.rename(root / path.name) for path in write_binary(root / "bin").iterdir() if path.suffix
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pictures(tmp_path, form):
    FORMS[form](tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    train, test = (data.load("cifar10", split, data_dir=tmp_path) for split in ("train", "test"))
    assert (train.name, train.size, train.channels, train.labels) == ("cifar10", (32, 32), 3, CIFAR10_LABELS)
    assert (len(train), len(test), len(data.load("cifar10", "all", data_dir=tmp_path))) == (35, 7, 42)
    assert train.targets.tolist() == [label for number in range(5) for label in labels(number)]
    # The publisher's layout: 1,024 bytes of red, of green, of blue, each by rows.
    third = test.pictures([2])[0]
    assert third[4, 9].tolist() == [int(planes(5)[2, plane * 1024 + 4 * 32 + 9]) for plane in range(3)]
    assert np.array_equal(train.pictures([20])[0], planes(2)[6].reshape(3, 32, 32).transpose(1, 2, 0))
    assert train.source_digest == test.source_digest == DIGEST[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before  # nothing was unpacked
    assert train.notes == ("cifar10 train: 35 pictures; published: 50000",)
    assert pickle.loads(pickle.dumps(test)).digest == test.digest


DIGEST = ["d"]


@pytest.fixture(autouse=True, scope="module")
def digest(tmp_path_factory):
    """What all forms have to give: the digest of the same arrays."""
    images = np.concatenate([planes(number) for number in range(6)]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    targets = np.array([label for number in range(6) for label in labels(number)])
    DIGEST[0] = Dataset.from_arrays("x", images, targets, CIFAR10_LABELS).digest


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [bytes, str])
def test_batches_pickled_anew_are_read(tmp_path, protocol, keys):
    def write(images, targets):
        batch = {"data": images, "labels": targets, "filenames": ["a.png"] * len(targets), "batch_label": "x"}
        batch = {key.encode() if keys is bytes else key: value for key, value in batch.items()}
        return pickle.dumps(batch, protocol=protocol)

    write_python(tmp_path / "cifar-10-batches-py", write)
    assert data.load("cifar10", "all", data_dir=tmp_path).digest == DIGEST[0]


def test_arrays_by_columns_and_memo_are_understood():
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = read_plain_pickle(pickle.dumps({"a": array, "b": [1, (2.5, None, True)]}, protocol), "x")
        assert np.array_equal(found["a"], array) and found["b"] == [1, (2.5, None, True)]


class Bad:
    """Runs what it is made with when it is unpickled."""

    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


class Plain:
    """An object that only has a state."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda mark: Bad(os.system, f"touch {mark}"), r"asks to run '(posix|nt).system'"),
        (lambda mark: Bad(eval, f"open({str(mark)!r}, 'w')"), r"asks to run '\w+.eval'"),
        (lambda mark: Bad(np.load, str(mark)), "asks to run 'numpy"),
        (lambda mark: np.array([Bad(os.system, f"touch {mark}")], dtype=object), "an array of 'O8'|asks to run"),
        (lambda mark: Plain(), "asks to run"),
    ],
)
def test_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, protocol, make, said):
    mark = tmp_path / "it ran".replace(" ", "_")
    folder = write_python(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps({"labels": [1], "data": make(mark)}, protocol))
    with pytest.raises(DataError, match=said) as caught:
        data.load("cifar10", "test", data_dir=tmp_path)
    assert "test_batch" in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()
    assert len(data.load("cifar10", "train", data_dir=tmp_path)) == 35  # the others are as good as before


def test_state_cannot_reach_into_this_process():
    # BUILD on the function or the class that an unpickler would have found changes it for good.
    for name in (b"numpy.core.multiarray\n_reconstruct\n", b"numpy\nndarray\n", b"numpy\ndtype\n"):
        with pytest.raises(DataError, match="x "):
            read_plain_pickle(b"\x80\x02c" + name + b"N}U\x04nameK\x01s\x86b.", "x")


WHOLE = python2_batch(planes(0), labels(0))


@pytest.mark.parametrize("length", [0, 1, 5, 60, 200, len(WHOLE) // 2, len(WHOLE) - 40, len(WHOLE) - 1])
def test_pickle_cut_short_is_named(length):
    with pytest.raises(DataError, match="some_batch is damaged or no pickle"):
        read_plain_pickle(WHOLE[:length], "some_batch")


def test_garbled_pickle_is_read_or_named():
    for seed in range(400):
        random = np.random.RandomState(seed)
        content = bytearray(WHOLE)
        for place in (*random.randint(0, 250, 2), random.randint(len(WHOLE) - 60, len(WHOLE))):
            content[place] = random.randint(256)
        try:
            read_plain_pickle(bytes(content), "some_batch")
        except DataError as problem:
            assert "some_batch" in str(problem) and "\n" not in str(problem)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([1, 2], "holds a list; a CIFAR-10 batch is a dict"),
        ({"labels": [1]}, r"holds no data of shape \(N, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 2]}, "holds no list of labels"),  # CIFAR-100
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 pictures but 1 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "holds label 10; allowed: 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "a"]}, "holds no list of labels"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "an array of 'f4'; allowed: uint8"),
    ],
)
def test_batch_of_something_else_is_refused(tmp_path, batch, said):
    folder = write_python(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match=said):
        data.load("cifar10", "test", data_dir=tmp_path)


def test_damaged_binary_batch_is_named(tmp_path):
    folder = write_binary(tmp_path / "cifar-10-batches-bin")
    path = folder / "data_batch_3.bin"
    whole = path.read_bytes()
    for content, said in ((whole[:-1], "is cut short"), (b"", "0 bytes"), (b"\x0b" + whole[1:], "label 11")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            data.load("cifar10", "train", data_dir=tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin; run 'deploykit data prepare cifar10'"):
        data.load("cifar10", "train", data_dir=tmp_path)
    assert len(data.load("cifar10", "test", data_dir=tmp_path)) == 7


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_archive_cut_short_is_named(tmp_path, share):
    path = FORMS["binary_archive"](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        data.load("cifar10", "all", data_dir=tmp_path)


def test_archive_with_names_that_lead_out_writes_nothing(tmp_path):
    archive = tmp_path / "in" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../out.txt", f"{tmp_path}/out.txt", "cifar-10-batches-bin/test_batch.bin"):
            member = tarfile.TarInfo(name)
            member.size = 3073
            tar.addfile(member, io.BytesIO(bytes(3073)))
    assert len(data.load("cifar10", "test", data_dir=archive.parent)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_paths_to_batches_and_archives_are_data(tmp_path):
    folder = write_binary(tmp_path / "cifar-10-batches-bin")
    assert data.load(folder, "all").digest == DIGEST[0]
    assert data.load(pack(folder, tmp_path / "cifar-10-binary.tar.gz"), "all").digest == DIGEST[0]


def test_missing_cifar10_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="run 'deploykit data prepare cifar10'"):
        data.load("cifar10", data_dir=tmp_path)
    with pytest.raises(DataError, match="cifar10-jpeg was not found"):
        data.load("cifar10-jpeg", data_dir=tmp_path)


# The JPEG copies


def write_jpeg(root: Path, names=CIFAR10_LABELS, side=32) -> Path:
    for part, count in (("train", 2), ("test", 1)):
        for number, label in enumerate(names):
            (root / part / label).mkdir(parents=True)
            for place in range(count):
                image = Image.new("RGB", (side, side), (number * 20, 0, place * 90))
                image.save(root / part / label / f"{place:04}.jpg")
    return root


@pytest.mark.parametrize("folder", ["cifar10_jpeg", "cifar10", "CIFAR-10-images", ""])
@pytest.mark.parametrize("name", ["cifar10", "cifar10-jpeg"])
def test_jpeg_copies_keep_their_own_name(tmp_path, folder, name):
    write_jpeg(tmp_path / folder)
    train, test = (data.load(name, split, data_dir=tmp_path) for split in ("train", "test"))
    assert train.name == test.name == "cifar10-jpeg" and train.labels == CIFAR10_LABELS
    assert train.notes[0].startswith("CIFAR-10 (JPEG): ")
    assert (len(train), len(test), train.size, train.channels) == (20, 10, (32, 32), 3)
    assert train.pictures([19]).shape == (1, 32, 32, 3) and abs(int(train.pictures([19])[0, 5, 5, 0]) - 180) < 4
    assert train.source_digest == test.source_digest


def test_originals_win_over_jpeg_copies_and_differ_in_digest(tmp_path):
    write_jpeg(tmp_path / "cifar10_jpeg")
    jpeg = data.load("cifar10", "test", data_dir=tmp_path)
    write_binary(tmp_path / "cifar-10-batches-bin")
    original = data.load("cifar10", "test", data_dir=tmp_path)
    assert (jpeg.name, original.name) == ("cifar10-jpeg", "cifar10") and jpeg.digest != original.digest
    assert data.load("cifar10-jpeg", "test", data_dir=tmp_path).digest == jpeg.digest
    found = {row["name"]: row["found"] for row in data.describe(tmp_path)}
    assert found["cifar10"].endswith("batches-bin") and found["cifar10-jpeg"].endswith("cifar10_jpeg")


@pytest.mark.parametrize("ending", [".tar", ".tar.xz", ".tar.gz"])
def test_jpeg_copies_are_read_from_their_archive(tmp_path, ending):
    root = write_jpeg(tmp_path / "work")
    expected = data.load("cifar10-jpeg", "train", data_dir=root).digest
    with tarfile.open(tmp_path / f"cifar10_jpeg{ending}", f"w:{ending.removeprefix('.tar').removeprefix('.')}") as tar:
        for part in ("train", "test"):
            tar.add(root / part, part)
    shutil.rmtree(root)
    dataset = data.load("cifar10", "train", data_dir=tmp_path)
    assert dataset.name == "cifar10-jpeg" and dataset.digest == expected
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).pictures([3]), dataset.pictures([3]))


def test_other_pictures_in_the_jpeg_folder_are_refused(tmp_path):
    write_jpeg(tmp_path / "cifar10_jpeg", ("cat", "truck"))
    with pytest.raises(DataError, match="holds the classes cat, truck; expected those of CIFAR-10"):
        data.load("cifar10-jpeg", data_dir=tmp_path)
    write_jpeg(tmp_path / "b" / "cifar10_jpeg", side=30)
    with pytest.raises(DataError, match="is 30×30 pixels, unlike the others' 32×32"):
        data.load("cifar10-jpeg", data_dir=tmp_path / "b").pictures([0])
