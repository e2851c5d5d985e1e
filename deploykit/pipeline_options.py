"""What a chain is run with: the options of all its stages, checked before the first one starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from deploykit.bench import BenchOptions
from deploykit.errors import InputError
from deploykit.evaluate import EvaluateOptions
from deploykit.quantize import QuantizeOptions
from deploykit.training_recipes import TrainOptions, recipe_for

__all__ = ["PipelineOptions"]

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class PipelineOptions:
    """What differs from the dataset's recipe; None keeps it. Raises InputError for values that cannot be used.

    Attributes:
        epochs: Passes over the training pictures.
        seed: Fixes training and calibration; 0 to 2³² − 1.
        recipe: Quantization recipe.
        samples: Calibration samples.
        threads: CPU threads of training and of the measurements; None takes those available.
        bench: How long to measure.
    """

    epochs: int | None = None
    seed: int | None = None
    recipe: str = "int8"
    samples: int = 256
    threads: int | None = None
    bench: BenchOptions = field(default_factory=BenchOptions)

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed <= _LARGEST_SEED:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_LARGEST_SEED}")
        # Each stage knows what it allows; asked now, none of them refuses after an hour of training.
        TrainOptions().changed(epochs=self.epochs, seed=self.seed, threads=self.threads)
        self.quantization(), self.evaluation(), self.measurement()

    def training(self, dataset: str) -> TrainOptions:
        """The dataset's recipe with these options."""
        return recipe_for(dataset).changed(epochs=self.epochs, seed=self.seed, threads=self.threads)

    def quantization(self) -> QuantizeOptions:
        """The options of the quantization."""
        return QuantizeOptions(recipe=self.recipe, samples=self.samples, seed=self.seed or 0)

    def evaluation(self) -> EvaluateOptions:
        """The options of the evaluation."""
        return EvaluateOptions(threads=self.threads)

    def measurement(self) -> BenchOptions:
        """The options of the measurement."""
        return self.bench.changed(threads=self.threads)
