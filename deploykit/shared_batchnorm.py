"""BatchNorm over the batch that several processes share, instead of over each one's part (Peng et al. 2018, MegDet).

torch's ``SyncBatchNorm`` does so on GPUs only; on CPUs the same sums go through gloo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["synchronise"]


def synchronise(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module with every BatchNorm2d normalising by the statistics of all processes' pictures.

    Parameters, buffers and their names stay. Every process has to call it for the same number of parts of a batch.
    """
    from torch import nn

    if device.type == "cuda":
        made: torch.nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return made
    for name, child in list(module.named_children()):
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, _shared(child))
        else:
            synchronise(child, device)
    return module


def _shared(layer: torch.nn.BatchNorm2d) -> torch.nn.Module:
    import torch
    from torch import nn

    class SharedBatchNorm2d(nn.BatchNorm2d):
        """The layer, with mean and variance of all processes' values while it trains."""

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return super().forward(values)
            given, values = values.dtype, values.to(torch.promote_types(values.dtype, torch.float32))
            count, mean, variance = _moments(values)
            self._follow(count, mean, variance)
            scale = (variance + self.eps).rsqrt()
            if not self.affine:
                return ((values - mean) * scale).to(given)
            return ((values - mean) * (scale * self.weight.view(1, -1, 1, 1)) + self.bias.view(1, -1, 1, 1)).to(given)

        def _follow(self, count: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
            """Running statistics, of the unbiased variance, as ``nn.BatchNorm2d`` keeps them."""
            if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
                return
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.reshape(-1), share)
                self.running_var.lerp_((variance * (count / (count - 1.0))).reshape(-1), share)

    made = SharedBatchNorm2d(
        layer.num_features,
        layer.eps,
        layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    made.weight, made.bias = layer.weight, layer.bias
    made.running_mean, made.running_var = layer.running_mean, layer.running_var
    made.num_batches_tracked = layer.num_batches_tracked
    return made.train(layer.training)


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number of values a channel over all processes, their mean and biased variance (1, C, 1, 1).

    The variance is summed around the mean, not as a difference of squares, which cancels.
    """
    import torch

    own = torch.full((1,), float(values.numel() // values.shape[1]), device=values.device, dtype=values.dtype)
    sums = _sum(torch.cat([values.sum((0, 2, 3)), own]))
    count = sums[-1].detach()
    mean = (sums[:-1] / count).view(1, -1, 1, 1)
    squares = _sum((values - mean).square().sum((0, 2, 3)))
    return count, mean, (squares / count).view(1, -1, 1, 1)


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """Over the processes; so is the gradient, as each one's loss depends on what all have given."""
    import torch
    import torch.distributed as dist

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, given: torch.Tensor) -> torch.Tensor:
            total = given.clone()
            dist.all_reduce(total)
            return total

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            total = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

    summed: torch.Tensor = Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed
