"""The record of what inference calls take, and what the process that makes them holds (``bench``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from deploykit.operators import NodeTime, OperatorTime
from deploykit.record import Record

__all__ = ["Bench", "Failure", "Latency", "Memory", "Timing"]


@dataclass(frozen=True)
class Latency:
    """Latency of one inference call in milliseconds.

    ``ci_low`` and ``ci_high`` bound the median (95 %), ``p90_ci_…`` and ``p99_ci_…`` the other percentiles.
    """

    median: float
    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    ci_low: float
    ci_high: float
    samples: int
    p90_ci_low: float | None = None
    p90_ci_high: float | None = None
    p99_ci_low: float | None = None
    p99_ci_high: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of a fresh process that loads and runs one model; of several processes, the most.

    All but the first and the last are resident memory of the process less what it held before the session was made.

    Attributes:
        weights_bytes: The model file.
        after_load_bytes: When the session was ready, before the first run.
        peak_bytes: At its peak, loading and running.
        process_peak_bytes: The whole process at its peak, Python and ONNX Runtime's library counted.
        load_peak_bytes: At its peak while loading.
        steady_bytes: After the timed runs.
        device_bytes: On the GPU, at most, after loading, after the first and after the timed runs, CUDA's context
            counted; None off NVIDIA's providers and where it cannot be read (a warning says why).
        device_counted: ``"process"``, or ``"board"`` where the driver does not list the process, as in a container:
            then what the whole GPU has taken from before the model until after its first run, as other models may be
            loaded later.
    """

    weights_bytes: int
    after_load_bytes: int | None
    peak_bytes: int | None
    process_peak_bytes: int | None = None
    load_peak_bytes: int | None = None
    steady_bytes: int | None = None
    device_bytes: int | None = None
    device_counted: str | None = None


@dataclass(frozen=True)
class Timing:
    """Latency and memory of one model in one setting.

    Attributes:
        stable: Whether nothing among the ``warnings`` makes the latency doubtful; some are notes on how to read it.
        turns_ms: The median of every turn, process by process.
        processes: Fresh processes that were measured.
        memory_mode: The memory setting of the session (``runtime.create_session``).
        provider_options: Options that were given to the provider.
        io_binding: Whether inputs and outputs stayed in the device's memory, so that no copy was timed.
        cuda_graph: Whether the CUDA provider replayed one captured graph.
        computed_in: What the layers were computed in under these options on this device, such as ``"tf32"`` for a
            float32 model; None where it is not known.
        energy_mj_per_inference: Millijoules that the counters of ``energy_sources`` counted during a timed call, on
            average, for everything that the machine did then; None where it was not asked for or cannot be read.
        operators: Milliseconds of one inference by operator, from a separate run under ONNX Runtime's profiler.
        nodes: The nodes that take the most, from the same run.
        profiled_ms: The whole inference in that run.
    """

    model: str
    model_sha256: str
    precision: str
    provider: str
    nodes_by_provider: Mapping[str, int]
    threads: int
    batch: int
    latency_ms: Latency
    throughput_per_s: float
    load_ms: float
    first_run_ms: float
    memory: Memory
    stable: bool
    warnings: tuple[str, ...] = ()
    network: str | None = None
    file_bytes: int | None = None
    turns_ms: tuple[tuple[float, ...], ...] = ()
    processes: int = 1
    memory_mode: str = "default"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    io_binding: bool = False
    cuda_graph: bool = False
    computed_in: str | None = None
    energy_mj_per_inference: float | None = None
    energy_sources: tuple[str, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    nodes: tuple[NodeTime, ...] = ()
    profiled_ms: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a model could not be measured in a setting, while others could."""

    model: str
    model_sha256: str
    provider: str
    threads: int
    batch: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Bench(Record):
    """The timings of one interleaved run (``bench``); ``headline`` names the figure that stands first."""

    kind: ClassVar[str] = "timing"

    results: tuple[Timing, ...]
    failures: tuple[Failure, ...] = ()
    headline: str = "median"
