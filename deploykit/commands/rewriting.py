"""``rewrite``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.options import (
    DataDir,
    Json,
    Output,
    Overwrite,
    PreprocessText,
    load_for_model,
    parse_preprocess,
)
from deploykit.terminal import note, print_json, print_line

if TYPE_CHECKING:
    from deploykit.rewritings import Rewriting

__all__ = ["rewrite"]


def rewrite(
    model: Annotated[Path, typer.Argument(help="Any .onnx from opset 7 on.")],
    output: Output,
    without: Annotated[
        list[str] | None, typer.Option(help="A rewrite to leave out, such as fold_constants; may be repeated.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="One that is off by default: free_batch, gemm_to_matmul, matmul_to_gemm.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Real pictures to compare on, beside random inputs.")] = None,
    samples: Annotated[int, typer.Option(help="Pictures of --data, balanced over the classes.")] = 64,
    split: Annotated[str, typer.Option(help="Split of --data: train, test, all or auto.")] = "auto",
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    shape: Annotated[list[str] | None, typer.Option(help="Shape of an input, such as input=1x3x224x224.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes the random inputs and which pictures are taken.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Rewrite a model's graph: the same answers from fewer, faster operators; written only if that holds.

    Example: deploykit rewrite densenet121.onnx -o rewritten.onnx
    """
    from deploykit.artifact import Artifact
    from deploykit.feeds import parse_shapes
    from deploykit.files import check_writable
    from deploykit.rewriting import rewrite_onnx

    check_writable(output, overwrite=overwrite)
    pictures = load_for_model(Artifact.read(model), data, split, data_dir).take(samples, seed=seed) if data else None
    record = rewrite_onnx(
        model,
        output,
        without=without or (),
        also=also or (),
        samples=pictures,
        preprocess=parse_preprocess(preprocess),
        shapes=parse_shapes(shape or ()),
        seed=seed,
        overwrite=overwrite,
    )
    for warning in record.warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print(output, record)


def _print(output: Path, record: Rewriting) -> None:
    done = ", ".join(f"{name} ×{places}" for name, places in record.changes.items() if places) or "nothing to change"
    opsets = (
        "" if record.opset_before == record.opset_after else f", opset {record.opset_before} → {record.opset_after}"
    )
    print_line(f"{output}: {record.nodes_before} → {record.nodes_after} operators{opsets}; {done}")
    real = (
        f", {record.real_max_abs:.2g} on {record.real_samples} of {record.samples_name}" if record.samples_name else ""
    )
    print_line(f"differs by {record.max_abs:.2g} on {record.random_samples} random inputs{real}")
