"""The views beside the main table, in the order in which a page shows them."""

from __future__ import annotations

from deploykit.report.layers import compression_section, harm_section, layer_section
from deploykit.report.operators import operator_section
from deploykit.report.page_charts import Drawings
from deploykit.report.panels import Section
from deploykit.report.reading import Collection
from deploykit.report.tuned import tuning_section
from deploykit.results import Bench, Compression, Profile, Quantization, Tuning

__all__ = ["sections"]


def sections(collection: Collection, drawings: Drawings | None = None) -> list[Section]:
    """Those for which there are records; their charts are taken into ``drawings``, where there are such."""
    rows = collection.rows
    found = (
        tuning_section(collection.of_kind(Tuning), drawings),
        operator_section(collection.of_kind(Bench), rows),
        harm_section(collection.of_kind(Quantization), rows),
        compression_section(collection.of_kind(Compression)),
        layer_section(collection.of_kind(Profile), rows),
    )
    return [section for section in found if section is not None]
