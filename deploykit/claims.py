"""The claims table: what papers and the lecture notes say of the reference networks, beside what is measured here.

Parameters, multiply-accumulates and activations come from the networks as they are built; file sizes from real files
in float32, float16 and int8; latency and memory from fresh processes, the files of one network in turns.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploykit import __version__, environment
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.errors import InputError
from deploykit.export import export_onnx
from deploykit.files import deflated_size, read_json, write_bytes, write_json
from deploykit.models import names, spec
from deploykit.progress import Progress, silent
from deploykit.published import NETWORKS_NEEDED, SAID_OF, published_statements
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.results import Claims, FileCost, NetworkCost, Profile, Timing
from deploykit.runtime import check_threads
from deploykit.sources import example_inputs, open_source

__all__ = ["ClaimsOptions", "measure_claims"]

_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ClaimsOptions:
    """What to measure, validated.

    Attributes:
        networks: Rows of the table of costs; when None all but VGG's BatchNorm twins, which are in no paper and cost
            what VGG costs. The statements always need theirs.
        threads: Threads of the runtime.
        samples: Timed calls of each file, at least.
        min_time_s: Seconds of timed calls of each file, at least.
        calibration_samples: Generated pictures that the int8 file is calibrated on; its accuracy is not asked here.
    """

    networks: tuple[str, ...] | None = None
    threads: int = 1
    samples: int = 20
    min_time_s: float = 1.0
    calibration_samples: int = 16

    def __post_init__(self) -> None:
        for network in self.networks or ():
            spec(network)
        if self.networks == ():
            raise InputError("no network to measure; allowed: one or more, or None for all")
        check_threads(self.threads)
        if self.calibration_samples < 1:
            raise InputError(f"{self.calibration_samples} calibration samples; allowed: 1 or more")
        self.bench()

    def bench(self) -> BenchOptions:
        """The options of the measurement."""
        return BenchOptions(threads=self.threads, samples=self.samples, min_time_s=self.min_time_s)


def measure_claims(
    options: ClaimsOptions | None = None,
    *,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Claims:
    """Measures statements and costs; fresh weights, since none of these figures depends on their values.

    Args:
        options: Which networks, and how to time them.
        work: Folder that keeps each network's costs, so that an interrupted measurement goes on; None keeps nothing.
        progress: Called after each network.

    Raises:
        UnknownNameError: No such network.
        MissingDependencyError: torch is not installed.
        OutputError: ``work`` cannot be written.
    """
    from deploykit.models.profile import profile_network

    options = options or ClaimsOptions()
    wanted = options.networks or tuple(name for name in names() if not _is_twin(name))
    profiles = {name: profile_network(name) for name in dict.fromkeys((*NETWORKS_NEEDED, *wanted))}
    parts = []
    for done, name in enumerate(wanted):
        progress("claims", done, len(wanted))
        parts.append(_kept(Path(work), profiles[name], options) if work else _measured(profiles[name], options))
    progress("claims", len(wanted), len(wanted))
    days = sorted({part.measured_on for part in parts} - {""})
    return Claims(
        deploykit=__version__,
        environment=environment.describe(),
        statements=published_statements(profiles),
        networks=tuple(part.networks[0] for part in parts),
        measured_on=" to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
    )


def _is_twin(name: str) -> bool:
    return spec(name).arguments.get("norm") == "batch"


def _kept(work: Path, profile: Profile, options: ClaimsOptions) -> Claims:
    """The record of its costs in ``work``, unless they were measured otherwise; else measured, and put there."""
    path, machine = work / f"{profile.name}.cost.json", environment.describe()
    if path.exists():
        found = Claims.from_document(read_json(path), source=str(path))
        same = found.deploykit == __version__ and found.environment == machine and len(found.networks) == 1
        if same and found.networks[0].threads == options.threads:
            return found
    record = _measured(profile, options)
    write_json(path, record.to_document(), overwrite=True)
    return record


def _measured(profile: Profile, options: ClaimsOptions) -> Claims:
    """A record of the costs of one network."""
    with tempfile.TemporaryDirectory(prefix="deploykit-claims-") as folder:
        files = _files(profile.name, Path(folder), options)
        record = bench_onnx(files, options.bench())
        costs = tuple(map(_cost, _PRECISIONS, files, record.results))
    cost = NetworkCost(
        network=profile.name,
        said=SAID_OF.get(profile.name, ""),
        parameters=profile.parameters,
        macs=profile.macs or 0,
        peak_activation_bytes=profile.peak_activation_bytes,
        threads=options.threads,
        files=costs,
    )
    today = datetime.now(UTC).date().isoformat()
    machine = environment.describe()
    return Claims(deploykit=__version__, environment=machine, statements=(), networks=(cost,), measured_on=today)


def _files(network: str, folder: Path, options: ClaimsOptions) -> list[Path]:
    """The network's files in float32, float16 and int8."""
    from deploykit import data
    from deploykit.artifact import load_model
    from deploykit.graph.half import half_precision

    paths = [folder / f"{network}.{precision}.onnx" for precision in _PRECISIONS]
    source = open_source(network)
    example, pictures = example_inputs(source, "shapes")
    export_onnx(source.module, paths[0], example=example, card=source.card, pictures=pictures)
    del source
    write_bytes(paths[1], half_precision(load_model(paths[0])).SerializeToString(deterministic=True))
    calibration = data.load("shapes", "train")
    given = QuantizeOptions(samples=options.calibration_samples, batch_size=1)
    quantize_onnx(paths[0], paths[2], calibration=calibration, options=given)
    return paths


def _cost(precision: str, path: Path, timing: Timing) -> FileCost:
    return FileCost(
        precision=precision,
        file_bytes=path.stat().st_size,
        download_bytes=deflated_size(path),
        latency_ms=timing.latency_ms.median,
        ci_low_ms=timing.latency_ms.ci_low,
        ci_high_ms=timing.latency_ms.ci_high,
        load_ms=timing.load_ms,
        peak_bytes=timing.memory.peak_bytes,
        stable=timing.stable,
        warnings=timing.warnings,
    )
