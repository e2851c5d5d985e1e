"""Two collections side by side: each model and setting with the baseline's, and what keeps figures from being compared.

Files are matched by their digest, else by name, else as the only file of their network, precision and recipe. Sizes and
accuracies compare wherever they were measured; latency and memory only on the same machine, versions and setting.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deploykit.report.environments import difference_text, differing
from deploykit.report.rows import RUN_NOISE, Row

__all__ = ["Change", "Delta", "Diff", "compare"]

# Pages and arenas of a fresh process: two benches of one file gave 10.7 and 11.3 MB.
_MEMORY_NOISE, _MEMORY_NOISE_BYTES = 0.05, 1_000_000
_TIMED = ("provider", "threads", "batch", "session", "onnxruntime", "provider_version")
_SCORED = ("dataset", "dataset_digest", "samples", "crops", "models")
_WITH_CPU = ("machine", "cpu_features", "available_cpus")
_FIGURES = ("latency_ms", "file_bytes", "peak_bytes", "top1")


@dataclass(frozen=True)
class Delta:
    """One figure before and now.

    Attributes:
        figure: The row's field.
        verdict: ``better``, ``worse``, ``same``, ``unclear`` (within noise), ``not comparable``, or ``missing``.
        why: The keys that differ, with both values; or why it is unclear.
        keys: The keys that differ.
    """

    figure: str
    before: float | None
    now: float | None
    verdict: str
    why: str = ""
    keys: tuple[str, ...] = ()

    @property
    def brief_keys(self) -> list[str]:
        """The keys, where another processor stands for all that differs with it."""
        implied = _WITH_CPU if "cpu" in self.keys else ()
        return [key for key in self.keys if key not in implied]

    @property
    def ratio(self) -> float | None:
        """Now over before; None where that would say nothing."""
        if self.before is None or self.now is None or self.verdict == "not comparable" or self.before <= 0:
            return None
        return self.now / self.before

    @property
    def difference(self) -> float | None:
        """Now less before; None where that would say nothing."""
        if self.before is None or self.now is None or self.verdict == "not comparable":
            return None
        return self.now - self.before


@dataclass(frozen=True)
class Change:
    """A row with that of the baseline that it is compared with; of a new file there is none."""

    row: Row
    base: Row | None
    deltas: Mapping[str, Delta]

    @property
    def changed(self) -> bool:
        """Whether a figure is better or worse, or the file is new."""
        return self.base is None or any(delta.verdict in ("better", "worse") for delta in self.deltas.values())

    def to_json(self) -> dict[str, Any]:
        """The setting, and each figure with the baseline's."""
        row, base = self.row, self.base
        setting = {
            key: getattr(row, key) for key in ("name", "network", "precision", "sha256", "machine_name", *_SCORED)
        }
        setting |= {key: getattr(row, key) for key in _TIMED}
        figures = {
            delta.figure: {
                "baseline": delta.before,
                "now": delta.now,
                "ratio": delta.ratio,
                "difference": delta.difference,
                "verdict": delta.verdict,
                "why": delta.why,
            }
            for delta in self.deltas.values()
        }
        named = None if base is None else {"name": base.name, "sha256": base.sha256, "machine_name": base.machine_name}
        return setting | {"baseline": named} | figures


@dataclass(frozen=True)
class Diff:
    """All rows with those of the baseline.

    Attributes:
        changes: One a row, in the order of the rows.
        gone: Names of the baseline's files that no row is of.
    """

    changes: tuple[Change, ...]
    gone: tuple[str, ...]


def compare(rows: Sequence[Row], baseline: Sequence[Row], environments: Sequence[Mapping[str, Any]]) -> Diff:
    """Each row with the baseline's row of the same file and setting, or of the nearest.

    Args:
        rows: What is measured now.
        baseline: What was measured before, with the environments of the same list.
        environments: Those that ``Row.environment`` of both points into.
    """
    before = _by_file(baseline)
    matches = _matched(_by_file(rows), before)
    changes = []
    for row in rows:
        candidates = before.get(matches.get(_file(row), ""), [])
        base = min(candidates, key=lambda other: _distance(row, other), default=None)
        changes.append(Change(row, base, _deltas(row, base, environments)))
    gone = [group[0].name for key, group in before.items() if key not in set(matches.values())]
    return Diff(tuple(changes), tuple(gone))


def _file(row: Row) -> str:
    return row.sha256 or f"name:{row.name}"


def _by_file(rows: Sequence[Row]) -> dict[str, list[Row]]:
    files: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        files[_file(row)].append(row)
    return dict(files)


_RULES: tuple[Callable[[Row], tuple[object, ...]], ...] = (
    lambda row: (row.network, row.precision, row.name),
    lambda row: (row.network, row.precision, PurePosixPath(row.name).name),
    lambda row: (row.network, row.precision, row.recipe),
    lambda row: (row.network, row.precision),
)


def _matched(now: Mapping[str, list[Row]], before: Mapping[str, list[Row]]) -> dict[str, str]:
    """The baseline's file of each file, by the first rule that names one and only one on both sides."""
    found = {key: key for key in now if key in before}
    for rule in _RULES:
        left = _alone({key: rule(group[0]) for key, group in now.items() if key not in found})
        taken = set(found.values())
        right = _alone({key: rule(group[0]) for key, group in before.items() if key not in taken})
        found |= {left[name]: right[name] for name in left.keys() & right.keys()}
    return found


def _alone(names: Mapping[str, tuple[object, ...]]) -> dict[tuple[object, ...], str]:
    seen = Counter(names.values())
    return {name: key for key, name in names.items() if seen[name] == 1}


def _distance(row: Row, base: Row) -> tuple[int, int, bool]:
    """How many keys of the setting differ, those of the pictures first; then whether the machine does."""
    scored = sum(getattr(row, key) != getattr(base, key) for key in _SCORED)
    timed = sum(getattr(row, key) != getattr(base, key) for key in _timed_keys(row, base))
    return scored, timed + (row.latency_ms is not None and base.latency_ms is None), row.machine != base.machine


def _deltas(row: Row, base: Row | None, environments: Sequence[Mapping[str, Any]]) -> dict[str, Delta]:
    return {figure: _delta(figure, row, base, environments) for figure in _FIGURES}


def _delta(figure: str, row: Row, base: Row | None, environments: Sequence[Mapping[str, Any]]) -> Delta:
    before, now = None if base is None else getattr(base, figure), getattr(row, figure)
    if base is None or before is None or now is None:
        return Delta(figure, before, now, "missing")
    timed = figure in ("latency_ms", "peak_bytes")
    keys = _SCORED if figure == "top1" else _timed_keys(row, base) if timed else ()
    values = {key: _both(base, row, key) for key in keys if getattr(base, key) != getattr(row, key)}
    if timed:
        values |= {key: tuple(found) for key, found in _hardware(row, base, environments).items()}
    if values:
        return Delta(figure, before, now, "not comparable", difference_text(values), tuple(values))
    return Delta(figure, before, now, *_VERDICTS[figure](row, base))


def _timed_keys(row: Row, base: Row) -> tuple[str, ...]:
    """A browser does not run the ONNX Runtime that is installed."""
    return tuple(key for key in _TIMED if key != "onnxruntime" or not row.provider == base.provider == "web")


def _both(base: Row, row: Row, key: str) -> tuple[Any, Any]:
    before, now = getattr(base, key), getattr(row, key)
    return (before or "default", now or "default") if key == "session" else (before, now)


def _hardware(row: Row, base: Row, environments: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return differing((environments[base.environment], environments[row.environment]))


def _of_latency(row: Row, base: Row) -> tuple[str, str]:
    if not (row.stable and base.stable):
        return "unclear", "unstable timing"
    now, before = row.latency_interval_ms, base.latency_interval_ms
    ratio = (row.latency_ms or 0.0) / (base.latency_ms or 1.0)
    if now[0] <= before[1] and before[0] <= now[1]:
        return "unclear", "the intervals overlap"
    if 1.0 / (1.0 + RUN_NOISE) <= ratio <= 1.0 + RUN_NOISE:
        return "unclear", f"within the {100 * RUN_NOISE:.0f} % by which two runs may differ"
    return ("better", "") if ratio < 1.0 else ("worse", "")


def _of_size(row: Row, base: Row) -> tuple[str, str]:
    now, before = row.file_bytes or 0, base.file_bytes or 0
    return ("same" if now == before else "better" if now < before else "worse"), ""


def _of_memory(row: Row, base: Row) -> tuple[str, str]:
    now, before = row.peak_bytes or 0, base.peak_bytes or 0
    if abs(now - before) <= max(_MEMORY_NOISE * max(now, before), _MEMORY_NOISE_BYTES):
        return "same", f"within the {100 * _MEMORY_NOISE:.0f} % or 1 MB by which two runs may differ"
    return ("better", "") if now < before else ("worse", "")


def _of_accuracy(row: Row, base: Row) -> tuple[str, str]:
    now, before = row.top1 or 0.0, base.top1 or 0.0
    return ("same" if now == before else "better" if now > before else "worse"), ""


_VERDICTS = {"latency_ms": _of_latency, "file_bytes": _of_size, "peak_bytes": _of_memory, "top1": _of_accuracy}
