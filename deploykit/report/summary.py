"""What the figures say, in sentences and in four headline figures; only what was measured, and by ratio."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.figures import byte_text, millisecond_text, percent_text, ratio_text
from deploykit.report.rows import RUN_NOISE, Row

__all__ = ["Headline", "headlines", "label_of", "pairs", "sentences", "setting_text"]

_FLOAT = ("fp32", "float32")


@dataclass(frozen=True)
class Headline:
    """The best of all rows in one respect."""

    title: str
    value: str
    row: Row


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each row with the one it is to be compared with: its parent, else its network's float32 file, same setting.

    Where the setting (dataset, crops, models, machine, provider, threads, batch) has no such row, there is no pair; of
    several, that of the same run, or else of the same versions of the runtime, is taken.
    """
    files: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    floats: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        files[_setting(row), row.sha256].append(row)
        if row.precision in _FLOAT:
            floats[_setting(row), row.network].append(row)
    found = []
    for row in rows:
        parents = files[_setting(row), row.parent_sha256] if row.parent_sha256 else []
        bases = parents or ([] if row.precision in _FLOAT else floats[_setting(row), row.network])
        base = min(bases, key=lambda base: (base.run != row.run, base.runtime != row.runtime), default=None)
        if base is not None and base.sha256 != row.sha256:
            found.append((row, base))
    return found


def _setting(row: Row) -> tuple[object, ...]:
    accuracy = (row.dataset, row.dataset_digest, row.crops, row.models)
    return (*accuracy, row.machine, row.provider, row.threads, row.batch, row.session)


def sentences(rows: Sequence[Row], limit: int = 12) -> list[str]:
    """One sentence for each pair: smaller, faster, leaner by what ratio, and the accuracy before and after."""
    found = pairs(rows)
    varied, machines = _varied(rows), len({row.machine for row in rows}) > 1
    written = [sentence for row, base in found if (sentence := _sentence(row, base, varied, machines))]
    rest = [f"… and {len(written) - limit} more pairs in the table."] if len(written) > limit else []
    return written[:limit] + rest


def _varied(rows: Sequence[Row]) -> bool:
    """Whether the rows were timed in more than one setting, which a sentence must then name."""
    timed = [row for row in rows if row.latency_ms is not None]
    return len({(row.machine, row.provider, row.threads, row.batch, row.session, row.runtime) for row in timed}) > 1


def _sentence(row: Row, base: Row, varied: bool, machines: bool) -> str | None:
    claims = [claim for claim in (_size(row, base), _speed(row, base), _memory(row, base)) if claim]
    accuracy = _accuracy(row, base)
    if not claims and not accuracy:
        return None
    label = label_of(row)
    where = f"{row.machine_name} ({setting_text(row)})" if machines else setting_text(row)
    setting = f" on {where}" if varied and row.latency_ms is not None else ""
    compared = f"{label}{setting} is {_listed(claims)} than {base.precision}" if claims else f"{label}{setting}"
    return f"{compared}{', ' if claims else ': '}{accuracy}." if accuracy else f"{compared}."


def label_of(row: Row) -> str:
    """The network with its precision, or the file's name where the network is unknown; an ensemble's files."""
    return row.name if row.network == row.name or (row.models or 1) > 1 else f"{row.network} {row.precision}"


def setting_text(row: Row) -> str:
    """The provider, threads, batch and crops: ``cpu, 1 thread``."""
    parts = [row.provider or ""]
    if row.threads is not None:
        parts.append(f"{row.threads} thread{'' if row.threads == 1 else 's'}" if row.threads else "threads by default")
    if row.batch not in (None, 1):
        parts.append(f"batch {row.batch}")
    if row.crops not in (None, 1):
        parts.append(f"{row.crops} crops")
    parts.append(row.session or "")
    return ", ".join(part for part in parts if part)


def _listed(claims: Sequence[str]) -> str:
    return claims[0] if len(claims) == 1 else f"{', '.join(claims[:-1])} and {claims[-1]}"


def _size(row: Row, base: Row) -> str | None:
    return _compared(row.file_bytes, base.file_bytes, "smaller", "larger")


def _memory(row: Row, base: Row) -> str | None:
    """None also where versions of the runtime differ: what it holds is theirs."""
    if row.runtime != base.runtime:
        return None
    return _compared(row.peak_bytes, base.peak_bytes, "lighter in memory", "heavier in memory")


def _compared(value: float | None, base: float | None, less: str, more: str) -> str | None:
    if not value or not base or min(value, base) <= 0:
        return None
    ratio = max(value, base) / min(value, base)
    if ratio < 1.01:
        return f"no {less}"
    return f"{ratio_text(ratio)} {less if value < base else more}"


def _speed(row: Row, base: Row) -> str | None:
    """The ratio of the medians; nothing is claimed where their intervals overlap, or two runs differ by as little.

    None where versions of the runtime differ.
    """
    if not row.latency_ms or not base.latency_ms or row.runtime != base.runtime:
        return None
    low, high = row.latency_interval_ms, base.latency_interval_ms
    ratio = max(row.latency_ms, base.latency_ms) / min(row.latency_ms, base.latency_ms)
    if (low[0] <= high[1] and high[0] <= low[1]) or (row.run != base.run and ratio <= 1.0 + RUN_NOISE):
        return "not measurably faster or slower"
    doubt = "" if row.stable and base.stable else " (unstable timing)"
    return f"{ratio_text(ratio)} {'faster' if row.latency_ms < base.latency_ms else 'slower'}{doubt}"


def _accuracy(row: Row, base: Row) -> str | None:
    if row.top1 is None or base.top1 is None:
        return None if row.agreement is None else f"same answer as its reference on {percent_text(row.agreement)}"
    on = f" on {row.dataset}" if row.dataset else ""
    return f"accuracy {percent_text(base.top1).removesuffix(' %')} → {percent_text(row.top1)}{on}"


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """The most accurate, fastest, smallest and leanest row; a respect in which rows do not compare is left out.

    Accuracies compare on one dataset, times on one machine and runtime at one batch size; unstable timings never win.
    """
    found = []
    if len({(row.dataset, row.dataset_digest) for row in rows if row.top1 is not None}) == 1:
        best = max((row for row in rows if row.top1 is not None), key=lambda row: (row.top1, -(row.file_bytes or 0)))
        found.append(Headline("Most accurate", percent_text(best.top1), best))
    timed = [row for row in rows if row.latency_ms is not None and row.stable]
    if timed and len({(row.machine, row.onnxruntime, row.batch) for row in timed}) == 1:
        best = min(timed, key=lambda row: row.latency_ms or 0.0)
        found.append(Headline("Fastest", millisecond_text(best.latency_ms), best))
    if sized := [row for row in rows if row.file_bytes]:
        best = min(sized, key=lambda row: row.file_bytes or 0)
        found.append(Headline("Smallest file", byte_text(best.file_bytes), best))
    heavy = [row for row in rows if row.peak_bytes]
    if heavy and len({(row.machine, row.onnxruntime, row.batch) for row in heavy}) == 1:
        best = min(heavy, key=lambda row: row.peak_bytes or 0)
        found.append(Headline("Least memory", byte_text(best.peak_bytes), best))
    return found
