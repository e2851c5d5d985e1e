"""``evaluate``, ``bench`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.commands.options import (
    DataDir,
    Json,
    Overwrite,
    PreprocessText,
    Provider,
    RecordOutput,
    Threads,
    load_for_model,
    parse_preprocess,
)
from deploykit.figures import byte_text, millisecond_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

__all__ = ["bench", "evaluate", "report"]


def evaluate(
    model: Annotated[Path, typer.Argument(help="An .onnx classifier.")],
    data: Annotated[str, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")],
    split: Annotated[str, typer.Option(help="train, test, all, or auto: what the model was not trained on.")] = "auto",
    reference: Annotated[Path | None, typer.Option(help="Another model; gives the agreement of both.")] = None,
    provider: Provider = "cpu",
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(help="Pictures a call.")] = 64,
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
    from deploykit.evaluate import EvaluateOptions, evaluate_onnx
    from deploykit.files import check_writable, write_json

    options = EvaluateOptions(provider=provider, threads=threads, batch_size=batch_size)
    if output:
        check_writable(output, overwrite=overwrite)
    dataset = load_for_model(Artifact.read(model), data, split, data_dir)
    with progress_bar() as progress:
        record = evaluate_onnx(
            model,
            dataset,
            reference=reference,
            preprocess=parse_preprocess(preprocess),
            options=options,
            progress=progress,
        )
    if output:
        write_json(output, record.to_document(), overwrite=overwrite)
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    print_line(
        f"top-1      {percent_text(record.top1)} of {record.samples} pictures of {record.dataset}/{record.split}"
    )
    print_line(f"top-5      {percent_text(record.top5)}")
    if record.agreement is not None:
        print_line(f"agreement  {percent_text(record.agreement)} with {record.reference}")
    print_table(("class", "accuracy"), [(name, percent_text(value)) for name, value in record.per_class.items()])


def bench(
    models: Annotated[list[Path], typer.Argument(help="One or more .onnx files, measured interleaved.")],
    provider: Provider = "cpu",
    threads: Threads = None,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    samples: Annotated[int | None, typer.Option(help="Fewest timed runs a model.")] = None,
    min_time: Annotated[float | None, typer.Option(help="Fewest seconds of timed runs a model.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Shape of an input, such as input=1x3x224x224.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes inputs and order.")] = 0,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure latency and memory, each model in a fresh process, all of them interleaved.

    Example: deploykit bench lenet5.onnx lenet5.int8.onnx --threads 1
    """
    from deploykit.bench import BenchOptions, bench_onnx, parse_shapes
    from deploykit.files import check_writable, write_json

    options = BenchOptions(provider=provider, threads=threads, batch=batch, shape=parse_shapes(shape or ()), seed=seed)
    options = options.changed(samples=samples, min_time_s=min_time)
    if output:
        check_writable(output, overwrite=overwrite)
    with progress_bar() as progress:
        record = bench_onnx(models, options, progress=progress)
    if output:
        write_json(output, record.to_document(), overwrite=overwrite)
    for timing in record.results:
        for warning in timing.warnings:
            note(f"warning: {timing.model}: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    rows = [
        (
            timing.model,
            timing.precision,
            f"{timing.provider} ×{timing.threads}",
            millisecond_text(timing.latency_ms.median) + ("" if timing.stable else " !"),
            f"{timing.latency_ms.ci_low:.3g}–{timing.latency_ms.ci_high:.3g}",
            millisecond_text(timing.latency_ms.p90),
            millisecond_text(timing.latency_ms.p99),
            millisecond_text(timing.load_ms),
            millisecond_text(timing.first_run_ms),
            byte_text(timing.memory.peak_bytes),
            byte_text(timing.file_bytes),
        )
        for timing in record.results
    ]
    columns = ("model", "precision", "on", "median", "95 %", "p90", "p99", "load", "first run", "peak", "file")
    print_table(columns, rows, left=3)


def report(
    paths: Annotated[list[Path], typer.Argument(help="Records, or folders that hold some.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="report.html, .md, .csv or .json.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "deploykit report",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make one page of records: HTML, Markdown, CSV or JSON by the ending of -o.

    Example: deploykit report runs -o report.html
    """
    from deploykit.report import collect, report_document, write_report

    written = write_report(paths, output, title=title, overwrite=overwrite)
    if as_json:
        print_json(report_document(collect(paths), title))
        return
    print_line(str(written))
