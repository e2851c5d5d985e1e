"""What a torch module weighs, by running it once on torch's ``meta`` device: shapes without memory or arithmetic.

Every operation is seen as it is dispatched: functional calls count as well as layers, and nothing has to be traceable.
The first profile of a process takes a second or two, in which torch imports what knows the shapes; VGG-16 then 0.1 s.

A layer whose connections are not those of its convolutions and matrix products can say so itself, in one method::

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        \"\"\"(connections, macs) for one picture; output_shape is without the batch axis.\"\"\"

It becomes one row of the table, whatever layers it is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import InputError
from deploykit.models import NetworkSpec, build, spec
from deploykit.models.recorder import CountsConnections, Recorder
from deploykit.models.stage_rows import published, stages
from deploykit.results import LayerProfile, Profile

__all__ = ["CountsConnections", "ModuleProfile", "profile_module", "profile_network"]


@dataclass(frozen=True)
class ModuleProfile:
    """What a module weighs in evaluation mode, for one picture.

    Attributes:
        layers: The layers that hold parameters or multiply, and poolings, in order of execution.
        parameters: Of the layers that run, each tensor once; auxiliary heads that only train do not count.
        connections: Multiply-accumulates, biases counted as one (LeCun et al. 1998).
        macs: Multiply-accumulates of convolutions and matrix products, without biases.
        weight_bytes: Of the layers that run: parameters and running statistics.
        peak_activation_bytes: By liveness, elementwise operations in place where their input is not needed again.
        operators: How often each kind of layer or bare operation runs.
    """

    layers: tuple[LayerProfile, ...]
    parameters: int
    connections: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    operators: Mapping[str, int]


def profile_module(module: nn.Module, input_shape: tuple[int, int, int]) -> ModuleProfile:
    """Profiles a module without changing it, moving it, or allocating its weights again.

    Args:
        module: Takes one tensor N×C×H×W.
        input_shape: C, H, W.

    Raises:
        InputError: The module cannot run on that shape, or its course depends on the values it computes.
    """
    twin = _meta_twin(module).eval()
    recorder = Recorder(twin)
    given = torch.empty((1, *input_shape), device="meta")
    recorder.memory.add(given)
    try:
        with torch.no_grad(), recorder.hooked(), recorder:
            answer = twin(given)
    except (RuntimeError, TypeError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        shape = "×".join(map(str, input_shape))
        raise InputError(f"{type(module).__name__} cannot be profiled on an input of {shape}: {reason}") from problem
    layers = recorder.layers()
    return ModuleProfile(
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        connections=sum(layer.connections for layer in layers),
        macs=sum(layer.macs for layer in layers),
        weight_bytes=recorder.weight_bytes,
        peak_activation_bytes=recorder.memory.peak(given, answer),
        operators=dict(recorder.operators),
    )


def profile_network(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    **options: str,
) -> Profile:
    """Profiles a reference network by its name, without allocating weights.

    Args:
        name: One of ``names()``.
        num_classes: As ``build`` takes it.
        in_channels: As ``build`` takes it; by default those of ``input_shape``.
        input_shape: ``(C, H, W)``; by default the table's, or 32×32 for the variant for small pictures.
        options: As ``build`` takes them.

    Raises:
        InputError: What ``build`` raises, or a shape that the network does not take.
    """
    shape = _network_shape(spec(name), in_channels, input_shape, options)
    with torch.device("meta"):
        module = build(name, num_classes, shape[0], **options)
    found = profile_module(module, shape)
    return Profile(
        name=name,
        parameters=found.parameters,
        connections=found.connections,
        macs=found.macs,
        weight_bytes=found.weight_bytes,
        file_bytes=None,
        download_bytes=None,
        peak_activation_bytes=found.peak_activation_bytes,
        precision="fp32",
        layers=found.layers,
        operators=found.operators,
        input_shape=shape,
        stages=stages(name, found.layers),
        published=published(name, found.layers),
    )


def _network_shape(
    entry: NetworkSpec,
    in_channels: int | None,
    input_shape: tuple[int, int, int] | None,
    options: Mapping[str, str],
) -> tuple[int, int, int]:
    channels, *sides = input_shape or entry.input
    if input_shape is None:
        channels = in_channels or channels
        if options.get("pictures") == "small":
            sides = [_SMALL_SIDE, _SMALL_SIDE]
    elif in_channels not in (None, channels):
        shape = "×".join(map(str, input_shape))
        raise InputError(f"{entry.name} with {in_channels} channels on an input of {shape}; allowed: the same number")
    if not entry.any_size and tuple(sides) != entry.input[1:]:
        given, own = ("×".join(map(str, pair)) for pair in (sides, entry.input[1:]))
        raise InputError(f"{entry.name} on pictures of {given}; allowed: {own}")
    return channels, sides[0], sides[1]


_SMALL_SIDE = 32  # CIFAR's pictures


def _meta_twin(module: nn.Module) -> nn.Module:
    """A deep copy whose tensors are all on ``meta``: the copy's memo has them before the copy starts."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False), *_loose_tensors(part)):
            memo.setdefault(id(tensor), _on_meta(tensor))
    return copy.deepcopy(module, memo)


def _loose_tensors(module: nn.Module) -> list[Tensor]:
    return [value for value in vars(module).values() if isinstance(value, Tensor)]


def _on_meta(tensor: Tensor) -> Tensor:
    shadow = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(shadow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shadow
