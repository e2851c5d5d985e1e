"""qemu's user-mode emulators: where they are, and which CPUs they offer.

Debian and Ubuntu bring them in ``qemu-user-static``; they run a program of another CPU on this machine's kernel.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from deploykit.errors import EmulatorError, UnknownNameError

__all__ = ["CPUS", "Cpu", "Emulator", "cpu_named", "find_emulator", "unsupported_features"]

_TOOL_SECONDS = 20.0
_ARCHITECTURES = ("x86_64", "aarch64")
_NOT_A_CPU = ("base", "host", "max")  # what they stand for differs from one qemu to the next
_VERSION_SUFFIX = re.compile(r"-v\d+$")
# What TCG leaves out, as qemu warns of it, as far as kernels of ONNX Runtime depend on it.
_LEFT_OUT = re.compile(r"doesn't support requested feature: \S+?[.:]((?:avx|amx|fma)[\w-]*)")


@dataclass(frozen=True)
class Cpu:
    """A CPU that can be asked for.

    Attributes:
        name: As the user writes it.
        architecture: ``"x86_64"`` or ``"aarch64"``.
        model: qemu's name of it; None for an architecture as such, whichever CPU has it.
    """

    name: str
    architecture: str
    model: str | None


CPUS = {
    cpu.name: cpu
    for cpu in (
        Cpu("haswell", "x86_64", "Haswell-noTSX"),  # AVX2, no VNNI: where full-range int8 saturates
        Cpu("sandybridge", "x86_64", "SandyBridge"),  # AVX, no AVX2
        Cpu("nehalem", "x86_64", "Nehalem"),  # SSE 4.2, the least that NumPy's wheels run on
        Cpu("arm64", "aarch64", None),
    )
}
"""The CPUs with names of ours; ``cpu_named`` takes qemu's names too."""


@dataclass(frozen=True)
class Emulator:
    """An installed emulator.

    Attributes:
        path: The program.
        architecture: What it emulates.
        version: As it says it, such as ``"7.2.22"``.
        models: The CPUs that it offers, by its own names.
    """

    path: str
    architecture: str
    version: str
    models: tuple[str, ...]


def find_emulator(architecture: str, wanted_by: str) -> Emulator:
    """The emulator of ``"x86_64"`` or ``"aarch64"``. Raises: EmulatorError that says how to get it."""
    if (found := _installed(architecture)) is None:
        how = "get it with: apt-get install qemu-user-static"
        if not sys.platform.startswith("linux"):
            how = f"emulated CPUs need Linux (this is {sys.platform}), and there: apt-get install qemu-user-static"
        raise EmulatorError(f"the emulator qemu-{architecture}-static, which {wanted_by} needs, was not found; {how}")
    return found


def _installed(architecture: str) -> Emulator | None:
    # Newer distributions link their emulators dynamically and leave out the "-static".
    names = (f"qemu-{architecture}-static", f"qemu-{architecture}")
    path = next((path for name in names if (path := shutil.which(name))), None)
    return None if path is None else _described(path, architecture)


@functools.cache
def _described(path: str, architecture: str) -> Emulator:
    version = re.search(r"version (\d[\w.]*)", _output(path, "--version"))
    return Emulator(path, architecture, version[1] if version else "unknown", _models(_output(path, "-cpu", "help")))


def _models(listing: str) -> tuple[str, ...]:
    """The names of ``qemu-x86_64 -cpu help`` (``x86 Haswell-noTSX  (alias …)``) or of ``qemu-aarch64`` (``  max``)."""
    cpus, _, _ = listing.partition("\n\n")  # a list of features follows that of the CPUs
    names = (line.removeprefix("x86 ").split() for line in cpus.splitlines()[1:])
    found = [words[0] for words in names if words]
    return tuple(name for name in found if name not in _NOT_A_CPU and not _VERSION_SUFFIX.search(name))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise EmulatorError(f"cannot run the emulator {command[0]}: {problem}; install it again") from problem


def cpu_named(name: str) -> Cpu:
    """The CPU that a user names, in any case: one of ``CPUS`` or of those that an installed qemu lists.

    Raises: UnknownNameError with the near match.
    """
    wanted = name.strip().lower()
    if wanted in CPUS:
        return CPUS[wanted]
    offered = {
        model.lower(): Cpu(model.lower(), emulator.architecture, model)
        for emulator in map(_installed, _ARCHITECTURES)
        if emulator
        for model in emulator.models
    }
    if wanted in offered:
        return offered[wanted]
    near = UnknownNameError("CPU", wanted, [*CPUS, *offered]).near_match  # of a list too long for a message
    raise UnknownNameError("CPU", name, dict.fromkeys(["native", *CPUS, *([near] if near else [])]))


def unsupported_features(log: str) -> tuple[str, ...]:
    """The vector features that a CPU has and the emulator, by its own warnings in ``log``, leaves out."""
    return tuple(dict.fromkeys(_LEFT_OUT.findall(log)))
