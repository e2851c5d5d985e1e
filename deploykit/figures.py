"""Figures as people read them: three significant digits and a unit; a dash where there is none."""

from __future__ import annotations

import math

__all__ = [
    "MISSING",
    "amount_text",
    "byte_text",
    "count_text",
    "millisecond_text",
    "percent_text",
    "plain_text",
    "ratio_text",
]

MISSING = "–"


def _significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits in plain notation, with thousands separated: 0.0519, 12.3, 1,230."""
    if value == 0.0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """``value`` in the largest unit of thousands that leaves at least 1; 999.6 of one unit is 1 of the next."""
    step = 0
    while step < len(units) - 1 and abs(float(f"{value:.2e}")) >= 1000:
        value, step = value / 1000.0, step + 1
    number = f"{value:,.0f}" if step == 0 else _significant(value)
    return f"{number} {units[step]}".strip()


def percent_text(fraction: float | None) -> str:
    """A fraction in percent: 0.989 is ``98.90 %``."""
    return MISSING if fraction is None else f"{100.0 * fraction:.2f} %"


def count_text(count: float | None) -> str:
    """A count by thousands: 61,706 is ``61.7 k``."""
    return MISSING if count is None else _scaled(count, ("", "k", "M", "G", "T"))


def amount_text(count: int, what: str) -> str:
    """``1 sample``, ``1,200 samples``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def byte_text(size: float | None) -> str:
    """Bytes in decimal units, as operating systems and stores show files: 246,824 is ``247 KB``."""
    return MISSING if size is None else _scaled(size, ("B", "KB", "MB", "GB", "TB"))


def millisecond_text(time_ms: float | None) -> str:
    """Milliseconds, whatever the size, so that a column can be compared by eye: ``0.123 ms``, ``1,230 ms``."""
    return MISSING if time_ms is None else f"{_significant(time_ms)} ms"


def ratio_text(ratio: float) -> str:
    """A ratio: ``3.6×``; two decimals below 2, where they tell something."""
    return f"{ratio:.2f}×" if ratio < 1.995 else f"{ratio:.1f}×" if ratio < 99.5 else f"{ratio:,.0f}×"


def plain_text(value: object) -> str:
    """Anything else as it stands."""
    return MISSING if value is None or value == "" else str(value)
