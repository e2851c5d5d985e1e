"""Flags of the commands that continuous integration reads, and what they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.errors import InputError
from deploykit.terminal import note, print_line

if TYPE_CHECKING:
    from deploykit.ci_outputs import CiFiles, Measured

__all__ = ["BencherFile", "GithubBenchmark", "JunitFile", "SummaryFile", "ci_files", "write_ci"]

GithubBenchmark = Annotated[
    Path | None, typer.Option(help="Write for github-action-benchmark, tool customSmallerIsBetter.")
]
BencherFile = Annotated[Path | None, typer.Option("--bencher", help="Write in Bencher Metric Format.")]
JunitFile = Annotated[Path | None, typer.Option("--junit", help="Write JUnit's XML.")]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", help="Append Markdown there; by default to $GITHUB_STEP_SUMMARY if set.")
]


def ci_files(
    github_benchmark: Path | None,
    bencher: Path | None,
    junit: Path | None,
    summary: Path | None,
    *,
    record: Path | None,
    overwrite: bool,
) -> CiFiles:
    """The files to write beside the ``record``, after making sure that they can be. Raises: InputError, OutputError."""
    from deploykit.ci_outputs import CiFiles, check_outputs

    named = [path.resolve() for path in (record, github_benchmark, bencher, junit) if path is not None]
    if twice := [path for path in named if named.count(path) > 1]:
        raise InputError(f"{twice[0]} is named for several outputs; give each a path of its own")
    given = {"github_benchmark": github_benchmark, "bencher": bencher, "junit": junit}
    files = CiFiles.given(os.environ, summary, **given)
    check_outputs(files, overwrite=overwrite)
    return files


def write_ci(record: Measured, files: CiFiles, *, overwrite: bool, as_json: bool) -> None:
    """Writes the files; inside GitHub Actions also annotations, with --json on stderr, which the runner reads too.

    Raises: OutputError.
    """
    from deploykit.ci_outputs import workflow_commands, write_outputs

    write_outputs(record, files, overwrite=overwrite)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(record):
            note(line) if as_json else print_line(line)
