"""A file of class names, for a network whose weights come without them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploykit.data.class_names import named_labels
from deploykit.errors import InputError

__all__ = ["read_labels"]


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of classes in the order of the logits: one a line, or a JSON list.

    Names that stand twice, as ``crane`` and ``maillot`` do among ImageNet's, get their index behind them.

    Raises: InputError when the file cannot be read, is empty, or has an empty line among the names.
    """
    source = Path(path)
    try:
        text = source.read_text("utf-8-sig")
    except FileNotFoundError as problem:
        raise InputError(f"no such file of labels: {source}") from problem
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read the labels in {str(source)[:160]}: {reason}") from problem
    labels = _json_labels(text, source) if text.lstrip().startswith(("[", "{")) else text.rstrip().splitlines()
    labels = [label.strip() for label in labels]
    if not all(labels) or not labels:
        raise InputError(f"{source} has an empty name among its {len(labels)} labels; expected one name a line")
    return named_labels(map(str, range(len(labels))), {str(index): label for index, label in enumerate(labels)})


def _json_labels(text: str, source: Path) -> list[str]:
    try:
        labels = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise InputError(f"{source} begins as JSON but is none: {problem}") from problem
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{source} holds other JSON than a list of names; expected that, or one name a line")
    return labels
