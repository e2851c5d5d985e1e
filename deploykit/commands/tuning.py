"""``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import DataDir, Json, Overwrite, PreprocessText, parse_preprocess
from deploykit.figures import amount_text, byte_text, millisecond_text, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.results import Tuning

__all__ = ["tune"]


def tune(
    model: Annotated[Path, typer.Argument(help="An .onnx classifier; the float model, for recipes to be tried.")],
    data: Annotated[str, typer.Option(help="Real pictures: a dataset's name, a folder or an .npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    max_drop: Annotated[float, typer.Option(help="Points of top-1 that may be lost on held-out samples.")] = 0.5,
    objective: Annotated[str, typer.Option(help="latency, size or memory.")] = "latency",
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A recipe of quantize, or rewritten; may be repeated. By default those that may pay here."),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="An execution provider; may be repeated. By default cpu, openvino and cuda where installed."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; may be repeated. By default 1 and all that may be used.")
    ] = None,
    effort: Annotated[str, typer.Option(help="Work that quantization puts into accuracy: low, medium, high.")] = "low",
    samples: Annotated[int, typer.Option(help="Calibration samples, of the train split.")] = 256,
    held_out: Annotated[int, typer.Option(help="Samples of the test split, on which the drop is measured.")] = 512,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which nothing is begun but the last comparison.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes which samples are taken, and the order of turns.")] = 0,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the best file and session of a model on this machine; repeat it to go on where it stopped.

    Tries the float model, its rewritten form and the recipes, on each provider and with several numbers of threads. The
    folder gets best.onnx, how to open it in an app (best_session.py, session.json), the other files of the Pareto front
    and the record, tuning.json. The float model is named unless another file is clearly faster.

    Example: deploykit tune lenet5.onnx --data mnist --max-drop 0.5 -o tuned
    """
    from deploykit import data as room
    from deploykit.artifact import Artifact
    from deploykit.tune import TuneOptions, tune_onnx

    options = TuneOptions(
        objective=objective,
        max_drop=max_drop / 100,
        recipes=tuple(recipe) if recipe else None,
        providers=tuple(provider) if provider else None,
        threads=tuple(threads) if threads else None,
        effort=effort,
        samples=samples,
        held_out=held_out,
        seed=seed,
        budget_s=budget,
    )
    classes = len(Artifact.read(model).labels) or None
    train, test = (room.load(data, split, data_dir=data_dir, classes=classes) for split in ("train", "test"))
    with progress_bar() as progress:
        record = tune_onnx(
            model,
            train,
            output,
            options,
            held_out=test,
            preprocess=parse_preprocess(preprocess),
            overwrite=overwrite,
            progress=progress,
        )
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print(output, record)


def _print(folder: Path, record: Tuning) -> None:
    rows = [
        (
            item.recipe,
            f"{item.provider} ×{item.threads}" + "".join(f" {key}={value}" for key, value in item.session.items()),
            millisecond_text(item.latency_ms) + ("" if item.stable else " !"),
            byte_text(item.file_bytes),
            byte_text(item.peak_bytes),
            percent_text(item.top1 if item.top1 is not None else item.agreement),
            "best" if item == record.best else "front" if item.on_front else "",
        )
        for item in sorted(record.candidates, key=lambda item: item.relative_latency or 0.0)
        if item.relative_latency is not None
    ]
    accuracy = "top-1" if record.accuracy_by == "top1" else "agreement"
    print_table(("file", "on", "latency", "size", "peak memory", accuracy, ""), rows, left=2)
    print_line()
    for (provider, reason), recipes in _untimed(record).items():
        print_line(f"not timed on {provider}: {', '.join(recipes)}: {reason}")
    if record.steps_reused:
        print_line(f"{amount_text(record.steps_done, 'step')} done, {record.steps_reused} were there already")
    print_line(record.why)
    print_line(f"{folder / 'best.onnx'}; how to open it: {folder / 'best_session.py'}")


def _untimed(record: Tuning) -> dict[tuple[str, str], list[str]]:
    """Recipes that were not timed, by provider and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in record.candidates:
        recipes = found.setdefault((item.provider, str(item.rejected_because)), [])
        if item.relative_latency is None and item.recipe not in recipes:
            recipes.append(item.recipe)
    return {key: recipes for key, recipes in found.items() if recipes}
