"""Paths as users write them: ``~`` filled in, and what the system cannot even look at refused in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from deploykit.errors import DataError

__all__ = ["is_file", "printable", "user_path"]

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LONGEST_SHOWN = 120  # characters of a path in a message about its length


def user_path(given: str | os.PathLike[str]) -> Path:
    """``given`` with ``~`` filled in; it need not exist.

    Raises:
        DataError: ``~name`` of an unknown user, too long for the system, or below a folder that may not be entered.
    """
    path = Path(given)
    try:
        path = path.expanduser()
    except RuntimeError as problem:
        raise DataError(
            f"{_shown(path)}: no home folder is known for {path.parts[0]}; write the path in full, or ./{path.parts[0]}"
        ) from problem
    _look_at(path)
    return path


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file, or a link to one. Raises: DataError when the system will not say."""
    _look_at(path)
    return path.is_file()


def printable(text: str) -> str:
    r"""``text`` with what is not UTF-8 as ``\udcff``, so that it can be printed and written to JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _look_at(path: Path) -> None:
    try:
        path.stat()
    except OSError as problem:
        if problem.errno not in _NOT_THERE:
            raise DataError(f"cannot read {_shown(path)}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise DataError(f"{str(path)!a} is no path: {problem}") from problem


def _shown(path: Path) -> str:
    text = printable(str(path))
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[: _LONGEST_SHOWN // 2]}...{text[-_LONGEST_SHOWN // 4 :]} ({len(text)} characters)"
