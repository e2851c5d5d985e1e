"""Tar archives of pictures: read in place, as the folder would be, and never extracted."""

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from picture_folders import SYNSETS, write_flat, write_imagenet, write_picture

from deploykit import data
from deploykit.data.archive import MOST_UNPACKED_BYTES
from deploykit.errors import DataError


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "Bäume und Blüten"
    for label in ("Ahörn", "Zeder 2", "birke"):
        for number in range(10):
            write_picture(root / label / f"bild {number:02}.PNG", (number, 100, 200), (9, 7))
    return root


def pack(root: Path, archive: Path, top: str = "") -> Path:
    mode = {".tar": "", "r.gz": "gz", ".tgz": "gz", "r.xz": "xz", ".bz2": "bz2"}[archive.name[-4:]]
    with tarfile.open(archive, f"w:{mode}") as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, f"{top}{path.name}")
    return archive


@pytest.mark.parametrize("top", ["", "./", "flowers/", "a/b/flowers/"])
@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"])
def test_archive_reads_as_the_folder_does(flat, tmp_path, top, ending):
    (flat / ".DS_Store").write_bytes(b"\0")
    archive = pack(flat, tmp_path / f"päckchen{ending}", top)
    for split in ("train", "test", "all"):
        here, there = data.load(archive, split), data.load(flat, split)
        assert here.digest == there.digest and here.source_digest == there.source_digest
        assert (here.labels, here.size, here.channels, here.notes) == (
            there.labels,
            there.size,
            there.channels,
            there.notes,
        )
        assert np.array_equal(here.pictures([3, 1]), there.pictures([3, 1]))
        again = pickle.loads(pickle.dumps(here))
        assert np.array_equal(again.pictures([2]), there.pictures([2])) and len(pickle.dumps(here)) < 6_000
    assert here.name == "päckchen"


def test_archive_of_splits_and_names(tmp_path):
    root = write_imagenet(tmp_path / "in")
    (root / "LOC_synset_mapping.txt").write_text(SYNSETS)
    dataset = data.load(pack(root, tmp_path / "x.tar", "ILSVRC/"), "test")
    assert dataset.has_splits and dataset.labels == ("tench", "crane (n02012849)", "crane (n03126707)")
    write_flat(tmp_path / "cats" / "train", {"cat": 5, "dog": 5})
    assert data.load(pack(tmp_path / "cats", tmp_path / "y.tar"), "train").labels == ("cat", "dog")


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **changes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def test_nothing_leaves_an_archive_and_links_are_followed_inside_it_only(tmp_path):
    secret = write_picture(tmp_path / "secret.png", (1, 2, 3))
    picture = write_picture(tmp_path / "x.png", (9, 9, 9)).read_bytes()
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        add(tar, "a/1.png", picture)
        add(tar, "a/hard.png", type=tarfile.LNKTYPE, linkname="a/1.png")
        add(tar, "a/out.png", type=tarfile.LNKTYPE, linkname=str(secret))
        add(tar, "a/soft.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(tar, "a/pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "b/1.png", b"an older version")
        add(tar, "b/1.png", picture)
        add(tar, "../c/1.png", picture)
        add(tar, "/c/1.png", picture)
        add(tar, "c/../../1.png", picture)
        add(tar, "b/.hidden/1.png", picture)
        add(tar, "__MACOSX/b/._1.png", b"\0")
    before = sorted(tmp_path.rglob("*"))
    dataset = data.load(tmp_path / "in.tar", "all")
    assert [dataset.reader.files.paths[row] for row in range(3)] == ["a/1.png", "a/hard.png", "b/1.png"]
    assert len(dataset) == 3 and set(dataset.pictures(range(3)).reshape(-1)) == {9}
    assert dataset.notes[0].startswith("passed over 6 files that are not pictures: 1.png, out.png, pipe.png, soft.png")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_archive_cut_short_or_garbled_is_named_at_every_place(flat, tmp_path, ending):
    whole = pack(flat, tmp_path / f"whole{ending}").read_bytes()
    bad = tmp_path / f"bad{ending}"
    end = whole.rindex(b"bild 09") + 1024 if ending == ".tar" else len(whole)
    for length in [0, 1, 100, *range(512, end, max(512, end // 12)), end - 1]:
        bad.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"bad\.tar") as caught:
            data.load(bad, "all")
        assert "\n" not in str(caught.value)
        assert ("it is empty" in str(caught.value)) == (length == 0)
    for place in range(150, end, max(1, end // 10)):
        bad.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
        try:
            data.load(bad, "all").pictures(range(30))
        except DataError as problem:
            assert "bad.tar" in str(problem) and "\n" not in str(problem)


def test_other_file_named_tar_is_refused(tmp_path):
    for content in (b"", b"just a text\n", b"PK\x03\x04" * 200, bytes(100)):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.tar cannot be read: it is (empty|cut short, damaged or no tar)"):
            data.load(tmp_path / "x.tar")


@pytest.mark.slow  # unpacks 512 MiB
def test_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as packed:
        for _ in range((MOST_UNPACKED_BYTES >> 24) + 1):
            packed.write(bytes(1 << 24))
    with pytest.raises(DataError, match=r"x\.tar\.gz unpacks to more than 512 MiB, .* unpack it and name the folder"):
        data.load(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_archive_that_changes_is_noticed(flat, tmp_path, ending):
    archive = pack(flat, tmp_path / f"x{ending}")
    dataset = data.load(archive, "all")
    archive.write_bytes(archive.read_bytes() + b"\0")
    sent = pickle.dumps(dataset)
    code = "import pickle, sys; pickle.load(sys.stdin.buffer).pictures([1])"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True)
    assert f"x{ending} has changed since it was opened" in done.stderr.decode()
