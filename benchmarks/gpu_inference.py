"""Inference: latency of a call by PyTorch, eager and compiled, and by ONNX Runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_device import release, synchronize
from gpu_job import Job, said
from gpu_plan import EXPORT

from deploykit.errors import DeploykitError, ProviderError

KINDS = ("fp16", "tf32", "fp32")
"""What PyTorch computes in on a GPU, in the order of their worth."""


def inference(job: Job) -> None:
    """Latency of a call by batch and way of running it; inputs lie on the device already.

    One network has all that takes seconds and one precision compiled before the next one is measured; compiling for
    the other precisions comes last.
    """
    side, networks = (64, ("mobilenet-v3-small",)) if job.small else (224, ("resnet50", "mobilenet-v2"))
    batches, kinds = ((1, 4) if job.small else (1, 64)), _kinds(job)
    for network in networks:
        rows = job.figures.setdefault(network, {"torch": [], "onnxruntime": []})
        for kind in rows:  # of an earlier run; what failed is tried anew
            rows[kind] = [timed for timed in rows[kind] if "error" not in timed]
    for network in networks:
        _add(job, network, "torch", torch_timings(job, network, kinds, batches, side, compiled=False))
        _add(job, network, "torch", torch_timings(job, network, kinds[:1], batches, side, compiled=True))
        if missing := [name for module, name in EXPORT.items() if find_spec(module) is None]:
            job.figures[network]["onnxruntime"].append({"error": f"needs pip install {' '.join(missing)}"})
        else:
            _add(job, network, "onnxruntime", runtime_timings(job, network, batches, side))
    for network in networks:
        _add(job, network, "torch", torch_timings(job, network, kinds[1:], batches, side, compiled=True))


def _kinds(job: Job) -> tuple[str, ...]:
    """Ampere, of compute capability 8, is the first generation with TF32; before it, that would be float32 again."""
    if not job.cuda:
        return ("fp32",)
    import torch

    return KINDS if torch.cuda.get_device_capability()[0] >= 8 else tuple(kind for kind in KINDS if kind != "tf32")


def _add(job: Job, network: str, kind: str, timings: Iterator[dict[str, Any]]) -> None:
    """Keeps each as it comes, and why there are no more."""
    rows = job.figures[network][kind]
    try:
        for timed in timings:
            rows.append(timed)
            job.keep()
    except (DeploykitError, RuntimeError) as problem:
        rows.append({"error": said(problem)})
        job.keep()


def _has(job: Job, network: str, kind: str, wanted: Mapping[str, Any]) -> bool:
    """Whether there is a row with those settings."""
    return any(wanted.items() <= timed.items() for timed in job.figures[network][kind] if "error" not in timed)


def _fresh(network: str) -> Any:
    import torch

    from deploykit.models import build

    torch.manual_seed(0)
    return build(network).eval()


def torch_timings(
    job: Job, network: str, kinds: tuple[str, ...], batches: tuple[int, ...], side: int, *, compiled: bool
) -> Iterator[dict[str, Any]]:
    """What is missing of eager or compiled calls; compiled for each batch anew, with CUDA graphs on a GPU."""
    backend = "inductor" if job.cuda else "aot_eager"
    way = f"torch.compile ({backend})" if compiled else "eager"
    settings: list[dict[str, Any]]
    settings = [{"way": way, "computed_in": kind, "batch": batch} for kind in kinds for batch in batches]
    waiting = [setting for setting in settings if not _has(job, network, "torch", setting)]
    module = _fresh(network) if waiting else None
    for setting in waiting:
        job.check()
        try:
            release(job)
            timed = _called(job, module, setting["computed_in"], setting["batch"], side, backend if compiled else None)
        except RuntimeError as problem:  # of CUDA, cuDNN or the compiler; the next setting may work
            yield setting | {"error": said(problem)}
        else:
            yield setting | {"device": job.name, **timed}


def _called(job: Job, module: Any, kind: str, batch: int, side: int, backend: str | None) -> dict[str, Any]:
    """The latency of one module in one precision at one batch size."""
    import torch

    dtype = torch.float16 if kind == "fp16" else torch.float32
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind != "fp32"
    call = module.to(job.device, dtype).to(memory_format=torch.channels_last)
    inputs = torch.randn(batch, 3, side, side, device=job.device, dtype=dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    torch.compiler.reset()
    if backend is not None:
        mode = "reduce-overhead" if job.cuda else None
        call = torch.compile(call, backend=backend, mode=mode, dynamic=False)
    with torch.inference_mode():
        return latency(job, lambda: call(inputs))


def latency(job: Job, call: Callable[[], object]) -> dict[str, Any]:
    """Median and 90th percentile of calls that are each waited for, in milliseconds."""
    began = time.perf_counter()
    for _ in range(3):
        call()
        synchronize(job)
    first_s = time.perf_counter() - began
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 10 or (time.perf_counter() - began < (0.2 if job.small else 1.0) and len(taken) < 1000):
        start = time.perf_counter()
        call()
        synchronize(job)
        taken.append(1000.0 * (time.perf_counter() - start))
    p90 = statistics.quantiles(taken, n=10)[-1]
    return {
        "median_ms": round(statistics.median(taken), 4),
        "p90_ms": round(p90, 4),
        "samples": len(taken),
        "first_calls_s": round(first_s, 3),
    }


def runtime_timings(job: Job, network: str, batches: tuple[int, ...], side: int) -> Iterator[dict[str, Any]]:
    """What is missing of ONNX Runtime's calls, by deploykit's bench.

    Each setting is measured by itself, as memory may be that of the whole board (``device_counted``).
    """
    waiting = [setting for setting in _settings(job, batches) if not _has(job, network, "onnxruntime", setting)]
    if not waiting:
        return
    files = _files(job, network, side)
    release(job)  # so that what PyTorch held is neither in the way nor counted
    gone: set[str] = set()  # providers that cannot start
    for setting in waiting:
        job.check()
        if setting["way"] in gone:
            continue
        try:
            if isinstance(file := files[setting["file"]], Exception):
                raise file
            yield from _benched(job, file, setting)
        except (DeploykitError, RuntimeError) as problem:
            yield setting | {"error": said(problem)}
            gone |= {setting["way"]} if isinstance(problem, ProviderError) else set()


def _settings(job: Job, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """The CUDA provider in fp16, TF32 and fp32, with a CUDA graph and without; TensorRT where it is; else the CPU."""
    from deploykit.runtime import provider_names

    if job.cuda:
        kinds: list[tuple[str, str, bool | None]] = [("cuda", "fp16", True), ("cuda", "fp32", True)]
        kinds += [("cuda", "fp32", False)]
        listed = [(name, "fp32", None) for name in ("tensorrt", "nvtensorrtrtx") if name in provider_names()]
        ways = [(*kind, graph) for graph in (True, False) for kind in kinds] + [(*kind, False) for kind in listed]
    else:
        ways = [("cpu", "fp32", None, False)]
    return [
        {"way": f"onnxruntime {name}", "file": file, "use_tf32": tf32, "cuda_graph_asked": graph, "batch": batch}
        for name, file, tf32, graph in ways
        for batch in batches
    ]


def _files(job: Job, network: str, side: int) -> dict[str, Path | Exception]:
    """The network in float32 and float16, or why the latter could not be made."""
    import numpy as np

    from deploykit.export import export_onnx
    from deploykit.quantize import quantize_onnx

    folder = Path(job.work)
    example = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    plain = export_onnx(_fresh(network), folder / f"{network}.onnx", example=example, overwrite=True).path
    files: dict[str, Path | Exception] = {"fp32": plain, "fp16": folder / f"{network}.fp16.onnx"}
    if not job.cuda:
        return files
    try:
        quantize_onnx(plain, folder / f"{network}.fp16.onnx", calibration=[example], recipe="fp16", overwrite=True)
    except DeploykitError as problem:
        files["fp16"] = problem
    return files


def _benched(job: Job, file: Path, setting: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One file in one setting; also what bench notes as a failure."""
    from deploykit.bench import BenchOptions, bench_onnx

    tf32 = setting["use_tf32"]
    options = BenchOptions(
        provider=setting["way"].split()[1],
        batch=setting["batch"],
        samples=5 if job.small else 50,
        min_time_s=0.0 if job.small else 0.5,
        max_time_s=3.0,
        timeout_s=60.0,
        cuda_graph=setting["cuda_graph_asked"],
        provider_options={} if tf32 is None else {"use_tf32": str(int(tf32))},
        keep_going=True,
    )
    found = bench_onnx(file, options, progress=job.watch)
    yield from ({**setting, **_runtime_row(timing)} for timing in found.results)
    yield from ({**setting, "error": failure.error} for failure in found.failures)


def _runtime_row(timing: Any) -> dict[str, Any]:
    """``computed_in`` is null where it is not known: a file in fp32 may then have been computed in TF32."""
    return {
        "file_precision": timing.precision,
        "computed_in": timing.computed_in,
        "cuda_graph": timing.cuda_graph,
        "io_binding": timing.io_binding,
        "median_ms": timing.latency_ms.median,
        "p90_ms": timing.latency_ms.p90,
        "samples": timing.latency_ms.samples,
        "load_ms": timing.load_ms,
        "peak_bytes": timing.memory.peak_bytes,
        "device_bytes": timing.memory.device_bytes,
        "device_counted": timing.memory.device_counted,
        "nodes_by_provider": dict(timing.nodes_by_provider),
        "stable": timing.stable,
        "warnings": list(timing.warnings),
    }
