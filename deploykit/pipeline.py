"""The whole chain for some networks and a dataset: train, export, quantize, evaluate, bench, report.

The chain is planned first, as a list of steps with everything that decides their outcomes; files in the folder that
are not this plan's are refused before any work is done. ``steps`` remembers what was written, so an interrupted chain
goes on where it stopped and a finished one only says so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit import __version__, data, environment
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError, MissingDependencyError, OutputError
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.export import export_onnx
from deploykit.files import check_writable, read_json, remove_partials, sha256_file, write_json
from deploykit.graph.profile import profile_onnx
from deploykit.lock import folder_lock
from deploykit.models import spec
from deploykit.pipeline_options import PipelineOptions
from deploykit.progress import Progress, silent
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.report import Row, collect, write_report
from deploykit.results import Record
from deploykit.sources import example_inputs, open_source
from deploykit.steps import Step, Steps
from deploykit.train import CHECKPOINT, CURVES, HISTORY, RECORD, STATE, train_network
from deploykit.training_setup import common_size

__all__ = ["DEMO_NETWORKS", "PipelineOptions", "PipelineResult", "run_demo", "run_pipeline"]

DEMO_NETWORKS = ("lenet5", "color-shape-cnn", "color-shape-mlp")
_RUNTIME = ("onnxruntime", "onnxruntime-gpu")
# What only the later steps import, and the extra that brings it.
_IMPORTS_LATER = {"onnxscript": "torch", "altair": "report", "vl_convert": "report", "jinja2": "report"}
_EXPORTER = ("torch", "onnx", "onnx-ir", "onnxscript", *_RUNTIME)


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


@dataclass(frozen=True)
class _Chain:
    """What all steps of one chain share; paths of models are relative to the folder."""

    folder: Path
    networks: tuple[str, ...]
    train: Dataset
    test: Dataset
    options: PipelineOptions
    progress: Progress

    def models(self, network: str) -> tuple[str, str]:
        """The float model and the quantized one."""
        return f"{network}/{network}.onnx", f"{network}/{network}.{self.options.recipe}.onnx"

    @property
    def records(self) -> list[str]:
        """The records of these networks, by name: the folder may hold others, and JSON of other people."""
        models = [model for network in self.networks for model in self.models(network)]
        names = [f"{network}/{RECORD}" for network in self.networks]
        names += [_record(model, kind) for model in models for kind in ("profile", "accuracy")]
        names += [_record(self.models(network)[1], "quantization") for network in self.networks]
        return [*sorted(names), "bench.json"]


def run_pipeline(
    networks: Sequence[str],
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: PipelineOptions | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PipelineResult:
    """Runs the whole chain; called again with the same arguments it skips what is there.

    A file that a step of this chain wrote and that has changed since counts as damaged and is made again, with what
    hangs on it; only a whole training that somebody put in the place of ours is refused. Everything else that exists
    is refused before the first step: files of others, and files that were made with other settings or versions.

    Args:
        networks: Reference networks, each once.
        dataset: A dataset's name, a folder of pictures or an ``.npz``.
        output: Folder: one folder a network, ``bench.json`` and ``report.html``. One process at a time works in it.
        options: What differs from the dataset's recipe.
        data_dir: Where named datasets lie.
        overwrite: Replace what exists. An interrupted step of the same settings goes on nevertheless.
        progress: Called often, by all stages.

    Raises:
        UnknownNameError: No such network or dataset.
        OutputError: The folder holds something else, is in use, or cannot be written.
        MissingDependencyError: A later step would not find what it needs.
        DeploykitError: Whatever the stages raise; complete steps stay.
    """
    folder, options = Path(output), options or PipelineOptions()
    if not networks or len(set(networks)) != len(networks):
        raise InputError(f"networks {', '.join(networks) or '(none)'}; expected one or more names, each once")
    for package, extra in _IMPORTS_LATER.items():
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra, "the whole chain")
    options.check_networks(networks)
    # `shapes` alone is the task of the first network that has one.
    classes = next((entry.classes for entry in map(spec, networks) if entry.classes in data.SHAPES_CLASSES), None)
    train = data.load(dataset, "train", data_dir=data_dir, classes=classes)
    test = data.load(dataset, "test", data_dir=data_dir, classes=classes)
    chain = _Chain(folder, tuple(networks), train, test, options, progress)
    plan = _plan(chain)
    check_writable(folder / "report.html")
    with folder_lock(folder):
        steps = Steps.open(folder)
        if not overwrite:
            steps.refuse_strangers(plan)
            _refuse_other_trainings(chain, steps, plan)
        for place in (folder, *(folder / network for network in networks)):
            remove_partials(place)
        for step in plan:
            steps.run(step)
        rows = collect([folder / record for record in chain.records]).rows
    chosen = (f"{name}: {text}" for name in networks for text in options.plan(name, common_size(train)).notes)
    notes = dict.fromkeys((*train.notes, *test.notes, *chosen))
    return PipelineResult(folder / "report.html", tuple(rows), tuple(steps.done), tuple(steps.skipped), tuple(notes))


def run_demo(output: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress = silent) -> PipelineResult:
    """``run_pipeline`` on generated pictures of three shapes in three colours, with few epochs."""
    options = PipelineOptions(epochs=8, bench=BenchOptions(samples=100, min_time_s=0.5))
    return run_pipeline(DEMO_NETWORKS, "shapes-color-shape", output, options, overwrite=overwrite, progress=progress)


def _plan(chain: _Chain) -> list[Step]:
    """All steps in order: train, export, quantize, weigh and evaluate each network; then bench and report."""
    plan = []
    for network in chain.networks:
        fp32, int8 = chain.models(network)
        plan += [_train(chain, network), _export(chain, network), _quantize(chain, network)]
        plan += [_weigh(chain, fp32), _evaluate(chain, fp32, fp32), _weigh(chain, int8), _evaluate(chain, int8, fp32)]
    return [*plan, _bench(chain), _report(chain)]


def _refuse_other_trainings(chain: _Chain, steps: Steps, plan: Sequence[Step]) -> None:
    """A whole training that was put in the place of ours is somebody's work, not damage."""
    for step in plan:
        checkpoint = next((name for name in step.outputs if name.endswith(f"/{CHECKPOINT}")), None)
        if checkpoint is None or not steps.changed(step, checkpoint):
            continue
        path = chain.folder / checkpoint
        try:
            record = read_json(path.with_name(RECORD))
        except InputError:  # without a record it is not whole
            continue
        if record.get("checkpoint_sha256") == sha256_file(path):
            raise OutputError(f"{path} is of another training than this chain's; give another folder or --overwrite")


def _versions(names: Sequence[str]) -> dict[str, str]:
    return {name: version for name, version in environment.package_versions().items() if name in names}


def _pictures(chain: _Chain) -> dict[str, str]:
    return {
        "dataset": chain.train.name,
        "training pictures": chain.train.digest,
        "test pictures": chain.test.digest,
    }


def _train(chain: _Chain, network: str) -> Step:
    entry, plan = spec(network), chain.options.plan(network, common_size(chain.train))
    options = chain.options.training(chain.train.name, network, plan.side)

    def work() -> object:
        chain.progress(f"{network}: train", 0, 0)
        progress = _named(chain.progress, network)
        return train_network(
            network,
            chain.train,
            chain.test,
            chain.folder / network,
            options,
            network_options=plan.options,
            size=plan.side if entry.any_size else None,
            resume=True,
            progress=progress,
        )

    built = {
        "input": entry.input,
        "classes": entry.classes,
        "parameters": entry.parameters,
        "builder": entry.builder,
        "content size": entry.content_size,
        "reads grey": entry.reads_grey,
        "network options": {name: list(values) for name, values in entry.options.items()},
        "chosen options": dict(plan.options),
        "size": plan.side,
    }
    return Step(
        name=f"{network}/train",
        settings=_pictures(chain) | options.to_json() | built,
        outputs=tuple(f"{network}/{name}" for name in (CHECKPOINT, HISTORY, RECORD)),
        extras=(f"{network}/{CURVES}",),
        state=f"{network}/{STATE}",
        work=work,
    )


def _named(progress: Progress, network: str) -> Progress:
    def named(stage: str, done: int, total: int, note: str = "") -> None:
        progress(f"{network}: {stage}", done, total, note)

    return named


def _export(chain: _Chain, network: str) -> Step:
    checkpoint, model = f"{network}/{CHECKPOINT}", chain.models(network)[0]

    def work() -> object:
        chain.progress(f"{network}: export", 0, 0)
        source = open_source(chain.folder / checkpoint)
        example, name = example_inputs(source, chain.test.take(16))
        return export_onnx(
            source.module, chain.folder / model, example=example, card=source.card, pictures=name, overwrite=True
        )

    settings = {"dataset": chain.test.name, "test pictures": chain.test.digest} | _versions(_EXPORTER)
    return Step(name=f"{network}/export", settings=settings, sources=(checkpoint,), outputs=(model,), work=work)


def _quantize(chain: _Chain, network: str) -> Step:
    options, (parent, model) = chain.options.quantization(), chain.models(network)
    record = _record(model, "quantization")

    def work() -> object:
        made = quantize_onnx(
            chain.folder / parent,
            chain.folder / model,
            calibration=chain.train,
            options=options,
            overwrite=True,
            progress=_named(chain.progress, network),
        )
        return write_json(chain.folder / record, made.to_document())

    settings = {"dataset": chain.train.name, "training pictures": chain.train.digest} | _values(options)
    settings |= _versions(("onnx", *_RUNTIME))
    name = f"{Path(model).stem}/quantize"
    return Step(name=name, settings=settings, sources=(parent,), outputs=(model, record), work=work)


def _weigh(chain: _Chain, model: str) -> Step:
    record = _record(model, "profile")

    def work() -> object:
        return _keep(chain.folder / record, profile_onnx(chain.folder / model))

    name = f"{Path(model).stem}/inspect"
    return Step(name=name, settings=_versions(("onnx",)), sources=(model,), outputs=(record,), work=work)


def _evaluate(chain: _Chain, model: str, reference: str) -> Step:
    options, record = chain.options.evaluation(), _record(model, "accuracy")

    def work() -> object:
        measured = evaluate_onnx(
            chain.folder / model,
            chain.test,
            reference=None if reference == model else chain.folder / reference,
            options=options,
            progress=_named(chain.progress, Path(model).stem),
        )
        return _keep(chain.folder / record, measured)

    settings = {"dataset": chain.test.name, "test pictures": chain.test.digest} | _values(options)
    settings |= _versions(_RUNTIME)
    name, sources = f"{Path(model).stem}/evaluate", tuple(dict.fromkeys((model, reference)))
    return Step(name=name, settings=settings, sources=sources, outputs=(record,), work=work)


def _bench(chain: _Chain) -> Step:
    options = chain.options.measurement()
    models = tuple(model for network in chain.networks for model in chain.models(network))

    def work() -> object:
        paths = [chain.folder / model for model in models]
        return _keep(chain.folder / "bench.json", bench_onnx(paths, options, progress=chain.progress))

    machine = environment.describe()
    settings = {"models": list(models)} | _values(options) | _versions(_RUNTIME)
    settings |= {name: machine[name] for name in ("cpu", "cpu_features", "available_cpus")}
    return Step(name="bench", settings=settings, sources=models, outputs=("bench.json",), work=work)


def _report(chain: _Chain) -> Step:
    title = f"{', '.join(chain.networks)} on {chain.train.name}"

    def work() -> object:
        records = [chain.folder / record for record in chain.records]
        return write_report(records, chain.folder / "report.html", title=title, overwrite=True)

    settings = {"title": title} | _pictures(chain) | _versions(("altair",))
    return Step(name="report", settings=settings, sources=tuple(chain.records), outputs=("report.html",), work=work)


def _record(model: str, kind: str) -> str:
    return f"{model.removesuffix('.onnx')}.{kind}.json"


def _values(options: QuantizeOptions | EvaluateOptions | BenchOptions) -> dict[str, Any]:
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    return {name: dict(value) if name == "shape" and value else value for name, value in values.items()}


def _keep(path: Path, record: Record) -> Path:
    stamped = replace(record, deploykit=__version__, environment=environment.describe())
    return write_json(path, stamped.to_document())
