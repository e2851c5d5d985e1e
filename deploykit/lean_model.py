"""A copy of a model from which a session's peak memory stays near its weights.

ONNX Runtime holds weights that lie inside an ``.onnx`` several times while it loads them: in the file's message, in
the form that its optimisations give them, and packed for its kernels. Weights in a file of their own are mapped
instead; the system reads a page when it is used, and may take it back. So the copy has its weights beside it, and for
the CPU provider the graph as ONNX Runtime optimises it here, so that nothing is left to be rewritten. It is made in a
process of its own (``lean_worker``), whose memory nobody measures.

A copy is for this ONNX Runtime on this kind of processor: it belongs in a temporary folder or a cache, not with a user.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploykit import environment, errors
from deploykit.artifact import check_is_file
from deploykit.errors import InputError, ModelFileError
from deploykit.files import read_json, write_json

__all__ = ["LeanModel", "lean_copy", "prepared"]

_SCHEMA = "deploykit.lean/1"
_SIDECAR = "lean.json"
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class LeanModel:
    """What is known of a copy; lies beside it as ``lean.json``.

    Attributes:
        file: Name of the copy.
        optimised: Whether the graph is as ONNX Runtime's CPU provider runs it here.
        prepacking: Whether the CPU provider's kernels need their weights packed to be fast.
        onnxruntime: Version that made it.
        cpu_features: Of the processor that it was made on, as ``environment.cpu_features`` names them.
        seconds: What making it took.
    """

    file: str
    optimised: bool
    prepacking: bool
    onnxruntime: str
    cpu_features: tuple[str, ...]
    seconds: float

    @classmethod
    def read(cls, model: Path) -> LeanModel | None:
        """What is known of ``model``; None when it is no such copy."""
        if not model.is_file() or not (sidecar := model.with_name(_SIDECAR)).is_file():
            return None
        document = read_json(sidecar)
        if document.pop("schema", None) != _SCHEMA or document.get("file") != model.name:
            return None
        return cls(**{**document, "cpu_features": tuple(document["cpu_features"])})

    def write(self, folder: Path) -> None:
        """Writes it into the folder of the copy. Raises: OutputError."""
        write_json(folder / _SIDECAR, {"schema": _SCHEMA, **asdict(self)})

    def check(self, model: Path, provider: str, *, optimize: bool) -> None:
        """Raises: InputError when the copy is not for this provider, this ONNX Runtime or this processor."""
        if not self.optimised:
            return
        problem = None
        if provider != "cpu":
            problem = f"is optimised for the CPU provider, not for {provider!r}"
        elif not optimize:
            problem = "is optimised already, and was to be loaded without optimisations"
        elif (self.onnxruntime, self.cpu_features) != (_onnxruntime_version(), environment.cpu_features()):
            problem = f"was made by onnxruntime {self.onnxruntime} on its own kind of processor"
        if problem:
            raise InputError(f"the lean copy {model} {problem}; make another with lean_copy")

    def notes(self, model: Path) -> Iterator[str]:
        """What a reader of figures has to know."""
        what = "optimised copy" if self.optimised else "copy"
        yield f"lean memory: loaded from a prepared {what} that maps its weights; making it took {self.seconds:.1f} s"
        if self.optimised and not self.prepacking:
            yield "lean memory: weights are not packed for the kernels, so latency may differ"
        if _in_memory(model.parent):
            yield f"lean memory: {model.parent} lies in memory itself; set TMPDIR to a folder on a disk"


def lean_copy(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    optimize: bool = True,
) -> Path:
    """The copy of ``model`` below ``folder`` that ``create_session(…, memory="lean")`` loads; made where it is missing.

    Args:
        model: A file, with or without external data; never changed.
        folder: Keeps copies by the model's content, ONNX Runtime's version and the processor. Each is as large as the
            model, and may be removed at any time.
        provider: Short name. Only for the CPU is the graph optimised beforehand.
        optimize: Whether the CPU provider's graph is to be optimised.

    Raises:
        ModelFileError: Missing, damaged, or with operators that have no kernel here.
        OutputError: The folder cannot be written to.
        InputError: The process that makes the copy was killed.
    """
    source = Path(model)
    check_is_file(source)
    optimised = optimize and provider == "cpu"
    job = {"source": str(source.resolve()), "folder": str(Path(folder).resolve()), "optimised": optimised}
    answer = _made_elsewhere(job, source)
    if "path" in answer:
        return Path(answer["path"])
    raise _as_error(answer["error"], answer["message"].replace(job["source"], str(source)))


@contextmanager
def prepared(model: Path, *, provider: str, optimize: bool) -> Iterator[Path]:
    """``model`` where it is a lean copy already, otherwise a copy that goes again.

    A session that was made inside keeps what it has mapped.

    Raises: as ``lean_copy`` and ``LeanModel.check``.
    """
    if (known := LeanModel.read(model)) is not None:
        known.check(model, provider, optimize=optimize)
        yield model
        return
    import tempfile

    # Windows does not remove files that are mapped.
    with tempfile.TemporaryDirectory(prefix="deploykit-lean-", ignore_cleanup_errors=True) as folder:
        yield lean_copy(model, folder, provider=provider, optimize=optimize)


def _made_elsewhere(job: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The answer of a fresh process that does the job. Raises: InputError when it gave none."""
    import subprocess
    import tempfile  # both here, as each bench worker would be charged with them

    command = [sys.executable, "-P", "-W", "ignore", "-m", "deploykit.lean_worker", json.dumps(job)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": _environment()}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stderr=log, **pipes) as process:
        try:
            lines = process.stdout.read().splitlines() if process.stdout else []
        except BaseException:  # Ctrl-C: the process must not go on alone
            process.kill()
            raise
        code = process.wait()
        if code == 0 and lines:
            answer: dict[str, Any] = json.loads(lines[-1])
            return answer
        log.seek(0)
        words = [f": {line.strip()[:200]}" for line in log.read().decode(errors="replace").strip().splitlines()[-1:]]
    reason = "".join(words) or ", perhaps for lack of memory"
    raise InputError(f"{source}: the process that prepares its lean copy ended with code {code}{reason}")


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}


def _as_error(kind: str, message: str) -> errors.DeploykitError:
    known = {item.__name__: item for item in (ModelFileError, errors.OutputError, InputError)}
    return known.get(kind, InputError)(message)


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _in_memory(folder: Path) -> bool:
    """Whether the folder's file system lies in memory, where a mapped file saves none; False where unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    mounts = [line.split()[1:3] for line in lines if len(line.split()) > 2]
    above = {str(folder.resolve()), *map(str, folder.resolve().parents)}
    holding = max((mount for mount in mounts if mount[0] in above), key=lambda mount: len(mount[0]), default=["", ""])
    return holding[1] in _MEMORY_FILE_SYSTEMS
