"""Do the exported files load and answer alike under ONNX Runtime's current and two previous minor versions?

    python benchmarks/runtime_versions.py MODEL.onnx … [--versions 1.31.1 1.30.0 1.29.0]

Makes a virtual environment for each version (from the package registry), runs the same inputs, and prints one line a
version and model: the largest difference from the first version's answer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_PROGRAM = """
import sys, numpy as np, onnxruntime as ort
ort.set_default_logger_severity(3)
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
spec = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 7 for size in spec.shape]
x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
np.save(sys.argv[2], session.run(None, {spec.name: x})[0])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--versions", nargs="+", default=["1.31.1", "1.30.0", "1.29.0"])
    given = parser.parse_args()
    first: dict[Path, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for version in given.versions:
            python = _environment(Path(folder) / version, version)
            for model in given.models:
                answer = Path(folder) / f"{version}-{model.stem}.npy"
                subprocess.run([python, "-c", _PROGRAM, model, answer], check=True)
                values = np.load(answer)
                difference = np.abs(values - first.setdefault(model, values)).max()
                print(f"onnxruntime {version}  {model.name}  batch 7  largest difference {difference:.3g}", flush=True)


def _environment(folder: Path, version: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"onnxruntime=={version}", "numpy"], check=True)
    return python


if __name__ == "__main__":
    main()
