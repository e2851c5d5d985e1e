"""Every failure that deploykit foresees, as one tree.

::

    DeploykitError                      exit code 2
    ├── InputError                      a file, value or option that cannot be used
    │   ├── UnknownNameError            no such network, dataset, recipe or provider; offers the near match
    │   ├── ModelFileError              not an ONNX file, cut short, or holding NaN weights
    │   ├── CheckpointError             not a checkpoint, cut short, or of another network
    │   ├── DataError                   missing, damaged or mislabelled pictures
    │   └── OutputError                 the place to write to exists, is read-only or is full
    ├── MissingDependencyError          an extra that is not installed
    ├── ProviderError                   an execution provider that is absent or took no node
    ├── EmulatorError                   an emulator, or what runs in it, that is missing
    ├── AnswerIsNoError                 exit code 1: asked, measured, and the answer is no
    │   └── ParityError                 the exported model does not compute what the module computes
    ├── NotComparableError              exit code 3: no honest answer
    └── RankError                       exit code 3: another process that shares the work is gone

A message is one line: what was wrong, what was received, what is allowed. ``exit_code`` is what the command line
ends with (`docs/interface.md`).
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AnswerIsNoError",
    "CheckpointError",
    "DataError",
    "DeploykitError",
    "EmulatorError",
    "InputError",
    "MissingDependencyError",
    "ModelFileError",
    "NotComparableError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "RankError",
    "UnknownNameError",
]


class DeploykitError(Exception):
    """Base of all foreseen failures."""

    exit_code = 2


class InputError(DeploykitError):
    """A file, value or option that cannot be used."""


class UnknownNameError(InputError):
    """A name that is not in a table; the message offers the near match.

    Args:
        kind: What was looked for, such as ``"network"``.
        name: What was received.
        allowed: The names that exist.
    """

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        import difflib  # not needed where nothing is misspelt

        names = list(allowed)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}; {hint}allowed: {', '.join(names)}")
        self.name = name
        self.near_match = near[0] if near else None


class ModelFileError(InputError):
    """Not an ONNX file, cut short, or holding weights that are not finite."""


class CheckpointError(InputError):
    """Not a checkpoint, cut short, or of another network."""


class DataError(InputError):
    """Missing, damaged or mislabelled pictures."""


class OutputError(InputError):
    """The place to write to exists already, is read-only, or is full."""


class MissingDependencyError(DeploykitError):
    """An optional dependency is not installed.

    Args:
        package: The import that failed, such as ``"torch"``.
        extra: The extra of deploykit that brings it.
        purpose: What needs it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'deploykit[{extra}]'")
        self.package = package
        self.extra = extra


class ProviderError(DeploykitError):
    """An execution provider that is absent, cannot start, or took no node."""


class EmulatorError(DeploykitError):
    """An emulator, or what runs in it, is missing here or cannot be had."""


class AnswerIsNoError(DeploykitError):
    """What was asked was measured, and the answer is no."""

    exit_code = 1


class ParityError(AnswerIsNoError):
    """The exported model does not compute what the module computes."""


class NotComparableError(DeploykitError):
    """Too noisy, or measured under conditions that differ: no honest answer."""

    exit_code = 3


class RankError(DeploykitError):
    """Another process that shares the work is gone; where it said why, the message does.

    Args:
        message: One line.
        exit_code: That of the process that said why it ended.
    """

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code
