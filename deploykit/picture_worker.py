"""A process that reads pictures for a training: both ends of the pipes that ``pixels`` and it talk through.

It imports neither torch nor ONNX Runtime, so a fresh one is there in a fraction of a second. Pixels come back as the
bytes of uint8, straight into the memory they are wanted in. When the training goes away, however it dies, its input
ends and so does the process; Ctrl-C, which reaches the whole group, is the training's to answer.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import errors
from deploykit.artifact import Preprocess
from deploykit.data.dataset import Dataset, Reader
from deploykit.errors import DataError, DeploykitError
from deploykit.preprocess import fit_pictures

__all__ = ["PictureWorker", "read_pixels"]

_LENGTH = struct.Struct("<q")  # of what follows; negative before the JSON of an error
_ERROR_CHARACTERS = 200


def read_pixels(reader: Reader, rows: NDArray[np.int64], preprocess: Preprocess, *, exact: bool) -> NDArray[np.uint8]:
    """The reader's pictures at ``rows`` as the network takes them, ``(N, C, H, W)``.

    Where they need not be exact, large JPEGs may be decoded reduced. Raises: DataError.
    """
    shortest = preprocess.resize if isinstance(preprocess.resize, int) and not exact else None
    fitted = fit_pictures(preprocess, reader.read(rows, shortest))  # (N, H, W, C)
    return np.ascontiguousarray(fitted.transpose(0, 3, 1, 2))


class PictureWorker:
    """The training's end. One thread at a time may ask; ``close`` may come from any.

    Args:
        dataset: What to read.
        preprocess: What the pictures are fitted to.
        exact: See ``read_pixels``.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess, *, exact: bool = True) -> None:
        self._name = dataset.name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        # -P and the package's own folder: what lies in the current folder must not shadow numpy or deploykit.
        command = [sys.executable, "-P", "-W", "ignore", "-m", "deploykit.picture_worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=_environment()
        )
        self._start = pickle.dumps((dataset.reader, preprocess, exact))

    def read(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Fills ``into``, ``(len(rows), C, H, W)`` and contiguous.

        Raises: DataError for a picture that cannot be read, or when the process died.
        """
        assert self._process.stdin is not None
        try:
            for message in (self._start, rows.astype("<i8").tobytes()):
                if message:
                    self._process.stdin.write(_LENGTH.pack(len(message)) + message)
            self._process.stdin.flush()
        except (OSError, ValueError) as problem:  # gone, or closed by another thread
            raise self._died() from problem
        self._start = b""
        length = self._length()
        if length < 0:
            raise _as_error(json.loads(bytes(self._receive(memoryview(bytearray(-length))))))
        self._receive(into.data.cast("B"))

    def close(self) -> None:
        """Ends the process, at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):  # a flush into a process that is gone
                pipe.close()  # type: ignore[union-attr]

    def _length(self) -> int:
        number: int = _LENGTH.unpack(self._receive(memoryview(bytearray(_LENGTH.size))))[0]
        return number

    def _receive(self, view: memoryview) -> memoryview:
        assert self._process.stdout is not None
        done = 0
        while done < len(view):
            try:
                count = self._process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            except (OSError, ValueError) as problem:  # closed by another thread
                raise self._died() from problem
            if not count:
                raise self._died()
            done += count
        return view

    def _died(self) -> DataError:
        code = self._process.wait()
        cause = f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else f"ended with code {code}"
        words = ""
        if not self._log.closed:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            words = f": {lines[-1].strip()[:_ERROR_CHARACTERS]}" if lines else ""
        return DataError(f"{self._name}: a process that reads pictures {cause}{words}")


def _environment() -> dict[str, str]:
    """The parent's environment; one thread each, as there are several of them."""
    package = str(Path(__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}


def _as_error(answer: dict[str, Any]) -> DeploykitError:
    # Built without __init__, since some of the classes compose their message from other arguments.
    kind = getattr(errors, answer["error"])
    error: DeploykitError = kind.__new__(kind)
    error.args = (answer["message"],)
    return error


# The process's end.


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    # From the training, through a pipe that nobody else writes to.
    reader, preprocess, exact = pickle.loads(_message())  # noqa: S301
    while True:
        rows = np.frombuffer(_message(), "<i8")
        try:
            pixels = read_pixels(reader, rows, preprocess, exact=exact)
        except DeploykitError as problem:
            said = json.dumps({"error": type(problem).__name__, "message": str(problem)}).encode()
            answers.write(_LENGTH.pack(-len(said)) + said)
        else:
            answers.write(_LENGTH.pack(pixels.nbytes))
            answers.write(pixels.data.cast("B"))
        answers.flush()


def _message() -> bytes:
    """The next message; at the end of them the training is gone, and so is this process."""
    head = sys.stdin.buffer.read(_LENGTH.size)
    content = sys.stdin.buffer.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not content:
        os._exit(0)
    return content


if __name__ == "__main__":
    _serve()
