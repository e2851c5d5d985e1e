"""What is tried: files × providers × threads × session options, and what is refused at once, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit import environment
from deploykit.recipes import RECIPES, TARGETS
from deploykit.runtime import provider_names
from deploykit.tune_options import FLOAT_FORMS, TuneOptions
from deploykit.tunings import Candidate

__all__ = ["Here", "candidates_of", "providers_tried"]

_TRIED = ("cpu", "openvino", "cuda")  # TensorRT, CoreML and others are tried when they are asked for
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
_ARM = ("arm64", "aarch64")
_GPUS = ("cuda", "tensorrt")


@dataclass(frozen=True)
class Here:
    """What decides which candidates make sense.

    Attributes:
        machine: As ``platform.machine()`` calls it.
        cpu_features: As ``environment.cpu_features`` names them.
        cpus: That this process may keep busy.
        problems: Why a provider cannot be used, by its short name.
        matrices: Whether the model has fully connected layers.
        quantized: Whether the model is quantized already, so that only sessions are left to try.
    """

    machine: str
    cpu_features: tuple[str, ...]
    cpus: int
    problems: Mapping[str, str] = field(default_factory=dict)
    matrices: bool = True
    quantized: bool = False

    @classmethod
    def now(cls, **known: Any) -> Here:
        """This machine; ``known`` are the other fields."""
        described = environment.describe()
        return cls(described["machine"].lower(), environment.cpu_features(), environment.available_cpus(), **known)

    @property
    def arm(self) -> bool:
        """Whether the processor is an ARM."""
        return self.machine in _ARM

    @property
    def vnni(self) -> bool:
        """Whether x86's products of bytes are added without saturation."""
        return any(name in self.cpu_features for name in _VNNI)


def providers_tried(options: TuneOptions) -> tuple[str, ...]:
    """Those asked for, or the usual ones that are installed here; whether one starts is another question."""
    if options.providers is not None:
        return tuple(dict.fromkeys(options.providers))
    listed = provider_names()
    return tuple(name for name in _TRIED if name in listed)


def candidates_of(options: TuneOptions, here: Here) -> list[Candidate]:
    """The grid, in the order in which equally good ones are preferred: simple files first, few threads first.

    What cannot or should not be tried is there once a file and provider, with ``rejected_because``.
    """
    providers = providers_tried(options)
    return [item for recipe in _recipes(options, here) for item in _of_recipe(recipe, providers, options, here)]


def _recipes(options: TuneOptions, here: Here) -> tuple[str, ...]:
    """Names of ``FLOAT_FORMS`` and ``RECIPES``, the float model first."""
    if here.quantized:
        return ("float",)
    every = (*FLOAT_FORMS, *RECIPES)
    if options.recipes is not None:
        return tuple(name for name in every if name in options.recipes or name == "float")
    pointless = {"int8-arm"} if not here.arm else {"int8-vnni"}
    pointless |= set() if here.vnni or here.arm else {"int8-vnni"}
    pointless |= set() if here.matrices else {"int8-int4fc"}
    for provider, recipe in (("openvino", "int8-openvino"), ("tensorrt", "int8-tensorrt")):
        pointless |= set() if provider in providers_tried(options) else {recipe}
    return tuple(name for name in every if name not in pointless)


def _of_recipe(recipe: str, providers: Sequence[str], options: TuneOptions, here: Here) -> Iterator[Candidate]:
    for provider in providers:
        reason = here.problems.get(provider) or _refusal(recipe, provider, here)
        threads = _threads(provider, options, here)
        if reason:
            yield Candidate(recipe, provider, threads[-1], rejected_because=reason)
            continue
        for session in _sessions(provider, options):
            for count in threads:
                yield Candidate(recipe, provider, count, session=session)


def _sessions(provider: str, options: TuneOptions) -> Sequence[Mapping[str, Any]]:
    """Further arguments of ``runtime.create_session``, the defaults first."""
    if provider == "openvino":
        # It has optimisations of its own, which may miss their patterns behind those of ONNX Runtime; whose
        # documentation advises to switch the latter off (onnxruntime.ai, "OpenVINO Execution Provider"). Which is
        # faster depends on the model.
        return ({}, {"optimize": False})
    lean = provider == "cpu" and options.objective == "memory"
    return ({}, {"memory": "lean"}) if lean else ({},)


def _threads(provider: str, options: TuneOptions, here: Here) -> tuple[int, ...]:
    counts = tuple(sorted(set(options.threads or (1, here.cpus))))
    return counts[-1:] if provider in _GPUS else counts


def _refusal(recipe: str, provider: str, here: Here) -> str | None:
    """Why this recipe is not for this provider on this machine; None when it is."""
    target = TARGETS.get(_target(provider, here) or "")
    return target.refused.get(recipe) if target and recipe in RECIPES else None


def _target(provider: str, here: Here) -> str | None:
    """Name in ``recipes.TARGETS``; None where nothing is known."""
    if provider != "cpu":
        return provider if provider in TARGETS else None
    if here.arm:
        return "arm64"
    return "x86-vnni" if here.vnni else "x86"
