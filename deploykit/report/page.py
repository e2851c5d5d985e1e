"""The report as one HTML page that works offline: the chart library, the data and the style are in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploykit import __version__, charts
from deploykit.chart_style import THEMES
from deploykit.errors import MissingDependencyError
from deploykit.figures import byte_text, plain_text
from deploykit.report.changed import change_panels, diff_sentence
from deploykit.report.claims import claims_tables
from deploykit.report.columns import Column, present, shared_setting
from deploykit.report.comparing import Diff
from deploykit.report.environments import cpu_name
from deploykit.report.gated import gate_section
from deploykit.report.page_charts import MOST_GROUPS, Drawings, group_key, legend, tradeoff_groups, training_run
from deploykit.report.panels import Section
from deploykit.report.predictions import MOST_GALLERIES, class_tables, galleries
from deploykit.report.reading import Collection
from deploykit.report.rows import Row
from deploykit.report.summary import headlines, label_of, sentences
from deploykit.report.views import sections
from deploykit.results import Verdict

__all__ = ["html_text"]

# What a page holds at most, so that a thousand records still open at once; the table has them all.
_MAX_CURVES = 24
_MAX_ENVIRONMENTS = 6


def html_text(
    collection: Collection,
    title: str,
    *,
    diff: Diff | None = None,
    library: Callable[[], str] = charts.chart_library,
) -> str:
    """The page. Values are escaped; there is no address in it that a browser would load.

    Args:
        collection: What it shows.
        title: Its heading.
        diff: What changed against a baseline.
        library: Gives the JavaScript of the charts; called where there are some.

    Raises:
        MissingDependencyError: altair, vl-convert or jinja2 is not installed.
    """
    template, drawings = _template(), Drawings()
    groups = tradeoff_groups(collection.rows, drawings)
    views = sections(collection, drawings)
    context = {
        "title": title,
        "version": __version__,
        "facts": _facts(collection),
        "sentences": sentences(collection.rows),
        "headlines": headlines(collection.rows),
        "label_of": label_of,
        "diff": change_panels(diff) if diff else None,
        "diff_sentence": diff_sentence(diff) if diff else "",
        "gate": gate_section(collection.of_kind(Verdict)),
        "legend": legend(collection.rows),
        "groups": groups,
        "columns": present(collection.rows),
        "rows": _table(collection.rows),
        "setting": shared_setting(collection.rows),
        "any_notes": any(row.warnings for row in collection.rows),
        "trainings": [training_run(item, drawings) for item in collection.trainings[:_MAX_CURVES]],
        "sections": views,
        "claims": claims_tables(collection.claims),
        "galleries": galleries(collection.accuracies, collection.rows),
        "classes": class_tables(collection.accuracies, collection.rows),
        "environments": _environments(collection.environments),
        "warnings": collection.warnings,
        "left_out": _left_out(collection, views),
        "library": library() if drawings.charts else "",
        "data": _json({"themes": THEMES, "rows": drawings.rows, "charts": drawings.charts}),
    }
    return str(template.render(context))


def _template() -> Any:
    try:
        import jinja2
    except ImportError as problem:
        raise MissingDependencyError("jinja2", "report", "writing an HTML report") from problem
    loader = jinja2.PackageLoader("deploykit", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html.j2")


def _breakable(name: str) -> Any:
    """A file's or layer's name that a narrow column may break behind its dots, dashes and slashes."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"([./_\\:-])(?=\w)", r"\1<wbr>", str(markupsafe.escape(name))))


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends or opens one (HTML standard, 4.12.1.3)."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _facts(collection: Collection) -> list[str]:
    files = len({row.sha256 or row.name for row in collection.rows})
    networks = len({row.network for row in collection.rows} | {item.network for item in collection.trainings})
    datasets = sorted({row.dataset for row in collection.rows if row.dataset})
    named = ", ".join(datasets[:4]) + (f" and {len(datasets) - 4} more" if len(datasets) > 4 else "")
    counts = ((files, "model file"), (networks, "network"), (collection.records, "record"))
    facts = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
    return [*facts, named] if named else facts


def _table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    columns = present(rows)
    return [
        {
            "row": row,
            "cells": [_cell(row, column) for column in columns],
            "notes": list(dict.fromkeys(str(warning) for warning in row.warnings)),
        }
        for row in rows
    ]


def _cell(row: Row, column: Column) -> tuple[str, str, str]:
    """The text, the number to sort by, and the warnings that concern it."""
    value = getattr(row, column.key)
    sort_by = f"{value:.6g}" if column.numeric and value is not None else ""
    return column.text(value), sort_by, "; ".join(row.caveats(column.about)) if column.about else ""


def _environments(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One column an environment, by its processor; the keys as the records have them, and whether values differ."""
    known = [environment for environment in environments if environment][:_MAX_ENVIRONMENTS]
    shown = [_flat(environment) for environment in known]
    keys = list(dict.fromkeys(key for environment in shown for key in environment))
    values = [(key, [environment.get(key, "–") for environment in shown]) for key in keys]
    rows = [(key.replace("_", " "), found, len(set(found)) > 1) for key, found in values]
    names = [f"{place + 1}: {cpu_name(environment)}" for place, environment in enumerate(known)]
    return {"names": names, "rows": rows}


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            texts |= {str(name): plain_text(item) for name, item in value.items()}
        elif isinstance(value, (list, tuple)):
            parts = [str(part.get("name", part)) if isinstance(part, Mapping) else str(part) for part in value]
            texts[key] = ", ".join(parts) or "none"
        else:
            is_size = key.endswith("_bytes") and isinstance(value, int)
            texts[key.removesuffix("_bytes")] = byte_text(value) if is_size else plain_text(value)
    return texts


def _left_out(collection: Collection, views: Sequence[Section]) -> list[str]:
    """What the page does not show, so that nobody takes it for all there is."""
    pictured = sum(1 for item in collection.accuracies if item.examples)
    groups = len({group_key(row) for row in collection.rows if row.top1 is not None})
    counts = (
        (len(collection.trainings), _MAX_CURVES, "training curves"),
        (pictured, MOST_GALLERIES, "models with pictures"),
        (groups, MOST_GROUPS, "groups of charts"),
        (len(collection.environments), _MAX_ENVIRONMENTS, "environments"),
        *((view.total, len(view.panels), view.noun) for view in views),
    )
    return [f"{most} of {count:,} {noun} are shown" for count, most, noun in counts if count > most]
