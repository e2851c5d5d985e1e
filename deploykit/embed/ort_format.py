"""A model in ONNX Runtime's own format, for builds of the runtime that have only the operators it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.answers import first_answers
from deploykit.embed.app_model import AppModel
from deploykit.embed.golden import Golden
from deploykit.errors import ModelFileError, ParityError
from deploykit.runtime import create_session

__all__ = ["OrtForm", "ort_form"]

_TOOL = "onnxruntime.tools.convert_onnx_models_to_ort"
_SECONDS = 1800.0
# ONNX Runtime orders a table of the file by hashes that differ with the addresses at which it is loaded. Where Linux
# lets a process have the same ones each time (ADDR_NO_RANDOMIZE, linux/personality.h), the file is the same each time.
_STARTER = f"""
import ctypes, os, sys
ctypes.CDLL(None).personality(0x0040000)
os.execv(sys.executable, [sys.executable, "-m", "{_TOOL}", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class OrtForm:
    """The ``.ort`` file of a model.

    Attributes:
        content: The file.
        operators: ``required_operators.config``, for ``build.py --include_ops_by_config`` of ONNX Runtime.
        max_abs: Largest difference from the model's outputs on the golden pictures.
    """

    content: bytes
    operators: bytes
    max_abs: float


def ort_form(model: AppModel, golden: Golden, *, arm: bool) -> OrtForm:
    """Converts with ONNX Runtime's own tool, opens the result and compares it.

    Args:
        model: The model.
        golden: What both have to answer alike.
        arm: Whether it is optimised for ARM; otherwise for every processor.

    Raises:
        ModelFileError: The tool cannot convert it.
        ParityError: The file answers otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-") as temporary:
        folder = Path(temporary)
        shutil.copyfile(model.artifact.path, folder / "model.onnx")
        _convert(folder, model, arm)
        content = (folder / "model.ort").read_bytes()
        config = (folder / "model.required_operators.config").read_text(encoding="utf-8")
        worst = _difference(folder / "model.ort", model, golden)
    # The tool names the path that it has read, which is gone and would make every file another.
    operators = "\n".join(re.sub(r"^# - .*[/\\\\]", "# - ", line) for line in config.splitlines()) + "\n"
    return OrtForm(content, operators.encode(), worst)


def _convert(folder: Path, model: AppModel, arm: bool) -> None:
    start = ("-c", _STARTER) if sys.platform == "linux" else ("-m", _TOOL)
    command = [sys.executable, *start, str(folder / "model.onnx"), "--optimization_style", "Fixed"]
    command += ["--target_platform", "arm"] if arm else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise ModelFileError(f"cannot convert {model.artifact.path} to .ort: {problem}") from problem
    if done.returncode or not (folder / "model.ort").is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelFileError(f"ONNX Runtime's tool cannot convert {model.artifact.path} to .ort: {said[-1][:300]}")


def _difference(file: Path, model: AppModel, golden: Golden) -> float:
    session, worst = create_session(file, threads=1, spinning=False), 0.0
    for picture in golden.pictures:
        rows = model.feeding.input(picture.pixels)
        got = first_answers(session, rows, "the .ort file", what="golden pictures").reshape(-1).astype(np.float32)
        worst = max(worst, float(np.abs(got - picture.outputs).max()))
        if got.argmax() != picture.winner or worst > golden.tolerance:
            raise ParityError(
                f"the .ort file of {model.artifact.path} differs by {worst:.3g} from the model on a golden picture;"
                f" allowed: {golden.tolerance:.3g} and the same label"
            )
    return worst
