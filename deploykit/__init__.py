"""deploykit takes a network from PyTorch to an edge device: train, export, quantize, measure, ship.

The public functions are loaded when they are first used, so that importing deploykit stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Artifact": "deploykit.artifact",
    "Preprocess": "deploykit.artifact",
    "ParityError": "deploykit.errors",
    "DeploykitError": "deploykit.errors",
    "train_network": "deploykit.train",
    "prune_checkpoint": "deploykit.prune",
    "factorize_onnx": "deploykit.factorize",
    "export_onnx": "deploykit.export",
    "rewrite_onnx": "deploykit.rewriting",
    "wrap_onnx": "deploykit.wrap",
    "quantize_onnx": "deploykit.quantize",
    "tune_onnx": "deploykit.tune",
    "evaluate_onnx": "deploykit.evaluate",
    "evaluate_ensemble": "deploykit.evaluate",
    "bench_onnx": "deploykit.bench",
    "gate_onnx": "deploykit.gate",
    "verify_onnx": "deploykit.verify",
    "visualize_network": "deploykit.visualize",
    "embed_onnx": "deploykit.embed",
    "write_report": "deploykit.report",
    "run_pipeline": "deploykit.pipeline",
}
_ROOMS = ("data", "models")

__all__ = ["__version__", *_LAZY, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return import_module(f"deploykit.{name}")
    raise AttributeError(f"module 'deploykit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
