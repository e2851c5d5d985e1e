"""The files of onnxruntime-web for a browser or Node, from npm or from the user, checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from deploykit.errors import InputError, OutputError
from deploykit.files import write_bytes

__all__ = ["PACKAGE", "VERSION", "WebRuntime", "cached_folder", "web_runtime"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
"""What apps are pinned to, and measured with."""

_JAVASCRIPT, _WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
_NAMES = MappingProxyType({"package.json": "package.json", _JAVASCRIPT: "ort.js", _WASM: "ort-wasm-simd-threaded.wasm"})
"""Of the package, and in the cache; ``.js``, as several web servers do not know ``.mjs`` for JavaScript."""

_SHA256 = MappingProxyType(
    {
        _JAVASCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        _WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    }
)
"""Of the files in the pinned version."""

_NPM_SECONDS = 600.0
_INSTEAD = f"or give its files with --runtime: what npm pack {PACKAGE}@{VERSION} makes, or a folder that has dist/"


@dataclass(frozen=True)
class WebRuntime:
    """The runtime of an app.

    Attributes:
        version: Of onnxruntime-web.
        files: Their paths on this machine, by name in the app's ``runtime/``.
    """

    version: str
    files: Mapping[str, Path]


def web_runtime(given: str | os.PathLike[str] | None = None, *, instead: str = _INSTEAD) -> WebRuntime:
    """The runtime of ``given``, else of the cache, else of npm, which is then in the cache.

    The cache lies below ``DEPLOYKIT_CACHE`` or the user's cache folder. Files of the pinned version must have its
    digests; a package of another version that is given is taken as it is.

    Args:
        given: An npm package (``.tgz``) or a folder that is one.
        instead: What else may be done where npm cannot get it; ends the message.

    Raises:
        InputError: There is none, it is damaged, or npm cannot get it.
        OutputError: The cache cannot be written.
    """
    if given is not None:
        return _of_user(Path(given))
    folder = cached_folder()
    if not all((folder / name).is_file() for name in _NAMES.values()):
        with tempfile.TemporaryDirectory(prefix="deploykit-") as temporary:
            _keep(_reader(_packed_by_npm(Path(temporary), instead)), folder)
    return _checked(folder, str(folder), pinned=True)


def cached_folder() -> Path:
    """Where the pinned version is kept."""
    return _cache() / f"{PACKAGE}-{VERSION}"


def _cache() -> Path:
    if not (cache := os.environ.get("DEPLOYKIT_CACHE")):
        import pooch

        cache = pooch.os_cache("deploykit")
    return Path(cache).expanduser()


def _of_user(source: Path) -> WebRuntime:
    """A package that the user has: kept by its digest, so that it is unpacked once."""
    read = _reader(source)
    digest = hashlib.sha256(b"".join(map(read, _NAMES))).hexdigest()
    folder = _cache() / f"{PACKAGE}-given-{digest[:16]}"
    if not all((folder / name).is_file() for name in _NAMES.values()):
        _keep(read, folder)
    return _checked(folder, str(source))


def _keep(read: Callable[[str], bytes], folder: Path) -> None:
    for name, kept in _NAMES.items():
        write_bytes(folder / kept, read(name))


def _checked(folder: Path, source: str, *, pinned: bool = False) -> WebRuntime:
    """What is in the cache; what cannot be used is removed there, so that it is fetched or unpacked again.

    With ``pinned`` it must be the pinned version.
    """
    try:
        version = _version(folder, source)
        if pinned and version != VERSION:
            raise InputError(f"{source} has {PACKAGE} {version} instead of {VERSION}; it is removed, try again")
        for of_package, kept in _NAMES.items():
            expected = _SHA256.get(of_package) if version == VERSION else None
            if expected and hashlib.sha256((folder / kept).read_bytes()).hexdigest() != expected:
                raise InputError(f"{source}: {of_package} is not that of {PACKAGE} {VERSION}; it is damaged, try again")
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return WebRuntime(version, {kept: folder / kept for kept in _NAMES.values() if kept != "package.json"})


def _version(folder: Path, source: str) -> str:
    """The version that the package says it is. Raises: InputError for another package, and for a damaged one."""
    try:
        facts = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = str(facts["name"]), str(facts["version"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(
            f"{source}: its package.json is damaged ({problem}); expected {PACKAGE}, try again"
        ) from problem
    if name != PACKAGE:
        raise InputError(f"{source} is the package {name}; expected {PACKAGE}")
    return version


def _reader(source: Path) -> Callable[[str], bytes]:
    """Gives the files of a package by their names in it. Raises: InputError."""
    if source.is_dir():
        root = next((path for path in (source, source / "package") if (path / "package.json").is_file()), source)
        return lambda name: _content(root / name)
    if not source.is_file():
        raise InputError(f"no such file or folder: {source}; expected the npm package {PACKAGE}")
    return lambda name: _member(source, name)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read {path} of {PACKAGE}: {problem.strerror}") from problem


def _member(source: Path, name: str) -> bytes:
    try:
        with tarfile.open(source) as archive:
            content = archive.extractfile(f"package/{name}")
            return content.read() if content else b""
    except (tarfile.TarError, KeyError, OSError, EOFError) as problem:
        raise InputError(f"{source} is not the npm package {PACKAGE}, or is cut short: {problem}") from problem


def _packed_by_npm(folder: Path, instead: str) -> Path:
    """Where npm has put the package, which it checks by its registry's digest."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"{PACKAGE} {VERSION} is not here, and npm is not installed; install Node.js, {instead}")
    command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NPM_SECONDS, cwd=folder)
    except subprocess.TimeoutExpired as problem:
        raise InputError(f"npm did not give {PACKAGE} within {_NPM_SECONDS:.0f} s; try again, {instead}") from problem
    except OSError as problem:
        raise OutputError(f"cannot start {npm}: {problem.strerror}; {instead}") from problem
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        reason = " ".join((done.stderr or done.stdout).split())[:200] or f"exit code {done.returncode}"
        raise InputError(f"npm cannot get {PACKAGE} {VERSION}: {reason}; {instead}")
    return packed[0]
