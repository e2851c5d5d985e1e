"""A module out of a user's own code, ``package.module:callable``; what their code raises or prints stays theirs."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError
from deploykit.extras import require

if TYPE_CHECKING:
    import torch

__all__ = ["module_of"]


def module_of(text: str) -> torch.nn.Module:
    """The module that ``package.module:callable`` returns, or is; found on the path or in the current folder.

    Raises: InputError when it cannot be imported, raises, or gives something else.
    """
    nn = require("torch.nn", extra="torch", purpose="exporting a module")
    module_name, _, attribute = text.partition(":")
    made = _made(text, _import(module_name, attribute))
    if not isinstance(made, nn.Module):
        raise InputError(f"{text} returned {type(made).__name__}; expected a torch.nn.Module")
    module: torch.nn.Module = made
    return module


def _made(text: str, target: Any) -> Any:
    import torch

    if isinstance(target, torch.nn.Module) or not callable(target):
        return target
    try:
        with redirect_stdout(sys.stderr):  # what it prints is not our answer
            return target()
    except (
        Exception,
        SystemExit,
    ) as problem:  # the user's own code may raise anything; it must not look like a bug of ours
        raise InputError(f"{text} raised {type(problem).__name__}: {problem}; expected a torch.nn.Module") from problem


def _import(module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: a user's file beside the shell
    try:
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except ImportError as problem:
        raise InputError(f"cannot import {module_name!r}: {problem}; expected package.module:callable") from problem
    except (Exception, SystemExit) as problem:  # the user's own code, as above
        raise InputError(f"importing {module_name!r} raised {type(problem).__name__}: {problem}") from problem
    if not hasattr(module, attribute):
        raise InputError(f"module {module_name!r} has no {attribute!r}; expected package.module:callable")
    return getattr(module, attribute)
