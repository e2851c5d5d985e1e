"""The memory of a chain's folder: which steps are done, with what settings, from what and to which files.

``steps.json`` keeps for each step its settings (readable, so that a difference can be named), the digests of the
files it was made from and of the files it wrote. Settings and sources are hashed into the step's key. A step whose
key and files are still the same is skipped. Before the first step runs, files that no step of this folder wrote are
refused, and so is a training with other settings, which took long to make; all other files that a step wrote are ours,
and are made again when they, their sources or their settings changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit import __version__
from deploykit.errors import InputError, OutputError
from deploykit.files import check_writable, read_json, sha256_file, sha256_json, write_json

__all__ = ["Step", "Steps"]

_STEPS = "steps.json"
_SCHEMA = "deploykit.steps/1"
_WAY_OUT = "give another folder or --overwrite"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step; paths are relative to the chain's folder, with forward slashes.

    Attributes:
        name: Such as ``lenet5/train``.
        settings: JSON values, known before the chain starts, that decide the outcome.
        outputs: Files that it writes.
        work: Writes them.
        sources: Files of earlier steps that it is made from.
        extras: Files that it may write besides; one that is missing is no damage.
        state: File by which ``work`` itself goes on where it was interrupted. Empty: it starts afresh.
    """

    name: str
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]
    work: Callable[[], object]
    sources: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    state: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it may write."""
        return (*self.outputs, *self.extras, *((self.state,) if self.state else ()))


@dataclass
class Steps:
    """The steps that a folder remembers, and what became of this chain's steps."""

    folder: Path
    known: dict[str, Any]
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> Steps:
        """Reads the folder's memory. Raises: InputError for a file of another version; OutputError."""
        path = folder / _STEPS
        check_writable(path)
        document: dict[str, Any] = read_json(path) if path.exists() else {"schema": _SCHEMA, "steps": {}}
        if document.get("schema") != _SCHEMA or not isinstance(document.get("steps"), dict):
            raise InputError(f"{path} has schema {document.get('schema')!r}; this deploykit reads {_SCHEMA!r}")
        for name, entry in document["steps"].items():
            if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict):
                raise InputError(f"{path} says nothing readable about the step {name!r}; give another folder")
        return cls(folder, document["steps"])

    def refuse_strangers(self, steps: Iterable[Step]) -> None:
        """Refuses files that are not of this chain, and trainings (steps with a ``state``) of other settings.

        Raises: OutputError naming the file and, where it is known, what differs.
        """
        for step in steps:
            there = [self.folder / name for name in step.files if (self.folder / name).exists()]
            if not there:
                continue
            if step.name not in self.known:
                raise OutputError(f"{there[0]} exists and is not of this chain; {_WAY_OUT}")
            if not step.state:
                continue
            before = self.known[step.name]["settings"]
            if differences := _differences(before, _as_json(step.settings)):
                raise OutputError(f"{there[0]} was made with {'; '.join(differences)}; {_WAY_OUT}")

    def changed(self, step: Step, output: str) -> bool:
        """Whether a step that was complete no longer finds the ``output`` that it wrote."""
        written = (self.known.get(step.name, {}).get("outputs") or {}).get(output)
        path = self.folder / output
        return written is not None and path.is_file() and sha256_file(path) != written

    def run(self, step: Step) -> None:
        """Does a step unless it is done. A file that differs from what the step wrote counts as damaged."""
        settings = _as_json(step.settings)
        sources = {name: sha256_file(self.folder / name) for name in step.sources}
        key, before = sha256_json([settings, sources]), self.known.get(step.name, {})
        if before.get("key") == key and self._unharmed(step, before.get("outputs")):
            self.skipped.append(step.name)
            return
        begun = before.get("key") == key and before.get("outputs") is None
        if step.state and not begun:
            # The work goes on from whatever lies there, so what is of another making goes first; were it remembered
            # as begun before that, a crash in between would leave something that never can be gone on with.
            for name in step.files:
                self._remove(name)
        entry = {"key": key, "settings": settings, "sources": sources}
        self._remember(step.name, entry | {"outputs": None})
        step.work()
        self._remember(step.name, entry | {"outputs": self._digests(step)})
        self.done.append(step.name)

    def _unharmed(self, step: Step, written: Any) -> bool:
        if not isinstance(written, dict):
            return False
        found = self._digests(step)
        return set(step.outputs) <= set(found) and all(written.get(name) == found[name] for name in found)

    def _digests(self, step: Step) -> dict[str, str]:
        paths = {name: self.folder / name for name in (*step.outputs, *step.extras)}
        return {name: sha256_file(path) for name, path in paths.items() if path.is_file()}

    def _remove(self, name: str) -> None:
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            raise OutputError(f"cannot replace {path}: {problem.strerror}") from problem

    def _remember(self, name: str, entry: dict[str, Any]) -> None:
        self.known[name] = entry
        document = {"schema": _SCHEMA, "deploykit": __version__, "steps": self.known}
        write_json(self.folder / _STEPS, document)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from the file, so that the two compare."""
    values: dict[str, Any] = json.loads(json.dumps({"deploykit": __version__, **settings}, allow_nan=False))
    return values


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The first three settings that differ, in words."""
    names = [name for name in (*now, *(set(before) - set(now))) if before.get(name) != now.get(name)]
    return [f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in names[:3]]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"
    return text if len(text) <= 80 else f"{text[:79]}…"
