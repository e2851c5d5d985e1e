"""A folder with an ARM64 Python, NumPy and ONNX Runtime, in which the emulator runs models on another architecture.

``root/`` holds Debian's packages, unpacked and never installed; ``site/`` the wheels. It is built aside, tried under
the emulator, and moved into place; ``complete.json`` says what it was made of.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import EmulatorError, OutputError
from deploykit.files import sha256_file, write_json
from deploykit.lock import folder_lock
from deploykit.progress import Progress, silent
from deploykit.qemu import Emulator

__all__ = ["ONNXRUNTIME", "Arm64Root", "default_folder", "find_arm64_root", "prepare_arm64_root"]

ONNXRUNTIME = "1.26.0"
"""The version that runs there: 1.28 and later crash at import under Debian's qemu 7.2."""

_COMPLETE = "complete.json"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_WHEELS = (f"onnxruntime=={ONNXRUNTIME}", "numpy>=1.26,<3")
_PLATFORMS = tuple(f"manylinux{suffix}_aarch64" for suffix in ("_2_28", "_2_27", "_2_17", "2014"))
_TOOLS = ("apt-get", "dpkg-deb")
_INSTEAD = "or give a folder that has one with --arm64-root DIR (root/usr/bin/python3.11 and site/onnxruntime in it)"
_STEPS = 5
_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class Arm64Root:
    """A usable root.

    Attributes:
        folder: Holds ``root`` and ``site``.
        python: The interpreter, below ``root``.
    """

    folder: Path
    python: Path

    @property
    def root(self) -> Path:
        """What the emulator takes for ``/`` where it has a file."""
        return self.folder / "root"

    @property
    def site(self) -> Path:
        """What goes first into ``sys.path``."""
        return self.folder / "site"

    def command(self, emulator: Emulator, model: str) -> tuple[str, ...]:
        """How its Python is started on the CPU that ``emulator`` calls ``model``."""
        return (emulator.path, "-cpu", model, "-L", str(self.root), str(self.python))


def default_folder() -> Path:
    """Below ``DEPLOYKIT_CACHE`` or the user's cache folder; another version of ONNX Runtime has another folder."""
    if not (cache := os.environ.get("DEPLOYKIT_CACHE")):
        import pooch

        cache = pooch.os_cache("deploykit")
    return Path(cache).expanduser() / f"arm64-onnxruntime-{ONNXRUNTIME}"


def find_arm64_root(folder: str | os.PathLike[str] | None = None) -> Arm64Root:
    """The root in ``folder``, which may be another's; else the one that was prepared. Raises: EmulatorError."""
    if folder is not None:
        if (found := _root_in(Path(folder))) is None:
            raise EmulatorError(f"{folder} holds no ARM64 root; expected root/usr/bin/python3.11 and site/onnxruntime")
        return found
    found, own = _root_in(default_folder()), default_folder()
    if found is None or not (own / _COMPLETE).is_file():
        raise EmulatorError(
            f"there is no ARM64 root in {own}; build it once with: deploykit verify --prepare arm64, {_INSTEAD}"
        )
    return found


def _root_in(folder: Path) -> Arm64Root | None:
    pythons = sorted((folder / "root/usr/bin").glob("python3.*"))
    usable = bool(pythons) and (folder / "site/onnxruntime").is_dir()
    return Arm64Root(folder.resolve(), pythons[-1].resolve()) if usable else None


def prepare_arm64_root(
    emulator: Emulator, folder: str | os.PathLike[str] | None = None, *, progress: Progress = silent
) -> Arm64Root:
    """Builds the root from Debian's packages and PyPI's wheels, about 30 MB of downloads, unless it is there.

    apt and pip check what they download by the digests of their indexes; ``complete.json`` keeps the SHA-256 of each.

    Args:
        emulator: Of aarch64; the root is tried under it before it counts.
        folder: Where to; ``default_folder()`` when None.
        progress: Called after each step.

    Raises:
        EmulatorError: This is no Debian or Ubuntu, a download fails, or the result does not run.
        OutputError: ``folder`` holds something else or cannot be written, or another process is building.
    """
    target = Path(folder) if folder is not None else default_folder()
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise EmulatorError(f"an ARM64 root is built on Debian or Ubuntu only, here is no {missing[0]}; {_INSTEAD}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(target.parent):
            return _prepared(target, emulator, progress)
    except OSError as problem:
        raise OutputError(f"cannot write {target}: {problem.strerror or problem}; give another folder") from problem


def _prepared(target: Path, emulator: Emulator, progress: Progress) -> Arm64Root:
    if (target / _COMPLETE).is_file() and (found := _root_in(target)):
        return found
    if target.exists() and any(target.iterdir()):
        raise OutputError(f"{target} exists and is no complete ARM64 root; remove it, or give another folder")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arm64-") as work:
        made = _build(Path(work), emulator, progress)
        if target.exists():
            target.rmdir()
        made.rename(target)
    return find_arm64_root(target)


def _build(work: Path, emulator: Emulator, progress: Progress) -> Path:
    """The finished folder below ``work``."""
    made, packages, wheels = work / "made", work / "packages", work / "wheels"
    for folder in (made / "root", made / "site", packages, wheels):
        folder.mkdir(parents=True)
    stage = "ARM64 root"
    progress(stage, 0, _STEPS, "packages")
    _download_packages(work / "lists", packages)
    progress(stage, 1, _STEPS, "unpacking")
    for package in sorted(packages.glob("*.deb")):
        _call(("dpkg-deb", "-x", str(package), str(made / "root")))
    _join_lib(made / "root")
    progress(stage, 2, _STEPS, "wheels")
    python = next(iter(sorted((made / "root/usr/bin").glob("python3.*"))), None)
    if python is None:
        raise EmulatorError(f"the packages {', '.join(_PACKAGES)} hold no usr/bin/python3.*; {_INSTEAD}")
    _download_wheels(python.name.removeprefix("python"), wheels)
    progress(stage, 3, _STEPS, "unpacking")
    for wheel in sorted(wheels.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(made / "site")
    progress(stage, 4, _STEPS, "trying it")
    _try(Arm64Root(made, python), emulator)
    parts = {path.name: sha256_file(path) for path in sorted([*packages.iterdir(), *wheels.iterdir()])}
    write_json(made / _COMPLETE, {"schema": "deploykit.arm64-root/1", "onnxruntime": ONNXRUNTIME, "parts": parts})
    progress(stage, _STEPS, _STEPS)
    return made


def _join_lib(root: Path) -> None:
    """The ``/lib`` that newer Debians have in a package of theirs which nothing else of is needed here."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


def _download_packages(lists: Path, packages: Path) -> None:
    """Debian's packages with all that they depend on, by an apt that has its own lists and changes nothing here."""
    (lists / "partial").mkdir(parents=True)
    apt = (
        "apt-get",
        *("-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64", "-oAPT::Sandbox::User=root"),
        *(f"-oDir::State::Lists={lists}", "-oDir::State::status=/dev/null", f"-oDir::Cache={lists.parent}"),
    )
    # A source that does not have this architecture fails alone; whether the packages can be had, the next call tells.
    updated = subprocess.run((*apt, "-qq", "update"), capture_output=True, text=True, check=False, env=_plain_env())
    wanted = (*apt, "-qq", "-y", "--no-install-recommends", "--print-uris", "install", *_PACKAGES)
    listed = _call(wanted, also=updated.stderr)
    names = re.findall(r"^'\S+' ([^_\s]+)_\S+\.deb ", listed, flags=re.MULTILINE)
    _call((*apt, "-qq", "download", *names), cwd=packages)


def _download_wheels(version: str, wheels: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps")
    of_arm = ("--only-binary=:all:", "--implementation", "cp", "--python-version", version)
    platforms = tuple(word for name in _PLATFORMS for word in ("--platform", name))
    _call((*pip, *of_arm, *platforms, "-d", str(wheels), *_WHEELS))


def _try(made: Arm64Root, emulator: Emulator) -> None:
    program = f"import sys; sys.path.insert(0, {str(made.site)!r}); import onnxruntime"
    _call((*made.command(emulator, "max"), "-I", "-S", "-c", program))


def _plain_env() -> Mapping[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _call(command: Sequence[str], *, cwd: Path | None = None, also: str = "") -> str:
    """What a tool prints. Raises: EmulatorError with what it said last; a mute one's reason may stand in ``also``."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=_plain_env())
    if done.returncode:
        said = [line for text in (also, done.stderr) for line in text.splitlines() if line.strip()]
        reason = said[-1].strip()[:_ERROR_CHARACTERS] if said else f"exit code {done.returncode}"
        tool = "pip" if "pip" in command else Path(command[0]).name
        raise EmulatorError(f"cannot build the ARM64 root: {tool}: {reason}; {_INSTEAD}")
    return done.stdout
