"""Sees every operation of a module that runs on torch's ``meta`` device: who asked for it, what it reads and writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploykit.liveness import Step, peak_live_bytes
from deploykit.results import LayerProfile

__all__ = ["CountsConnections", "Recorder"]


@runtime_checkable
class CountsConnections(Protocol):
    """A layer with its own rule of counting."""

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        """``(connections, macs)`` for one picture; ``output_shape`` is without the batch axis."""


# Layers that are one operator for a runtime, though torch makes them of several operations that each write.
_ONE_OPERATOR = ("LocalResponseNorm",)
# Operations whose first output is all that a runtime for inference writes.
_FIRST_OUTPUT_ONLY = ("max_pool", "batch_norm", "layer_norm", "group_norm")
# Operations that may write over their input when nobody needs it again.
_ELEMENTWISE = frozenset(
    {
        *("_native_batch_norm_legit_no_training", "abs", "add", "clamp", "clamp_max", "clamp_min", "div", "elu", "exp"),
        *(
            "gelu",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "leaky_relu",
            "log",
            "mul",
            "native_batch_norm",
            "neg",
            "pow",
        ),
        *("relu", "sigmoid", "silu", "softplus", "sqrt", "sub", "tanh"),
    }
)


@dataclass
class _Row:
    """One call of a module while it runs."""

    name: str
    module: nn.Module
    parameters: int = 0
    connections: int = 0
    macs: int = 0
    output_shape: tuple[int, ...] | None = None
    passes_on: tuple[int, ...] | None = None
    precision: str | None = None

    @property
    def shown(self) -> bool:
        return bool(self.parameters or self.connections or self.macs or "Pool" in type(self.module).__name__)

    def layer(self) -> LayerProfile:
        windowed = hasattr(self.module, "kernel_size")
        return LayerProfile(
            name=self.name,
            op=type(self.module).__name__,
            output_shape=self.output_shape,
            parameters=self.parameters,
            connections=self.connections,
            macs=self.macs,
            kernel=_sides(self.module, "kernel_size", self.output_shape) if windowed else None,
            stride=_sides(self.module, "stride", self.output_shape) if windowed else None,
            groups=int(getattr(self.module, "groups", 1)) if windowed else 1,
            precision=self.precision,
            passes_on=self.passes_on or self.output_shape,
        )


def _sides(module: nn.Module, name: str, output_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """A kernel's sides or steps, one for each axis of the picture; torch allows one number for all."""
    value = getattr(module, name, None)
    if isinstance(value, int):
        return (value,) * max(1, len(output_shape or ()) - 1)
    return tuple(value) if isinstance(value, (tuple, list)) and all(isinstance(side, int) for side in value) else None


_PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclass
class _Memory:
    """Steps and buffers for the liveness analysis; a view has its base's buffer."""

    steps: list[Step] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # storage -> buffer
    kept: list[Tensor] = field(default_factory=list)  # holds the storages, so that no address comes twice

    def add(self, tensor: Tensor) -> str:
        name = f"buffer{len(self.sizes)}"
        self.names[_storage(tensor)] = name
        self.sizes[name] = tensor.untyped_storage().nbytes()
        self.kept.append(tensor)
        return name

    def known(self, tensors: list[Tensor]) -> tuple[str, ...]:
        return tuple(self.names[key] for key in map(_storage, tensors) if key in self.names)

    def peak(self, given: Tensor, answer: Any) -> int:
        """Peak of live bytes from the module's input to its answer."""
        answers = set(self.known(_tensors(answer)))
        return peak_live_bytes(self.steps, self.sizes, [self.names[_storage(given)]], answers)

    def step(self, name: str, sources: list[Tensor], results: list[Tensor]) -> bool:
        """Whether the operation writes anything new."""
        if any(marker in name for marker in _FIRST_OUTPUT_ONLY):
            results = results[:1]
        shared = {_storage(tensor) for tensor in sources}
        fresh = [tensor for tensor in results if _storage(tensor) not in shared and tensor.numel()]
        if fresh:
            outputs = tuple(self.add(tensor) for tensor in fresh)
            self.steps.append(Step(self.known(sources), outputs, in_place=name in _ELEMENTWISE))
        return bool(fresh)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operation; hooks tell it which module asks for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root = module
        self.rows: list[_Row] = []
        self.stack: list[_Row] = []
        self.operators: Counter[str] = Counter()
        self.memory = _Memory()
        self.written: list[tuple[_Row, tuple[int, ...]]] = []  # who wrote what shape, in order
        self.parameters = {_storage(tensor): tensor.numel() for tensor in module.parameters()}
        floats = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
        self.weights_seen = frozenset(self.parameters)
        self.weights = {_storage(tensor): tensor.nbytes for tensor in floats}
        self.weight_bytes = 0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Follows the calls of modules; what lies within a layer that counts for itself belongs to that layer."""
        inner = {
            part
            for layer in self.root.modules()
            if isinstance(layer, CountsConnections)
            for part in layer.modules()
            if part is not layer
        }
        handles = []
        for name, part in self.root.named_modules():
            if part not in inner:
                handles.append(part.register_forward_pre_hook(self._enter(name or type(part).__name__)))
                handles.append(part.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, _: self.stack.append(_Row(name, module))

    def _leave(self, module: nn.Module, given: Any, output: Any) -> None:
        row = self.stack.pop()
        if _is_one_operator(module):
            self._wrote(row, type(module).__name__, _tensors(given), _tensors(output))
        if isinstance(output, Tensor):
            row.output_shape = tuple(output.shape[1:])
            if isinstance(module, CountsConnections):
                row.connections, row.macs = module.count_connections(row.output_shape)
        if _is_layer(module):
            self.operators[type(module).__name__] += 1
        self.rows.append(row)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        sources, results = _tensors((args, kwargs or {})), _tensors(output)
        self._count(name, args, sources, results)
        # What a layer does within itself goes by the layer's name.
        row = self.stack[-1]
        wrote = not _is_one_operator(row.module) and self._wrote(row, name, sources, results)
        if wrote and not _is_layer(row.module):
            self.operators[name] += 1
        return output

    def _wrote(self, row: _Row, name: str, sources: list[Tensor], results: list[Tensor]) -> bool:
        fresh = self.memory.step(name, sources, results)
        if fresh:
            self.written.append((row, tuple(results[0].shape[1:])))
        return fresh

    def _count(self, name: str, args: Any, sources: list[Tensor], results: list[Tensor]) -> None:
        row = self.stack[-1]
        macs, biases = _multiplications(name, args, results)
        row.macs += macs
        row.connections += macs + biases
        for key, tensor in zip(map(_storage, sources), sources, strict=True):
            if key in self.weights_seen and row.precision is None:
                row.precision = _PRECISIONS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            # A tensor that two layers share counts for the first.
            row.parameters += self.parameters.pop(key, 0)
            self.weight_bytes += self.weights.pop(key, 0)

    def layers(self) -> tuple[LayerProfile, ...]:
        """What was seen, once the module has run."""
        self._hand_on()
        return tuple(row.layer() for row in self.rows if row.shown)

    def _hand_on(self) -> None:
        """Gives each layer the shape that was written last before the next layer began."""
        layer: _Row | None = None
        for row, shape in self.written:
            layer = row if row.shown else layer
            if layer is not None:
                layer.passes_on = shape


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CountsConnections) or next(module.children(), None) is None


def _is_one_operator(module: nn.Module) -> bool:
    return type(module).__name__ in _ONE_OPERATOR


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _multiplications(name: str, args: Any, results: list[Tensor]) -> tuple[int, int]:
    """Multiply-accumulates and biases of one ATen operation."""
    if name == "convolution":
        source, weight, bias, transposed = args[0], args[1], args[2], args[6]
        macs = (source if transposed else results[0]).numel() * weight[0].numel()
        return macs, results[0].numel() if bias is not None else 0
    if name in ("mm", "bmm", "mv"):
        return results[0].numel() * args[0].shape[-1], 0
    if name in ("addmm", "baddbmm", "addmv"):
        return results[0].numel() * args[1].shape[-1], results[0].numel()
    return 0, 0
