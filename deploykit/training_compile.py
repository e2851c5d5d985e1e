"""``torch.compile`` for a training: whether it is worth its time, and how its module is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.training_recipes import TrainOptions

if TYPE_CHECKING:
    import torch

__all__ = ["Compiled", "choose_compile", "compile_module"]

_VOLTA = 7  # the first compute capability that Triton, which the kernels are written in, compiles for
# Estimates, which no result depends on: what compiling takes, and what it saves a step – the launches of a small
# network, a fifth of a large one's arithmetic at some 100 Tflop/s.
_COMPILING_S = 60.0
_LAUNCHES_S = 1e-3
_FUSED = 0.2
_SUSTAINED_FLOPS = 1e14
_SMALL_MACS = 2e10  # of a step's forward pass: below, launching its kernels takes about as long as they do


@dataclass(frozen=True)
class Compiled:
    """A module as ``torch.compile`` made it, with the weights of the module it was made of.

    Attributes:
        forward: Called as the module is, with batches of one size.
        graphed: Whether its kernels are replayed as CUDA graphs; gradients then need memory of their own.
        required: Whether it was asked for, so that going on without would not be what was asked.
    """

    forward: Callable[[torch.Tensor], Any]
    graphed: bool
    required: bool


def choose_compile(options: TrainOptions, device: torch.device, macs: int | None, samples: int) -> str:
    """``on`` or ``off``. ``auto`` is on where a CUDA device would save more time than compiling takes.

    Args:
        options: How to train.
        device: The training device.
        macs: Multiply-accumulates of a forward pass of one picture; None where they are not known, which is off.
        samples: Training pictures.
    """
    if options.compile != "auto":
        return options.compile
    if macs is None or not _can_compile(device):
        return "off"
    steps = options.epochs * samples / options.batch_size
    arithmetic_s = 6.0 * macs * options.batch_size / _SUSTAINED_FLOPS
    return "on" if steps * max(_LAUNCHES_S, _FUSED * arithmetic_s) > _COMPILING_S else "off"


def _can_compile(device: torch.device) -> bool:
    import torch

    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_properties(device).major >= _VOLTA


def compile_module(
    module: torch.nn.Module, part: int, macs: int | None, device: torch.device, *, required: bool
) -> Compiled:
    """A compiled form of the module; compiling itself happens at the first call.

    Small networks are replayed as CUDA graphs, as launching their kernels one by one takes longer than they do.

    Args:
        module: Keeps its weights, which both forms share.
        part: Pictures that are computed at once.
        macs: See ``choose_compile``.
        device: The training device.
        required: See ``Compiled``.
    """
    import torch

    graphed = device.type == "cuda" and macs is not None and macs * part < _SMALL_MACS
    mode = "reduce-overhead" if graphed else "default"
    # Batches that are not full go through the module itself, so that one shape is all that is compiled for.
    return Compiled(torch.compile(module, dynamic=False, mode=mode), graphed, required)
