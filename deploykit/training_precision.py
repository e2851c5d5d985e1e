"""In what arithmetic a training computes: float, TF32, or bfloat16 by autocast with weights that stay float."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from deploykit.device_peaks import peak_flops
from deploykit.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["autocast", "choose_precision", "device_peak", "float_arithmetic"]

_AMPERE = 8  # the first compute capability with tensor cores for bfloat16 and TF32


def choose_precision(name: str, device: torch.device) -> str:
    """``fp32``, ``tf32`` or ``bf16``, which that device has.

    ``auto`` is bf16 on CUDA devices whose tensor cores take it, and fp32 elsewhere. bfloat16 has float's range of
    exponents, so that losses need no scaling.

    Raises: InputError when the device has no such arithmetic.
    """
    works = ["fp32", *_fast(device)]
    if name == "auto":
        return "bf16" if device.type == "cuda" and "bf16" in works else "fp32"
    if name not in works:
        raise InputError(f"precision {name} on {device.type}; allowed here: auto, {', '.join(works)}")
    return name


def _fast(device: torch.device) -> tuple[str, ...]:
    import torch

    if device.type == "cpu":
        return ("bf16",)
    if device.type == "cuda" and torch.cuda.get_device_properties(device).major >= _AMPERE:
        return ("tf32", "bf16")
    return ()


def device_peak(precision: str, device: torch.device) -> float | None:
    """Operations a second that the device does at most in that precision; None where it is not known."""
    import torch

    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Within it, convolutions and matrix products are computed in ``precision``; their weights stay float."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def float_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """How CUDA computes what is float, for the block; the settings before it come back afterwards.

    TF32 but for ``fp32``: what bf16 leaves in float, and the measurements after each epoch, then take tensor cores.
    cuDNN may try its algorithms and keep the fastest, as all full batches have one shape. Elsewhere nothing changes.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    cudnn.allow_tf32, cudnn.benchmark = precision != "fp32", True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]
