"""Which weights go: the smallest of each layer by magnitude (Han et al. 2015, Learning both Weights and Connections).

A pruned weight is one that is exactly zero. So the mask needs no place of its own: it travels in the checkpoint, and
``TrainOptions(freeze="zeros")`` finds it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from deploykit.compressions import PrunedLayer
from deploykit.errors import InputError, UnknownNameError
from deploykit.models import spec

if TYPE_CHECKING:
    import torch

__all__ = ["PruneOptions", "count_zeros", "prune_module", "shares_of"]


@dataclass(frozen=True)
class PruneOptions:
    """How much goes, validated.

    Attributes:
        share: Of the weights of every fully connected layer; None for the named layers alone.
        layers: Shares by a layer's name, for other shares and for convolutions. 0 leaves a layer as it is.
    """

    share: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        if self.share is None and not self.layers:
            raise InputError("nothing to prune; give a share of all fully connected layers, or of layers by name")
        if self.share is not None and not 0.0 < self.share < 1.0:
            raise InputError(f"prune {self.share}; allowed: a share above 0 and below 1, such as 0.9")
        for name, share in self.layers.items():
            if not 0.0 <= share < 1.0:
                raise InputError(f"prune layer {name}={share}; allowed: a share from 0 to below 1, such as 0.9")


def shares_of(module: torch.nn.Module, network: str, options: PruneOptions) -> dict[str, float]:
    """The share of each layer that is pruned, in the network's order.

    Args:
        module: A reference network.
        network: Its name; heads that only train are passed over, as they never leave.
        options: What goes.

    Raises:
        UnknownNameError: A layer that the network has not, or that has no weights to prune.
        InputError: It has no fully connected layers, and no others were named.
    """
    from torch import nn

    layers = _layers(module, network)
    for name in options.layers:
        if name not in layers:
            raise UnknownNameError("layer", name, layers)
    shares = dict(options.layers)
    if options.share is not None:
        connected = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if not connected:
            raise InputError(
                f"{network} has no fully connected layers; name convolutions, such as"
                f" --prune-layer {max(layers, key=lambda name: _weight(layers[name]).numel())}={options.share}"
            )
        shares = dict.fromkeys(connected, options.share) | shares
    return {name: shares[name] for name in layers if name in shares}


def prune_module(module: torch.nn.Module, shares: Mapping[str, float]) -> None:
    """Sets the smallest weights of the named layers to zero: of n weights round(share · n), zeros of before included.

    Among equal magnitudes those that come first go, so that the number is exact.
    """
    import torch

    layers = dict(module.named_modules())
    with torch.no_grad():
        for name, share in shares.items():
            weight = _weight(layers[name])
            weight.masked_fill_(_smallest(weight.detach(), round(share * weight.numel())), 0.0)


def _smallest(weight: torch.Tensor, count: int) -> torch.Tensor:
    """Where the ``count`` smallest magnitudes are; as the weight, bool."""
    import torch

    size = weight.abs().flatten()
    if not count:
        return torch.zeros_like(weight, dtype=torch.bool)
    bound = size.kthvalue(count).values
    chosen = size < bound
    ties = (size == bound).nonzero().flatten()[: count - int(chosen.sum())]
    chosen[ties] = True
    return chosen.view(weight.shape)


def count_zeros(module: torch.nn.Module, network: str) -> tuple[PrunedLayer, ...]:
    """Every layer with weights, and how many of them are exactly zero."""
    return tuple(
        PrunedLayer(
            name=name,
            op=type(layer).__name__,
            shape=tuple(_weight(layer).shape),
            weights=_weight(layer).numel(),
            zeros=int((_weight(layer) == 0.0).sum()),
        )
        for name, layer in _layers(module, network).items()
    )


def _layers(module: torch.nn.Module, network: str) -> dict[str, torch.nn.Module]:
    """Convolutions and fully connected layers that a deployed network holds, by name."""
    from torch import nn

    only_train = tuple(f"{head.partition('.')[0]}." for head in spec(network).head[1:])
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return {name: layer for name, layer in found.items() if not name.startswith(only_train or ("\0",))}


def _weight(layer: torch.nn.Module) -> torch.nn.Parameter:
    weight: torch.nn.Parameter = layer.weight  # type: ignore[assignment]  # of convolutions and fully connected layers
    return weight
