"""``gate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.commands.ci import BencherFile, GithubBenchmark, JunitFile, SummaryFile, ci_files, write_ci
from deploykit.commands.options import (
    DataDir,
    Json,
    Overwrite,
    PreprocessText,
    RecordOutput,
    load_for_models,
    parse_preprocess,
)
from deploykit.errors import AnswerIsNoError, InputError, NotComparableError
from deploykit.figures import MISSING, byte_text, millisecond_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.data.dataset import Dataset
    from deploykit.gate_options import GateOptions
    from deploykit.results import Check, Verdict

__all__ = ["gate"]


def gate(
    candidate: Annotated[Path, typer.Argument(help="The .onnx that has to keep the limits.")],
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="What it is compared with: an .onnx, measured beside it, or a stored record of bench (.json)."
        ),
    ] = None,
    max_slowdown: Annotated[
        str | None,
        typer.Option(
            help="How much slower than the baseline, such as 5%; -30% asks for a speedup. [default: 5%, if no"
            " limit is given]"
        ),
    ] = None,
    max_latency: Annotated[str | None, typer.Option(help="Longest call (median), such as 5ms.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest file, such as 10MB, or +5% of the baseline's.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Most peak memory of a fresh process, such as 50MB, or +5% of the baseline's.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of top-1 that may be lost against the baseline on --data.")
    ] = None,
    min_agreement: Annotated[
        str | None, typer.Option(help="Share of --data that must get the baseline's top-1, such as 99%.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")] = None,
    split: Annotated[
        str, typer.Option(help="train, test, all, or auto: what the models were not trained on.")
    ] = "auto",
    budget: Annotated[float, typer.Option(help="Seconds that latency and memory may be measured.")] = 60.0,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Compare the model with itself: the noise floor of this machine.")
    ] = False,
    provider: Annotated[
        str | None, typer.Option(help="Execution provider: cpu, cuda, …; by default a stored record's, or cpu.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads; by default a stored record's, or 1, which other work on the machine disturbs least."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size; by default a stored record's, or 1.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Shape of an input, such as input=1x3x224x224.")] = None,
    baseline_model: Annotated[
        str | None, typer.Option(help="Which model of a stored record, where none is named as the candidate.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes inputs, order and resampling.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that loading or one turn may take.")] = 120.0,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    github_benchmark: GithubBenchmark = None,
    bencher: BencherFile = None,
    junit: JunitFile = None,
    summary: SummaryFile = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check that a model keeps its limits: pass, regression or inconclusive, for continuous integration.

    Both models are measured in the same job, in turns. Exit code 0 when every limit holds, 1 when one is exceeded
    beyond the noise, 3 when the noise does not let it be told within --budget, or a stored record does not compare.

    Example: deploykit gate new.onnx --baseline old.onnx --max-slowdown 5% --max-size 10MB --max-memory +5%
    """
    from deploykit.feeds import parse_shapes
    from deploykit.files import check_writable, write_json
    from deploykit.gate import GateOptions, gate_onnx

    limits = {
        "max_slowdown": max_slowdown,
        "max_latency_ms": max_latency,
        "max_size": max_size,
        "max_memory": max_memory,
        "min_agreement": min_agreement,
    }
    options = GateOptions(
        **_parsed(limits),
        max_drop=None if max_drop is None else max_drop / 100.0,
        provider=provider,
        threads=threads,
        batch=batch,
        shape=parse_shapes(shape or ()) or None,
        budget_s=budget,
        seed=seed,
        timeout_s=timeout,
        self_test=self_test,
    )
    if output:
        check_writable(output, overwrite=overwrite)
    files = ci_files(github_benchmark, bencher, junit, summary, record=output, overwrite=overwrite)
    pictures = _pictures(candidate, baseline, options, data, split, data_dir)
    with progress_bar() as progress:
        record = gate_onnx(
            candidate,
            baseline=baseline,
            data=pictures,
            preprocess=parse_preprocess(preprocess),
            baseline_model=baseline_model,
            options=options,
            progress=progress,
        )
    if output:
        write_json(output, record.to_document(), overwrite=overwrite)
    write_ci(record, files, overwrite=overwrite, as_json=as_json)
    _tell(record, as_json=as_json)
    _conclude(record)


def _parsed(limits: Mapping[str, str | None]) -> dict[str, Any]:
    from deploykit.gate_options import parse_limit

    flags = {name: "--" + name.removesuffix("_ms").replace("_", "-") for name in limits}
    return {name: parse_limit(name, text, flags[name]) for name, text in limits.items() if text is not None}


def _pictures(
    candidate: Path,
    baseline: Path | None,
    options: GateOptions,
    data: str | None,
    split: str,
    data_dir: Path | None,
) -> Dataset | None:
    """Those that neither model was trained on."""
    from deploykit.artifact import Artifact

    if data is None:
        return None
    if not options.needs_pictures:
        raise InputError(f"--data {data} is for --max-drop and --min-agreement; give one of them, or leave it out")
    models = [candidate] if baseline is None or baseline.suffix.lower() == ".json" else [candidate, baseline]
    return load_for_models([Artifact.read(model) for model in models], data, split, data_dir)


def _tell(record: Verdict, *, as_json: bool) -> None:
    for warning in record.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(record.to_document())
        return
    columns = ("check", "limit", "measured", "candidate", "baseline", "verdict")
    print_table(columns, [_row(check) for check in record.checks])
    if record.baseline_kind == "itself":
        _print_looks(record)
    if record.noise_floor is not None:
        spent = f"{record.pairs} pairs of processes, {record.seconds:.0f} s"
        print_line(f"noise floor ±{100.0 * record.noise_floor:.2f} % ({spent}, {record.provider} ×{record.threads})")
    print_line(record.verdict)


def _row(check: Check) -> tuple[str, ...]:
    sides = [_figure(check, value) for value in (check.candidate, check.baseline)]
    return check.name, check.limit_text, check.measured_text, *sides, check.verdict


def _figure(check: Check, value: float | None) -> str:
    if value is None:
        return MISSING
    texts = {"slowdown": millisecond_text, "latency": millisecond_text, "size": byte_text, "memory": byte_text}
    return texts.get(check.name, percent_text)(value)


def _print_looks(record: Verdict) -> None:
    """How the noise falls with time: which limit can be told after how many seconds."""
    for look in record.looks:
        reach = (look.ci_high - look.ci_low) / 2.0
        print_line(f"after {look.seconds:.0f} s, {look.pairs} pairs: {look.measured:+.2%} ±{100.0 * reach:.2f} %")


def _conclude(record: Verdict) -> None:
    """Raises what the record's verdict says, so that the exit code does too."""
    found = [check.sentence for check in record.checks if check.verdict == record.verdict]
    if record.verdict == "regression":
        raise AnswerIsNoError(f"{record.candidate.model}: {'; '.join(found)}")
    if record.verdict == "inconclusive":
        raise NotComparableError(f"{record.candidate.model}: {'; '.join(found)}")
