"""The options of a quantization, checked together."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import InputError, UnknownNameError
from deploykit.integer_model import EFFORTS
from deploykit.recipes import Recipe, recipe_for

__all__ = ["QuantizeOptions"]

_SEEDS = 2**32


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, validated.

    Attributes:
        recipe: Name in ``RECIPES``; None takes the target's, or int8.
        target: Name in ``TARGETS``: where the model is going to run.
        effort: Name in ``EFFORTS``: how much work goes into accuracy.
        max_drop: Fraction of top-1 that may be lost on held-out samples; layers stay in float until it is met. None
            measures no drop.
        never_slower: Whether a form that is slower than the float model on this machine is replaced by one that is not;
            not asked of recipes and targets of other machines.
        samples: Calibration samples taken from a dataset, balanced over its classes.
        held_out: Samples of the same dataset, next to those, on which the drop is measured.
        seed: Fixes which ones; from 0 to 2³² − 1.
        batch_size: Samples a calibration call, unless the model fixes it.
        keep_float: Names of layers that stay in float in any case.
        without: Rewrites of the float graph that are left out (``graph.rewrites``).
    """

    recipe: str | None = None
    target: str | None = None
    effort: str = "medium"
    max_drop: float | None = None
    never_slower: bool = False
    samples: int = 256
    held_out: int = 512
    seed: int = 0
    batch_size: int = 32
    keep_float: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        chosen = self.chosen
        if self.effort not in EFFORTS:
            raise UnknownNameError("effort", self.effort, EFFORTS)
        for name in ("samples", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} {_WORDS[name]} samples; allowed: 1 or more")
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}; allowed: 1 or more")
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_SEEDS - 1}")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(f"largest drop {self.max_drop}; allowed: 0 to below 1, that is below 100 points")
        if chosen.budgeted and self.max_drop is None:
            raise InputError(f"recipe {chosen.name} without a largest drop; give one, such as 0.5 points")
        if chosen.precision == "fp16" and self.max_drop is not None:
            raise InputError(f"recipe {chosen.name} has no layers to leave in float; the largest drop is for int8")

    @property
    def chosen(self) -> Recipe:
        """The recipe, by name or by target. Raises: UnknownNameError, InputError."""
        return recipe_for(self.recipe, self.target)


_WORDS = {"samples": "calibration", "held_out": "held-out"}
