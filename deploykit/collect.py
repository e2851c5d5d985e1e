"""Runs a float model over calibration samples and keeps statistics of its tensors, never the tensors.

The runtime gives the tensors of one small batch as outputs, in its own memory. Threads look at them there, each at
another tensor, and they are gone before the next batch. Extremes are found in numpy, which lets NaN through: ONNX
Runtime's ReduceMin and ReduceMax pass over NaN, and are no faster (``benchmarks/calibration.py``).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import load_model
from deploykit.errors import DataError, InputError
from deploykit.graph.more_outputs import addition, check_tensors, float_tensors, with_addition
from deploykit.graph.shapes import Shapes, infer
from deploykit.histogram import Histogram
from deploykit.progress import Progress, silent
from deploykit.ranges import ChannelSums, Statistics
from deploykit.ranks import ALONE, Ranks, part_of
from deploykit.runtime import Session, create_session, filled

if TYPE_CHECKING:
    import onnx

__all__ = ["Samples", "collect_statistics"]

_BATCH_BYTES = 160 * 2**20  # of the tensors that leave the runtime at once
_FLOATS = ("float16", "float32", "float64")


class Samples(Protocol):
    """Inputs of a model, such as ``calibrate.Calibration``."""

    def __len__(self) -> int:
        """Their number."""

    def batches(self, size: int, part: range | None = None) -> Iterator[NDArray[Any]]:
        """Arrays (n, …), ``size`` samples at a time; with ``part`` only those, from a multiple of ``size`` on."""


def collect_statistics(
    model: str | os.PathLike[str] | onnx.ModelProto,
    tensors: Sequence[str] | None,
    samples: Samples,
    *,
    histogram: bool,
    channel_means: Sequence[str] = (),
    batch_size: int = 32,
    threads: int | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
) -> Statistics:
    """Least and greatest value of each tensor over all samples; histograms and means of channels where asked for.

    Every value of every sample counts, once; memory does not depend on the number of samples. Where the model fixes
    its batch, copies of the last sample fill the last one up, and are cut off again along the first axis.

    Args:
        model: A float model with one input: its file, or the message with its weights in it.
        tensors: Names of inputs and of outputs of nodes; None for all in float32 that depend on the input.
        samples: What is fed.
        histogram: Whether to count values, which every method but ``minmax`` needs.
        channel_means: Tensors (N, C, …) whose channels' means are wanted, over samples and space.
        batch_size: Samples at a time at most; fewer where their tensors are large. A model may fix it.
        threads: Of the runtime, and of the counting; None takes what the machine allows.
        ranks: Processes that share the samples; each returns the statistics of all, as one process would find them.
        progress: Called after each batch, of this process's share.

    Raises:
        InputError: A name that is no tensor of the graph, or not in float.
        DataError: NaN or infinite values, naming the tensor; no samples.
        ModelFileError: The model cannot be run.
        RankError: Another process is gone.
    """
    watched = _Watched.of(model, tensors, channel_means)
    session = watched.session(threads)
    seen = _Seen(watched, histogram)
    size, done = session.fixed_batch or watched.batch_size(batch_size, session, samples), 0
    part = part_of(len(samples), ranks, step=size)
    with ThreadPoolExecutor(session.threads) as pool:
        for batch in samples.batches(size) if ranks.world == 1 else samples.batches(size, part):
            seen.add(watched.values(session, batch), len(batch), pool)
            done += len(batch)
            progress("calibrate", done, len(part))
    return _of_all(Statistics(done, seen.extremes, seen.histograms, seen.channels), ranks)


def _of_all(mine: Statistics, ranks: Ranks) -> Statistics:
    """Merged in the order of the samples. A share may be empty where there are fewer batches than processes."""
    if ranks.world == 1:
        found = [mine] if mine.samples else []
    else:
        found = [Statistics.from_bytes(part) for part in ranks.gather(mine.to_bytes() if mine.samples else b"") if part]
    if not found:
        raise DataError("no calibration samples; best are 128 or more")
    return functools.reduce(Statistics.merge, found)


@dataclass(frozen=True)
class _Watched:
    """A model, and the tensors that are looked at; ``means`` has the output that stands for a tensor's means."""

    model: Any
    extra: onnx.ModelProto
    weights_beside: bool
    tensors: tuple[str, ...]
    means: Mapping[str, str]
    sample_bytes: int | None

    @classmethod
    def of(cls, model: Any, tensors: Sequence[str] | None, channel_means: Sequence[str]) -> _Watched:
        import onnx

        message = load_model(model, external_data=False) if isinstance(model, (str, os.PathLike)) else model
        graph, shapes = message.graph, infer(message, {})
        wanted = float_tensors(graph, shapes.types) if tensors is None else tuple(dict.fromkeys(tensors))
        check_tensors(graph, [*wanted, *channel_means])
        means = {name: _mean_of(name, shapes) for name in channel_means}
        pooled = [(name, mean) for name, mean in means.items() if name != mean]
        nodes = [onnx.helper.make_node("GlobalAveragePool", [name], [mean]) for name, mean in pooled]
        given = [*wanted, *(mean for name, mean in means.items() if name == mean and name not in wanted)]
        sizes = [shapes.size_bytes(name) for name in given]
        return cls(
            model=model,
            extra=addition(graph, [*given, *(mean for _, mean in pooled)], nodes),
            weights_beside=any(tensor.external_data for tensor in graph.initializer),
            tensors=wanted,
            means=means,
            sample_bytes=None if None in sizes else sum(filter(None, sizes)),
        )

    def session(self, threads: int | None) -> Session:
        with with_addition(self.model, self.extra, weights_beside=self.weights_beside) as (source, folder):
            # Threads that wait actively would take the processor from those that count.
            session = create_session(
                source, threads=threads, spinning=False, record_placement=False, weights_folder=folder
            )
        if len(session.inputs) != 1:
            raise InputError(f"the model has {len(session.inputs)} inputs; calibration feeds models with exactly one")
        types = {value.name: value.dtype for value in (*session.inputs, *session.outputs)}
        for name in (*self.tensors, *self.means):
            if types.get(name, "float32") not in _FLOATS:
                raise InputError(f"the tensor {name!r} is {types[name]}; allowed: {', '.join(_FLOATS)}")
        return session

    def batch_size(self, most: int, session: Session, samples: Samples) -> int:
        """As many samples as keep the tensors that leave the runtime small; where sizes are unknown, one is run."""
        size = self.sample_bytes
        if size is None and (first := next(iter(samples.batches(1)), None)) is not None:
            size = sum(values.nbytes for values in self.values(session, first).values())
        return max(1, min(most, _BATCH_BYTES // (size or 1)))

    def values(self, session: Session, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """All that is looked at, for one batch; of the last one of a fixed size only what belongs to real samples."""
        given = session.inputs[0].name
        fed = filled(batch, session.fixed_batch or len(batch))
        found = {given: fed, **session.run_views({given: fed})}
        return {name: _of_rows(values, len(batch), len(fed)) for name, values in found.items()}


def _mean_of(name: str, shapes: Shapes) -> str:
    """Planes are averaged in the graph, so that they need not leave it; the runtime does so in float32."""
    import onnx

    planes = len(shapes.dims.get(name, ())) > 2 and shapes.types.get(name) == onnx.TensorProto.FLOAT
    return f"deploykit.mean.{name}" if planes else name


def _of_rows(values: NDArray[Any], rows: int, fed: int) -> NDArray[Any]:
    if rows == fed or not values.ndim or len(values) % fed:
        return values
    return values[: len(values) // fed * rows]


@dataclass
class _Seen:
    """What all batches so far have shown."""

    watched: _Watched
    histogram: bool
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, ChannelSums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.extremes = dict.fromkeys(self.watched.tensors, (math.inf, -math.inf))
        self.histograms = {name: Histogram() for name in self.watched.tensors} if self.histogram else {}

    def add(self, values: Mapping[str, NDArray[Any]], rows: int, pool: ThreadPoolExecutor) -> None:
        """One batch; the first tensor of the graph that holds NaN is the one that is named."""
        list(pool.map(lambda name: self._add(name, values[name]), self.watched.tensors))
        for name, mean in self.watched.means.items():
            self._add_means(name, values[mean])

    def _add(self, name: str, values: NDArray[Any]) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())  # NaN comes through both
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _not_finite(name)
        before = self.extremes[name]
        self.extremes[name] = min(before[0], low), max(before[1], high)
        if self.histogram:
            self.histograms[name].add(values, low, high)

    def _add_means(self, name: str, values: NDArray[Any]) -> None:
        if values.ndim < 2:
            raise InputError(f"the tensor {name!r} has shape {values.shape}; channels are the second axis")
        planes = values.reshape(*values.shape[:2], -1).mean(axis=2)  # (N, C)
        sums = ChannelSums(planes.sum(axis=0, dtype=np.float64), len(planes))
        if not np.isfinite(sums.sums).all():
            raise _not_finite(name)
        self.channels[name] = self.channels[name] + sums if name in self.channels else sums


def _not_finite(name: str) -> DataError:
    return DataError(f"the tensor {name!r} becomes NaN or infinite on the calibration samples; all must be finite")
