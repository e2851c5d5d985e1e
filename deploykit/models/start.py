"""The weights that deep networks without BatchNorm start from, so that they learn from the first step."""

from __future__ import annotations

from torch import nn

__all__ = ["start"]

HEAD_STD = 0.01
"""Spread of a head's weights: Krizhevsky et al. 2012, section 5."""


def start(network: nn.Module, *heads: nn.Linear) -> None:
    """Draws the weights of all convolutions and fully connected layers afresh; biases become zero.

    Hidden layers get normal weights of variance 2 / fan-in, which keeps the size of a signal through any number of
    ReLUs (He et al. 2015, equation 10). With a fixed spread of 0.01 it dies on its way: Simonyan & Zisserman 2015 had
    to train configuration A first for the others to start at all, and found only afterwards that a start by fan-in
    needs no such help (section 3.1). Heads get small weights: all classes are about equally likely at first, and the
    loss is log(classes) whatever the size of their input. BatchNorm stays as torch makes it, the identity.

    Args:
        network: Changed in place; costs no memory.
        heads: The layers of ``network`` that give logits.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if layer in heads:
                nn.init.normal_(layer.weight, std=HEAD_STD)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
