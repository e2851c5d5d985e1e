"""``run`` and ``demo``: the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, NetworkOptions, Overwrite, Threads, parse_network_options
from deploykit.figures import amount_text, byte_text, millisecond_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.pipeline import PipelineResult

__all__ = ["demo", "run"]


def run(
    networks: Annotated[list[str], typer.Argument(help="Reference networks.")],
    data: Annotated[str, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    data_dir: DataDir = None,
    option: NetworkOptions = None,
    size: Annotated[int | None, typer.Option(help="Side of the input in pixels, for networks that take any.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything random.")] = None,
    recipe: Annotated[str, typer.Option(help="Quantization recipe.")] = "int8",
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 256,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train, export, quantize, evaluate, bench and report; repeat it to go on where it stopped.

    Example: deploykit run lenet5 mnist-cnn --data mnist -o runs
    """
    from deploykit.pipeline import PipelineOptions, run_pipeline

    options = PipelineOptions(
        epochs=epochs,
        seed=seed,
        recipe=recipe,
        samples=samples,
        threads=threads,
        size=size,
        network_options=parse_network_options(option),
    )
    with progress_bar() as progress:
        result = run_pipeline(
            networks, data, output, options, data_dir=data_dir, overwrite=overwrite, progress=progress
        )
    _print_result(result, as_json)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path("deploykit-demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run the whole chain on generated pictures with three small networks, in about a minute.

    Example: deploykit demo
    """
    from deploykit.pipeline import run_demo

    with progress_bar() as progress:
        result = run_demo(output, overwrite=overwrite, progress=progress)
    _print_result(result, as_json)


def _print_result(result: PipelineResult, as_json: bool) -> None:
    for warning in result.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(result.to_document())
        return
    rows = [
        (
            row.name,
            row.precision,
            percent_text(row.top1),
            percent_text(row.agreement),
            byte_text(row.file_bytes),
            millisecond_text(row.latency_ms),
            byte_text(row.peak_bytes),
        )
        for row in result.rows
    ]
    print_table(("model", "precision", "top-1", "agreement", "file", "latency", "peak memory"), rows, left=2)
    done, skipped = len(result.done), len(result.skipped)
    print_line(f"{amount_text(done, 'step')} done, {skipped} skipped as their results were there already")
    print_line(str(result.report))
