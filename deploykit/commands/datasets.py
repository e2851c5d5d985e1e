"""``data list`` and ``data prepare``."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit import __version__
from deploykit.commands.options import DataDir, Json
from deploykit.terminal import count, print_json, print_line, print_table, progress_bar

__all__ = ["list_datasets", "prepare"]


def list_datasets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the datasets, where they were found, and how to get them.

    Example: deploykit data list
    """
    from deploykit import data, environment

    entries = data.describe(data_dir)
    if as_json:
        head = {"schema": "deploykit.datasets/1", "deploykit": __version__, "environment": environment.describe()}
        print_json(head | {"data_dir": str(data_dir or data.default_data_dir()), "datasets": entries})
        return
    rows = [
        (
            str(entry["name"]),
            str(entry["found"] or entry["how"]),
            str(entry["classes"]),
            "×".join("any" if side is None else str(side) for side in entry["input"]),
            count(entry["train"]),
            count(entry["test"]),
        )
        for entry in entries
    ]
    print_table(("name", "found at, or how to get it", "classes", "input", "train", "test"), rows, left=2)
    print_line(
        "Also: a folder of pictures (split/class/picture or class/picture), a .tar of one, or an .npz with images and"
        " labels."
    )


def prepare(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10 or flower-photos.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Download a dataset and check every file's published checksum.

    Example: deploykit data prepare mnist
    """
    from deploykit import data, environment

    with progress_bar() as progress:
        folder = data.prepare(name, data_dir, progress=progress)
    if as_json:
        head = {"schema": "deploykit.dataset/1", "deploykit": __version__, "environment": environment.describe()}
        print_json(head | {"name": name, "folder": str(folder)})
        return
    print_line(f"{name} is ready in {folder}")
