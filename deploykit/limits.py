"""What a limit says in words: a share of a baseline, such as +5%, or a figure with its unit, such as 10MB or 5ms."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from deploykit.errors import InputError

__all__ = ["Limit", "parse_bytes", "parse_milliseconds", "parse_share"]

_SHARE = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*%")
_FIGURE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµμ]+)")
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Limit:
    """The most that a figure may be.

    Attributes:
        value: In the figure's unit; of a relative limit the fraction by which it may exceed the baseline's, negative
            where it has to fall below.
        relative: Whether it is relative to a baseline.
    """

    value: float
    relative: bool = False

    def __post_init__(self) -> None:
        least = -1.0 if self.relative else 0.0
        if not math.isfinite(self.value) or self.value <= least:
            allowed = "a finite fraction above -1" if self.relative else "a finite figure above 0"
            raise InputError(f"limit {self.value:g}; allowed: {allowed}")


def parse_share(text: str, flag: str) -> float:
    """``5%``, ``+5 %`` or ``-30%`` as a fraction; negative where the figure has to fall.

    Raises: InputError for anything else, as a bare number may be a fraction or percents.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None or float(found[1]) <= -100.0:
        raise InputError(f"{flag} {text!r}; allowed: a share such as 5%, +0.5% or -30%, above -100%")
    return float(found[1]) / 100.0


def parse_bytes(text: str, flag: str) -> Limit:
    """``10MB`` or ``512 KiB`` as bytes, ``+5%`` or ``-20%`` relative to the baseline. Raises: InputError."""
    if text.strip().endswith("%"):
        return Limit(parse_share(text, flag), relative=True)
    found = _FIGURE.fullmatch(text.strip())
    unit = found and _BYTES.get(found[2].upper())
    if not found or not unit or float(found[1]) <= 0:
        raise InputError(
            f"{flag} {text!r}; allowed: bytes with a unit (B, KB, MB, GB, KiB, MiB, GiB) such as 10MB,"
            " or a share of the baseline such as +5%"
        )
    return Limit(float(found[1]) * unit)


def parse_milliseconds(text: str, flag: str) -> float:
    """``5ms``, ``800 us`` or ``0.02s`` as milliseconds. Raises: InputError."""
    found = _FIGURE.fullmatch(text.strip())
    unit = found and _MILLISECONDS.get(found[2])
    if not found or not unit or float(found[1]) <= 0:
        raise InputError(f"{flag} {text!r}; allowed: a time with its unit (ns, us, ms, s) such as 5ms")
    return float(found[1]) * unit
