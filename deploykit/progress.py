"""How a long stage tells its caller how far it is: one callback, so that the library never prints."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called as ``progress("train 3/30", done=128, total=60000, note="loss 0.12")``, often; must be quick.

    ``stage`` names the bar; a new name begins a new bar. ``total`` of 0 means unknown.
    """

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Reports progress."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The callback that says nothing."""
