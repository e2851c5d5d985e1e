"""What a part of ``gpu.py`` is given, and how it keeps its figures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import DeploykitError
from deploykit.progress import Progress


class OutOfTimeError(Exception):
    """The part's time is over."""


@dataclass
class Job:
    """What one part runs with; ``keep`` adds a figure to the file that the parent reads."""

    device: str
    name: str
    small: bool
    data: str | None
    until: float
    work: str
    result: str
    trainings_at_once: int = 1
    before: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether figures are of a GPU."""
        return self.device == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds until the part's time is over."""
        return self.until - time.time()

    def keep(self, **figures: Any) -> None:
        """Adds them and writes all."""
        self.figures |= figures
        self.write("running")

    def write(self, status: str, reason: str | None = None) -> None:
        """Writes the file aside and moves it into place."""
        aside = Path(f"{self.result}.partial")
        document = {"status": status, "reason": reason, "figures": self.figures}
        aside.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        aside.replace(self.result)

    def check(self) -> None:
        """Raises OutOfTimeError once the time is over."""
        if self.left_s <= 0:
            raise OutOfTimeError

    @property
    def watch(self) -> Progress:
        """A progress callback that ends a stage when the time is over."""

        def watching(stage: str, done: int, total: int, note: str = "") -> None:
            self.check()

        return watching


def said(problem: Exception) -> str:
    """A problem in one line; those that are not deploykit's also with their kind."""
    text = " ".join(str(problem).split())[:300]
    return text if isinstance(problem, DeploykitError) else f"{type(problem).__name__}: {text}"
