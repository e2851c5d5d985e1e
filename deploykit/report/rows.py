"""The rows of a report: the figures of one model file in one setting, and the warnings that spoil some."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from deploykit.results import Accuracy

__all__ = ["RUN_NOISE", "Caveat", "Row", "dataset_label", "protocol_label"]


# What two runs of one file may differ by. The interval of a run does not cover it: three runs of `bench lenet5.onnx`
# in a row gave 0.0366 to 0.0377 ms, each within 0.1 %, on a shared machine. Smaller changes need runs in turns.
RUN_NOISE = 0.10


@dataclass(frozen=True)
class Caveat:
    """A warning and the figure that it spoils: ``latency``, ``accuracy`` or ``model``."""

    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model file in one setting; None where no record says. Counts and activations are for one picture.

    Attributes:
        name: The file's name, with as much of its folder as tells it from others.
        network: The network, or the file's name where it is unknown.
        forward_passes: For one picture, crops × models; ``picture_ms`` is their time, decoding left out.
        provider: Where the latency was measured; without one, where the accuracy was.
        session: What of the session is not the default, such as ``memory low, io binding``.
        latency_ms: Median of one call; ``latency_ci_low_ms`` and ``latency_ci_high_ms`` bound it (95 %).
        peak_bytes: Peak resident memory of a fresh process, less what it held before the model was loaded.
        run: Number of the bench that timed it: only timings of one were made in turns.
        stable: False when the timing was too noisy to trust.
        same_on: Where the predictions were found to be the same, such as ``haswell, arm64``.
        environment: Index into the collection's environments, of the timing or else of the first record.
        machine: Index of the machine; rows of different machines do not compare in time and memory.
        machine_name: Its processor, with a number where two machines have the same.
        onnxruntime: Version of the runtime; rows of different versions do not compare in time and memory either.
        provider_version: Of a provider that has one of its own, such as OpenVINO's plugin.
        dataset_digest: Of the pictures; accuracies over others do not compare, whatever the dataset's name.
    """

    name: str
    network: str
    precision: str
    recipe: str | None = None
    dataset: str | None = None
    dataset_digest: str | None = None
    samples: int | None = None
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    crops: int | None = None
    models: int | None = None
    forward_passes: int | None = None
    picture_ms: float | None = None
    provider: str | None = None
    provider_version: str | None = None
    onnxruntime: str | None = None
    threads: int | None = None
    batch: int | None = None
    session: str | None = None
    latency_ms: float | None = None
    latency_ci_low_ms: float | None = None
    latency_ci_high_ms: float | None = None
    latency_mean_ms: float | None = None
    latency_min_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_samples: int | None = None
    throughput_per_s: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    after_load_bytes: int | None = None
    load_peak_bytes: int | None = None
    steady_bytes: int | None = None
    peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    energy_mj_per_inference: float | None = None
    file_bytes: int | None = None
    download_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    weight_bytes: int | None = None
    peak_activation_bytes: int | None = None
    run: int | None = None
    stable: bool | None = None
    same_on: str | None = None
    warnings: tuple[Caveat, ...] = ()
    environment: int = 0
    machine: int = 0
    machine_name: str | None = None
    sha256: str | None = None
    parent_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them, warnings as texts."""
        body = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return body | {"warnings": [str(warning) for warning in self.warnings]}

    @property
    def runtime(self) -> tuple[str | None, str | None]:
        """The versions that decide times and memory: of ONNX Runtime, and of the provider where it has its own."""
        return self.onnxruntime, self.provider_version

    @property
    def latency_interval_ms(self) -> tuple[float, float]:
        """The bounds of the median, or the median twice where there are none."""
        middle = self.latency_ms or 0.0
        low, high = self.latency_ci_low_ms, self.latency_ci_high_ms
        return (middle if low is None else low, middle if high is None else high)

    def caveats(self, about: str) -> list[str]:
        """The warnings that spoil one kind of figure."""
        return [warning.text for warning in self.warnings if warning.about == about]


def dataset_label(accuracy: Accuracy) -> str:
    """The dataset with its split, such as ``mnist test``."""
    return f"{accuracy.dataset} {accuracy.split}".strip()


def protocol_label(accuracy: Accuracy) -> str:
    """``dataset_label``, with the crops where there are several: ``mnist test, 10 crops``."""
    return dataset_label(accuracy) + (f", {accuracy.crops} crops" if accuracy.crops > 1 else "")
