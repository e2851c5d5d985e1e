"""What a torch module weighs, by running it once on torch's ``meta`` device: shapes without memory or arithmetic.

Every operation is seen as it is dispatched: functional calls count as well as layers, and nothing has to be traceable.
The first profile of a process takes a second or two, in which torch imports what knows the shapes; VGG-16 then 0.1 s.

A layer whose connections are not those of its convolutions and matrix products can say so itself, in one method::

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        \"\"\"(connections, macs) for one picture; output_shape is without the batch axis.\"\"\"

It becomes one row of the table, whatever layers it is made of.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploykit.errors import InputError
from deploykit.liveness import Step, peak_live_bytes
from deploykit.models import build, spec
from deploykit.results import LayerProfile, Profile

__all__ = ["CountsConnections", "ModuleProfile", "profile_module", "profile_network"]


@runtime_checkable
class CountsConnections(Protocol):
    """A layer with its own rule of counting."""

    def count_connections(self, output_shape: tuple[int, ...]) -> tuple[int, int]:
        """``(connections, macs)`` for one picture; ``output_shape`` is without the batch axis."""


@dataclass(frozen=True)
class ModuleProfile:
    """What a module weighs in evaluation mode, for one picture.

    Attributes:
        layers: The layers that hold parameters or multiply, and poolings, in order of execution.
        parameters: Of the layers that run, each tensor once; auxiliary heads that only train do not count.
        connections: Multiply-accumulates, biases counted as one (LeCun et al. 1998).
        macs: Multiply-accumulates of convolutions and matrix products, without biases.
        weight_bytes: Of the layers that run: parameters and running statistics.
        peak_activation_bytes: By liveness, elementwise operations in place where their input is not needed again.
        operators: How often each kind of layer or bare operation runs.
    """

    layers: tuple[LayerProfile, ...]
    parameters: int
    connections: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    operators: Mapping[str, int]


def profile_module(module: nn.Module, input_shape: tuple[int, int, int]) -> ModuleProfile:
    """Profiles a module without changing it, moving it, or allocating its weights again.

    Args:
        module: Takes one tensor N×C×H×W.
        input_shape: C, H, W.

    Raises:
        InputError: The module cannot run on that shape, or its course depends on the values it computes.
    """
    twin = _meta_twin(module).eval()
    recorder = _Recorder(twin)
    given = torch.empty((1, *input_shape), device="meta")
    recorder.memory.add(given)
    try:
        with torch.no_grad(), recorder.hooked(), recorder:
            answer = twin(given)
    except (RuntimeError, TypeError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        shape = "×".join(map(str, input_shape))
        raise InputError(f"{type(module).__name__} cannot be profiled on an input of {shape}: {reason}") from problem
    return recorder.result(answer)


def profile_network(name: str, **options: str) -> Profile:
    """Profiles a reference network by its name, without allocating weights. Raises: what ``build`` raises."""
    entry = spec(name)
    with torch.device("meta"):
        module = build(name, None, None, **options)
    found = profile_module(module, entry.input)
    return Profile(
        name=name,
        parameters=found.parameters,
        connections=found.connections,
        macs=found.macs,
        weight_bytes=found.weight_bytes,
        file_bytes=None,
        download_bytes=None,
        peak_activation_bytes=found.peak_activation_bytes,
        precision="fp32",
        layers=found.layers,
        operators=found.operators,
        input_shape=entry.input,
    )


def _meta_twin(module: nn.Module) -> nn.Module:
    """A deep copy whose tensors are all on ``meta``: the copy's memo has them before the copy starts."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False), *_loose_tensors(part)):
            memo.setdefault(id(tensor), _on_meta(tensor))
    return copy.deepcopy(module, memo)


def _loose_tensors(module: nn.Module) -> list[Tensor]:
    return [value for value in vars(module).values() if isinstance(value, Tensor)]


def _on_meta(tensor: Tensor) -> Tensor:
    shadow = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shadow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shadow


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

    @property
    def shown(self) -> bool:
        return bool(self.parameters or self.connections or self.macs or "Pool" in type(self.module).__name__)

    def layer(self) -> LayerProfile:
        op = type(self.module).__name__
        return LayerProfile(self.name, op, self.output_shape, self.parameters, self.connections, self.macs)


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


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operation; hooks tell it which module asks for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root = module
        self.rows: list[_Row] = []
        self.stack: list[_Row] = []
        self.operators: Counter[str] = Counter()
        self.memory = _Memory()
        self.parameters = {_storage(tensor): tensor.numel() for tensor in module.parameters()}
        floats = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
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

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        row = self.stack.pop()
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
        if self.memory.step(name, sources, results) and not _is_layer(self.stack[-1].module):
            self.operators[name] += 1
        return output

    def _count(self, name: str, args: Any, sources: list[Tensor], results: list[Tensor]) -> None:
        row = self.stack[-1]
        macs, biases = _multiplications(name, args, results)
        row.macs += macs
        row.connections += macs + biases
        for key in map(_storage, sources):  # a tensor that two layers share counts for the first
            row.parameters += self.parameters.pop(key, 0)
            self.weight_bytes += self.weights.pop(key, 0)

    def result(self, answer: Any) -> ModuleProfile:
        """Adds up what was seen, and what is live when."""
        layers = tuple(row.layer() for row in self.rows if row.shown)
        memory = self.memory
        given = memory.names[_storage(memory.kept[0])]
        answers = set(memory.known(_tensors(answer)))
        return ModuleProfile(
            layers=layers,
            parameters=sum(layer.parameters for layer in layers),
            connections=sum(layer.connections for layer in layers),
            macs=sum(layer.macs for layer in layers),
            weight_bytes=self.weight_bytes,
            peak_activation_bytes=peak_live_bytes(memory.steps, memory.sizes, [given], answers),
            operators=dict(self.operators),
        )


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CountsConnections) or next(module.children(), None) is None


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
