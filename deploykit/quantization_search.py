"""What to keep of the models that a recipe can make: ranges, layers in float, or the float model itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.answers import difference_of, first_answers
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.figures import percent_text
from deploykit.graph.shapes import infer
from deploykit.integer_model import IntegerModels
from deploykit.progress import Progress, silent
from deploykit.runtime import create_session
from deploykit.sensitivity import LayerHarm, cheapest_within, measure_harm

if TYPE_CHECKING:
    import onnx

__all__ = ["Choice", "HeldOut", "best_ranges", "never_slower", "within_budget"]

_COMPARED = 64  # samples on which ranges and layers are compared
_BATCH = 16
_BENCH = BenchOptions(threads=1, samples=40, min_time_s=0.4, max_time_s=20.0)


@dataclass(frozen=True)
class Choice:
    """What is kept, and why.

    Attributes:
        method: How ranges are chosen.
        noise_db: Noise on the answers to calibration samples, in decibels of them; lower is better.
        float_layers: Layers left in float.
        kept_float: Whether the float model is kept instead: no integer form met what was asked.
        ranking: Harm of each layer, the worst first; empty where it was not measured.
        drop: Points of top-1 (or of agreement, without labels) lost on held-out samples; None where not measured.
        speed: Median latency of the float model over the chosen one's; None where not measured.
        rewrites: Places that each rewrite of the float graph changed.
        border_levels: Of a model whose first layer reads pixels, as ``FloatModel`` has it.
        notes: In words.
    """

    method: str
    noise_db: float = math.inf
    float_layers: tuple[str, ...] = ()
    kept_float: bool = False
    ranking: tuple[LayerHarm, ...] = ()
    drop: float | None = None
    speed: float | None = None
    rewrites: Mapping[str, int] = field(default_factory=dict)
    border_levels: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Samples that calibration did not see.

    Attributes:
        batches: Preprocessed.
        targets: Class numbers of all of them; None counts agreement with the float model instead.
    """

    batches: Sequence[NDArray[Any]]
    targets: NDArray[np.int64] | None

    def top1(self, answers: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
        """Fraction that is right, or agrees with ``wanted``."""
        targets = wanted.argmax(1) if self.targets is None else self.targets
        return float((answers.argmax(1) == targets).mean())


def best_ranges(models: IntegerModels) -> Choice:
    """The method whose ranges leave the least noise on the answers to calibration samples."""
    methods = models.effort.methods
    if len(methods) == 1 and not models.effort.equalized:
        return Choice(methods[0])
    samples = _first(models.samples.batches(_BATCH))
    wanted = _answers(models.model.path, samples)
    noise = {}
    for method in methods:
        snr = difference_of(wanted, _answers(models.build(method), samples)).snr_db
        noise[method] = -math.inf if snr is None else -snr
    best = min(methods, key=lambda method: noise[method])
    return Choice(best, noise[best])


def within_budget(
    models: IntegerModels, choice: Choice, held_out: HeldOut, max_drop: float, *, progress: Progress = silent
) -> Choice:
    """The fewest and cheapest layers in float that lose at most ``max_drop`` (a fraction) on held-out samples."""
    wanted = _answers(models.model.path, held_out.batches)
    before = held_out.top1(wanted, wanted)

    def drop(without: Collection[str]) -> float:
        built = models.build(choice.method, without=without)
        return before - held_out.top1(_answers(built, held_out.batches), wanted)

    samples = _first(models.samples.batches(_BATCH))
    ranking = measure_harm(models, choice.method, samples, _costs(models.model.proto), progress=progress)
    # All layers in float would be the float model: one at least has to remain.
    kept = cheapest_within(ranking, lambda names: drop(names) <= max_drop + 1e-12, most=max(1, len(ranking) - 1))
    choice = replace(choice, ranking=ranking)
    if kept is None:
        lost = (
            f"no form with integer layers loses {percent_text(max_drop)} or less on {_count(held_out)} held-out samples"
        )
        return replace(choice, kept_float=True, notes=(*choice.notes, f"{lost}; the float model is kept"))
    return replace(choice, float_layers=kept, drop=drop(kept))


def _count(held_out: HeldOut) -> int:
    return sum(map(len, held_out.batches))


def never_slower(models: IntegerModels, choice: Choice, folder: Path) -> Choice:
    """The fastest here of the chosen form, forms with more layers in float, and the float model.

    Small convolutions of one channel each are memory traffic, and a runtime's float kernels may walk them faster than
    its integer ones; matrices gain everywhere.
    """
    forms = {"chosen": choice.float_layers, **_lighter(models, choice.float_layers)}
    paths = {"float": models.model.path}
    for name, layers in forms.items():
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(models.build(choice.method, without=layers).SerializeToString())
    results = bench_onnx(list(paths.values()), _BENCH).results
    latency = {name: timing.latency_ms for name, timing in zip(paths, results, strict=True)}
    base = latency["float"].median
    if latency["chosen"].median <= base:
        return replace(choice, speed=base / latency["chosen"].median)
    best = min(forms, key=lambda name: latency[name].median)
    slower = (
        f"all layers in int8 take {latency['chosen'].median / base:.2f} times the float model's time on this machine"
    )
    if latency[best].median < base:
        count = len(forms[best])
        notes = (
            *choice.notes,
            f"{slower}; {count} layers stay in float, which takes {latency[best].median / base:.2f}",
        )
        return replace(choice, float_layers=tuple(forms[best]), speed=base / latency[best].median, notes=notes)
    return replace(choice, kept_float=True, speed=1.0, notes=(*choice.notes, f"{slower}; the float model is kept"))


def _lighter(models: IntegerModels, kept: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Forms with more layers in float: the depthwise convolutions, and all convolutions."""
    nodes = {node.name: node for node in models.model.proto.graph.node}
    layers = [*models.plan.products, *models.matrices]
    convolutions = [name for name in layers if nodes[name].op_type == "Conv"]
    depthwise = [name for name in convolutions if _group(nodes[name]) > 1]
    forms = {}
    for name, more in (("without depthwise", depthwise), ("matrices only", convolutions)):
        left = tuple(dict.fromkeys((*kept, *more)))
        if more and len(left) < len(layers):
            forms[name] = left
    return forms


def _group(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def _costs(model: onnx.ModelProto) -> dict[str, float]:
    """Share of the multiply-accumulates by node; 0 where shapes are unknown."""
    stored = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes, macs = infer(model, {}), {}
    for node in model.graph.node:
        dims = stored.get(node.input[1]) if len(node.input) > 1 else None
        outputs = shapes.elements(node.output[0])
        if dims is None or outputs is None:
            continue
        if node.op_type == "Conv":
            macs[node.name] = outputs * math.prod(dims[1:])
        elif node.op_type in ("Gemm", "MatMul"):
            macs[node.name] = math.prod(dims)
    total = sum(macs.values()) or 1
    return {name: count / total for name, count in macs.items()}


def _first(batches: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    taken: list[NDArray[Any]] = []
    for batch in batches:
        taken.append(batch)
        if sum(map(len, taken)) >= _COMPARED:
            break
    return taken


def _answers(model: Path | onnx.ModelProto, samples: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    session = create_session(model if isinstance(model, Path) else model.SerializeToString())
    rows = [first_answers(session, batch, "the model", what="samples") for batch in samples]
    return np.concatenate(rows).reshape(sum(map(len, rows)), -1)
