"""What models answered: sample pictures with their predictions, and the accuracy of each class."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploykit.figures import percent_text
from deploykit.report.environments import cpu_name
from deploykit.report.rows import Row, protocol_label
from deploykit.report.summary import label_of
from deploykit.results import Accuracy

__all__ = ["MOST_GALLERIES", "class_tables", "galleries"]

MOST_GALLERIES = 24
_MAX_PICTURES = 16
_MAX_CLASSES = 20


def _labels(rows: Iterable[Row]) -> dict[str, str]:
    """What a file is called: the network with its precision, or its name where two files have these."""
    files = {row.sha256: row for row in rows if row.sha256}
    seen = Counter(label_of(row) for row in files.values())
    return {sha256: label if seen[label := label_of(row)] == 1 else row.name for sha256, row in files.items()}


def galleries(accuracies: Sequence[Accuracy], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The sample pictures of each model, as far as a page takes them."""
    labels = _labels(rows)
    with_pictures = [item for item in accuracies if item.examples]
    return [_gallery(item, labels.get(item.model_sha256, item.model)) for item in with_pictures[:MOST_GALLERIES]]


def _gallery(accuracy: Accuracy, title: str) -> dict[str, Any]:
    examples = [
        {"item": item, "right": item.label == item.predicted, "sure": f"{100.0 * (item.probability or 0.0):.1f} %"}
        for item in accuracy.examples[:_MAX_PICTURES]
    ]
    right = sum(1 for example in examples if example["right"])
    return {"title": title, "dataset": protocol_label(accuracy), "examples": examples, "right": right}


def class_tables(accuracies: Sequence[Accuracy], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per-class accuracy, one table a dataset; of many classes the hardest."""
    labels = _labels(rows)
    places: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for item in accuracies:
        for seen, value in zip(places[item.model_sha256], _place(item), strict=True):
            seen.add(value)
    datasets: dict[str, dict[str, Accuracy]] = defaultdict(dict)
    for item in accuracies:
        if item.per_class:
            varied = zip(_place(item), places[item.model_sha256], strict=True)
            told = [labels.get(item.model_sha256, item.model), *(value for value, seen in varied if len(seen) > 1)]
            datasets[protocol_label(item)][", ".join(told)] = item
    return [_class_table(dataset, items) for dataset, items in sorted(datasets.items())]


def _place(accuracy: Accuracy) -> tuple[str, str]:
    """On which provider and processor it was measured."""
    return accuracy.provider, cpu_name(accuracy.environment)


def _class_table(dataset: str, items: Mapping[str, Accuracy]) -> dict[str, Any]:
    shown = dict(list(items.items())[:MOST_GALLERIES])
    names = list(dict.fromkeys(name for item in shown.values() for name in item.per_class))
    hardest = sorted(names, key=lambda name: _mean([item.per_class.get(name) for item in shown.values()]))
    kept = names if len(names) <= _MAX_CLASSES else hardest[:_MAX_CLASSES]
    values = {label: [item.per_class.get(name) for name in kept] for label, item in shown.items()}
    worst = max((1.0 - value for row in values.values() for value in row if value is not None), default=0.0) or 1.0
    rows = [
        (label, [(percent_text(value), round((1.0 - value) / worst, 2) if value is not None else 0.0) for value in row])
        for label, row in values.items()
    ]
    cut = [f"the {len(kept)} hardest of {len(names):,} classes"] if len(kept) < len(names) else []
    cut += [f"{len(shown)} of {len(items)} models"] if len(shown) < len(items) else []
    return {"dataset": dataset, "names": kept, "rows": rows, "note": ", ".join(cut)}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.inf
