"""The recipes of quantization: what becomes of weights and of the tensors between layers, for which machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit.errors import InputError, UnknownNameError
from deploykit.graph.quantize_linear import ActivationScheme
from deploykit.rounding import Grid

__all__ = ["RECIPES", "TARGETS", "Recipe", "Target", "recipe_for", "timed_here"]


_UNSIGNED = ActivationScheme()


@dataclass(frozen=True)
class Recipe:
    """How a model is made smaller.

    Attributes:
        name: What users call it.
        summary: One line.
        precision: Of the file that it makes.
        grid: Integers of the weights; None where no layer is computed in integers.
        activations: How tensors between layers are rounded.
        inputs_only: Round only what layers read.
        integer_bias: int32 biases.
        four_bit_matrices: Fully connected layers have 4-bit weights and read float.
        budgeted: Leaves layers in float to keep within a drop of accuracy.
        not_rewritten: Rewrites for other runtimes' sake (``graph.rewrites.REWRITES``).
    """

    name: str
    summary: str
    precision: str = "int8"
    grid: Grid | None = None
    activations: ActivationScheme = _UNSIGNED
    inputs_only: bool = False
    integer_bias: bool = True
    four_bit_matrices: bool = False
    budgeted: bool = False
    not_rewritten: frozenset[str] = frozenset()

    @property
    def reads_pixels(self) -> bool:
        """Whether its first layer may read a picture's pixels: integers as its other tensors are, with a zero point."""
        scheme = self.activations
        return self.grid is not None and not (scheme.signed or scheme.symmetric or scheme.by_sign)


# Without VNNI x86 adds two products in 16 bits: every pair of neighbours has to stay within 128 together. With it, and
# on ARM, in the tensor cores and under OpenVINO, a weight has all of int8's range but −128.
_PORTABLE, _FULL = Grid(127, pair_limit=128), Grid(127)

# OpenVINO has kernels for these, and computes BatchNormalization together with what stands behind it.
_WHOLE = frozenset({"batch_norm_to_depthwise", "split_hard_swish", "split_lrn"})

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("int8", "the same answers on every CPU: 8-bit weights of which no pair saturates", grid=_PORTABLE),
        Recipe("int8-vnni", "for x86 with VNNI or AMX only: weights of full range", grid=_FULL),
        Recipe(
            "int8-arm",
            "for ARM: signed tensors and symmetric weights of full range",
            grid=_FULL,
            activations=ActivationScheme(signed=True),
        ),
        Recipe(
            "int8-tensorrt",
            "for TensorRT: symmetric signed tensors, float biases",
            grid=_FULL,
            activations=ActivationScheme(signed=True, symmetric=True),
            integer_bias=False,
        ),
        Recipe(
            "int8-openvino",
            "for OpenVINO: rounding only where operators read, zero point 0, float biases",
            grid=_FULL,
            activations=ActivationScheme(by_sign=True),
            inputs_only=True,
            not_rewritten=_WHOLE,
            integer_bias=False,
        ),
        Recipe(
            "int8-int4fc",
            "int8 convolutions, 4-bit fully connected layers (MatMulNBits of ONNX Runtime)",
            precision="mixed",
            grid=_PORTABLE,
            four_bit_matrices=True,
        ),
        Recipe("fp16", "half precision, float inputs and outputs", precision="fp16"),
        Recipe(
            "mixed",
            "int8 with the layers that hurt left in float, within --max-drop",
            precision="mixed",
            grid=_PORTABLE,
            budgeted=True,
        ),
    )
}


@dataclass(frozen=True)
class Target:
    """Where a model is going to run.

    Attributes:
        name: What users call it.
        recipe: What runs well there.
        refused: Recipes that run slower there, or not at all, each with the reason.
    """

    name: str
    recipe: str
    refused: Mapping[str, str]


_NO_CUDA = "int8 convolutions have no kernel in the CUDA provider and fall back to the CPU"
_NO_BLOCKS = "MatMulNBits is ONNX Runtime's own operator, which this runtime does not have"
_X86_HALF = "x86 has no half-precision kernels in ONNX Runtime's CPU provider, which casts around every layer"
_SATURATES = "weights of full range saturate where VNNI is missing, and nothing tells at run time"
_SIGNED = "symmetric signed tensors keep every Relu and give away half of the levels"
_EDGES = "rounding only what layers read leaves float between all of them, slower than float in ONNX Runtime"
_ZERO = "TensorRT takes symmetric signed tensors, with zero point 0"
_WASM = "WebAssembly adds pairs in 16 bits on machines without relaxed SIMD, and full-range weights saturate"

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "x86",
            "int8",
            dict.fromkeys(("int8-vnni", "int8-arm", "int8-tensorrt"), _SATURATES)
            | {"int8-openvino": _EDGES, "fp16": _X86_HALF},
        ),
        Target("x86-vnni", "int8-vnni", {"int8-tensorrt": _SIGNED, "int8-openvino": _EDGES, "fp16": _X86_HALF}),
        Target("arm64", "int8-arm", {"int8-tensorrt": _SIGNED, "int8-openvino": _EDGES}),
        Target(
            "web",
            "int8",
            dict.fromkeys(("int8-vnni", "int8-arm", "int8-tensorrt"), _WASM)
            | {"int8-openvino": _EDGES, "fp16": "WebAssembly has no half-precision kernels"},
        ),
        Target(
            "cuda",
            "fp16",
            dict.fromkeys(
                ("int8", "int8-vnni", "int8-arm", "int8-tensorrt", "int8-openvino", "int8-int4fc", "mixed"), _NO_CUDA
            ),
        ),
        Target(
            "tensorrt",
            "int8-tensorrt",
            dict.fromkeys(("int8", "int8-vnni", "int8-arm", "int8-openvino", "mixed"), _ZERO)
            | {"int8-int4fc": _NO_BLOCKS},
        ),
        Target("openvino", "int8-openvino", {"int8-int4fc": _NO_BLOCKS}),
    )
}
"""Where models run, what runs well there, and what does not."""


def recipe_for(recipe: str | None, target: str | None) -> Recipe:
    """The recipe that is asked for, or the target's; ``int8`` for neither.

    Raises:
        UnknownNameError: No such recipe or target.
        InputError: The target runs that recipe slower than float or not at all; the reason and the alternative.
    """
    if recipe is not None and recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    if target is None:
        return RECIPES[recipe or "int8"]
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    there = TARGETS[target]
    if recipe is not None and recipe in there.refused:
        raise InputError(f"recipe {recipe} for target {target}: {there.refused[recipe]}; use {there.recipe}")
    return RECIPES[recipe or there.recipe]


_OF_MACHINES = {
    "x86_64": ({"int8", "int8-vnni", "int8-int4fc", "mixed"}, {"x86", "x86-vnni"}),
    "arm64": ({"int8", "int8-arm", "int8-int4fc", "mixed"}, {"arm64"}),
}


def timed_here(recipe: Recipe, target: str | None, machine: str) -> bool:
    """Whether the CPU of this machine can tell if the recipe pays where the model is going to run.

    Args:
        recipe: What is made.
        target: Name in ``TARGETS``; None for this machine.
        machine: As ``platform.machine()`` calls it.
    """
    kind = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine.lower(), machine.lower())
    recipes, targets = _OF_MACHINES.get(kind, (set(), set()))
    return recipe.name in recipes and (target is None or target in targets)
