"""One model on one other CPU: a process under qemu that is fed through files, and always ended.

On x86 the emulated process is this very Python with these very wheels; ARM64 has a root of its own (``arm64_root``).
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.arm64_root import Arm64Root, find_arm64_root
from deploykit.errors import EmulatorError, NotComparableError
from deploykit.progress import Progress, silent
from deploykit.qemu import Cpu, cpu_named, find_emulator, unsupported_features
from deploykit.runtime_errors import one_line

__all__ = ["Answer", "Job", "Machine", "machines_of", "run_on"]

_POLL_S = 0.1
_WORKER = Path(__file__).with_name("emulated_worker.py")
# Libraries of this machine that a process of another architecture must not be given.
_OWN_LIBRARIES = ("LD_LIBRARY_PATH", "LD_PRELOAD")
_QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Machine:
    """How a process is started on a CPU.

    Attributes:
        cpu: The CPU.
        command: The emulator, where there is one, and the Python.
        paths: Folders that hold NumPy and ONNX Runtime.
        emulator: In words, such as ``"qemu-x86_64 7.2.22 -cpu Haswell-noTSX"``; None when nothing is emulated.
        foreign: Whether the architecture is another one than this machine's.
    """

    cpu: Cpu
    command: tuple[str, ...]
    paths: tuple[str, ...]
    emulator: str | None
    foreign: bool


@dataclass(frozen=True)
class Job:
    """What is run: a model file on preprocessed inputs.

    Attributes:
        model: The file.
        inputs: (N, …) as the model takes them.
        batch: Inputs a call.
        fixed: Whether the model takes full batches only.
        threads: Threads of one operator.
    """

    model: Path
    inputs: NDArray[np.generic]
    batch: int
    fixed: bool
    threads: int


@dataclass(frozen=True)
class Answer:
    """What the process answered.

    Attributes:
        logits: The first output, float32 (N, classes); may hold NaN.
        onnxruntime: Its version there.
        python: The Python's version there.
        machine: The architecture that the process sees.
        cpu_features: Those of ``environment.cpu_features`` that the process sees.
        left_out: Vector features that the CPU has and the emulator does not.
        seconds: From a loaded ONNX Runtime to the last answer.
    """

    logits: NDArray[np.float32]
    onnxruntime: str
    python: str
    machine: str
    cpu_features: tuple[str, ...]
    left_out: tuple[str, ...]
    seconds: float


def machines_of(names: Sequence[str], arm64_root: str | os.PathLike[str] | None = None) -> tuple[Machine, ...]:
    """How the CPUs of these names are had here, each once; found out before any of them works.

    Args:
        names: As ``cpu_named`` takes them.
        arm64_root: A folder with an ARM64 Python; None takes the one that was prepared.

    Raises:
        UnknownNameError: No such CPU.
        EmulatorError: An emulator or the root is missing; the message says how to get it.
    """
    return tuple(_machine(cpu_named(name), arm64_root) for name in dict.fromkeys(names))


def _machine(cpu: Cpu, arm64_root: str | os.PathLike[str] | None) -> Machine:
    own = cpu.architecture == _architecture()
    if own and cpu.model is None:
        return Machine(cpu, (sys.executable,), _wheel_folders(), None, foreign=False)
    emulator = find_emulator(cpu.architecture, f"--cpu {cpu.name}")
    model = cpu.model or "max"
    words = f"qemu-{emulator.architecture} {emulator.version} -cpu {model}"
    if own:
        return Machine(cpu, (emulator.path, "-cpu", model, sys.executable), _wheel_folders(), words, foreign=False)
    root = _root_for(cpu, arm64_root)
    return Machine(cpu, root.command(emulator, model), (str(root.site),), words, foreign=True)


def _root_for(cpu: Cpu, folder: str | os.PathLike[str] | None) -> Arm64Root:
    if cpu.architecture != "aarch64":
        raise EmulatorError(
            f"--cpu {cpu.name} needs a Python of {cpu.architecture}, and this machine is {platform.machine()};"
            f" run it on an {cpu.architecture} machine"
        )
    return find_arm64_root(folder)


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _wheel_folders() -> tuple[str, ...]:
    """Where this process imports NumPy and ONNX Runtime from, and nothing else that may lie in its path."""
    found = (util.find_spec(name) for name in ("numpy", "onnxruntime"))
    return tuple(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))


def run_on(machine: Machine, job: Job, *, timeout_s: float, progress: Progress = silent) -> Answer:
    """Runs ``job`` in a process on ``machine`` and waits for its answer.

    The process is ended with all that it started however this ends, and leaves no file behind.

    Raises:
        NotComparableError: It was killed, failed, or took longer than ``timeout_s`` seconds.
        EmulatorError: It could not be started, or there is no room for its files.
    """
    try:
        return _run(machine, job, timeout_s, progress)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise EmulatorError(f"cannot run on {machine.cpu.name}: {reason} ({problem.filename or _WORKER})") from problem


def _run(machine: Machine, job: Job, timeout_s: float, progress: Progress) -> Answer:
    with tempfile.TemporaryDirectory(prefix="deploykit-") as name:
        folder = Path(name)
        _write_job(folder, machine, job)
        with (folder / "log").open("wb") as log:
            # The folder is the current one too, so that a core file goes with it.
            process = subprocess.Popen(
                (*machine.command, "-I", "-S", "-W", "ignore", str(_WORKER), str(folder)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=_environment(machine, folder),
                start_new_session=True,
            )
            try:
                code = _wait(process, machine, folder, len(job.inputs), timeout_s, progress)
            finally:
                _end(process)
        said = (folder / "log").read_text(encoding="utf-8", errors="replace")
        if code != 0:
            raise NotComparableError(f"the run on {machine.cpu.name} {_how_it_ended(code)}: {_last_words(said)}")
        progress(f"verify: {machine.cpu.name}", len(job.inputs), len(job.inputs))
        return _read_answer(folder, said)


def _write_job(folder: Path, machine: Machine, job: Job) -> None:
    np.save(folder / "inputs.npy", job.inputs)
    described = {
        "model": str(job.model.absolute()),  # a link stays one: weights may lie beside it
        "batch": job.batch,
        "fixed": job.fixed,
        "threads": job.threads,
        "paths": machine.paths,
    }
    (folder / "job.json").write_text(json.dumps(described), encoding="utf-8")


def _read_answer(folder: Path, said: str) -> Answer:
    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return Answer(
        logits=np.load(folder / "logits.npy"),
        cpu_features=tuple(answer.pop("cpu_features")),
        left_out=unsupported_features(said),
        **answer,
    )


def _environment(machine: Machine, folder: Path) -> dict[str, str]:
    """With ``folder`` for temporary files: ONNX Runtime leaves one of its own there."""
    kept = {key: value for key, value in os.environ.items() if not (machine.foreign and key in _OWN_LIBRARIES)}
    return kept | _QUIET | {"TMPDIR": str(folder)}


def _wait(
    process: subprocess.Popen[bytes], machine: Machine, folder: Path, total: int, timeout_s: float, progress: Progress
) -> int:
    began, stage = time.monotonic(), f"verify: {machine.cpu.name}"
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=max(0.0, min(_POLL_S, began + timeout_s - time.monotonic())))
        done = _rows_done(folder / "progress")
        progress(stage, done, total)
        if time.monotonic() - began >= timeout_s:
            raise NotComparableError(
                f"the run on {machine.cpu.name} was ended after {timeout_s:g} s with {done} of {total} samples done;"
                " raise --timeout or lower --samples"
            )


def _rows_done(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8") or 0)
    except FileNotFoundError:  # still loading
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and what it started, all of them in a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    known = -code in signal.valid_signals()
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _last_words(log: str) -> str:
    """The exception of a traceback, which may take several lines; otherwise the last line but the emulator's own."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("qemu")]
    starts = [
        index for index, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Fail|\w*Graph)\b.*:", line)
    ]
    words = " ".join(lines[starts[-1] :] if starts else lines[-1:]) or "it said nothing"
    return one_line(RuntimeError(re.sub(r"^onnxruntime\.[\w.]+: ", "", words)))
