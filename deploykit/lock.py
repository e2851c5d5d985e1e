"""The lock on a folder that one process at a time may work in: a file that says who holds it.

The file is made with O_EXCL, which is atomic on every system and needs no lock of the operating system's own. A
process that was killed leaves it behind; the next one sees that its holder is gone and takes it over.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploykit.errors import OutputError
from deploykit.process_start import started

__all__ = ["LOCK", "folder_lock"]

LOCK = ".deploykit.lock"
_WRITING_S = 5.0  # between making the file and writing into it; also what a process's start may be misread by


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds ``folder``, made where it is missing, for the block; lets it go however the block ends.

    Raises: OutputError naming the process that holds it, or when the folder cannot be written.
    """
    path, own = Path(folder) / LOCK, _myself()
    _acquire(path, own)
    try:
        yield
    finally:
        if _read(path) == own:
            with suppress(OSError):
                path.unlink()


def _myself() -> str:
    holder = {"pid": os.getpid(), "host": platform.node(), "started": started(os.getpid())}
    return json.dumps(holder | {"token": secrets.token_hex(8)})


def _acquire(path: Path, own: str) -> None:
    for _ in range(10):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _clear(path)
            continue
        except OSError as problem:
            raise OutputError(f"cannot write {path}: {problem.strerror}") from problem
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(own)
        return
    raise OutputError(f"{path} is taken again and again by other processes; try again when they have ended")


def _clear(path: Path) -> None:
    """Removes a lock whose holder is gone. Raises: OutputError when it lives, or nobody here can tell."""
    text = _read(path)
    if text is None:
        return
    if (holder := _live_holder(path, text)) is not None:
        raise OutputError(f"{path.parent} is in use by {holder}; wait for it, or give another folder")
    # Moved aside before it is removed: of two processes that find it, only one removes what it has looked at.
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.replace(aside)
        if _read(aside) != text:
            aside.replace(path)
        else:
            aside.unlink()
    except FileNotFoundError:
        return  # another process was quicker
    except OSError as problem:
        raise OutputError(f"cannot write {path}: {problem.strerror}") from problem


def _live_holder(path: Path, text: str) -> str | None:
    """Who holds the lock, in words; None when that process is gone."""
    holder = _parsed(text)
    if holder is None:
        with suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) < _WRITING_S:
                return "another process that is just starting"
        return None
    pid, host = holder["pid"], holder["host"]
    if host != platform.node():
        return f"process {pid} on {host} (remove {path} if it is gone)"
    began, then = started(pid), holder.get("started")
    if began is None or (isinstance(then, float) and abs(began - then) > _WRITING_S):
        return None  # gone, or its number was given to another process since
    return f"process {pid}"


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(text)
    except ValueError:  # cut short by a crash, or being written at this moment
        return None
    known = isinstance(holder, dict) and isinstance(holder.get("pid"), int) and isinstance(holder.get("host"), str)
    return holder if known else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(f"cannot read {path}: {problem.strerror}") from problem
