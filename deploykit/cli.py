"""The command line: parse, call one library function, print; known errors become one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from deploykit import __version__
from deploykit.commands import (
    bench,
    chain,
    compression,
    conversion,
    datasets,
    embed,
    gate,
    machine,
    measuring,
    networks,
    pictures,
    quantization,
    rewriting,
    shared_work,
    training,
    tuning,
    verification,
    wrap,
)
from deploykit.errors import DeploykitError
from deploykit.interruption import INTERRUPTED, interruptible
from deploykit.terminal import note, prepared_streams, print_line

__all__ = ["app", "main"]

app = typer.Typer(
    name="deploykit",
    help="From PyTorch to the edge: train, export to ONNX, quantize, measure and ship image networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time of the decorated one
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="List and download datasets.", no_args_is_help=True, rich_markup_mode=None)

for command in (
    networks.models,
    networks.inspect,
    training.train,
    compression.compress,
    conversion.export,
    rewriting.rewrite,
    wrap.wrap,
    quantization.quantize,
    tuning.tune,
    measuring.evaluate,
    bench.bench,
    measuring.report,
    gate.gate,
    verification.verify,
    embed.embed,
    pictures.visualize,
    machine.doctor,
    chain.run,
    chain.demo,
):
    app.command()(command)
data_app.command("list")(datasets.list_datasets)
data_app.command("prepare")(datasets.prepare)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"deploykit {__version__}")
        raise Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """From PyTorch to the edge: train, export to ONNX, quantize, measure and ship image networks."""
    shared_work.check_shared(context.invoked_subcommand)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code (docs/interface.md)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    with prepared_streams(), interruptible(_last_words):
        code = _guarded([argument for argument in given if argument != "--debug"], debug)
        if code and "WORLD_SIZE" in os.environ and arguments is None:
            # Of a group that has lost members torch's threads may abort the interpreter while it ends.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code


def _last_words() -> None:
    note("interrupted within a call that did not return; what was complete stays")


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        return _run(arguments)
    except (DeploykitError, TyperException) as problem:
        if debug:
            raise
        return _report(problem)
    except (KeyboardInterrupt, Abort):
        note("interrupted; what was complete stays")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has gone (`deploykit models | head`): Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as bug:
        # The last line of defence: users get a line, never a traceback.
        if debug:
            raise
        if _is_out_of_memory(bug):
            note(f"error: not enough memory ({_one_line(str(bug))[:160]}); ask for less, or close other programs")
            return 2
        note(
            f"error: internal error, {type(bug).__name__}: {_one_line(str(bug))}; please report it, --debug shows where"
        )
        return 2


def _is_out_of_memory(bug: Exception) -> bool:
    """Numpy raises MemoryError; PyTorch a RuntimeError, on the CPU and (as OutOfMemoryError) on a GPU."""
    said = isinstance(bug, RuntimeError) and re.search("can't allocate memory|out of memory", str(bug))
    return isinstance(bug, MemoryError) or bool(said)


def _run(arguments: list[str]) -> int:
    code = typer.main.get_command(app).main(arguments, prog_name="deploykit", standalone_mode=False)
    if code == INTERRUPTED:  # typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _report(problem: DeploykitError | TyperException) -> int:
    if isinstance(problem, DeploykitError):
        note(f"error: {_one_line(str(problem))}")
        return problem.exit_code
    message = getattr(problem, "format_message", lambda: str(problem))()
    if type(problem).__name__ == "NoArgsIsHelpError":
        print_line(str(message))
        return 2
    note(f"error: {_one_line(str(message))}")
    return 2


def _one_line(text: str) -> str:
    return " ".join(text.split())
