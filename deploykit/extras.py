"""Imports of what an extra brings, with the command that installs it where it is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deploykit.errors import MissingDependencyError

__all__ = ["require"]


def require(module: str, *, extra: str, purpose: str) -> Any:
    """The module; ``purpose`` begins the message of the MissingDependencyError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as problem:
        raise MissingDependencyError(module.partition(".")[0], extra, purpose) from problem
