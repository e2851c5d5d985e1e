"""How many floating-point operations a second a GPU does at most, and what share of them a training reached.

Dense peaks of NVIDIA's datasheets: where a sheet prints tensor-core figures "with sparsity", half of them; bf16 with
sums in float. GeForce from the appendices of NVIDIA's architecture whitepapers (GA102, Ada). A name that is not here,
and a slice of a GPU (MIG), has no peak: no share is told rather than a wrong one.
"""

from __future__ import annotations

import re

__all__ = ["mfu", "peak_flops"]

_TERA = 1e12
_COLUMNS = ("bf16", "tf32", "fp32")

# What torch.cuda.get_device_name says, and teraflops by _COLUMNS; None where there are no tensor cores for it.
_PEAKS: tuple[tuple[str, tuple[float | None, float | None, float]], ...] = (
    (r"NVIDIA B200", (2250.0, 1100.0, 75.0)),
    (r"NVIDIA H200", (989.5, 494.5, 67.0)),
    (r"NVIDIA H200 NVL", (835.5, 417.5, 60.0)),
    (r"NVIDIA GH200 .*", (989.5, 494.5, 67.0)),
    (r"NVIDIA H100( SXM5)? 80GB HBM3", (989.5, 494.5, 67.0)),
    (r"NVIDIA H100 PCIe", (756.5, 378.0, 51.0)),
    (r"NVIDIA H100 NVL", (835.5, 417.5, 60.0)),
    (r"(NVIDIA )?A100-SXM4-[48]0GB", (312.0, 156.0, 19.5)),
    (r"(NVIDIA )?A100-PCI[Ee]-[48]0GB|NVIDIA A100 80GB PCIe", (312.0, 156.0, 19.5)),
    (r"NVIDIA A30", (165.0, 82.0, 10.3)),
    (r"NVIDIA A10", (125.0, 62.5, 31.2)),
    (r"NVIDIA A40", (149.7, 74.8, 37.4)),
    (r"NVIDIA L40S", (362.05, 183.0, 91.6)),
    (r"NVIDIA L40", (181.05, 90.5, 90.5)),
    (r"NVIDIA L4", (121.0, 60.0, 30.3)),
    (r"(NVIDIA )?(Tesla )?T4", (None, None, 8.1)),
    (r"(NVIDIA )?(Tesla )?V100-SXM2-(16|32)GB", (None, None, 15.7)),
    (r"NVIDIA GeForce RTX 3090", (71.0, 35.6, 35.6)),
    (r"NVIDIA GeForce RTX 4080", (97.5, 48.7, 48.7)),
    (r"NVIDIA GeForce RTX 4090", (165.2, 82.6, 82.6)),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense floating-point operations a second at most.

    Args:
        device_name: As ``torch.cuda.get_device_name`` says it.
        precision: ``bf16``, ``tf32`` or ``fp32`` (without tensor cores).

    Returns:
        None where it is not known.
    """
    for pattern, teraflops in _PEAKS:
        if re.fullmatch(pattern, device_name):
            peak = dict(zip(_COLUMNS, teraflops, strict=True)).get(precision)
            return None if peak is None else peak * _TERA
    return None


def mfu(images_per_s: float, macs: int, peak: float) -> float:
    """Model FLOPs utilisation of a training (Chowdhery et al. 2022, PaLM, appendix B): a fraction of the peak.

    A multiply-accumulate is two operations, and the backward pass takes twice the forward pass's: gradients of the
    weights and of the inputs.

    Args:
        images_per_s: Pictures learnt from a second.
        macs: Multiply-accumulates of a forward pass of one picture.
        peak: Operations a second; see ``peak_flops``.
    """
    return images_per_s * 3 * 2 * macs / peak
