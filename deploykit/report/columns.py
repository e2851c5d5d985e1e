"""The columns of the table: which figure, how it is written, and what warnings spoil it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.figures import MISSING, byte_text, count_text, millisecond_text, percent_text, plain_text
from deploykit.report.rows import Row

__all__ = ["COLUMNS", "Column", "present", "shared_setting"]


@dataclass(frozen=True)
class Column:
    """One column: the row's field, its heading, how to write it, and the kind of caveat that concerns it.

    Attributes:
        numeric: Whether it is sorted as a number, and set to the right.
        brief: Whether the short table of a pull request has it too.
        hint: What a reader may not know.
    """

    key: str
    title: str
    text: Callable[[Any], str] = plain_text
    numeric: bool = True
    brief: bool = False
    about: str | None = None
    hint: str = ""


def energy_text(energy_mj: float | None) -> str:
    """Millijoules: ``12.3 mJ``."""
    return MISSING if energy_mj is None else f"{energy_mj:,.3g} mJ"


COLUMNS = (
    Column("name", "Model", numeric=False, brief=True, about="model"),
    Column("precision", "Precision", numeric=False, brief=True),
    Column("dataset", "Dataset", numeric=False, brief=True),
    Column(
        "top1",
        "Top-1",
        percent_text,
        brief=True,
        about="accuracy",
        hint="Share of pictures whose first answer is right",
    ),
    Column("top5", "Top-5", percent_text, hint="Share of pictures with the right class among the first five answers"),
    Column(
        "agreement", "Agreement", percent_text, brief=True, hint="Share of pictures with the reference model's answer"
    ),
    Column("forward_passes", "Passes", brief=True, hint="Forward passes for one picture: crops × models"),
    Column("picture_ms", "A picture", millisecond_text, brief=True, hint="All its forward passes, decoding left out"),
    Column("machine_name", "Machine", numeric=False, brief=True),
    Column("onnxruntime", "ONNX Runtime", numeric=False, brief=True),
    Column("provider", "Provider", numeric=False, brief=True),
    Column("threads", "Threads", brief=True),
    Column("batch", "Batch", brief=True),
    Column("session", "Session", numeric=False, brief=True, hint="What of the session is not the default"),
    Column("latency_ms", "Latency", millisecond_text, brief=True, about="latency", hint="Median of one call"),
    Column("latency_p90_ms", "p90", millisecond_text, brief=True, hint="Nine of ten calls take at most this"),
    Column("latency_p99_ms", "p99", millisecond_text, hint="99 of 100 calls take at most this"),
    Column("throughput_per_s", "Pictures/s", count_text),
    Column("load_ms", "Load", millisecond_text, hint="Making the session from the file"),
    Column("first_run_ms", "First run", millisecond_text),
    Column(
        "peak_bytes", "Peak memory", byte_text, brief=True, hint="Resident memory of a fresh process, less its start"
    ),
    Column("steady_bytes", "Steady memory", byte_text, hint="Resident memory after the timed runs, less its start"),
    Column("energy_mj_per_inference", "Energy", energy_text, brief=True, hint="Of the whole machine during a call"),
    Column("file_bytes", "File", byte_text, brief=True),
    Column(
        "download_bytes", "Download", byte_text, brief=True, hint="The file after deflate, as a store or HTTP sends it"
    ),
    Column("same_on", "Same answers on", numeric=False, hint="CPUs, emulated, and the session without optimisations"),
    Column("parameters", "Parameters", count_text, brief=True),
    Column("macs", "MACs", count_text, hint="Multiply-accumulates for one picture"),
    Column("weight_bytes", "Weights", byte_text),
    Column("peak_activation_bytes", "Activations", byte_text, hint="Largest sum of live activations for one picture"),
)
_SETTING = ("dataset", "provider", "threads", "batch", "session")
_PLACE = ("machine_name", "onnxruntime")  # a column only where timings differ in it; the environments say it otherwise
_COST = ("forward_passes", "picture_ms")  # of accuracies; says nothing where all took one pass


def present(rows: Sequence[Row], *, brief: bool = False) -> tuple[Column, ...]:
    """The columns that say something: a row has a value, and a setting's columns only where the rows differ."""
    alike = {key for key in _SETTING if len({getattr(row, key) for row in rows}) == 1}
    timed = [row for row in rows if row.latency_ms is not None]
    alike.update(key for key in _PLACE if len({getattr(row, key) for row in timed}) <= 1)
    alike.update(_COST if all(row.forward_passes in (None, 1) for row in rows) else ())
    return tuple(
        column
        for column in COLUMNS
        if (column.brief or not brief)
        and column.key not in alike
        and any(getattr(row, column.key) is not None for row in rows)
    )


def shared_setting(rows: Sequence[Row]) -> str:
    """What all rows have in common and no column says: ``mnist test, cpu, threads 1, batch 1``."""
    parts = []
    for key in _SETTING:
        values = {getattr(row, key) for row in rows}
        if len(values) == 1 and (value := values.pop()) is not None:
            parts.append(f"{key} {value}" if key in ("threads", "batch") else str(value))
    return ", ".join(parts)
