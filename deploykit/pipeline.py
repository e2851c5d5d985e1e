"""The whole chain for some networks and a dataset: train, export, quantize, evaluate, bench, report.

Each step is identified by a hash of everything that decides its outcome (options, digests of its inputs, version).
``steps.json`` remembers that key and the digests of what the step wrote; a step whose key and files are still the
same is skipped, so an interrupted chain goes on where it stopped and a finished one only says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploykit import __version__, data, environment
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, UnknownNameError
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.export import export_onnx
from deploykit.files import check_writable, read_json, sha256_file, sha256_json, write_json
from deploykit.graph.profile import profile_onnx
from deploykit.models import spec
from deploykit.progress import Progress, silent
from deploykit.quantize import RECIPES, QuantizeOptions, quantize_onnx
from deploykit.report import Row, collect, write_report
from deploykit.results import Record
from deploykit.sources import example_inputs, open_source
from deploykit.train import CHECKPOINT, HISTORY, RECORD, TrainOptions, train_network
from deploykit.training_recipes import recipe_for

__all__ = ["DEMO_NETWORKS", "PipelineOptions", "PipelineResult", "run_demo", "run_pipeline"]

DEMO_NETWORKS = ("lenet5", "color-shape-cnn", "color-shape-mlp")
_STEPS = "steps.json"
_SCHEMA = "deploykit.steps/1"


@dataclass(frozen=True)
class PipelineOptions:
    """What differs from the dataset's recipe; None keeps it.

    Attributes:
        epochs: Passes over the training pictures.
        seed: Fixes training and calibration.
        recipe: Quantization recipe.
        samples: Calibration samples.
        threads: CPU threads of training and of the measurements.
        bench: How long to measure.
    """

    epochs: int | None = None
    seed: int | None = None
    recipe: str = "int8"
    samples: int = 256
    threads: int | None = None
    bench: BenchOptions = field(default_factory=BenchOptions)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UnknownNameError("recipe", self.recipe, RECIPES)

    def training(self, dataset: str) -> TrainOptions:
        """The dataset's recipe with these options."""
        return recipe_for(dataset).changed(epochs=self.epochs, seed=self.seed, threads=self.threads)


@dataclass(frozen=True)
class PipelineResult:
    """Where the report lies, its rows, and which steps were done or skipped."""

    report: Path
    rows: tuple[Row, ...]
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """The JSON document of ``run --json``."""
        return {
            "schema": "deploykit.run/1",
            "deploykit": __version__,
            "environment": environment.describe(),
            "report": str(self.report),
            "steps_done": list(self.done),
            "steps_skipped": list(self.skipped),
            "warnings": list(self.warnings),
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass
class _Steps:
    """The memory of a chain's folder."""

    folder: Path
    known: dict[str, Any]
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> _Steps:
        path = folder / _STEPS
        check_writable(path)
        document: dict[str, Any] = read_json(path) if path.exists() else {"schema": _SCHEMA, "steps": {}}
        if document.get("schema") != _SCHEMA or not isinstance(document.get("steps"), dict):
            raise InputError(f"{path} has schema {document.get('schema')!r}; this deploykit reads {_SCHEMA!r}")
        return cls(folder, document["steps"])

    def run(self, name: str, inputs: Any, outputs: Sequence[str], work: Callable[[bool], object]) -> None:
        """Does one step unless it is done; ``work`` hears whether the same step was begun before."""
        key = sha256_json([__version__, inputs])
        before, there = self.known.get(name, {}), self._digests(outputs)
        if before.get("key") == key and there is not None and before.get("outputs") == there:
            self.skipped.append(name)
            return
        self._remember(name, {"key": key, "outputs": None})
        work(before.get("key") == key and before.get("outputs") is None)
        self._remember(name, {"key": key, "outputs": self._digests(outputs)})
        self.done.append(name)

    def _digests(self, outputs: Sequence[str]) -> dict[str, str] | None:
        paths = {output: self.folder / output for output in outputs}
        if not all(path.is_file() for path in paths.values()):
            return None
        return {output: sha256_file(path) for output, path in paths.items()}

    def _remember(self, name: str, entry: dict[str, Any]) -> None:
        self.known[name] = entry
        document = {"schema": _SCHEMA, "deploykit": __version__, "steps": self.known}
        write_json(self.folder / _STEPS, document)


@dataclass(frozen=True)
class _Chain:
    """What all steps of one chain share."""

    folder: Path
    steps: _Steps
    train: Dataset
    test: Dataset
    options: PipelineOptions
    progress: Progress


def run_pipeline(
    networks: Sequence[str],
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: PipelineOptions | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> PipelineResult:
    """Runs the whole chain; called again with the same arguments it skips what is there.

    Args:
        networks: Reference networks, each once.
        dataset: A dataset's name, a folder of pictures or an ``.npz``.
        output: Folder: one folder a network, ``bench.json`` and ``report.html``.
        options: What differs from the dataset's recipe.
        data_dir: Where named datasets lie.
        progress: Called often, by all stages.

    Raises:
        UnknownNameError: No such network or dataset.
        DeploykitError: Whatever the stages raise; complete steps stay.
    """
    folder, options = Path(output), options or PipelineOptions()
    if not networks or len(set(networks)) != len(networks):
        raise InputError(f"networks {', '.join(networks) or '(none)'}; expected one or more names, each once")
    for network in networks:
        spec(network)
    # `shapes` alone is the task of the first network that has one.
    classes = next((spec(name).classes for name in networks if spec(name).classes in data.SHAPES_CLASSES), None)
    train = data.load(dataset, "train", data_dir=data_dir, classes=classes)
    test = data.load(dataset, "test", data_dir=data_dir, classes=classes)
    chain = _Chain(folder, _Steps.open(folder), train, test, options, progress)
    models = [path for network in networks for path in _one_network(chain, network)]
    _bench(chain, models)
    report = _report(chain, networks)
    rows = collect(_records(chain, networks)).rows
    notes = dict.fromkeys((*train.notes, *test.notes))
    return PipelineResult(report, tuple(rows), tuple(chain.steps.done), tuple(chain.steps.skipped), tuple(notes))


def run_demo(output: str | os.PathLike[str], *, progress: Progress = silent) -> PipelineResult:
    """``run_pipeline`` on generated pictures of three shapes in three colours, with few epochs."""
    options = PipelineOptions(epochs=12, bench=BenchOptions(samples=100, min_time_s=0.5))
    return run_pipeline(DEMO_NETWORKS, "shapes-color-shape", output, options, progress=progress)


def _one_network(chain: _Chain, network: str) -> list[str]:
    """Train, export, quantize, profile and evaluate; returns the two models' paths inside the folder."""
    _train(chain, network)
    fp32, int8 = f"{network}/{network}.onnx", f"{network}/{network}.{chain.options.recipe}.onnx"
    _export(chain, network, fp32)
    _quantize(chain, network, fp32, int8)
    for model in (fp32, int8):
        _weigh(chain, model)
        _evaluate(chain, model, reference=fp32)
    return [fp32, int8]


def _train(chain: _Chain, network: str) -> None:
    options = chain.options.training(chain.train.name)
    outputs = [f"{network}/{name}" for name in (CHECKPOINT, HISTORY, RECORD)]

    def work(begun: bool) -> object:
        chain.progress(f"{network}: train", 0, 0)
        return train_network(
            network,
            chain.train,
            chain.test,
            chain.folder / network,
            options,
            resume=begun,
            overwrite=not begun,
            progress=_named(chain.progress, network),
        )

    inputs = [network, options.to_json(), chain.train.digest, chain.test.digest]
    chain.steps.run(f"{network}/train", inputs, outputs, work)


def _named(progress: Progress, network: str) -> Progress:
    def named(stage: str, done: int, total: int, note: str = "") -> None:
        progress(f"{network}: {stage}", done, total, note)

    return named


def _export(chain: _Chain, network: str, model: str) -> None:
    checkpoint = chain.folder / network / CHECKPOINT

    def work(begun: bool) -> object:
        chain.progress(f"{network}: export", 0, 0)
        source = open_source(checkpoint)
        pictures = chain.test.take(16)
        example, name = example_inputs(source, pictures)
        return export_onnx(
            source.module, chain.folder / model, example=example, card=source.card, pictures=name, overwrite=True
        )

    chain.steps.run(f"{network}/export", [sha256_file(checkpoint), chain.test.digest], [model], work)


def _quantize(chain: _Chain, network: str, parent: str, model: str) -> None:
    options = QuantizeOptions(recipe=chain.options.recipe, samples=chain.options.samples, seed=chain.options.seed or 0)
    record = model.removesuffix(".onnx") + ".quantization.json"

    def work(begun: bool) -> object:
        made = quantize_onnx(
            chain.folder / parent,
            chain.folder / model,
            calibration=chain.train,
            options=options,
            overwrite=True,
            progress=_named(chain.progress, network),
        )
        return write_json(chain.folder / record, made.to_document())

    inputs = [sha256_file(chain.folder / parent), chain.train.digest, options.recipe, options.samples, options.seed]
    chain.steps.run(f"{network}/quantize", inputs, [model, record], work)


def _weigh(chain: _Chain, model: str) -> None:
    record = model.removesuffix(".onnx") + ".profile.json"

    def work(begun: bool) -> object:
        return _keep(chain.folder / record, profile_onnx(chain.folder / model))

    chain.steps.run(f"{Path(model).stem}/inspect", [sha256_file(chain.folder / model)], [record], work)


def _evaluate(chain: _Chain, model: str, *, reference: str) -> None:
    record = model.removesuffix(".onnx") + ".accuracy.json"

    def work(begun: bool) -> object:
        measured = evaluate_onnx(
            chain.folder / model,
            chain.test,
            reference=None if reference == model else chain.folder / reference,
            options=EvaluateOptions(threads=chain.options.threads),
            progress=_named(chain.progress, Path(model).stem),
        )
        return _keep(chain.folder / record, measured)

    inputs = [sha256_file(chain.folder / model), sha256_file(chain.folder / reference), chain.test.digest]
    chain.steps.run(f"{Path(model).stem}/evaluate", inputs, [record], work)


def _keep(path: Path, record: Record) -> Path:
    stamped = replace(record, deploykit=__version__, environment=environment.describe())
    return write_json(path, stamped.to_document())


def _bench(chain: _Chain, models: Sequence[str]) -> None:
    options = replace(chain.options.bench, threads=chain.options.threads or chain.options.bench.threads)

    def work(begun: bool) -> object:
        paths = [chain.folder / model for model in models]
        return _keep(chain.folder / "bench.json", bench_onnx(paths, options, progress=chain.progress))

    inputs = [[sha256_file(chain.folder / model) for model in models], str(options), environment.describe()["cpu"]]
    chain.steps.run("bench", inputs, ["bench.json"], work)


def _records(chain: _Chain, networks: Sequence[str]) -> list[Path]:
    """The records of these networks only: the folder may hold others of earlier runs."""
    found = [path for network in networks for path in sorted((chain.folder / network).glob("*.json"))]
    return [*found, chain.folder / "bench.json"]


def _report(chain: _Chain, networks: Sequence[str]) -> Path:
    records = _records(chain, networks)

    def work(begun: bool) -> object:
        title = f"{', '.join(networks)} on {chain.train.name}"
        return write_report(records, chain.folder / "report.html", title=title, overwrite=True)

    chain.steps.run("report", [sha256_file(path) for path in records], ["report.html"], work)
    return chain.folder / "report.html"
