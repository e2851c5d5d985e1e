from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from deploykit.errors import InputError, OutputError
from deploykit.files import (
    atomic_path,
    check_writable,
    deflated_size,
    read_json,
    remove_partials,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_text,
)


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a b" / "ü" / "x.txt", "grüße")
    assert path.read_bytes() == "grüße".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]


def test_an_error_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = write_text(tmp_path / "x.bin", "old")
    with pytest.raises(ValueError, match="midway"), atomic_path(target) as aside:
        aside.write_text("half")
        raise ValueError("midway")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    target = write_text(tmp_path / "x", "old")
    for attempt in (
        lambda: write_text(target, "new", overwrite=False),
        lambda: check_writable(target, overwrite=False),
    ):
        with pytest.raises(OutputError, match="--overwrite"):
            attempt()
    assert target.read_text() == "old"


@pytest.mark.parametrize("bad", ["/proc/deploykit-test/x", "/dev/null/x", "file/x"])
def test_unwritable_places_are_one_line(tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    for attempt in (lambda: write_text(bad, "x"), lambda: check_writable(bad)):
        with pytest.raises(OutputError, match=r"cannot write .*") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"):
        write_text(tmp_path, "x")


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_pipe_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    """As root, moving a file onto /dev/null would replace the device of the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for attempt in (
        lambda: write_text(pipe, "x", overwrite=overwrite),
        lambda: check_writable(pipe, overwrite=overwrite),
    ):
        with pytest.raises(OutputError, match="device, a pipe or a socket"):
            attempt()
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_among_the_parents_is_named(tmp_path: Path) -> None:
    parent = write_text(tmp_path / "file", "in the way")
    for attempt in (lambda: write_text(parent / "b" / "x", "x"), lambda: check_writable(parent / "b" / "x")):
        with pytest.raises(OutputError, match="file is no folder; choose a path below folders"):
            attempt()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file size gives the same OSError path as a full disk, without a disk to fill."""
    target = write_bytes(tmp_path / "x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_bytes(target, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_killed_writer_leaves_a_partial_that_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from deploykit.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model.onnx"], check=False)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    other = tmp_path / ".mine.partial.txt"
    other.write_text("somebody else's")
    remove_partials(tmp_path)
    assert not leftover.exists()
    assert other.exists()


def test_digests_and_deflate(tmp_path: Path) -> None:
    content = os.urandom(3_000_000) + bytes(1_000_000)
    path = write_bytes(tmp_path / "x", content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    assert deflated_size(path) == len(zlib.compress(content, 6))
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})


def test_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"ü": 1.5})
    assert read_json(path) == {"ü": 1.5} == json.loads(path.read_text())
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"ü": 1.5}


@pytest.mark.parametrize(("content", "says"), [("[1]", "list"), ("{", "not JSON"), ("\x80", "not JSON")])
def test_json_that_is_not(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=says):
        read_json(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")
