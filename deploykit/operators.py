"""Time by operator: ONNX Runtime's profile of a session, read into what one inference spends where."""

from __future__ import annotations

import bisect
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError

__all__ = ["NodeTime", "OperatorProfile", "OperatorTime", "read_profile"]

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class OperatorTime:
    """What all nodes of one operator take in one inference, on one provider.

    Attributes:
        op_type: The operator after ONNX Runtime's fusions.
        provider: ONNX Runtime's name of it, until ``runtime`` shortens it.
        ms: Milliseconds in one inference; what nodes within a loop or branch take is theirs, not the loop's.
        share: Of the sum over all operators.
        count: Nodes of this kind.
    """

    op_type: str
    provider: str
    ms: float
    share: float
    count: int


@dataclass(frozen=True)
class NodeTime:
    """What one node takes in one inference; fields as in ``OperatorTime``."""

    name: str
    op_type: str
    provider: str
    ms: float
    share: float


@dataclass(frozen=True)
class OperatorProfile:
    """Where the time of one inference goes, the most first.

    Attributes:
        operators: By operator and provider.
        nodes: The nodes that take the most.
        call_ms: The whole inference under the profiler: the operators, and what lies between them.
        runs: Inferences that were averaged.
    """

    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    call_ms: float
    runs: int


_Node = tuple[str, str, str]  # name, operator, provider


def read_profile(
    path: str | os.PathLike[str], *, skip: int = 0, top: int = 20, names: Mapping[str, str] | None = None
) -> OperatorProfile:
    """Reads the file that ONNX Runtime writes with ``enable_profiling``.

    A node's time is the mean of the middle half of the runs, so that a run which the system interrupted counts for
    nothing while the file's whole microseconds still average out; so is what lies between the nodes.

    Args:
        path: The JSON file of trace events.
        skip: First runs that are left out, as they warm up.
        top: Nodes that are listed.
        names: Other names of providers, such as runtime.PROVIDERS turned around.

    Raises:
        InputError: No such file, or it is not a profile, or it holds no more than ``skip`` runs.
    """
    events = _events(Path(path))
    calls = sorted((event["ts"], event["dur"]) for event in events if event.get("name") == "model_run")[skip:]
    if not calls:
        raise InputError(f"{path} profiles no more than {skip} runs; expected one or more beyond them")
    nodes = [event for event in events if event.get("cat") == "Node" and str(event.get("name")).endswith(_SUFFIX)]
    of_runs = _times_by_node(nodes, calls, names or {})
    times = {node: max(0.0, _middle_mean(values)) for node, values in of_runs.items()}
    between = [duration / 1000.0 - sum(run) for (_, duration), run in zip(calls, _by_run(of_runs, calls), strict=True)]
    total = sum(times.values()) or 1.0
    most = sorted(times.items(), key=lambda item: -item[1])
    return OperatorProfile(
        operators=_by_operator(times, total),
        nodes=tuple(NodeTime(*node, ms=round(ms, 6), share=round(ms / total, 6)) for node, ms in most[:top]),
        call_ms=round(sum(times.values()) + max(0.0, _middle_mean(between)), 6),
        runs=len(calls),
    )


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise InputError(f"{path} is not JSON: {problem}") from problem
    if not isinstance(events, list):
        raise InputError(f"{path} holds a JSON {type(events).__name__}; expected the list of a profile")
    return [event for event in events if isinstance(event, dict)]


def _times_by_node(
    events: Iterable[Mapping[str, Any]], calls: Sequence[tuple[int, int]], names: Mapping[str, str]
) -> dict[_Node, list[float]]:
    """Milliseconds of every node in each run, nested nodes taken out of those around them."""
    starts = [start for start, _ in calls]
    of_run: dict[_Node, list[float]] = defaultdict(lambda: [0.0] * len(calls))
    around: list[tuple[int, _Node, int]] = []  # nodes that are still open: end, node, run
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        start, duration, details = event["ts"], event["dur"], event.get("args", {})
        run = bisect.bisect_right(starts, start) - 1
        if run < 0 or start > starts[run] + calls[run][1]:
            continue
        provider = str(details.get("provider", ""))
        node = (event["name"].removesuffix(_SUFFIX), str(details.get("op_name", "")), names.get(provider, provider))
        while around and start >= around[-1][0]:
            around.pop()
        if around:
            of_run[around[-1][1]][around[-1][2]] -= duration / 1000.0
        of_run[node][run] += duration / 1000.0
        around.append((start + duration, node, run))
    return dict(of_run)


def _by_run(of_runs: Mapping[_Node, Sequence[float]], calls: Sequence[object]) -> list[tuple[float, ...]]:
    """The same turned around: for each run the milliseconds of its nodes."""
    return list(zip(*of_runs.values(), strict=True)) if of_runs else [()] * len(calls)


def _middle_mean(values: Sequence[float]) -> float:
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def _by_operator(times: Mapping[_Node, float], total: float) -> tuple[OperatorTime, ...]:
    parts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (_, op_type, provider), ms in times.items():
        parts[op_type, provider].append(ms)
    rows = [
        OperatorTime(op_type, provider, round(sum(part), 6), round(sum(part) / total, 6), len(part))
        for (op_type, provider), part in parts.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.ms))
