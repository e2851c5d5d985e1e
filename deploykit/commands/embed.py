"""``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, Overwrite, PreprocessText, load_for_model, parse_preprocess
from deploykit.errors import InputError
from deploykit.figures import byte_text
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.dataset import Dataset
    from deploykit.embeddings import Embedding

__all__ = ["embed"]


def embed(
    model: Annotated[Path, typer.Argument(help="An .onnx classifier.")],
    target: Annotated[list[str], typer.Option(help="python, web, node, c, android or ios; may be repeated.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write; with several targets one folder in it each.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Where the golden pictures come from: a dataset's name, a folder or an .npz.")
    ] = None,
    golden: Annotated[
        list[Path] | None, typer.Option(help="A golden picture, instead of --data; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What to call the app; by default the model's name.")] = None,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a small folder that an app can use as it is: model, labels, code and a golden test.

    The golden test is a few pictures with the model's outputs; the app compares its own answers with them.

    Example: deploykit embed lenet5.int8.onnx --target python --data mnist -o app
    """
    from deploykit.embed import EmbedOptions, embed_onnx

    options = EmbedOptions(title=title)
    source, how = _golden_source(model, data, data_dir, golden or ()), parse_preprocess(preprocess)
    folders = {name: output if len(set(target)) == 1 else output / name for name in target}
    records = [
        embed_onnx(model, folder, name, golden=source, preprocess=how, options=options, overwrite=overwrite)
        for name, folder in folders.items()
    ]
    if as_json:
        print_json(_document(records))
        return
    for record in records:
        _print(record)


def _golden_source(
    model: Path, data: str | None, data_dir: Path | None, golden: Sequence[Path]
) -> Dataset | Sequence[Path]:
    from deploykit.artifact import Artifact

    if (data is None) == (not golden):
        received = "neither" if data is None else "both"
        raise InputError(
            f"{received} --data and --golden; expected one of them: the pictures that prove the app answers right"
        )
    if data is None:
        return golden
    dataset = load_for_model(Artifact.read(model), data, "auto", data_dir)
    for remark in dataset.notes:
        note(remark)
    return dataset


def _document(records: Sequence[Embedding]) -> dict[str, object]:
    """One record as it is; several as a list in a document of their kind."""
    documents = [record.to_document() for record in records]
    if len(documents) == 1:
        return documents[0]
    return {**{key: documents[0][key] for key in ("schema", "deploykit", "environment")}, "embeddings": documents}


def _print(record: Embedding) -> None:
    by = "the graph prepares pictures" if record.prepared_by == "graph" else "the app prepares pictures"
    print_line(
        f"{record.folder}: {record.target} app with {record.model}, {len(record.files)} files,"
        f" {byte_text(record.total_bytes)}; {by}; {record.runtime} {record.runtime_version}"
    )
    print_line(f"golden test: {', '.join(record.golden)}; outputs may differ by {record.tolerance:.3g}")
