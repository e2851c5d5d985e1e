"""What a candidate is compared with: another model, itself, a stored timing, or nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import InputError
from deploykit.gate_options import GateOptions
from deploykit.providers import WEB
from deploykit.results import read_record
from deploykit.timings import Bench, Timing

__all__ = ["Baseline", "open_baseline"]


@dataclass(frozen=True)
class Baseline:
    """What a candidate is compared with.

    Attributes:
        kind: ``model``, ``record``, ``itself`` or ``none``.
        path: The model that plays along; None for a record and for nothing.
        stored: The timing of a record.
        record: The record that holds it.
        source: The record's path, for messages.
    """

    kind: str
    path: Path | None = None
    stored: Timing | None = None
    record: Bench | None = None
    source: str = ""

    @property
    def stored_bytes(self) -> int | None:
        """The size of the file that was timed, where a record is the baseline."""
        return None if self.stored is None else self.stored.file_bytes or self.stored.memory.weights_bytes


def open_baseline(
    candidate: Path, baseline: str | os.PathLike[str] | None, options: GateOptions, model: str | None = None
) -> Baseline:
    """Tells by the ending what a baseline is: ``.json`` is a record of ``bench``, everything else a model.

    Args:
        candidate: The model that is asked about; of a record with several models, the one of its name is taken.
        baseline: A path, or None.
        options: Whether it is a self-test, and the setting that is asked for, by which one of several is chosen.
        model: The name of another model of the record.

    Raises:
        InputError: A self-test with a baseline, a file that is no record of timings, or a record in which the model is
            not named or stands in several settings.
    """
    if options.self_test:
        if baseline is not None:
            raise InputError(f"--self-test compares {candidate} with itself; leave out --baseline {baseline}")
        return Baseline("itself", candidate)
    if baseline is None or Path(baseline).suffix.lower() != ".json":
        if model is not None:
            raise InputError(f"--baseline-model {model} chooses from a stored record; give one with --baseline")
        return Baseline("none") if baseline is None else Baseline("model", Path(baseline))
    record = read_record(baseline)
    if not isinstance(record, Bench):
        raise InputError(f"{baseline} is a record of kind {record.kind!r}; expected one of deploykit bench, 'timing'")
    found = _of_model(record, candidate.name.removesuffix(".onnx"), model, str(baseline))
    stored = _of_setting(found, options, str(baseline))
    if stored.provider == WEB and options.provider is None:
        raise InputError(f"{baseline} was measured in a browser, and gate does not measure there; give --provider")
    _check_figures(stored, str(baseline))
    return Baseline("record", None, stored, record, str(baseline))


def _of_model(record: Bench, candidate: str, model: str | None, source: str) -> list[Timing]:
    names = list(dict.fromkeys(timing.model for timing in record.results))
    wanted = model or (candidate if candidate in names else names[0] if len(names) == 1 else None)
    found = [timing for timing in record.results if timing.model == wanted]
    if not found:
        asked = model or candidate
        choice = f"choose with --baseline-model among: {', '.join(names)}" if names else "it holds none at all"
        raise InputError(f"{source} has no timing of {asked!r}; {choice}")
    return found


def _check_figures(stored: Timing, source: str) -> None:
    latency, peak = stored.latency_ms, stored.memory.peak_bytes
    figures = {"median": latency.median, "ci_low": latency.ci_low, "ci_high": latency.ci_high, "peak_bytes": peak}
    for name, value in figures.items():
        if value is not None and not value > 0:
            raise InputError(f"{source} says {name} {value:g} of {stored.model!r}; allowed: above 0")


def _of_setting(found: list[Timing], options: GateOptions, source: str) -> Timing:
    """The one that is asked for; if none is, any, whose difference is then told."""
    asked = {key: value for key in ("provider", "threads", "batch") if (value := getattr(options, key)) is not None}
    fitting = [timing for timing in found if all(getattr(timing, key) == value for key, value in asked.items())]
    if len(fitting) > 1:
        settings = ", ".join(f"{item.provider} ×{item.threads} batch {item.batch}" for item in fitting)
        raise InputError(
            f"{source} has {len(fitting)} settings of {fitting[0].model!r} ({settings});"
            " say which with --provider, --threads and --batch"
        )
    return (fitting or found)[0]
