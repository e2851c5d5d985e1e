"""Whether a model computes with integers, which ONNX Runtime's CUDA provider has no kernels for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ProviderError
from deploykit.graph.shapes import light
from deploykit.graph.weights import nodes_of
from deploykit.providers import provider_names

if TYPE_CHECKING:
    import onnx

__all__ = ["check_integers_run", "integers_on_cuda"]

# onnxruntime docs, OperatorKernels.md: no kernel of the CUDA provider.
_ON_THE_CPU = ("ConvInteger", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul", "DynamicQuantizeMatMul")
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
_INTEGERS = ("INT8", "UINT8")
_TENSORRT = ("tensorrt", "nvtensorrtrtx")


def integers_on_cuda(model: onnx.ModelProto) -> str | None:
    """What happens to a quantized model on the CUDA provider, or None for one whose activations stay in float.

    1. Operators on integers (QLinearConv and the like) have no kernel there and run on the CPU, with a copy each way.
    2. QuantizeLinear and DequantizeLinear have one, but nothing fuses them: layers between them compute in float, and
       the rounding comes on top (microsoft/onnxruntime #12229, #24807).

    Weights alone may be integers (MatMulNBits): those run there.
    """
    graph = light(model).graph
    counts: Counter[str] = Counter()
    for node in nodes_of(graph):
        if node.op_type in _ON_THE_CPU or (node.op_type in _ROUNDING and _to_integers(node, graph)):
            counts[node.op_type] += 1
    for name in _ON_THE_CPU:
        if counts[name]:
            return f"it has no kernel for {name} ({counts[name]} of them), which would run on the CPU"
    rounding = sum(counts.values())
    return f"it would compute in float, with {rounding} roundings on top" if rounding else None


def check_integers_run(model: onnx.ModelProto, path: Path, provider: str, *, allow_fallback: bool) -> str | None:
    """What integers cost on a provider, for a note; None where they cost nothing.

    Raises: ProviderError on ``cuda`` without ``allow_fallback``, with what to use instead.
    """
    reason = integers_on_cuda(model) if provider == "cuda" else None
    if reason is None or allow_fallback:
        return f"provider 'cuda' does not compute in int8: {reason}" if reason else None
    listed = [name for name in _TENSORRT if name in provider_names()]
    others = " or ".join(f"--provider {name}" for name in (*listed, "cpu"))
    raise ProviderError(
        f"{path.name} is quantized to integers, which provider 'cuda' does not compute with: {reason}; use {others}, "
        f"or the float or fp16 model on cuda (quantize --recipe fp16), or --allow-fallback to run it all the same"
    )


def _to_integers(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether a rounding gives 8-bit integers, not a float of 8 bits; unknown counts as integers, the default."""
    import onnx

    if len(node.input) < 3:
        told = next((item.i for item in node.attribute if item.name == "output_dtype"), 0)
        return not told or onnx.TensorProto.DataType.Name(told) in _INTEGERS
    for tensor in graph.initializer:
        if tensor.name == node.input[2]:
            return onnx.TensorProto.DataType.Name(tensor.data_type) in _INTEGERS
    return True
