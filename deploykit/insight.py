"""What a network does with one picture on the way: first weights, maps of each stage; a module's, or an ONNX file's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import InputError
from deploykit.runtime import create_session, filled
from deploykit.stages import Stage, find_stages, narrow_values

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Insight", "Kernels", "answer_of_module", "look_into_module", "look_into_onnx"]

_FEW_ROWS = 1 << 20  # input values a call of a module


@dataclass(frozen=True)
class Kernels:
    """The weights of the first layer.

    Attributes:
        weights: (kernels, channels, height, width) of a convolution, (units, inputs) of a fully connected layer.
        layer: The layer's path.
    """

    weights: NDArray[np.float32]
    layer: str


@dataclass(frozen=True)
class Insight:
    """What one picture made of a network.

    Attributes:
        kernels: None where the first layer has no weights of its own that can be shown.
        stages: Each with its maps (channels, height, width), in order.
    """

    kernels: Kernels | None
    stages: tuple[tuple[Stage, NDArray[np.float32]], ...]


def look_into_module(module: torch.nn.Module, inputs: NDArray[Any]) -> Insight:
    """Runs a module in evaluation mode on one picture (1, …), twice: once to find the stages, once to keep their maps.

    Raises: InputError when the module fails.
    """
    import torch

    from deploykit.models.taps import GIVEN, trace_module

    given = torch.as_tensor(inputs, device=_device(module))
    trace = _guarded(lambda rows: trace_module(module, rows), given)
    stages = find_stages(trace.operations, GIVEN, trace.shapes, trace.answers)
    wanted = frozenset(stage.value for stage in stages)
    kept = _guarded(lambda rows: trace_module(module, rows, wanted), given).kept
    weight = trace.first_weight
    kernels = None if weight is None else Kernels(weight, trace.first_layer)
    return Insight(kernels, tuple((stage, kept[stage.value][0]) for stage in stages if stage.value in kept))


def answer_of_module(module: torch.nn.Module, inputs: NDArray[Any]) -> NDArray[np.float64]:
    """The first output (N, classes) of a module in evaluation mode, a few rows at a time.

    Raises: InputError when the module fails, or answers anything else or NaN.
    """
    import torch

    step = max(1, _FEW_ROWS // max(1, inputs[0].size))
    found = []
    for start in range(0, len(inputs), step):
        rows = torch.as_tensor(inputs[start : start + step], device=_device(module))
        with torch.no_grad():
            answer = _guarded(module, rows)
        found.append(_first(answer, len(rows)).to(dtype=torch.float64, device="cpu").numpy())
    logits = np.concatenate(found)
    if not np.isfinite(logits).all():
        raise InputError("the module gives NaN or infinite outputs on this picture; all must be finite")
    return logits


def _first(answer: Any, rows: int) -> torch.Tensor:
    import torch

    several = list(answer.values()) if isinstance(answer, dict) else answer
    first = several[0] if isinstance(several, (list, tuple)) and several else several
    if not torch.is_tensor(first) or first.ndim < 2 or first.numel() != rows * max(first.shape[1:]):
        shape = tuple(first.shape) if torch.is_tensor(first) else type(first).__name__
        raise InputError(f"the module answers {shape} for {rows} pictures; expected (N, classes)")
    return first.reshape(rows, -1)


def _guarded(run: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> Any:
    try:
        with redirect_stdout(sys.stderr):  # what the module prints is not our answer
            return run(inputs)
    except InputError:
        raise
    except Exception as problem:  # the user's own code may raise anything; it must not look like a bug of ours
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise InputError(f"the module fails on an input of shape {tuple(inputs.shape)}: {reason}") from problem


def _device(module: torch.nn.Module) -> torch.device:
    import torch

    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def look_into_onnx(model: onnx.ModelProto, path: Path, inputs: NDArray[Any], *, threads: int | None = None) -> Insight:
    """Runs a copy of the model with more outputs on one picture (1, …), without the runtime's optimisations.

    Quantized values come as the real numbers that they stand for.

    Args:
        model: As ``artifact.load_model`` gives it.
        path: Its file, for messages.
        inputs: One picture; a model with a fixed batch is fed copies of it.
        threads: Of the runtime.

    Raises:
        ModelFileError: Too large to be copied, or an operator fails.
    """
    from deploykit.graph.taps import TappedGraph

    graph = TappedGraph(model, path)
    operations = graph.operations()
    narrow = [str(value) for _, value in narrow_values(operations, graph.given, graph.answers)]
    taps = {value: graph.dequantized(value) for value in narrow}
    weight = graph.first_weight()
    session = create_session(
        graph.with_outputs([*taps.values(), *([weight.value] if weight else [])]), threads=threads, optimize=False
    )
    made = session.run(filled(inputs, session.fixed_batch or 1))
    values = dict(zip((output.name for output in session.outputs), made, strict=True))
    found = {value: np.asarray(values[tap]) for value, tap in taps.items()}
    shapes = {value: array.shape for value, array in found.items()}
    stages = find_stages(operations, graph.given, shapes, graph.answers)
    kernels = None
    if weight:
        array = np.asarray(values[weight.value]).astype(np.float32)
        kernels = Kernels(array.T if weight.turned else array, weight.layer)
    return Insight(kernels, tuple((stage, found[str(stage.value)][0].astype(np.float32)) for stage in stages))
