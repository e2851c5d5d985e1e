"""A fresh network hides mistakes: biases of zero and BatchNorms that do nothing. These make it look trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["live", "without_dropout"]


def without_dropout(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


def live(module: nn.Module, pictures: Tensor, seed: int = 3) -> nn.Module:
    """Random biases and BatchNorm scales, running statistics of ``pictures`` (so that deep networks stay finite).

    Returns:
        The module, changed in place, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for name, parameter in module.named_parameters():
        if name.endswith("bias") and parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.weight.data.mul_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            module.train()(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
