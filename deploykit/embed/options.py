"""What an app's folder is to hold besides the model and its code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import InputError

__all__ = ["EmbedOptions"]

_LONGEST_TITLE = 80


@dataclass(frozen=True)
class EmbedOptions:
    """Options of ``embed_onnx``.

    Attributes:
        title: What to call the app; the model's name when None.
        records: Files and folders with records of measurements, for an archive; the model's folder when empty.
        ort_format: Whether the model is added in ONNX Runtime's own format, with the list of its operators.
        runtime: The npm package onnxruntime-web, as a ``.tgz`` or a folder, for apps that run in browsers and Node; the
            pinned version from npm when None.
    """

    title: str | None = None
    records: tuple[Path, ...] = ()
    ort_format: bool = False
    runtime: Path | None = None

    def __post_init__(self) -> None:
        if self.title is not None and not (self.title.strip() and self.title.isprintable()):
            raise InputError(f"title {self.title!r}; allowed: one line of text")
        if self.title is not None and len(self.title) > _LONGEST_TITLE:
            raise InputError(f"a title of {len(self.title)} characters; allowed: {_LONGEST_TITLE}")
