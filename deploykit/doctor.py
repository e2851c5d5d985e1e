"""What is installed, what clashes, and which providers really run a model here.

ONNX Runtime is touched only in processes of its own with a time limit: a library that crashes or hangs on loading is
a finding, not the end of the examination.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from deploykit import environment
from deploykit.browser import find_browser
from deploykit.cuda_diagnosis import CudaFacts, diagnose_cuda
from deploykit.cuda_facts import RUNTIME_WHEELS, cuda_facts
from deploykit.errors import DeploykitError, ProviderError
from deploykit.runtime import PROVIDERS
from deploykit.runtime_plugins import plugin_distributions
from deploykit.worker import Worker

__all__ = ["Check", "Diagnosis", "diagnose"]

Status = Literal["ok", "warning", "problem"]

_TRIAL_S = 8.0
_MIN_PYTHON = (3, 11)
_LOW_DISK_BYTES = 2 * 10**9
_LOW_MEMORY_BYTES = 2 * 10**9
_GIB = 1 << 30

_WITH_CUDA = ("cuda", "tensorrt")  # of the wheel itself; a plugin lies beside a wheel without CUDA too

_EXTRAS = {
    "torch": (("torch", "onnxscript", "safetensors"), "train and export"),
    "report": (("altair", "vl_convert", "jinja2"), "reports with charts"),
    "openvino": (("onnxruntime_ep_openvino",), "the openvino provider on Intel processors"),
}
"""Extra -> import names of its packages, and what needs it."""


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it stands, and what to do about it."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings.

    ``providers`` holds ``{name, listed, works, detail}`` for each provider that deploykit knows, and for those of
    installed plugins.
    """

    checks: tuple[Check, ...]
    environment: Mapping[str, Any]
    providers: tuple[Mapping[str, Any], ...]

    @property
    def healthy(self) -> bool:
        """Whether no check found a problem; warnings are allowed."""
        return all(check.status != "problem" for check in self.checks)

    def to_document(self) -> dict[str, Any]:
        """The JSON document of ``doctor --json``."""
        from deploykit import __version__

        return {
            "schema": "deploykit.doctor/1",
            "deploykit": __version__,
            "environment": dict(self.environment),
            "healthy": self.healthy,
            "checks": [asdict(check) for check in self.checks],
            "providers": [dict(provider) for provider in self.providers],
        }


def diagnose() -> Diagnosis:
    """Examines this installation and machine, usually in one to three seconds; raises nothing foreseen.

    Each provider that ONNX Runtime lists runs a tiny convolution in a process of its own, all at the same time, and
    has 8 seconds for it.
    """
    machine = environment.describe()
    providers, runtime_check = _try_providers()
    checks = (
        _python(),
        _wheels(),
        runtime_check,
        _plugins(),
        *_provider_checks(providers, machine),
        _cuda(cuda_facts(), providers),
        *_extras(),
        _browser(),
        _int8(machine["machine"], machine["cpu_features"]),
        _cpu_limit(machine),
        _memory(machine),
        _data_folder(),
        _disk(),
    )
    return Diagnosis(checks=checks, environment=machine, providers=tuple(providers))


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= _MIN_PYTHON:
        return Check("python", "ok", version)
    return Check("python", "problem", f"{version} is too old", "install Python 3.11 or later")


def _wheels(path: Sequence[str] | None = None) -> Check:
    """Whether exactly one wheel brings ``onnxruntime``; two overwrite each other's files (onnxruntime #26996)."""
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    names = {(dist.metadata["Name"] or "").lower().replace("_", "-"): dist.version for dist in found}
    plugins = plugin_distributions(path)  # onnxruntime-qnn is one since 2.0
    wheels = {name: names[name] for name in RUNTIME_WHEELS if name in names and name not in plugins}
    listed = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not wheels:
        return Check("onnxruntime wheel", "problem", "no onnxruntime is installed", "pip install onnxruntime")
    if len(wheels) == 1:
        return Check("onnxruntime wheel", "ok", listed)
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in wheels else next(iter(wheels))
    # Reinstalling the kept one is needed: removing the other took files away that both own.
    fix = f"pip uninstall -y {' '.join(wheels)} && pip install --no-cache-dir {keep}=={wheels[keep]}"
    return Check("onnxruntime wheel", "problem", f"{listed} are installed and overwrite each other's files", fix)


def _plugins(path: Sequence[str] | None = None) -> Check:
    """The packages that bring a provider beside the wheel; whether one starts, its provider's check says."""
    plugins = plugin_distributions(path)
    listed = ", ".join(f"{name} {version}" for name, (version, _) in plugins.items())
    empty = [name for name, (_, there) in plugins.items() if not there]
    if empty:
        fix = f"pip uninstall -y {' '.join(empty)}"
        return Check("plugins", "warning", f"{', '.join(empty)} bring no package that could be loaded", fix)
    return Check("plugins", "ok", listed or "none")


def _try_providers() -> tuple[list[dict[str, Any]], Check]:
    """Which providers ONNX Runtime lists, and which of them run a model on themselves."""
    try:
        with Worker("doctor", timeout_s=_TRIAL_S) as worker:
            listed = worker.ask("providers")["providers"]
    except DeploykitError as problem:
        missing = [{"name": name, "listed": False, "works": False, "detail": "unknown"} for name in PROVIDERS]
        fix = "pip install --force-reinstall --no-cache-dir onnxruntime-gpu"
        return missing, Check("onnxruntime", "problem", f"cannot be loaded: {problem}", fix)
    outcomes = _trials(listed)
    rows = [
        {"name": name, "listed": name in listed}
        | {"works": not outcomes.get(name, "x"), "detail": outcomes.get(name, "not in this onnxruntime") or "runs"}
        for name in dict.fromkeys([*PROVIDERS, *listed])
    ]
    return rows, Check("onnxruntime", "ok", f"loads and lists {', '.join(listed)}")


def _trials(names: Sequence[str]) -> dict[str, str]:
    """Runs the tiny model on each provider at the same time; why it failed, or an empty text."""
    outcomes: dict[str, str] = {}
    with ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trial.onnx"
        model.write_bytes(_tiny_model())
        feed = {"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}
        workers = {}
        for name in names:
            workers[name] = stack.enter_context(Worker("trial", provider=name, timeout_s=_TRIAL_S))
            workers[name].send("start", model=str(model), feeds=[feed], seed=0, provider=name, threads=1)
        for name, worker in workers.items():
            try:
                worker.answer("start")
                outcomes[name] = ""
            except DeploykitError as problem:
                outcomes[name] = str(problem).replace(str(model), "a small model")
    return outcomes


def _tiny_model() -> bytes:
    """A convolution that every provider has a kernel for: 1×3×8×8 -> 1×4×8×8."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph([node], "trial", ends[:1], ends[1:], [weight])
    content: bytes = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()
    return content


def _provider_checks(providers: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> Iterator[Check]:
    for row in providers:
        name = f"provider {row['name']}"
        if row["works"]:
            yield Check(name, "ok", "runs a model")
        elif row["name"] == "cpu":
            yield Check(name, "problem", row["detail"], "reinstall onnxruntime")
        elif row["name"] in _WITH_CUDA and row["listed"]:
            yield _nvidia_check(row, machine)
        elif row["listed"]:
            yield Check(name, "warning", f"listed by onnxruntime but does not run here: {row['detail']}")


def _nvidia_check(row: Mapping[str, Any], machine: Mapping[str, Any]) -> Check:
    """What keeps a provider of NVIDIA's from starting; a problem where there is a GPU that lies idle for it."""
    name, finding = f"provider {row['name']}", diagnose_cuda(cuda_facts(row["detail"]))
    if machine["gpus"] and row["name"] == "cuda":
        return Check(name, "problem", f"there is a {machine['gpus'][0]['name']}, but {finding.problem}", finding.fix)
    return Check(name, "warning", f"listed by onnxruntime but does not run here: {finding.problem}", finding.fix)


def _cuda(facts: CudaFacts, providers: Sequence[Mapping[str, Any]]) -> Check:
    """The versions that must agree: what ONNX Runtime is built for, NVIDIA's packages, torch and the driver."""
    works = any(row["name"] == "cuda" and row["works"] for row in providers)
    if facts.built_for is None:
        idle = bool(facts.gpus) and not works
        built = "does not say for which CUDA it is built" if works else "is built without CUDA"
        detail = f"{facts.runtime} {built}" + (f", and there is a {facts.gpus[0]}" if idle else "")
        return Check("CUDA", "warning" if idle else "ok", detail, diagnose_cuda(facts).fix if idle else None)
    parts = [f"{facts.runtime} is built for CUDA {facts.built_for}"]
    parts.append(f"driver {facts.driver}" if facts.driver else "no NVIDIA driver")
    named = [
        name for name in facts.packages if name.startswith(("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cudnn"))
    ]
    parts.append(", ".join(f"{name} {facts.packages[name]}" for name in named) or "no package of NVIDIA's libraries")
    if facts.torch_cuda:
        parts.append(f"torch with CUDA {facts.torch_cuda}")
    apart = not works and facts.torch_cuda not in (None, facts.built_for)
    fix = f"pip install 'deploykit[cuda]', which puts CUDA {facts.built_for} beside torch's" if apart else None
    return Check("CUDA", "warning" if apart else "ok", "; ".join(parts), fix)


def _extras() -> Iterator[Check]:
    for extra, (packages, purpose) in _EXTRAS.items():
        missing = [package for package in packages if util.find_spec(package) is None]
        if not missing:
            yield Check(f"extra {extra}", "ok", f"installed ({purpose})")
        else:
            detail = f"without {', '.join(missing)}; only {purpose} need it"
            yield Check(f"extra {extra}", "ok", detail, f"pip install 'deploykit[{extra}]'")


def _browser() -> Check:
    """What ``bench --provider web`` would run models in; nothing else needs one."""
    try:
        return Check("browser", "ok", f"{find_browser()} (bench --provider web)")
    except ProviderError as problem:
        return Check("browser", "ok", f"none, which only bench --provider web needs: {problem}")


def _int8(machine: str, features: Sequence[str]) -> Check:
    """What this processor means for int8 models (Intel SDM: VPMADDUBSW adds two products into 16 bits, saturating)."""
    has = set(features)
    name = "int8 on this CPU"
    if machine.lower() in ("arm64", "aarch64"):
        if has & {"asimddp", "i8mm"}:
            return Check(name, "ok", "dot product instructions: int8 is fast and exact")
        return Check(name, "warning", "no dot product instructions known: int8 gains little speed")
    if has & {"amx_int8", "avx512_vnni", "avx_vnni"}:
        return Check(name, "ok", "VNNI or AMX: int8 is fast, and full-range weights are exact")
    if has & {"avx2", "avx512f"}:
        detail = "no VNNI: full-range 8-bit weights saturate silently and lose accuracy, and int8 gains less speed"
        return Check(name, "warning", detail, "quantize with the recipe int8, of whose weights no pair saturates")
    return Check(name, "warning", "neither VNNI nor AVX2 is known here: int8 may be slower than float")


def _cpu_limit(machine: Mapping[str, Any]) -> Check:
    allowed, logical = machine["available_cpus"], machine["logical_cores"] or machine["available_cpus"]
    if allowed >= logical:
        return Check("processors", "ok", f"{logical} logical processors, all usable")
    detail = f"{allowed} of the host's {logical} processors may be used (affinity or cgroup quota)"
    fix = "nothing for deploykit, which counts them; other ONNX Runtime programs need intra_op_num_threads set"
    return Check("processors", "warning", detail, fix)


def _memory(machine: Mapping[str, Any]) -> Check:
    total, limit = machine["memory_bytes"], machine["memory_limit_bytes"]
    usable = total if limit is None else min(total, limit)
    detail = f"{usable / _GIB:.1f} GiB"
    if usable < total:
        detail += f" allowed by the cgroup, of the host's {total / _GIB:.1f} GiB"
    low = usable < _LOW_MEMORY_BYTES
    return Check("memory", "warning" if low else "ok", detail, "large networks will not fit" if low else None)


def _data_folder() -> Check:
    folder = os.environ.get("DEPLOYKIT_DATA")
    if not folder:
        detail = "DEPLOYKIT_DATA is not set; --data-dir says where datasets lie"
        return Check("data folder", "ok", detail)
    if Path(folder).is_dir():
        return Check("data folder", "ok", folder)
    return Check("data folder", "warning", f"DEPLOYKIT_DATA is {folder}, which is no folder", "create it or unset it")


def _disk() -> Check:
    free = {place: shutil.disk_usage(place).free for place in (str(Path.cwd()), tempfile.gettempdir())}
    place, least = min(free.items(), key=lambda item: item[1])
    low = least < _LOW_DISK_BYTES
    fix = "make room, or set TMPDIR to another disk" if low else None
    return Check("disk", "warning" if low else "ok", f"{least / _GIB:.1f} GiB free in {place}", fix)
