"""Looks into a torch module while it runs: its operations, its first weights and the values between its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from deploykit.stages import Operation

__all__ = ["Trace", "trace_module"]

GIVEN = 0
"""The number of the module's input among the values of a trace."""


@dataclass
class Trace:
    """What one run of a module showed. Values are numbered as they are made, the same in each run.

    Attributes:
        operations: In order.
        shapes: Of the values.
        kept: Those asked for, in float32.
        answers: What the module returned, by number.
        first_weight: Of the first convolution (out, in/groups, h, w) or fully connected layer (out, in).
        first_layer: That layer's path in the module.
    """

    operations: list[Operation] = field(default_factory=list)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    answers: tuple[int, ...] = ()
    first_weight: NDArray[np.float32] | None = None
    first_layer: str = ""


def trace_module(module: nn.Module, inputs: Tensor, keep: Collection[int] = ()) -> Trace:
    """Runs ``module``, which is in evaluation mode, on a batch (N, …).

    Args:
        module: Left as it is.
        inputs: What it takes.
        keep: Numbers of the values to keep copies of.

    Raises: whatever the module raises.
    """
    recorder = _Recorder(inputs, keep)
    with torch.no_grad(), recorder.hooked(module), recorder:
        answer = module(inputs)
    recorder.trace.answers = tuple(recorder.numbers[tensor] for tensor in _tensors(answer))
    return recorder.trace


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operation; hooks tell it which layer asks for it."""

    def __init__(self, inputs: Tensor, keep: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.keep = Trace(), keep
        # By the tensors themselves: an identity (id) comes again, also with tensors whose making is not seen here.
        self.numbers = WeakTensorKeyDictionary()
        self.numbers[inputs] = GIVEN
        self.path: list[str] = []
        self.count = GIVEN

    @contextmanager
    def hooked(self, module: nn.Module) -> Iterator[None]:
        handles = []
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(self._enter(name)))
            handles.append(part.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda *_: self.path.append(name)

    def _leave(self) -> None:
        self.path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sources = tuple(self.numbers[tensor] for tensor in _tensors((args, kwargs)) if tensor in self.numbers)
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if sources and self.trace.first_weight is None:
            self._look_for_weight(name, args)
        made = tuple(self._add(tensor) for tensor in _tensors(output))
        self.trace.operations.append(Operation(_kind(name), sources, made, self.path[-1] if self.path else ""))
        return output

    def _add(self, tensor: Tensor) -> int:
        self.count += 1
        self.numbers[tensor] = self.count
        self.trace.shapes[self.count] = tuple(tensor.shape)
        if self.count in self.keep:
            self.trace.kept[self.count] = _copied(tensor)
        return self.count

    def _look_for_weight(self, name: str, args: Any) -> None:
        weight = {"convolution": 1, "addmm": 2, "mm": 1}.get(name)
        if weight is not None:
            found = args[weight].detach()
            self.trace.first_weight = _copied(found if name == "convolution" else found.t())
            self.trace.first_layer = self.path[-1] if self.path else ""


def _copied(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.to(dtype=torch.float32, device="cpu", copy=True).numpy()
    return values


def _kind(name: str) -> str:
    if "convolution" in name:
        return "conv"
    # Poolings in three dimensions are how torch computes LRN; adaptive ones fit maps to a fixed size.
    return "pool" if "pool2d" in name and "adaptive" not in name else "other"


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []
