"""Flags that several commands share, and how their texts become values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.errors import InputError

if TYPE_CHECKING:
    from deploykit.artifact import Artifact, Preprocess
    from deploykit.data.dataset import Dataset

__all__ = [
    "AllowFallback",
    "Channels",
    "Classes",
    "DataDir",
    "FixedSize",
    "Json",
    "Memory",
    "NetworkOptions",
    "Output",
    "Outputs",
    "Overwrite",
    "PreprocessText",
    "Provider",
    "ProviderOptions",
    "RecordOutput",
    "Shape",
    "Threads",
    "load_for_model",
    "load_for_models",
    "parse_network_options",
    "parse_outputs",
    "parse_preprocess",
    "parse_provider_options",
    "parse_shape",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where named datasets lie; DEPLOYKIT_DATA says it too.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
Outputs = Annotated[
    list[str],
    typer.Option(
        "--output",
        "-o",
        help="The file to write. Given once more as topk=5, adds probabilities and the best 5 classes to the model's"
        " outputs.",
    ),
]
FixedSize = Annotated[
    bool, typer.Option("--fixed-size", help="Take pixels of the network's own size only, which are not resized.")
]
RecordOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Write the record (JSON) there.")]
Provider = Annotated[str, typer.Option(help="Execution provider: cpu, cuda, openvino, …")]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        help="An option of the provider in its own name, such as INFERENCE_PRECISION_HINT=f32 or use_tf32=0; may be"
        " repeated.",
    ),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Go on with cpu where the provider cannot be used, and say so.")
]
Memory = Annotated[
    str, typer.Option(help="default, or lean: a peak near the weights, from a prepared copy whose weights are mapped.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; by default the CPUs that this process may use.")]
Shape = Annotated[str | None, typer.Option(help="Input shape without the batch, such as 3x224x224.")]
Classes = Annotated[int | None, typer.Option(help="Classes of a reference network, by default its paper's.")]
Channels = Annotated[int | None, typer.Option(help="Input channels of a reference network, 1 or 3.")]
NetworkOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the network, such as activation=tanh; may be repeated."),
]
PreprocessText = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="For models that do not say it: imagenet, unit (0–1), signed (−1–1), raw (0–255), JSON, or a JSON file.",
    ),
]


def parse_network_options(texts: list[str] | None) -> dict[str, str]:
    """``["activation=tanh"]`` as a dict. Raises: InputError."""
    options: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"--option {text!r}; expected NAME=VALUE, such as activation=tanh")
        options[name] = value
    return options


def parse_provider_options(texts: list[str] | None) -> dict[str, str]:
    """``["use_tf32=0"]`` as a dict. Raises: InputError, also for a name that stands twice."""
    options: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--provider-option {text!r}; expected NAME=VALUE, such as use_tf32=0")
        if name in options:
            raise InputError(f"--provider-option {name} stands twice, as {options[name]} and {value}; allowed: once")
        options[name] = value
    return options


def parse_outputs(texts: list[str]) -> tuple[Path, int | None]:
    """``["model.onnx", "topk=5"]`` as the file to write and the number of best classes. Raises: InputError."""
    counts = [text.removeprefix("topk=") for text in texts if text.startswith("topk=")]
    paths = [text for text in texts if not text.startswith("topk=")]
    if len(paths) != 1 or len(counts) > 1:
        raise InputError(f"--output {' and '.join(texts)}; allowed: one file, and topk=N once")
    if counts and not (counts[0].isascii() and counts[0].isdecimal()):
        raise InputError(f"--output topk={counts[0]}; allowed: a whole number of classes, such as topk=5")
    return Path(paths[0]), int(counts[0]) if counts else None


def parse_shape(text: str | None) -> tuple[int, int, int] | None:
    """``3x224x224`` (or with commas, or with a leading batch) as (C, H, W). Raises: InputError."""
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (3, 4):
        raise InputError(f"--shape {text!r}; expected CxHxW, such as 3x224x224")
    channels, height, width = (int(part) for part in parts[-3:])
    return channels, height, width


def parse_preprocess(text: str | None) -> Preprocess | str | None:
    """The name of a preset, or the JSON of ``deploykit.preprocess`` itself or in a file. Raises: InputError."""
    if text is None:
        return None
    from deploykit.artifact import Preprocess
    from deploykit.files import read_json

    if text.lstrip().startswith("{"):
        try:
            return Preprocess.from_json(json.loads(text))
        except json.JSONDecodeError as problem:
            raise InputError(f"--preprocess is not JSON: {problem}") from problem
    if text.endswith(".json"):
        return Preprocess.from_json(read_json(text))
    return text


def load_for_model(artifact: Artifact, data: str, split: str, data_dir: Path | None) -> Dataset:
    """The pictures that measure a model.

    With ``split`` "auto": the test split where the source has splits; of a flat source the held-out fifth when the
    model was trained on it, and all pictures otherwise.

    A flat source that only has the name of the one trained on (a picture was added, or it is another folder) may hold
    pictures that were trained on, and which ones cannot be told. Then the fifth is taken too, and a note says so.
    """
    from deploykit import data as room

    classes = len(artifact.labels) or None
    if split not in ("auto", "train", "test", "all"):
        raise InputError(f"split {split!r}; allowed: auto, train, test, all")
    if split != "auto":
        return room.load(data, split, data_dir=data_dir, classes=classes)
    test = room.load(data, "test", data_dir=data_dir, classes=classes)
    trained_on = (artifact.training or {}).get("dataset_digest")
    if test.has_splits or test.source_digest == trained_on:
        return test
    if artifact.dataset == test.name:
        doubt = (
            f"the model was trained on {test.name}, whose pictures were others then; some of these may have been"
            " trained on, and the accuracy may be too high; --split all takes every picture, if they are new"
        )
        return replace(test, notes=(*test.notes, doubt))
    return room.load(data, "all", data_dir=data_dir, classes=classes)


def load_for_models(artifacts: Sequence[Artifact], data: str, split: str, data_dir: Path | None) -> Dataset:
    """The pictures that measure several models at once: with ``split`` "auto" those that none was trained on."""
    loaded: dict[str, Dataset] = {}
    for artifact in artifacts:
        trained_on = (artifact.training or {}).get("dataset_digest")
        key = repr((len(artifact.labels), artifact.dataset, trained_on))  # all that load_for_model asks a model for
        if key not in loaded:
            loaded[key] = load_for_model(artifact, data, split, data_dir)
    parts = list(loaded.values())
    chosen = next((part for part in parts if part.split != "all"), parts[0])
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return chosen if notes == chosen.notes else replace(chosen, notes=notes)
