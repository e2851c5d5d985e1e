"""What continuous integration reads: github-action-benchmark, Bencher, JUnit, Markdown summaries and annotations.

Every function takes a record of ``bench`` or ``gate`` and returns text or JSON; ``write_outputs`` writes the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from deploykit.errors import OutputError
from deploykit.figures import MISSING, byte_text, millisecond_text, percent_text
from deploykit.files import check_writable, write_text
from deploykit.timings import Bench, Latency, Timing
from deploykit.verdicts import INCONCLUSIVE, PASS, REGRESSION, Check, Verdict

__all__ = [
    "CiFiles",
    "bencher",
    "check_outputs",
    "github_benchmark",
    "junit",
    "summary",
    "workflow_commands",
    "write_outputs",
]

Measured: TypeAlias = Bench | Verdict

_NANOSECONDS = 1e6  # of a millisecond; Bencher's built-in measure "latency" is in nanoseconds


@dataclass(frozen=True)
class CiFiles:
    """Where to write; None writes nothing.

    Attributes:
        github_benchmark: For github-action-benchmark's tool ``customSmallerIsBetter``.
        bencher: In Bencher Metric Format.
        junit: JUnit's XML.
        summary: Markdown, appended, as several steps of a job share one summary.
    """

    github_benchmark: Path | None = None
    bencher: Path | None = None
    junit: Path | None = None
    summary: Path | None = None

    @classmethod
    def given(cls, environment: Mapping[str, str], summary: Path | None, **files: Path | None) -> CiFiles:
        """With the summary that GitHub names in ``GITHUB_STEP_SUMMARY`` where none is given."""
        named = environment.get("GITHUB_STEP_SUMMARY")
        return cls(summary=summary or (Path(named) if named else None), **files)


def check_outputs(files: CiFiles, *, overwrite: bool) -> None:
    """Finds out before the work starts whether everything can be written. Raises: OutputError."""
    for path in (files.github_benchmark, files.bencher, files.junit):
        if path is not None:
            check_writable(path, overwrite=overwrite)
    if files.summary is not None:
        _append(files.summary, "")


def write_outputs(record: Measured, files: CiFiles, *, overwrite: bool = False) -> None:
    """Writes what is asked for. Raises: OutputError."""
    texts = (
        (files.github_benchmark, json.dumps(github_benchmark(record), indent=2)),
        (files.bencher, json.dumps(bencher(record), indent=2)),
        (files.junit, junit(record)),
    )
    for path, text in texts:
        if path is not None:
            write_text(path, text + "\n", overwrite=overwrite)
    if files.summary is not None:
        _append(files.summary, summary(record) + "\n")


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as handle:
            handle.write(text)
    except OSError as problem:
        raise OutputError(f"cannot write {path}: {problem.strerror}; give another --summary") from problem


@dataclass(frozen=True)
class _Figures:
    """The figures of one model under the name that they are followed by from run to run."""

    name: str
    latency: Latency | None
    peak_bytes: int | None
    file_bytes: int | None
    extra: str


def _figures(record: Measured) -> Iterator[_Figures]:
    """One entry a model and setting; of a gate only the candidate, whose history it is."""
    if isinstance(record, Bench):
        several = len({(item.provider, item.threads, item.batch) for item in record.results}) > 1
        for timing in record.results:
            name = _named(timing) if several else timing.model
            note = "" if timing.stable else "; unstable"
            extra = f"{_setting(timing.provider, timing.threads, timing.batch)}, sha256 {timing.model_sha256}{note}"
            yield _Figures(name, timing.latency_ms, timing.memory.peak_bytes, timing.file_bytes, extra)
        return
    side = record.candidate
    setting = _setting(record.provider, record.threads, record.batch)
    extra = f"{setting}, sha256 {side.model_sha256}; {record.verdict}"
    yield _Figures(side.model, side.latency_ms, side.peak_bytes, side.file_bytes, extra)


def _named(timing: Timing) -> str:
    return f"{timing.model} ({_setting(timing.provider, timing.threads, timing.batch)})"


def _setting(provider: str, threads: int, batch: int) -> str:
    return f"{provider} ×{threads}, batch {batch}"


def github_benchmark(record: Measured) -> list[dict[str, Any]]:
    """The entries of ``customSmallerIsBetter``: latency in ms, peak memory and file in bytes.

    https://github.com/benchmark-action/github-action-benchmark: name, unit, value, and optionally range and extra.
    """
    entries: list[dict[str, Any]] = []
    for item in _figures(record):
        if item.latency is not None:
            entry = _entry(f"{item.name}: latency", "ms", item.latency.median, item.extra)
            reach = (item.latency.ci_high - item.latency.ci_low) / 2.0
            entries.append(entry | {"range": f"± {reach:.4g}"})
        if item.peak_bytes is not None:
            entries.append(_entry(f"{item.name}: peak memory", "bytes", item.peak_bytes, item.extra))
        if item.file_bytes is not None:
            entries.append(_entry(f"{item.name}: file", "bytes", item.file_bytes, item.extra))
    return entries


def _entry(name: str, unit: str, value: float, extra: str) -> dict[str, Any]:
    return {"name": name, "unit": unit, "value": value, "extra": extra}


def bencher(record: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """Bencher Metric Format: benchmark, measure, value with bounds; latency in nanoseconds.

    https://bencher.dev/docs/reference/bencher-metric-format; ``latency`` is built in, the others are made on first use.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for item in _figures(record):
        measures: dict[str, dict[str, float]] = {}
        if item.latency is not None:
            latency = item.latency
            ends = {"value": latency.median, "lower_value": latency.ci_low, "upper_value": latency.ci_high}
            measures["latency"] = {key: value * _NANOSECONDS for key, value in ends.items()}
        if item.peak_bytes is not None:
            measures["peak-memory"] = {"value": float(item.peak_bytes)}
        if item.file_bytes is not None:
            measures["file-size"] = {"value": float(item.file_bytes)}
        found[item.name] = measures
    return found


def junit(record: Measured) -> str:
    """JUnit's XML: a test case for each check, or for each model that was timed.

    A regression, or a model that could not be measured, is a failure; what is inconclusive is skipped, with the reason.
    """
    cases = list(_bench_cases(record) if isinstance(record, Bench) else _gate_cases(record))
    name = "deploykit bench" if isinstance(record, Bench) else f"deploykit gate {record.candidate.model}"
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "time": "0" if isinstance(record, Bench) else f"{record.seconds:.3f}",
    }
    attributes = {key: str(value) for key, value in counts.items()}
    top = ElementTree.Element("testsuites", {"name": "deploykit", **attributes})
    ElementTree.SubElement(top, "testsuite", {"name": _xml_text(name), **attributes}).extend(cases)
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(top, encoding="unicode")


def _gate_cases(record: Verdict) -> Iterator[ElementTree.Element]:
    for check in record.checks:
        problem = {REGRESSION: "failure", INCONCLUSIVE: "skipped"}.get(check.verdict)
        yield _case(f"deploykit.gate.{record.candidate.model}", check.name, problem, check.sentence)


def _bench_cases(record: Bench) -> Iterator[ElementTree.Element]:
    for timing in record.results:
        latency = timing.latency_ms
        text = f"median {millisecond_text(latency.median)} ({latency.ci_low:.4g} to {latency.ci_high:.4g})"
        yield _case("deploykit.bench", _named(timing), None, text)
    for failure in record.failures:
        name = f"{failure.model} ({_setting(failure.provider, failure.threads, failure.batch)})"
        yield _case("deploykit.bench", name, "failure", failure.error)


def _case(classname: str, name: str, problem: str | None, text: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": _xml_text(classname), "name": _xml_text(name), "time": "0"})
    message = _xml_text(text)
    if problem == "failure":
        ElementTree.SubElement(case, "failure", {"message": message, "type": "regression"}).text = message
    elif problem == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": message})
    else:
        ElementTree.SubElement(case, "system-out").text = message
    return case


def _xml_text(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold."""
    return "".join(letter if letter.isprintable() or letter in "\t\n" else "\ufffd" for letter in text)


def summary(record: Measured) -> str:
    """Markdown for a job's summary page."""
    return "\n".join(_bench_summary(record) if isinstance(record, Bench) else _gate_summary(record))


_MARKS = {PASS: "✅ pass", REGRESSION: "❌ regression", INCONCLUSIVE: "❔ inconclusive"}


def _gate_summary(record: Verdict) -> Iterator[str]:
    against = f" against `{_cell(record.baseline.model)}`" if record.baseline else ""
    yield f"### {_MARKS[record.verdict]}: `{_cell(record.candidate.model)}`{against}"
    yield ""
    yield "| check | limit | measured | candidate | baseline | verdict |"
    yield "|---|---:|---:|---:|---:|---|"
    for check in record.checks:
        sides = (_side_text(check, check.candidate), _side_text(check, check.baseline))
        verdict = _MARKS[check.verdict] + (f": {check.remark}" if check.verdict == INCONCLUSIVE else "")
        cells = (check.name, check.limit_text, check.measured_text, *sides, verdict)
        yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""
    yield "; ".join(_conditions(record))
    for warning in record.warnings:
        yield f"\n> {_cell(warning)}"


def _conditions(record: Verdict) -> Iterator[str]:
    yield f"{record.provider} ×{record.threads}, batch {record.batch}"
    if record.pairs:
        yield f"{record.pairs} pairs of processes in {record.seconds:.0f} s"
    if record.noise_floor is not None:
        yield f"noise floor ±{100.0 * record.noise_floor:.2f} %"
    yield str(record.environment.get("cpu") or "unknown CPU")


def _side_text(check: Check, value: float | None) -> str:
    if value is None:
        return MISSING
    kinds = {"slowdown": millisecond_text, "latency": millisecond_text, "size": byte_text, "memory": byte_text}
    return kinds.get(check.name, percent_text)(value)


def _bench_summary(record: Bench) -> Iterator[str]:
    yield "### deploykit bench"
    yield ""
    yield "| model | precision | on | median | 95 % | p90 | peak memory | file |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for item in record.results:
        latency = item.latency_ms
        cells = (
            item.model,
            item.precision,
            _setting(item.provider, item.threads, item.batch),
            millisecond_text(latency.median) + ("" if item.stable else " !"),
            f"{latency.ci_low:.3g} to {latency.ci_high:.3g}",
            millisecond_text(latency.p90),
            byte_text(item.memory.peak_bytes),
            byte_text(item.file_bytes),
        )
        yield f"| {' | '.join(map(_cell, cells))} |"
    for item in record.results:
        yield from (f"\n> {_cell(f'{item.model}: {warning}')}" for warning in item.warnings)
    for failure in record.failures:
        yield f"\n> ❌ {_cell(f'{failure.model} was not measured: {failure.error}')}"


def _cell(text: str) -> str:
    """One line that does not break a table."""
    return " ".join(text.split()).replace("|", "\\|")


def workflow_commands(record: Measured) -> list[str]:
    """GitHub's workflow commands: an error for each regression, a warning for what is inconclusive or doubtful."""
    if isinstance(record, Bench):
        failed = [_command("error", f"{item.model} was not measured: {item.error}") for item in record.failures]
        doubts = [
            _command("warning", f"{item.model}: {text}")
            for item in record.results
            if not item.stable
            for text in item.warnings
        ]
        return failed + doubts
    kinds = {REGRESSION: "error", INCONCLUSIVE: "warning"}
    model, open_checks = record.candidate.model, [check for check in record.checks if check.verdict in kinds]
    found = [_command(kinds[check.verdict], f"{model}: {check.sentence}") for check in open_checks]
    return found + [_command("warning", f"{model}: {text}") for text in record.warnings]


def _command(kind: str, text: str) -> str:
    """Escaped as GitHub's toolkit does (actions/toolkit, core/src/command.ts)."""
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{kind} title=deploykit::{escaped}"
