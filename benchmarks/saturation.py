"""What full-range weights do on a CPU without VNNI, and that the ``int8`` recipe does not suffer it.

    python benchmarks/saturation.py MODEL.onnx --data DATA [--data-dir DIR]

Quantizes the same float model by ``int8``, whose pairs of weights cannot saturate, and by ``int8-vnni``, whose weights
have the full range, and compares each file's optimised session (the CPU's kernels) with its unoptimised one (float
arithmetic of the same QDQ graph).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from deploykit import data, environment
from deploykit import quantize as room
from deploykit.evaluate import Classifier, evaluate_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    train, test = (data.load(given.data, split, data_dir=given.data_dir) for split in ("train", "test"))
    print(f"CPU: {environment.describe()['cpu']}, {', '.join(environment.cpu_features())}")
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("int8", "int8-vnni"):
            path = Path(folder) / f"{recipe}.onnx"
            room.quantize_onnx(given.model, path, calibration=train, recipe=recipe)
            record = evaluate_onnx(path, test, reference=given.model)
            pictures = test.pictures(np.arange(min(len(test), 2000)))
            fast, plain = (Classifier.open(path, optimize=how).predict(pictures) for how in (True, False))
            same = (fast.argmax(1) == plain.argmax(1)).mean()
            print(
                f"{recipe}: top-1 {100 * record.top1:.2f} %, agreement with fp32 {100 * (record.agreement or 0):.2f} %,"
                f" largest difference from the unoptimised session {np.abs(fast - plain).max():.3g}"
                f" of logits up to {np.abs(plain).max():.3g}, same top-1 {100 * same:.2f} %"
            )


if __name__ == "__main__":
    main()
