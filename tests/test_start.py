"""Deep networks without BatchNorm start to learn: the size of the signal, and of what comes back; a short training."""

import math

import pytest
import torch
from torch import nn

from deploykit import models
from deploykit.models.start import start


def stripes(count, side, generator):
    """Noisy gratings in four directions: count×3×side×side, and which direction."""
    labels = torch.arange(count) % 4
    angle = (labels * math.pi / 4)[:, None, None]
    axis = 2 * math.pi * 4 * torch.arange(side) / side  # four periods
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    grey = torch.sin(axis[None, :, None] * torch.sin(angle) + axis[None, None, :] * torch.cos(angle) + phase)
    return grey[:, None] + 0.5 * torch.randn(count, 3, side, side, generator=generator), labels


def flat(network):
    """The fixed spread that Simonyan & Zisserman 2015 began with."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.01)
    return network


def signals(network, side):
    """Standard deviations of what the convolutions answer; the losses; gradients' norms over the weights' norms."""
    pictures, labels = stripes(4, side, torch.Generator().manual_seed(0))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    spreads = []
    hooks = [
        layer.register_forward_hook(lambda _, given, answer: spreads.append(answer.detach().std().item()))
        for layer in convolutions
    ]
    network.zero_grad()
    answer = network(pictures)
    for hook in hooks:
        hook.remove()
    answers = (answer.logits, *answer.auxiliary) if isinstance(answer, tuple) else (answer,)
    losses = [nn.functional.cross_entropy(logits, labels) for logits in answers]
    sum(losses).backward()
    pulls = [(layer.weight.grad.norm() / layer.weight.norm()).item() for layer in convolutions]
    return spreads, [loss.item() for loss in losses], pulls


@pytest.mark.parametrize(("name", "side", "options"), [("vgg16", 32, {"pictures": "small"}), ("googlenet", 64, {})])
def test_the_signal_keeps_its_size_both_ways(name, side, options):
    torch.manual_seed(0)
    network = models.build(name, 4, **options)
    spreads, losses, pulls = signals(network, side)
    assert min(spreads) > 0.1 and max(spreads) < 5
    assert max(pulls) < 100 * min(pulls)
    assert losses == pytest.approx([math.log(4)] * len(losses), abs=0.4)

    faded, _, weak = signals(flat(network), side)
    assert min(faded) < 1e-3  # what the start is for
    assert min(weak) < 1e-3 * min(pulls)


def test_heads_start_small_and_batch_norm_as_the_identity():
    network = nn.Sequential(
        nn.Conv2d(2, 512, 3), nn.BatchNorm2d(512), nn.Conv2d(512, 8, 1, bias=False), nn.Linear(8, 512)
    )
    start(network, network[3])
    assert network[0].weight.std().item() == pytest.approx(math.sqrt(2 / 18), rel=0.05)
    assert network[2].weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.05)
    assert network[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(layer.bias.eq(0).all() for layer in network if layer.bias is not None)
    assert network[1].weight.eq(1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "options"), [("vgg16", 32, {"pictures": "small"}), ("googlenet", 64, {})])
def test_thirty_steps_teach_it(name, side, options):
    """With a fixed spread of 0.01 the loss of both stays at log(4) = 1.386 and a quarter is right."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = models.build(name, 4, **options)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    for _ in range(30):
        pictures, labels = stripes(16, side, generator)
        answer = network(pictures)
        logits, auxiliary = answer if isinstance(answer, tuple) else (answer, ())
        loss = nn.functional.cross_entropy(logits, labels)
        for other in auxiliary:
            loss = loss + network.auxiliary_weight * nn.functional.cross_entropy(other, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    pictures, labels = stripes(64, side, generator)
    with torch.no_grad():
        logits = network.eval()(pictures)
    assert nn.functional.cross_entropy(logits, labels) < 0.9
    assert (logits.argmax(1) == labels).float().mean() > 0.7
