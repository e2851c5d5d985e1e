"""``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.embed import is_app_bundle, verify_app_bundle
from deploykit.commands.options import (
    DataDir,
    Json,
    Overwrite,
    PreprocessText,
    RecordOutput,
    load_for_model,
    parse_preprocess,
)
from deploykit.errors import AnswerIsNoError, InputError, NotComparableError, UnknownNameError
from deploykit.figures import MISSING, percent_text
from deploykit.terminal import note, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from deploykit.results import CpuRun, Verification
    from deploykit.verify import VerifyOptions

__all__ = ["verify"]

Arm64Root = Annotated[
    Path | None, typer.Option(help="A folder with an ARM64 Python: root/usr/bin/python3.11, site/onnxruntime.")
]
Prepare = Annotated[
    str | None, typer.Option(help="arm64: build the folder with an ARM64 Python, once, on Debian or Ubuntu.")
]
_SHOWN_FLIPS = 10  # of a run; the record has all


def verify(
    model: Annotated[Path | None, typer.Argument(help="An .onnx classifier, or a bundle of embed.")] = None,
    data: Annotated[str | None, typer.Option(help="A dataset's name, a folder of pictures, or an .npz.")] = None,
    cpu: Annotated[
        str,
        typer.Option(
            help="Emulated CPUs, such as haswell,arm64: haswell (AVX2, no VNNI), sandybridge, nehalem (no AVX2), arm64,"
            " or any that qemu lists. native: only the comparison with the unoptimised session, which is always made."
        ),
    ] = "native",
    samples: Annotated[int, typer.Option(help="Pictures, balanced over the classes.")] = 64,
    reference: Annotated[
        Path | None, typer.Option(help="Another model, such as the float one; gives the agreement of each run with it.")
    ] = None,
    max_flips: Annotated[
        str, typer.Option(help="Predictions that may differ in each run: a number, or a share, rounded down.")
    ] = "0.5%",
    split: Annotated[str, typer.Option(help="train, test, all, or auto: what the model was not trained on.")] = "auto",
    seed: Annotated[int, typer.Option(help="Fixes which pictures are taken.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of the runtime, in every run.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds that one emulated run may take.")] = 1800.0,
    data_dir: DataDir = None,
    preprocess: PreprocessText = None,
    arm64_root: Arm64Root = None,
    prepare: Prepare = None,
    output: RecordOutput = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check that a model predicts the same on other CPUs, emulated, and without the runtime's optimisations.

    Exit code 1 when more predictions than --max-flips differ, 3 when an emulated run did not finish.

    Example: deploykit verify lenet5.int8.onnx --data mnist --cpu haswell,arm64

    Of a bundle the digests of all files and the golden pictures are compared: deploykit verify app.zip
    """
    if prepare is not None:
        _prepare(prepare, arm64_root)
        if model is None:
            return
    if model is not None and data is None and is_app_bundle(model):
        verify_app_bundle(model, as_json=as_json)
        return
    if model is None or data is None:
        raise InputError(f"no {'model' if model is None else 'pictures'}; expected verify MODEL --data DATA")
    from deploykit.files import check_writable
    from deploykit.verify import VerifyOptions

    options = VerifyOptions(
        cpus=tuple(cpu.replace(",", " ").split()),
        samples=samples,
        seed=seed,
        threads=threads,
        timeout_s=timeout,
        max_flips=max_flips,
        arm64_root=arm64_root,
    )
    if output:
        check_writable(output, overwrite=overwrite)
    record = _verified((model, reference), (data, split, data_dir), preprocess, options)
    _tell(record, output, overwrite=overwrite, as_json=as_json)
    _conclude(record)


def _verified(
    models: tuple[Path, Path | None],
    source: tuple[str, str, Path | None],
    preprocess: str | None,
    options: VerifyOptions,
) -> Verification:
    from deploykit.artifact import Artifact
    from deploykit.verify import verify_onnx

    (model, reference), how = models, parse_preprocess(preprocess)
    dataset = load_for_model(Artifact.read(model), *source)
    with progress_bar() as progress:
        return verify_onnx(model, dataset, reference=reference, preprocess=how, options=options, progress=progress)


def _prepare(what: str, folder: Path | None) -> None:
    from deploykit.arm64_root import prepare_arm64_root
    from deploykit.qemu import find_emulator

    if what != "arm64":
        raise UnknownNameError("thing to prepare", what, ("arm64",))
    with progress_bar() as progress:
        made = prepare_arm64_root(find_emulator("aarch64", "--prepare arm64"), folder, progress=progress)
    note(f"ready: {made.folder}")


def _tell(record: Verification, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from deploykit.files import write_json

    if output:
        write_json(output, record.to_document(), overwrite=overwrite)
    for warning in record.warnings:
        note(f"note: {warning}")
    if as_json:
        print_json(record.to_document())
    else:
        _print(record)


def _print(record: Verification) -> None:
    print_line(
        f"{record.model} on {record.samples} pictures of {record.dataset}/{record.split}, compared with the native run"
        f" (ONNX Runtime {record.onnxruntime}, logits up to {record.largest_logit:.3g})"
    )
    columns = ("CPU", "by", "ONNX Runtime", "flips", "agreement", "largest difference", "seconds")
    print_table(columns, [_row(run) for run in record.runs], left=3)
    _print_reference(record)
    for run in record.runs:
        if run.flipped:
            print_line()
        for flip in run.flipped[:_SHOWN_FLIPS]:
            print_line(
                f"{_name(run)}: picture {flip.sample} ({flip.label}): {flip.native} natively, {flip.there} there"
            )
        if len(run.flipped) > _SHOWN_FLIPS:
            print_line(f"{_name(run)}: and {len(run.flipped) - _SHOWN_FLIPS} more, which the record names")


def _print_reference(record: Verification) -> None:
    if record.reference is None:
        return
    shares = [("native", record.reference_agreement), *((_name(run), run.reference_agreement) for run in record.runs)]
    print_line(f"agreement with {record.reference}: " + ", ".join(f"{name} {percent_text(x)}" for name, x in shares))


def _row(run: CpuRun) -> tuple[str, ...]:
    difference = MISSING if run.max_abs is None else f"{run.max_abs:.3g}"
    seconds = MISSING if run.seconds is None else f"{run.seconds:.3g}"
    flips = "not finished" if run.flips is None else str(run.flips)
    by = run.emulator or "this machine"
    return _name(run), by, run.onnxruntime or MISSING, flips, percent_text(run.agreement), difference, seconds


def _name(run: CpuRun) -> str:
    return run.cpu if run.optimised else f"{run.cpu}, unoptimised"


def _conclude(record: Verification) -> None:
    """Raises what the record's verdict says, so that the exit code does too."""
    if record.verdict == "differs":
        worst = max(record.runs, key=lambda run: run.flips or 0)
        raise AnswerIsNoError(
            f"{worst.flips} of {record.samples} predictions differ on {_name(worst)}; allowed:"
            f" {record.allowed_flips} (--max-flips {record.max_flips})"
        )
    if record.verdict == "incomplete":
        raise NotComparableError("; ".join(run.error for run in record.runs if run.error))
