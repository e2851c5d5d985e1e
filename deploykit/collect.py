"""Runs a float model over calibration samples and keeps statistics of its tensors, never the tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError, InputError
from deploykit.graph.shapes import infer
from deploykit.histogram import Histogram
from deploykit.progress import Progress, silent
from deploykit.ranges import ChannelSums, Statistics
from deploykit.runtime import Session, create_session, filled

if TYPE_CHECKING:
    import onnx

__all__ = ["Samples", "collect_statistics"]


class Samples(Protocol):
    """Inputs of a model, such as ``calibrate.Calibration``."""

    def __len__(self) -> int:
        """Their number."""

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """Arrays (n, …), ``size`` samples at a time."""


def collect_statistics(
    model: str | os.PathLike[str] | onnx.ModelProto,
    tensors: Sequence[str] | None,
    samples: Samples,
    *,
    histogram: bool,
    channel_means: Sequence[str] = (),
    batch_size: int = 4,
    threads: int | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Least and greatest value of each tensor over all samples; histograms and means of channels where asked for.

    Memory does not depend on the number of samples.

    Args:
        model: A float model with one input: its file, or the message with its weights in it.
        tensors: Names of inputs and of outputs of nodes; None for all in float32.
        samples: What is fed.
        histogram: Whether to count values, which every method but ``minmax`` needs.
        channel_means: Tensors (N, C, …) whose channels' means are wanted, over samples and space.
        batch_size: Samples at a time, unless the model fixes it.
        threads: Of the runtime; None takes what the machine allows.
        progress: Called after each batch.

    Raises:
        InputError: A name that is no tensor of the graph, or not in float.
        DataError: NaN or infinite values, naming the tensor; no samples.
        ModelFileError: The model cannot be run.
    """
    graph = model if not isinstance(model, (str, os.PathLike)) else _bare(Path(model))
    wanted = _float_tensors(graph) if tensors is None else tuple(dict.fromkeys(tensors))
    collector = _Collector(wanted, tuple(dict.fromkeys(channel_means)), histogram)
    names = tuple(dict.fromkeys([*wanted, *collector.channel_means]))
    session = create_session(_tapped(model, graph, names), threads=threads, record_placement=False)
    size, done = session.fixed_batch or batch_size, 0
    for batch in samples.batches(size):
        collector.add(_values(session, filled(batch, size) if session.fixed_batch else batch, names), len(batch))
        done += len(batch)
        progress("calibrate", done, len(samples))
    if not done:
        raise DataError("no calibration samples; best are 128 or more")
    return collector.statistics(done)


class _Collector:
    """What has been seen so far."""

    def __init__(self, tensors: tuple[str, ...], channel_means: tuple[str, ...], histogram: bool) -> None:
        self.tensors, self.channel_means = tensors, channel_means
        self.extremes = dict.fromkeys(tensors, (math.inf, -math.inf))
        self.histograms = {name: Histogram() for name in tensors} if histogram else {}
        self.channels: dict[str, ChannelSums] = {}

    def add(self, values: dict[str, NDArray[Any]], rows: int) -> None:
        for name in self.tensors:
            self._add_values(name, _real(values[name], rows))
        for name in self.channel_means:
            real = _real(values[name], rows).astype(np.float64)
            axes = (0, *range(2, real.ndim))
            sums = ChannelSums(real.mean(axis=axes) * rows, rows)
            self.channels[name] = self.channels[name] + sums if name in self.channels else sums

    def _add_values(self, name: str, values: NDArray[Any]) -> None:
        low, high = float(values.min(initial=math.inf)), float(values.max(initial=-math.inf))
        if values.size and not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"the tensor {name!r} becomes NaN or infinite on the calibration samples; all values must be finite"
            )
        self.extremes[name] = min(self.extremes[name][0], low), max(self.extremes[name][1], high)
        if name in self.histograms:
            self.histograms[name].add(values)

    def statistics(self, samples: int) -> Statistics:
        return Statistics(samples, self.extremes, self.histograms, self.channels)


def _real(values: NDArray[Any], rows: int) -> NDArray[Any]:
    return values[:rows] if values.ndim and len(values) > rows else values


def _values(session: Session, batch: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    given = session.inputs[0].name
    outputs = dict(zip((value.name for value in session.outputs), session.run({given: batch}), strict=True))
    return {name: batch if name == given else outputs[name] for name in names}


def _bare(path: Path) -> onnx.ModelProto:
    from deploykit.artifact import load_model

    return load_model(path)


def _float_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    import onnx

    shapes = infer(model, {})
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    made = [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    return tuple(name for name in (*inputs, *made) if shapes.types.get(name) == onnx.TensorProto.FLOAT)


def _tapped(model: str | os.PathLike[str] | onnx.ModelProto, graph: onnx.ModelProto, names: Sequence[str]) -> bytes:
    import onnx

    made = {name for node in graph.graph.node for name in node.output}
    known = made | {value.name for value in graph.graph.input}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"no tensor {unknown[0]!r} in the model; allowed: inputs and outputs of its nodes")
    outputs = {value.name for value in graph.graph.output}
    extra = onnx.ModelProto()
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in made - outputs)
    content: bytes = graph.SerializeToString() + extra.SerializeToString()
    return content
