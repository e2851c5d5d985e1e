"""``bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.ci import BencherFile, GithubBenchmark, JunitFile, SummaryFile, ci_files, write_ci
from deploykit.commands.options import (
    AllowFallback,
    Json,
    Memory,
    Overwrite,
    ProviderOptions,
    RecordOutput,
    parse_provider_options,
)
from deploykit.errors import InputError
from deploykit.figures import MISSING, byte_text, millisecond_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.bench_options import BenchOptions
    from deploykit.timings import Bench, Timing

__all__ = ["bench"]

_FAILED = 2
_BAR = 30  # characters of a share of 1
_SHOWN_NODES = 10


def bench(
    models: Annotated[list[Path], typer.Argument(help="One or more .onnx files, measured interleaved.")],
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Execution providers: cpu, cuda, openvino, …, or web (a browser); several, or with commas."),
    ] = None,
    threads: Annotated[
        list[str] | None, typer.Option(help="Threads, such as 1,2; by default the CPUs that this process may use.")
    ] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Batch sizes, such as 1,8.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="quick (50 runs, 1 s), ci (300 runs, 3 s, 3 processes) or mlperf (1,024 runs, 10 s, p90 first);"
            " single flags override it."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Fewest timed runs a model.")] = None,
    min_time: Annotated[float | None, typer.Option(help="Fewest seconds of timed runs a model.")] = None,
    max_time: Annotated[float | None, typer.Option(help="Seconds after which a model gets no further turn.")] = None,
    processes: Annotated[int | None, typer.Option(help="Fresh processes a model.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that loading or one turn may take.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Shape of an input, such as input=1x3x224x224.")] = None,
    provider_option: ProviderOptions = None,
    allow_fallback: AllowFallback = False,
    memory: Memory = "default",
    io_binding: Annotated[
        bool | None,
        typer.Option("--io-binding/--no-io-binding", help="Keep inputs and outputs on the device; by default on GPUs."),
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Replay one captured graph on cuda where it can be.")
    ] = True,
    per_op: Annotated[bool, typer.Option("--per-op", help="Time by operator, in one more process.")] = False,
    energy: Annotated[bool, typer.Option("--energy", help="Read the machine's energy counters.")] = False,
    seed: Annotated[int, typer.Option(help="Fixes inputs and order.")] = 0,
    github_benchmark: GithubBenchmark = None,
    bencher: BencherFile = None,
    junit: JunitFile = None,
    summary: SummaryFile = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure latency and memory, each model in fresh processes, all of them interleaved.

    Every model is measured with every provider, thread count and batch size. Exit code 2 when one could not be
    measured; the figures of the others are printed.

    Example: deploykit bench lenet5.onnx lenet5.int8.onnx --threads 1,2 --preset ci
    """
    from deploykit.bench import bench_onnx, parse_shapes
    from deploykit.files import check_writable, write_json

    options = _options(preset).changed(
        provider=_words(provider),
        threads=_counts("--threads", threads),
        batch=_counts("--batch", batch),
        samples=samples,
        min_time_s=min_time,
        max_time_s=max_time,
        processes=processes,
        timeout_s=timeout,
        shape=parse_shapes(shape or ()),
        provider_options=parse_provider_options(provider_option),
        allow_fallback=allow_fallback,
        memory=memory,
        io_binding=io_binding,
        cuda_graph=cuda_graph,
        per_operator=per_op,
        energy=energy,
        seed=seed,
        keep_going=True,
    )
    if output:
        check_writable(output, overwrite=overwrite)
    files = ci_files(github_benchmark, bencher, junit, summary, record=output, overwrite=overwrite)
    with progress_bar() as progress:
        record = bench_onnx(models, options, progress=progress)
    if output:
        write_json(output, record.to_document(), overwrite=overwrite)
    write_ci(record, files, overwrite=overwrite, as_json=as_json)
    for timing in record.results:
        for warning in timing.warnings:
            note(f"warning: {_named(timing, record)}: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print(record)
    _conclude(record)


def _options(name: str | None) -> BenchOptions:
    from deploykit.bench_options import BenchOptions, preset

    return BenchOptions() if name is None else preset(name)


def _words(texts: Sequence[str] | None) -> list[str] | None:
    """Words that were repeated or joined by commas; None where none were given."""
    return [word for text in texts for word in text.split(",")] if texts else None


def _counts(flag: str, texts: Sequence[str] | None) -> list[int] | None:
    words = _words(texts)
    if words is None:
        return None
    if wrong := [word for word in words if not (word.strip().isascii() and word.strip().isdigit())]:
        raise InputError(f"{flag} {wrong[0]!r}; expected whole numbers, such as 1 or 1,2")
    return [int(word) for word in words]


def _conclude(record: Bench) -> None:
    """One line on stderr for each failure, and exit code 2 when there is one."""
    for failure in record.failures:
        where = f"{failure.model} on {failure.provider} ×{failure.threads}, batch {failure.batch}"
        note(f"error: {where} was not measured: {' '.join(failure.error.split())}")
    if record.failures:
        raise typer.Exit(_FAILED)


# A column: its title, and its text for a timing.
_Column = tuple[str, Callable[["Timing"], str]]


def _print(record: Bench) -> None:
    columns = [*_settings(record), *_latency(record), *_costs(record)]
    rows = [[text(timing) for _, text in columns] for timing in record.results]
    print_table([title for title, _ in columns], rows, left=3)
    for timing in record.results:
        if timing.operators:
            _print_operators(timing, record)


def _settings(record: Bench) -> list[_Column]:
    several_batches = {timing.batch for timing in record.results} != {1}
    return [
        ("model", lambda timing: timing.model),
        ("precision", _precision),
        ("on", lambda timing: _where(timing, with_batch=several_batches)),
    ]


def _precision(timing: Timing) -> str:
    """The file's, with what it is computed in where that is another."""
    apart = timing.computed_in not in (None, timing.precision)
    return f"{timing.precision} in {timing.computed_in}" if apart else timing.precision


def _where(timing: Timing, *, with_batch: bool) -> str:
    return f"{timing.provider} ×{timing.threads}" + (f", batch {timing.batch}" if with_batch else "")


def _latency(record: Bench) -> list[_Column]:
    """The headline first, with its interval and a mark where it is doubtful."""
    median: list[_Column] = [
        ("median", lambda timing: millisecond_text(timing.latency_ms.median) + _mark(timing)),
        ("95 %", lambda timing: _interval(timing.latency_ms.ci_low, timing.latency_ms.ci_high)),
    ]
    p90: list[_Column] = [
        ("p90", lambda timing: millisecond_text(timing.latency_ms.p90) + _mark(timing)),
        ("95 %", lambda timing: _interval(timing.latency_ms.p90_ci_low, timing.latency_ms.p90_ci_high)),
    ]
    ordered = [*p90, median[0]] if record.headline == "p90" else [*median, p90[0]]
    return [*ordered, ("p99", lambda timing: millisecond_text(timing.latency_ms.p99))]


def _mark(timing: Timing) -> str:
    return "" if timing.stable else " !"


def _interval(low: float | None, high: float | None) -> str:
    return MISSING if low is None or high is None else f"{low:.3g}–{high:.3g}"


def _costs(record: Bench) -> list[_Column]:
    energy: list[_Column] = [("energy", lambda timing: _energy(timing.energy_mj_per_inference))]
    measured = any(timing.energy_mj_per_inference is not None for timing in record.results)
    device: list[_Column] = [("on GPU", lambda timing: byte_text(timing.memory.device_bytes))]
    on_gpu = any(timing.memory.device_bytes is not None for timing in record.results)
    return [
        ("load", lambda timing: millisecond_text(timing.load_ms)),
        ("first run", lambda timing: millisecond_text(timing.first_run_ms)),
        *(energy if measured else []),
        ("loaded", lambda timing: byte_text(timing.memory.after_load_bytes)),
        ("load peak", lambda timing: byte_text(timing.memory.load_peak_bytes)),
        ("peak", lambda timing: byte_text(timing.memory.peak_bytes)),
        ("steady", lambda timing: byte_text(timing.memory.steady_bytes)),
        *(device if on_gpu else []),
        ("file", lambda timing: byte_text(timing.file_bytes)),
    ]


def _energy(millijoules: float | None) -> str:
    return MISSING if millijoules is None else f"{millijoules:.3g} mJ"


def _named(timing: Timing, record: Bench) -> str:
    """The model, with its setting where it was measured in several."""
    alike = [other for other in record.results if other.model == timing.model]
    return timing.model if len(alike) == 1 else f"{timing.model} on {_where(timing, with_batch=True)}"


def _print_operators(timing: Timing, record: Bench) -> None:
    profiled = millisecond_text(timing.profiled_ms)
    print_line()
    print_line(f"{_named(timing, record)}: one inference under the profiler takes {profiled}, of which")
    operators = [
        (row.op_type, row.provider, str(row.count), millisecond_text(row.ms), percent_text(row.share), _bar(row.share))
        for row in timing.operators
    ]
    print_table(("operator", "on", "nodes", "time", "share", ""), operators, left=2)
    print_line()
    nodes = [
        (row.name, row.op_type, millisecond_text(row.ms), percent_text(row.share), _bar(row.share))
        for row in timing.nodes[:_SHOWN_NODES]
    ]
    print_table(("node", "operator", "time", "share", ""), nodes, left=2)


def _bar(share: float) -> str:
    """Flush left in a column that is flush right."""
    return ("█" * round(_BAR * share)).ljust(_BAR)
