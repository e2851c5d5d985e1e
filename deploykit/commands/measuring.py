"""``evaluate`` and ``report``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.commands.options import (
    AllowFallback,
    DataDir,
    Json,
    Memory,
    Overwrite,
    PreprocessText,
    Provider,
    ProviderOptions,
    RecordOutput,
    Threads,
    load_for_models,
    parse_preprocess,
    parse_provider_options,
)
from deploykit.commands.shared_work import shared_progress, shared_work
from deploykit.errors import InputError
from deploykit.figures import millisecond_text, percent_text
from deploykit.ranks import Ranks, threads_each
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.evaluate import EvaluateOptions
    from deploykit.results import Accuracy

__all__ = ["evaluate", "report"]


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="An .onnx classifier; several with --ensemble.")],
    data: Annotated[str, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")],
    split: Annotated[str, typer.Option(help="train, test, all, or auto: what the model was not trained on.")] = "auto",
    crops: Annotated[
        int,
        typer.Option(
            help="Views of a picture whose softmax is averaged: 1 (the model's own preprocessing), 10 (corners, middle,"
            " mirrored) or 144 (4 scales, 3 squares, 6 crops, mirrored)."
        ),
    ] = 1,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Average the softmax of several models.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Another model; gives the agreement of both.")] = None,
    provider: Provider = "cpu",
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    memory: Memory = "default",
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(help="Network inputs (pictures × crops) a call.")] = 64,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure what a model gets right on real pictures, under ONNX Runtime.

    Example: deploykit evaluate lenet5.int8.onnx --data mnist --reference lenet5.onnx
    """
    from deploykit.artifact import Artifact
    from deploykit.evaluate import EvaluateOptions, evaluate_ensemble, evaluate_onnx
    from deploykit.files import check_writable, write_json

    options = EvaluateOptions(
        provider=provider,
        provider_options=parse_provider_options(provider_option),
        allow_fallback=allow_fallback,
        memory=memory,
        threads=threads,
        batch_size=batch_size,
        crops=crops,
    )
    _check_count(models, ensemble)
    given: dict[str, Any] = {"reference": reference, "preprocess": parse_preprocess(preprocess)}
    with shared_work(gpu_each=provider not in ("cpu", "openvino")) as ranks:
        writes = output is not None and ranks.rank == 0
        if output and writes:
            check_writable(output, overwrite=overwrite)
        dataset = load_for_models([Artifact.read(model) for model in models], data, split, data_dir)
        given |= {"ranks": ranks, "options": _sharing(options, ranks)}
        with shared_progress(ranks) as progress:
            if ensemble:
                record = evaluate_ensemble(models, dataset, progress=progress, **given)
            else:
                record = evaluate_onnx(models[0], dataset, progress=progress, **given)
        if output and writes:
            write_json(output, record.to_document(), overwrite=overwrite)
    if ranks.rank == 0:
        _tell(record, as_json=as_json)


def _tell(record: Accuracy, *, as_json: bool) -> None:
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print_accuracy(record)


def _sharing(options: EvaluateOptions, ranks: Ranks) -> EvaluateOptions:
    """Processes of one machine share its CPUs."""
    from deploykit import environment

    return replace(options, threads=options.threads or threads_each(ranks, environment.available_cpus()))


def _check_count(models: list[Path], ensemble: bool) -> None:
    if ensemble == (len(models) > 1):
        return
    if ensemble:
        raise InputError(f"--ensemble with one model, {models[0]}; allowed: two or more")
    raise InputError(f"evaluate received {len(models)} models; allowed: one, or several as an ensemble with --ensemble")


def _print_accuracy(record: Accuracy) -> None:
    print_line(
        f"top-1      {percent_text(record.top1)} of {record.samples} pictures of {record.dataset}/{record.split}"
    )
    print_line(f"top-5      {percent_text(record.top5)}")
    passes = "1 forward pass" if record.forward_passes == 1 else f"{record.forward_passes:,} forward passes"
    made_of = f"{_several(record.crops, 'crop')} × {_several(record.models, 'model')}"
    print_line(f"cost       {passes} a picture ({made_of}), {millisecond_text(record.picture_ms)} a picture")
    if record.agreement is not None:
        print_line(f"agreement  {percent_text(record.agreement)} with {record.reference}")
    if record.members:
        print_table(
            ("model", "precision", "top-1 alone"),
            [(member.model, member.precision, percent_text(member.top1)) for member in record.members],
            left=2,
        )
        print_line()
    print_table(("class", "accuracy"), [(name, percent_text(value)) for name, value in record.per_class.items()])


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def report(
    paths: Annotated[list[Path] | None, typer.Argument(help="Records, or folders that hold some.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="report.html, .md, .csv or .json.")] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="Records of an earlier state: says what changed; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    claims: Annotated[
        bool, typer.Option("--claims", help="Measure what papers say of the reference networks, and report it.")
    ] = False,
    network: Annotated[
        list[str] | None, typer.Option(help="With --claims: a network whose cost is measured; by default all are.")
    ] = None,
    threads: Annotated[int, typer.Option(help="With --claims: threads of the runtime.")] = 1,
    work: Annotated[
        Path | None, typer.Option(help="With --claims: a folder that keeps each network's costs, to go on later.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make one page of records: HTML, Markdown, CSV or JSON by the ending of -o.

    With --baseline each model and setting stands beside the earlier figures; what was measured on another machine, with
    other versions or in another setting gets no ratio, and the key that differs is named. With --claims the record of
    what was measured is written beside it, as NAME.claims.json.

    Example: deploykit report runs --baseline main -o report.md
    """
    from deploykit.report import check_report, collect_both, report_document, write_report

    if output is None:
        raise InputError("no file to write; give -o report.html, .md, .csv or .json")
    given = list(paths or ())
    if not claims and (network or work):
        raise InputError("--network and --work are for --claims; give that too, or leave them out")
    if not given and not claims:
        raise InputError("nothing to report; give records or folders that hold some, or --claims")
    check_report(output, overwrite=overwrite)
    if claims:
        given.append(_measure_claims(output, network, threads, work, overwrite=overwrite))
    heading = title or ("The reference networks: said and measured" if claims else "deploykit report")
    before = list(baseline or ())
    written = write_report(given, output, baseline=before, title=heading, overwrite=overwrite)
    if as_json:
        collection, diff = collect_both(given, before)
        print_json(report_document(collection, heading, diff=diff))
        return
    print_line(str(written))


def _measure_claims(
    output: Path, networks: list[str] | None, threads: int, work: Path | None, *, overwrite: bool
) -> Path:
    """Measures, and writes the record beside the report."""
    from deploykit.claims import ClaimsOptions, measure_claims
    from deploykit.files import check_writable, write_json

    beside = output.with_name(f"{output.stem}.claims.json")
    check_writable(beside, overwrite=overwrite)
    options = ClaimsOptions(networks=tuple(networks) if networks else None, threads=threads)
    with progress_bar() as progress:
        record = measure_claims(options, work=work, progress=progress)
    words = [word for name in networks or () for word in ("--network", name)]
    words += ["--threads", str(threads)] if threads != 1 else []
    record = replace(record, command=shlex.join(["deploykit", "report", "--claims", *words, "-o", output.name]))
    return write_json(beside, record.to_document(), overwrite=overwrite)
