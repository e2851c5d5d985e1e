"""The parts of ``gpu.py``: their shares of the time, and the modules that they need.

As everything that ``gpu.py`` imports at its top, this needs the standard library alone: what is missing can be said.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINING = {"torch": "torch", "numpy": "numpy", "PIL": "Pillow", "psutil": "psutil", "safetensors": "safetensors"}
EXPORT = {"onnx": "onnx", "onnxscript": "onnxscript", "onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime-gpu"}
"""Modules -> the distributions that bring them."""


@dataclass(frozen=True)
class Part:
    """One part: its share of the time, the modules it needs beside ``TRAINING``, and whether it can be gone on with."""

    share: float
    needs: tuple[str, ...] = ()
    goes_on: bool = False


PARTS = {
    "throughput": Part(0.36, goes_on=True),
    "lenet": Part(0.13),
    "inference": Part(0.25, goes_on=True),  # PyTorch's figures need no more
    "cifar": Part(0.13),
    "flowers": Part(1.0, tuple(EXPORT), goes_on=True),
}
