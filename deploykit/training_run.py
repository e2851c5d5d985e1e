"""What one training works on: module, optimizer, the weights' moving average, and the history so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifact import Preprocess
from deploykit.device_peaks import mfu
from deploykit.errors import InputError
from deploykit.ranks import part_of
from deploykit.shared_batchnorm import synchronise
from deploykit.shared_training import Team
from deploykit.training_compile import Compiled
from deploykit.training_precision import autocast, choose_precision
from deploykit.training_recipes import TrainOptions

if TYPE_CHECKING:
    import torch

    from deploykit.models.pictures import TrainingLogits

__all__ = ["HISTORY_KEYS", "Run", "check_batches", "choose_device", "start_run", "torch_threads"]

HISTORY_KEYS = (
    *("epoch", "train_loss", "train_top1", "test_loss", "test_top1"),
    *("learning_rate", "train_seconds", "seconds"),
)
"""Of one row of the history, in the order of its table."""

_WIDE = 32  # channels
_SAID = 200  # letters of why compiling failed, which goes on for pages


@dataclass
class Run:
    """What one training works on."""

    module: torch.nn.Module
    average: torch.nn.Module | None  # the moving average of module, where there is one
    optimizer: torch.optim.Optimizer
    options: TrainOptions
    size: tuple[int, int]
    layout: torch.memory_format
    scale: torch.Tensor  # (1, C, 1, 1): input = pixels * scale + shift
    shift: torch.Tensor
    history: list[dict[str, Any]]
    part: int  # pictures that are computed at once
    zeros: list[tuple[torch.nn.Parameter, torch.Tensor]] = field(default_factory=list)  # weights, and where they are 0
    halved: bool = False  # parts, after memory ran out
    warnings: list[str] = field(default_factory=list)
    compiled: Compiled | None = None
    macs: int | None = None  # multiply-accumulates of a forward pass of one picture, where they are known
    peak: float | None = None  # operations a second that the devices do at most, where it is known
    team: Team = field(default_factory=Team)
    synchronised: bool = False  # whether BatchNorm sees the pictures of all processes
    speed: str = ""  # of the last epoch, for whoever watches
    _moving: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.scale.device

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels of 0 to 255, float (N, C, H, W), as the module takes them."""
        return (pixels * self.scale + self.shift).contiguous(memory_format=self.layout)

    def answers(self, pixels: torch.Tensor) -> TrainingLogits:
        """What the module answers in training mode to float pixels of 0 to 255 (N, C, H, W), in the run's precision."""
        import torch

        from deploykit.models.pictures import TrainingLogits

        module: Callable[[torch.Tensor], Any] = self.module
        if self.compiled is not None and len(pixels) == self.part:
            module = self.compiled.forward
            if self.compiled.graphed:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with autocast(self.options.precision, self.device):
            output = module(self.inputs(pixels))
        return output if isinstance(output, TrainingLogits) else TrainingLogits(output, ())

    @property
    def result(self) -> torch.nn.Module:
        """The module that is measured and kept: the average, where there is one."""
        return self.average if self.average is not None else self.module

    def begin_training(self) -> None:
        """Training mode; normalisation that is frozen keeps its statistics."""
        from torch.nn.modules.batchnorm import _BatchNorm

        self.module.train()
        for layer in self.module.modules():
            frozen = isinstance(layer, _BatchNorm) and layer.weight is not None and not layer.weight.requires_grad
            if frozen:
                layer.eval()

    def spare_zeros(self) -> None:
        """Takes the gradient of pruned weights away, before a step and before gradients are measured or cut.

        Then they stay exactly zero: both optimizers keep moments of zero there, and decay multiplies zero.
        """
        for weight, zero in self.zeros:
            if weight.grad is not None:
                weight.grad.masked_fill_(zero, 0.0)

    def follow(self, step: int) -> None:
        """Moves the average after step number ``step``, from 0 on, towards the weights and statistics.

        Early averages forget faster, so that short trainings have one too: the decay is at most (1 + t) / (10 + t), as
        TensorFlow's ``ExponentialMovingAverage`` has it.
        """
        import torch

        if self.average is None:
            return
        if not self._moving:
            self._moving = _pairs(self.average, self.module)
        (means, weights), (counts, now) = self._moving
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1.0 - min(self.options.ema, (1.0 + step) / (10.0 + step)))
            if counts:
                torch._foreach_copy_(counts, now)

    def average_statistics(self) -> None:
        """Gives all processes the means of BatchNorm's running statistics, which each has of its own pictures."""
        for module in (self.module, self.average):
            if module is not None:
                self.team.average(module.buffers())

    @property
    def fewest(self) -> int:
        """Pictures that can be computed at once at least: BatchNorm has no variance of one."""
        from torch.nn.modules.batchnorm import _BatchNorm

        return 2 if any(isinstance(layer, _BatchNorm) for layer in self.module.modules()) else 1

    def use(self, options: TrainOptions) -> None:
        """Other options of a run that has not begun, which differ in batch size and learning rate."""
        self.options, self.part = options, _part(options, self.team)

    def can_halve(self, count: int) -> bool:
        """Whether a batch of ``count`` pictures can be computed in smaller parts.

        Not where processes normalise together: all would have to halve theirs.
        """
        return min(self.part, count) > self.fewest and not self.synchronised

    def halve(self, count: int) -> None:
        """Halves the parts that steps are computed in, after memory ran out in one of ``count`` pictures, and notes it.

        Batches and the schedule stay what they are.
        """
        import torch

        before = min(self.part, count)
        self.part, self.halved = max(self.fewest, before // 2), True
        apart = "; BatchNorm normalises each part by itself" if self.fewest > 1 else ""
        self.warnings.append(
            f"the memory of {self.device} did not hold {before} pictures at once in epoch {len(self.history) + 1}: from"
            f" there on, steps of {self.options.batch_size} pictures are computed in parts of {self.part}{apart}"
        )
        self.speed = f"out of memory: now in parts of {self.part}"
        if self.compiled is not None:
            torch.compiler.reset()  # what was compiled for larger parts, and the memory of its graphs
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def compile_faults(self) -> tuple[type[BaseException], ...]:
        """What is raised when compiling fails; nothing where nothing is compiled."""
        if self.compiled is None:
            return ()
        from torch._dynamo.exc import TorchDynamoException

        return (TorchDynamoException,)

    def give_up_compiling(self, problem: BaseException) -> None:
        """Goes on with the module as it is, and notes why.

        Raises: InputError where compiling was asked for.
        """
        reason = " ".join(str(problem).split())[:_SAID] or type(problem).__name__
        if self.compiled is not None and self.compiled.required:
            raise InputError(
                f"torch.compile fails on {self.device}: {reason}; leave out --compile, or give --no-compile"
            ) from problem
        self.compiled, self.options = None, replace(self.options, compile="off")
        self.warnings.append(f"trained without torch.compile, which fails on {self.device}: {reason}")

    def clear_gradients(self) -> None:
        """Before a batch.

        With CUDA graphs gradients have memory of their own, to which each part's are added: autograd would keep the
        first part's where the graph wrote them, and the graph writes there again (pytorch issue 169545).
        """
        import torch

        graphed = self.compiled is not None and self.compiled.graphed
        for parameter in (item for group in self.optimizer.param_groups for item in group["params"] if graphed):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.zero_grad(set_to_none=not graphed)

    def mfu(self, images_per_s: float) -> float | None:
        """See ``device_peaks.mfu``; None where peak or arithmetic is not known, and where most layers do not learn."""
        if self.macs is None or self.peak is None or self.options.freeze == "features":
            return None
        return mfu(images_per_s, self.macs, self.peak)


def _pairs(average: torch.nn.Module, module: torch.nn.Module) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Of the average and the module: what moves, then what is copied, as it counts."""
    pairs = list(zip(average.state_dict().values(), module.state_dict().values(), strict=True))
    moving = [pair for pair in pairs if pair[1].is_floating_point()]
    counts = [pair for pair in pairs if not pair[1].is_floating_point()]
    return [([mean for mean, _ in group], [now for _, now in group]) for group in (moving, counts)]


def _part(options: TrainOptions, team: Team) -> int:
    """Of a full batch, what this process computes at once."""
    return -(-len(part_of(options.batch_size, team.ranks)) // options.accumulate)


def start_run(
    module: torch.nn.Module,
    options: TrainOptions,
    preprocess: Preprocess,
    trained: tuple[str, ...] = (),
    team: Team | None = None,
) -> Run:
    """A run at its beginning.

    Args:
        module: On its device already; its layout of memory is changed to the faster one.
        options: How to train; a precision of ``auto`` becomes the device's.
        preprocess: Scale, mean and deviation of the inputs, and their size.
        trained: Prefixes of the layers that learn when the features are frozen.
        team: The processes that share it.

    Raises: InputError when zeros shall be kept and there are none, or a precision that the device lacks.
    """
    import torch

    device, team = next(module.parameters()).device, team or Team()
    options = replace(options, precision=choose_precision(options.precision, device))
    if options.freeze == "features":
        _freeze(module, trained)
    if synchronised := options.sync_batchnorm and not team.alone:
        module = synchronise(module, device)
    scale, mean, std = preprocess.scale, np.array(preprocess.mean), np.array(preprocess.std)

    def channels(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    layout = _layout(module, preprocess, device)
    module = module.to(memory_format=layout)  # type: ignore[call-overload]
    return Run(
        module=module,
        average=deepcopy(module).requires_grad_(False) if options.ema else None,
        optimizer=_optimizer(module, options),
        options=options,
        size=preprocess.size,
        layout=layout,
        scale=channels(scale / std),
        shift=channels(-mean / std),
        history=[],
        part=_part(options, team),
        zeros=_zeros(module) if options.freeze == "zeros" else [],
        team=team,
        synchronised=synchronised,
    )


def _layout(module: torch.nn.Module, preprocess: Preprocess, device: torch.device) -> torch.memory_format:
    """Channels last for photos on a CPU: measured, a step takes 15 to 25 % less.

    The small networks of the notes keep the layout, and with it the bits, of the results that were published. On CUDA
    for every network with a convolution of ``_WIDE`` channels or more: tensor cores read this layout as it is (NVIDIA,
    "Convolutional Layers User's Guide").
    """
    import torch

    if device.type == "cuda":
        last = any(isinstance(layer, torch.nn.Conv2d) and layer.in_channels >= _WIDE for layer in module.modules())
    else:
        last = device.type == "cpu" and preprocess.depth == 3 and min(preprocess.size) >= 32
    return torch.channels_last if last else torch.contiguous_format


def _freeze(module: torch.nn.Module, trained: tuple[str, ...]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{prefix}.") for prefix in trained))


def _zeros(module: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Where convolutions and fully connected layers are zero; a bias of zero is one that has not learnt yet."""
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = [parameter for layer in layers for name, parameter in layer.named_parameters() if name == "weight"]
    found = [(weight, weight.detach() == 0.0) for weight in weights if weight.requires_grad]
    if not any(zero.any() for _, zero in found):
        raise InputError("freeze zeros, but no weight is zero; prune them first, or freeze none")
    return [(weight, zero) for weight, zero in found if zero.any()]


def _optimizer(module: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    import torch

    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in learning if parameter.ndim >= 2]
    others = [parameter for parameter in learning if parameter.ndim < 2]
    # Biases and normalisation weights are not decayed (He et al. 2019, Bag of Tricks, section 3.1).
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    # One kernel for all weights; the CPU's sums keep the bits that they had.
    fused = True if learning[0].device.type == "cuda" else None
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)


def choose_device(name: str) -> torch.device:
    """The device of that name, or the best that works for ``auto``. Raises: InputError naming those that work."""
    import torch

    works = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if works[device])
    if not works[name]:
        there = ", ".join(device for device, usable in works.items() if usable)
        raise InputError(f"device {name!r} does not work here; this machine has: {there}")
    return torch.device(name)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch's CPU threads for the block; the number before it comes back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_batches(
    module: torch.nn.Module, options: TrainOptions, samples: int, network: str, team: Team | None = None
) -> None:
    """Refuses batches of one picture for a network with BatchNorm, which has no variance there. Raises: InputError."""
    team = team or Team()
    if min(options.batch_size, samples) < team.ranks.world:
        raise InputError(
            f"{min(options.batch_size, samples)} pictures a step for {team.ranks.world} processes; allowed: one or more"
            " for each"
        )
    from torch.nn.modules.batchnorm import _BatchNorm

    least = min(options.batch_size, samples) // team.ranks.world // options.accumulate
    if least < 2 and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        parts += f" of {team.ranks.world} processes" if not team.alone else ""
        raise InputError(
            f"{network} has BatchNorm, which cannot learn from one picture at a time; received batch size"
            f" {options.batch_size}{parts} and {samples} training pictures; allowed: 2 or more of both"
        )
