"""``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, Overwrite, PreprocessText, load_for_model, parse_preprocess
from deploykit.errors import AnswerIsNoError, InputError
from deploykit.figures import byte_text
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.dataset import Dataset
    from deploykit.embeddings import BundleVerification, Embedding

__all__ = ["embed", "is_app_bundle", "verify_app_bundle"]


def embed(
    model: Annotated[Path, typer.Argument(help="An .onnx classifier.")],
    target: Annotated[list[str], typer.Option(help="python, web, node, c, android or ios; may be repeated.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write; with several targets one folder in it each."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="An archive (.zip) to write of all apps, with the model's records and digests.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the golden pictures come from: a dataset's name, a folder or an .npz.")
    ] = None,
    golden: Annotated[
        list[Path] | None, typer.Option(help="A golden picture, instead of --data; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What to call the app; by default the model's name.")] = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            help="A record, or a folder of them, for the bundle; may be repeated. By default those beside the model."
        ),
    ] = None,
    ort_format: Annotated[
        bool, typer.Option("--ort-format", help="Add model.ort and required_operators.config, for minimal builds.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(help="The npm package onnxruntime-web (.tgz or a folder), where npm is not to be asked for it."),
    ] = None,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a small folder that an app can use as it is: model, labels, code and a golden test.

    The golden test is a few pictures with the model's outputs; the app compares its own answers with them.

    Example: deploykit embed lenet5.int8.onnx --target python --data mnist -o app

    One archive for several: deploykit embed net.onnx --target python --target web --data photos --bundle app.zip
    """
    from deploykit.embed import EmbedOptions, embed_onnx

    written = embed_onnx(
        model,
        output,
        target,
        golden=_golden_source(model, data, data_dir, golden or ()),
        bundle=bundle,
        preprocess=parse_preprocess(preprocess),
        options=EmbedOptions(title=title, records=tuple(record or ()), ort_format=ort_format, runtime=runtime),
        overwrite=overwrite,
    )
    if as_json:
        print_json(written.to_document())
    else:
        _print(written)


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


def _print(written: Embedding) -> None:
    for app in written.apps:
        print_line(
            f"{app.folder}: {app.target} app with {written.model}, {len(app.files)} files,"
            f" {byte_text(app.total_bytes)}; {app.runtime} {app.runtime_version}"
        )
        if app.ort_max_abs is not None:
            print_line(f"model.ort answers as the model within {app.ort_max_abs:.2g}")
    print_line(f"the {'graph' if written.prepared_by == 'graph' else 'app'} prepares pictures")
    print_line(f"golden test: {', '.join(written.golden)}; outputs may differ by {written.tolerance:.3g}")
    if written.bundle:
        records = ", ".join(written.bundle.records) or "none beside the model"
        print_line(f"{written.bundle.file}: {byte_text(written.bundle.file_bytes)}; records: {records}")


def is_app_bundle(path: Path) -> bool:
    """Whether ``verify`` has to read ``path`` as an archive of ``embed --bundle``."""
    from deploykit.embed import is_bundle

    return is_bundle(path)


def verify_app_bundle(path: Path, *, as_json: bool) -> None:
    """What ``verify`` does with an archive of ``embed --bundle``. Raises: AnswerIsNoError."""
    from deploykit.embed import verify_bundle

    found = verify_bundle(path)
    if as_json:
        print_json(found.to_document())
    else:
        _print_check(found)
    if found.problems:
        raise AnswerIsNoError(f"{path} differs from its manifest in {len(found.problems)} places: {found.problems[0]}")


def _print_check(found: BundleVerification) -> None:
    for problem in found.problems:
        print_line(problem)
    passed = sum(check.passed for check in found.golden)
    print_line(
        f"{found.bundle}: {found.files} files, {passed} of {len(found.golden)} golden pictures answered as expected"
    )
