"""The views beside the main table, in the order in which a page shows them."""

from __future__ import annotations

from deploykit.report.layers import compression_section, harm_section, layer_section
from deploykit.report.operators import operator_section
from deploykit.report.panels import Section
from deploykit.report.reading import Collection
from deploykit.results import Bench, Compression, Profile, Quantization

__all__ = ["sections"]


def sections(collection: Collection) -> list[Section]:
    """Those for which there are records."""
    rows = collection.rows
    found = (
        operator_section(collection.of_kind(Bench), rows),
        harm_section(collection.of_kind(Quantization), rows),
        compression_section(collection.of_kind(Compression)),
        layer_section(collection.of_kind(Profile), rows),
    )
    return [section for section in found if section is not None]
