"""Names for class folders that are called by numbers, from the files that ImageNet and its copies bring along."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from deploykit.data.paths import is_file
from deploykit.errors import DataError

__all__ = ["NAME_FILES", "class_names", "named_labels", "text_in"]

_LINE = re.compile(r"(?P<folder>\S+)[\s,:]+(?P<name>\S.*)")


def class_names(read: Callable[[str], str | None]) -> dict[str, str]:
    """Name by folder from the first of ``NAME_FILES`` that is there; empty when none is.

    Args:
        read: Gives the text of a file in the root, None when it is not there.

    Raises:
        DataError: The file cannot be read or holds something else.
    """
    for file, parse in NAME_FILES.items():
        try:
            if (text := read(file)) is None:
                continue
            names = parse(text)
        except (ValueError, TypeError, AttributeError) as problem:
            raise DataError(f"{file} does not give names of classes: {problem}; mend or remove it") from problem
        return {folder: name.split(",")[0].strip() for folder, name in names.items()}  # the first of the synonyms
    return {}


def text_in(root: Path, file: str) -> str | None:
    """The text of a file in a folder, None when it is not there. Raises: DataError."""
    path = root / file
    try:
        return path.read_text("utf-8-sig") if is_file(path) else None
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def named_labels(folders: Iterable[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The name of each class folder, or the folder's own; a name that two have is told apart by the folder.

    ImageNet has two of ``crane`` (a bird and a machine) and two of ``maillot``.
    """
    pairs = [(folder, names.get(folder) or folder) for folder in folders]
    often = Counter(name for _, name in pairs)
    return tuple(name if often[name] == 1 else f"{name} ({folder})" for folder, name in pairs)


def _lines(text: str) -> dict[str, str]:
    """``n01440764 tench, Tinca tinca`` on each line, as Kaggle's LOC_synset_mapping.txt has it."""
    found = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    if not found or None in found:
        raise ValueError("expected lines such as 'n01440764 tench, Tinca tinca'")
    return {line["folder"]: line["name"] for line in found if line is not None}


def _index(text: str) -> dict[str, str]:
    """``{"0": ["n01440764", "tench"], ...}``, as Keras has it, or ``{"n01440764": "tench", ...}``."""
    entries = json.loads(text).items()
    pairs = [entry if isinstance(entry, list) else (key, entry) for key, entry in entries]
    if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise ValueError('expected entries such as "0": ["n01440764", "tench"]')
    return {folder: name.replace("_", " ") for folder, name in pairs}


NAME_FILES: Mapping[str, Callable[[str], dict[str, str]]] = MappingProxyType(
    {
        "LOC_synset_mapping.txt": _lines,
        "imagenet_class_index.json": _index,
        "synset_words.txt": _lines,
        "class_names.txt": _lines,
    }
)
"""Files that give names to class folders, in the order in which they are looked for, and how each is read."""
