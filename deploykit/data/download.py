"""Downloads with checksums: mirrors in turn, nothing half-written, nothing wrong in place."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploykit.data.paths import is_file
from deploykit.data.remote import DOWNLOADS, DownloadSpec, RemoteFile
from deploykit.errors import DataError, InputError
from deploykit.files import atomic_path
from deploykit.progress import Progress, silent

__all__ = ["DOWNLOADS", "DownloadSpec", "RemoteFile", "fetch", "is_right"]

_CHUNK_BYTES = 1 << 16


def fetch(
    spec: DownloadSpec,
    folder: Path,
    *,
    mirrors: Sequence[str] | None = None,
    progress: Progress = silent,
    timeout_s: float = 30.0,
    rounds: int = 2,
) -> Path:
    """Brings the files of ``spec`` into ``folder`` and returns it; files that are right already stay.

    Args:
        spec: What to fetch.
        folder: Where to; made when missing.
        mirrors: Addresses to use instead of the spec's.
        progress: Told the bytes of each file.
        timeout_s: Seconds without a byte after which a mirror is given up.
        rounds: How often the list of mirrors is gone through.

    Raises:
        DataError: No mirror gave a file; says what each answered.
        OutputError: ``folder`` cannot be written to.
    """
    addresses = tuple(mirrors) if mirrors is not None else spec.mirrors
    if wrong := [address for address in addresses if not address.startswith(("http://", "https://"))]:
        raise InputError(f"mirror {wrong[0]!r}; allowed: an address that begins with http:// or https://")
    with _no_empty_folders(folder):
        for file in spec.files:
            if not _there(file, folder):
                _from_mirrors(spec, file, folder, addresses * rounds, progress, timeout_s)
    return folder


@contextmanager
def _no_empty_folders(folder: Path) -> Iterator[None]:
    """Removes ``folder`` and those above it that the block has made, when it leaves them empty."""
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        yield
    finally:
        with suppress(OSError):  # the first that holds something, or was not made, ends it
            for place in made:
                place.rmdir()


def is_right(path: Path, file: RemoteFile) -> bool:
    """Whether ``path`` is the published file, or holds the same content uncompressed or compressed anew."""
    return _fault(path, file) is None


def _there(file: RemoteFile, folder: Path) -> bool:
    names = [file.name]
    if file.content_md5 is not None:  # then other spellings, and the unpacked file, are right as well
        names += [file.name.replace("-idx", ".idx")]
        names += [name.removesuffix(".gz") for name in names]
    return any(is_file(folder / name) and is_right(folder / name, file) for name in names)


def _fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at ``path``, None when nothing is."""
    if file.content_md5 is None:
        return _fault_of_whole(path, file)
    try:
        content = path.read_bytes()
        if _md5(content) in (file.md5, file.content_md5):
            return None
        if content[:2] == b"\x1f\x8b" and _md5(gzip.decompress(content)) == file.content_md5:
            return None
    except (OSError, EOFError, zlib.error) as problem:
        return f"not a whole .gz file ({problem})"
    return f"wrong checksum (MD5 {_md5(content)} of {len(content)} bytes, expected {file.md5} of {file.size_bytes})"


def _fault_of_whole(path: Path, file: RemoteFile) -> str | None:
    """As ``_fault``, of a file that has to be the published one, read piece by piece."""
    kind, expected = ("SHA-256", file.sha256) if file.sha256 else ("MD5", file.md5)
    digest = hashlib.sha256() if file.sha256 else hashlib.md5(usedforsecurity=False)
    size = 0
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as problem:
        return f"cannot be read back ({problem.strerror or problem})"
    if digest.hexdigest() == expected:
        return None
    return f"wrong checksum ({kind} {digest.hexdigest()} of {size} bytes, expected {expected} of {file.size_bytes})"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _from_mirrors(
    spec: DownloadSpec,
    file: RemoteFile,
    folder: Path,
    addresses: Sequence[str],
    progress: Progress,
    timeout_s: float,
) -> None:
    faults: dict[str, str] = {}
    for address in addresses:
        if faults.get(address, "").startswith("HTTP 4"):
            continue  # it will say the same again
        fault = _attempt(address, file, folder, progress, timeout_s)
        if fault is None:
            return
        faults[address] = fault
    told = "; ".join(f"{address}: {fault}" for address, fault in faults.items()) or "no mirror was named"
    raise DataError(
        f"cannot download {file.name} of {spec.name}: {told}; check the connection, name a mirror with"
        f" DEPLOYKIT_MIRROR, or put the file into {folder}"
    )


def _attempt(address: str, file: RemoteFile, folder: Path, progress: Progress, timeout_s: float) -> str | None:
    """Tries one mirror once. Returns what went wrong, None when the file is in place."""
    fault: str | None = None
    try:
        with atomic_path(folder / file.name) as aside:
            fault = _download(f"{address.rstrip('/')}/{file.name}", aside, file, progress, timeout_s)
            fault = fault or _fault(aside, file)
            if fault is not None:
                raise _Unusable  # leaves the block early, so that nothing is moved into place
    except _Unusable:
        return fault
    return None


class _Unusable(Exception):  # noqa: N818 - not an error, a way out
    """What came is not the file."""


def _download(url: str, aside: Path, file: RemoteFile, progress: Progress, timeout_s: float) -> str | None:
    """Writes what ``url`` answers to ``aside``. Returns what went wrong, None when it came to its announced end."""
    import pooch
    import requests

    meter = _Meter(file, progress)
    downloader = pooch.HTTPDownloader(
        progressbar=meter,
        chunk_size=_CHUNK_BYTES,
        timeout=timeout_s,
        headers={"Accept-Encoding": "identity", "User-Agent": "deploykit"},
    )
    try:
        with aside.open("wb") as handle:
            downloader(url, handle, None)
    except requests.HTTPError as problem:
        return f"HTTP {problem.response.status_code if problem.response is not None else 'error'}"
    except requests.Timeout:
        return f"no answer within {timeout_s:g} s"
    except requests.RequestException as problem:  # before OSError, from which requests derives it
        return _network_fault(problem)
    except _TooLongError:
        return f"sent more than the {file.size_bytes} bytes of the file"
    except ValueError as problem:
        return f"not a usable answer ({_said(problem)})"
    return None


def _network_fault(problem: Exception) -> str:
    inner = problem.args[0] if problem.args else None
    # urllib3 gives a reason when it could not connect; what happens to a connection that stands comes without one.
    if isinstance(never := getattr(inner, "reason", None), Exception):
        return f"no connection ({_said(never).rpartition(': ')[2]})"
    said = _said(problem)
    return "stalled midway" if "Read timed out" in said else f"broke off ({said})"


def _said(problem: Exception) -> str:
    """What ``problem`` says, on one line and not too long."""
    text = re.sub(r"\[Errno -?\d+\] ", "", str(problem)) or type(problem).__name__
    return textwrap.shorten(text, 160, placeholder=" ...")


class _TooLongError(Exception):
    """The mirror sends without end."""


class _Meter:
    """A progress bar as pooch wants it, which also stops a mirror that sends far more than the file has."""

    def __init__(self, file: RemoteFile, progress: Progress) -> None:
        self.file, self.progress = file, progress
        self.total, self.done = 0, 0
        self.ended = False

    def update(self, count: int) -> None:
        """Counts ``count`` bytes more; chunks are counted whole."""
        if self.ended:
            return
        self.done += count
        # A mirror may have compressed the file less well, or not at all: 12 times is beyond either.
        if self.done > 12 * self.file.size_bytes + _CHUNK_BYTES:
            raise _TooLongError
        self._report(self.done)

    def reset(self) -> None:
        """Called when all has come; pooch then counts the whole length once more."""
        self.ended = True

    def close(self) -> None:
        """The end."""
        self._report(self.file.size_bytes)

    def _report(self, done: int) -> None:
        size = self.file.size_bytes
        self.progress(f"download {self.file.name}", min(done, size), size)
