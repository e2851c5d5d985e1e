"""What a chain is run with: the options of all its stages, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploykit.bench import BenchOptions
from deploykit.errors import InputError
from deploykit.evaluate import EvaluateOptions
from deploykit.models import spec
from deploykit.quantize import QuantizeOptions
from deploykit.training_recipes import TrainOptions, recipe_for
from deploykit.training_setup import Plan, plan_network

__all__ = ["PipelineOptions"]

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class PipelineOptions:
    """What differs from the recipes of networks and dataset; None keeps it.

    Raises InputError for values that cannot be used.

    Attributes:
        epochs: Passes over the training pictures.
        seed: Fixes training and calibration; 0 to 2³² − 1.
        recipe: Quantization recipe.
        samples: Calibration samples.
        threads: CPU threads of training and of the measurements; None takes those available.
        size: Side of the input of those networks that take any; None as in ``training_setup.plan_network``.
        network_options: Such as ``{"width": "16"}``, for those networks that have the option.
        bench: How long to measure.
    """

    epochs: int | None = None
    seed: int | None = None
    recipe: str = "int8"
    samples: int = 256
    threads: int | None = None
    size: int | None = None
    network_options: Mapping[str, str] = field(default_factory=dict)
    bench: BenchOptions = field(default_factory=BenchOptions)

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed <= _LARGEST_SEED:
            raise InputError(f"seed {self.seed}; allowed: 0 to {_LARGEST_SEED}")
        # Each stage knows what it allows; asked now, none of them refuses after an hour of training.
        TrainOptions().changed(epochs=self.epochs, seed=self.seed, threads=self.threads)
        self.quantization(), self.evaluation(), self.measurement()

    def check_networks(self, networks: Sequence[str]) -> None:
        """Raises: InputError when a size or an option is given that none of the networks takes."""
        entries = [spec(network) for network in networks]
        if self.size is not None and not any(entry.any_size for entry in entries):
            raise InputError(f"size {self.size} for {', '.join(networks)}; allowed: none, as they take one size only")
        for name in self.network_options:
            if not any(name in entry.options for entry in entries):
                known = sorted({option for entry in entries for option in entry.options})
                raise InputError(
                    f"none of {', '.join(networks)} has an option {name!r}; allowed: {', '.join(known) or 'none'}"
                )

    def plan(self, network: str, picture_size: tuple[int, int] | None) -> Plan:
        """What of size and options is the network's. Raises: InputError."""
        entry = spec(network)
        given = {name: value for name, value in self.network_options.items() if name in entry.options}
        return plan_network(network, picture_size, self.size if entry.any_size else None, given)

    def training(self, dataset: str, network: str, side: int) -> TrainOptions:
        """The recipe with these options."""
        recipe = recipe_for(dataset, network, side)
        return recipe.changed(epochs=self.epochs, seed=self.seed, threads=self.threads)

    def quantization(self) -> QuantizeOptions:
        """The options of the quantization."""
        return QuantizeOptions(recipe=self.recipe, samples=self.samples, seed=self.seed or 0)

    def evaluation(self) -> EvaluateOptions:
        """The options of the evaluation."""
        return EvaluateOptions(threads=self.threads)

    def measurement(self) -> BenchOptions:
        """The options of the measurement."""
        return self.bench.changed(threads=self.threads)
