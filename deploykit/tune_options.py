"""The options of a search for the best file and session, checked together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from deploykit.bench_options import BenchOptions
from deploykit.errors import InputError, UnknownNameError
from deploykit.providers import check_provider
from deploykit.quantization_options import QuantizeOptions
from deploykit.recipes import RECIPES
from deploykit.runtime import check_threads

__all__ = ["FLOAT_FORMS", "OBJECTIVES", "TuneOptions"]

OBJECTIVES = ("latency", "size", "memory")
FLOAT_FORMS = ("float", "rewritten")
"""The files that compute in float32: the model as it is, and after the default rewrites."""


@dataclass(frozen=True)
class TuneOptions:
    """How to search, validated.

    Attributes:
        objective: ``latency`` (of one call), ``size`` (of the file) or ``memory`` (peak of a fresh process).
        max_drop: Fraction of top-1 (of agreement with the float model, where the classes of the pictures are not the
            model's) that may be lost on held-out samples.
        recipes: Names of ``RECIPES`` or ``FLOAT_FORMS`` that are tried; None tries what may pay on this machine. The
            float model as it is always takes part.
        providers: Short names of providers; None tries the CPU, and OpenVINO and CUDA where they are installed.
        threads: Numbers of threads; None tries one and all that may be used.
        effort: Of the quantization.
        samples: Calibration samples.
        held_out: Samples on which the drop is measured.
        seed: Fixes which samples, and the order of turns.
        budget_s: Seconds after which nothing new is begun but the last comparison; None has no limit.
        bench: How long one of the last runs measures, of which there are three to eight; earlier rounds are shorter.
    """

    objective: str = "latency"
    max_drop: float = 0.005
    recipes: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    threads: tuple[int, ...] | None = None
    effort: str = "low"
    samples: int = 256
    held_out: int = 512
    seed: int = 0
    budget_s: float | None = None
    bench: BenchOptions = field(default_factory=lambda: BenchOptions(samples=40, min_time_s=1.0, max_time_s=20.0))

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if not 0 <= self.max_drop <= 1:
            raise InputError(f"largest drop {self.max_drop}; allowed: a fraction from 0 to 1, that is 0 to 100 points")
        for name in self.recipes or ():
            if name not in (*FLOAT_FORMS, *RECIPES):
                raise UnknownNameError("recipe", name, (*FLOAT_FORMS, *RECIPES))
        for name in self.providers or ():
            check_provider(name)
        for name in ("recipes", "providers", "threads"):
            if getattr(self, name) == ():
                raise InputError(f"no {name} to try; give one or more, or leave it out")
        for threads in self.threads or ():
            check_threads(threads)
        if self.budget_s is not None and not 0 <= self.budget_s < math.inf:
            raise InputError(f"budget {self.budget_s:g} s; allowed: 0 or more seconds, and finite")
        QuantizeOptions(effort=self.effort, samples=self.samples, held_out=self.held_out, seed=self.seed)
