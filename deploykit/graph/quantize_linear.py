"""QuantizeLinear and DequantizeLinear into a float graph, as a plan says.

A tensor T that is to be rounded gets QuantizeLinear → DequantizeLinear behind it, and its readers read the latter. A
layer's weights become int8 behind a DequantizeLinear with a step for each channel, its bias int32 in the product of
both steps. Runtimes replace DequantizeLinear → operator → QuantizeLinear by an integer operator; one without that rule
computes the same numbers in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import array_of
from deploykit.graph.quantization_plan import Plan
from deploykit.graph.weight_rows import channel_axis

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["ActivationScheme", "RoundedWeights", "insert_quantization"]

_BIAS_ROOM = 2.0**30  # of int32's 2³¹, so that sums over the layer do not leave it


@dataclass(frozen=True)
class ActivationScheme:
    """How tensors between layers are rounded, to 256 levels.

    Attributes:
        signed: int8, otherwise uint8.
        symmetric: The zero point is 0 and the range is the same on both sides; otherwise zero lies where it falls,
            at the lowest level for what Relu made.
        by_sign: The zero point is 0, in int8 for tensors with negative values and in uint8 for the others.
    """

    signed: bool = False
    symmetric: bool = False
    by_sign: bool = False

    def is_symmetric(self, low: float) -> bool:
        """Whether a tensor with this lowest value gets the same range on both sides of 0."""
        return self.symmetric or (self.by_sign and low < 0)

    def parameters(self, low: float, high: float) -> tuple[np.float32, NDArray[np.integer]]:
        """Step and zero point of a range that includes 0."""
        if self.is_symmetric(low):
            step = max(-low, high) / 127 or 1.0
            return np.float32(step), np.asarray(0, np.int8 if self.signed or self.by_sign else np.uint8)
        step = (high - low) / 255 or 1.0
        lowest = -128 if self.signed else 0
        zero = int(np.clip(np.rint(lowest - low / step), lowest, lowest + 255))
        return np.float32(step), np.asarray(zero, np.int8 if self.signed else np.uint8)


@dataclass(frozen=True)
class RoundedWeights:
    """A layer's weights as integers.

    Attributes:
        integers: In the shape in which the layer stores its weights.
        steps: One a channel.
        bias: In float, one a channel; None for a layer without.
    """

    integers: NDArray[np.int8]
    steps: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None


def insert_quantization(
    model: onnx_ir.Model,
    plan: Plan,
    ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, RoundedWeights],
    scheme: ActivationScheme,
    *,
    integer_bias: bool = True,
) -> None:
    """Changes ``model``.

    Args:
        model: The float graph that ``plan`` was made for.
        plan: What to round.
        ranges: (low, high) of every tensor in ``plan.measured``, 0 included.
        weights: Of every layer in ``plan.products``, by its name.
        scheme: For tensors.
        integer_bias: int32 biases, as ONNX Runtime's kernels need them; otherwise they stay float.
    """
    _Inserter(model, plan, ranges, scheme).run(weights, integer_bias)


class _Inserter:
    def __init__(
        self, model: onnx_ir.Model, plan: Plan, ranges: Mapping[str, tuple[float, float]], scheme: ActivationScheme
    ) -> None:
        self.graph, self.plan, self.ranges, self.scheme = model.graph, plan, ranges, scheme
        self.values = dict(_values(model.graph))
        self.steps: dict[str, np.float32] = {}  # of tensors, by their names before anything was inserted
        self.parameters: dict[str, tuple[onnx_ir.Value, onnx_ir.Value]] = {}
        self.restored = [node for node in model.graph if node.op_type == "DequantizeLinear" and not node.domain]
        for node in self.restored:  # rounded before the plan, as pixels are
            name, (step, zero) = str(node.outputs[0].name), node.inputs[1:3]
            if step is not None and zero is not None:
                self.parameters[name], self.steps[name] = (step, zero), np.float32(array_of(step))

    def run(self, weights: Mapping[str, RoundedWeights], integer_bias: bool) -> None:
        layers = [node for node in self.graph if node.name in weights and node.name in self.plan.nodes]
        read = {str(node.name): str(node.inputs[0].name) for node in layers}  # type: ignore[union-attr]
        tables = [node for node in self.graph if node.name in self.plan.tables]
        for name in self.plan.points:
            self._round_tensor(name)
        for node in tables:
            self._tabulate(node)
        for node in layers:
            given = weights[str(node.name)]
            self._round_weights(node, given, self.steps[read[str(node.name)]], integer_bias)
        for node in self.restored:
            self._restore_in_float(node)

    def _stored(self, name: str, array: NDArray[np.generic]) -> onnx_ir.Value:
        import onnx_ir as ir

        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def _of_tensor(self, name: str) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        """Step and zero point, shared by tensors that are tied."""
        root = name
        while root in self.plan.tied:
            root = self.plan.tied[root]
        if root not in self.parameters:
            step, zero = self.scheme.parameters(*self.ranges[root])
            self.parameters[root] = (
                self._stored(f"{root}_scale", np.asarray(step)),
                self._stored(f"{root}_zero_point", zero),
            )
            self.steps[root] = step
        self.steps[name] = self.steps[root]
        return self.parameters[root]

    def _round_tensor(self, name: str) -> None:
        import onnx_ir as ir

        value, (step, zero) = self.values[name], self._of_tensor(name)
        maker = value.producer()
        users = [use for use in value.uses() if maker is None or self._is_integer(maker) or self._is_integer(use.node)]
        rounded = ir.node("QuantizeLinear", [value, step, zero], name=f"{name}_quantize")
        restored = ir.node("DequantizeLinear", [rounded.outputs[0], step, zero], name=f"{name}_dequantize")
        rounded.outputs[0].name, restored.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
        restored.outputs[0].shape, restored.outputs[0].dtype = value.shape, ir.DataType.FLOAT
        if maker is None:
            first = next(iter(self.graph))
            self.graph.insert_before(first, [rounded, restored])
        else:
            self.graph.insert_after(maker, [rounded, restored])
        for use in users:
            use.node.replace_input_with(use.idx, restored.outputs[0])
        if value.is_graph_output() and maker is not None and self._is_integer(maker):
            self._answer_with(value, restored.outputs[0])

    def _restore_in_float(self, node: onnx_ir.Node) -> None:
        """For layers in float: ONNX Runtime rounds the weights of a convolution between DequantizeLinear and
        QuantizeLinear itself, and has no reason to behind arithmetic.
        """
        import onnx_ir as ir

        uses = [use for use in node.outputs[0].uses() if not self._is_integer(use.node)]
        zero = array_of(node.inputs[2])
        if not uses or zero is None:
            return
        name = str(node.outputs[0].name)
        cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_float")
        centre = self._stored(f"{name}_centre", zero.astype(np.float32))
        centred = ir.node("Sub", [cast.outputs[0], centre], name=f"{name}_centred")
        scaled = ir.node("Mul", [centred.outputs[0], node.inputs[1]], name=f"{name}_scaled")
        for made in (cast, centred, scaled):
            made.outputs[0].name = made.name
        self.graph.insert_after(node, [cast, centred, scaled])
        for use in uses:
            use.node.replace_input_with(use.idx, scaled.outputs[0])
        if not node.outputs[0].uses():
            self.graph.remove(node, safe=True)

    def _tabulate(self, node: onnx_ir.Node) -> None:
        """max(0, min(1, αx + β)), whose cuts are the ends of uint8: round(255·(αx + β)) is x in steps of 1/(255·α)
        around 255·β, read in steps of 1/255. The identity in between (LeakyRelu with slope 1) is what runtimes replace
        by a table of 256 entries.
        """
        import onnx_ir as ir

        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        value, kind = node.outputs[0], np.int8 if self.scheme.signed else np.uint8
        lowest = -128 if self.scheme.signed else 0
        centre = np.asarray(np.rint(255 * beta) + lowest, kind)
        same = ir.node("LeakyRelu", [node.inputs[0]], {"alpha": 1.0}, name=f"{node.name}_table")
        cut = [self._stored(f"{value.name}_cut_scale", np.asarray(1 / (255 * alpha), np.float32))]
        cut.append(self._stored(f"{value.name}_cut_zero_point", centre))
        read = [self._stored(f"{value.name}_scale", np.asarray(1 / 255, np.float32))]
        read.append(self._stored(f"{value.name}_zero_point", np.asarray(lowest, kind)))
        rounded = ir.node("QuantizeLinear", [same.outputs[0], *cut], name=f"{value.name}_quantize")
        restored = ir.node("DequantizeLinear", [rounded.outputs[0], *read], name=f"{value.name}_dequantize")
        names = ("unrounded", "quantized", "dequantized")
        for made, name in zip((same, rounded, restored), names, strict=True):
            made.outputs[0].name = f"{value.name}_{name}"
        self.graph.insert_after(node, [same, rounded, restored])
        value.replace_all_uses_with(restored.outputs[0])
        self.graph.remove(node, safe=True)

    def _answer_with(self, value: onnx_ir.Value, restored: onnx_ir.Value) -> None:
        """The graph's output keeps its name and is what the integers stand for."""
        name = str(value.name)
        value.name, restored.name = f"{name}_unrounded", name
        restored.type = value.type
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = restored

    def _is_integer(self, node: onnx_ir.Node) -> bool:
        return node.name in self.plan.nodes

    def _round_weights(
        self, node: onnx_ir.Node, given: RoundedWeights, input_step: np.float32, integer_bias: bool
    ) -> None:
        name = str(node.inputs[1].name)  # type: ignore[union-attr]
        steps = given.steps.astype(np.float32)
        if given.bias is not None and integer_bias:
            given = _with_room_for_bias(given, input_step, channel_axis(node))
            steps = given.steps
        self._restored(node, 1, name, given.integers, steps, channel_axis(node))
        if given.bias is None:
            return
        bias_name = str(node.inputs[2].name) if len(node.inputs) > 2 and node.inputs[2] is not None else f"{name}_bias"
        if not integer_bias:
            self._replace_input(node, 2, self._stored(f"{bias_name}_{node.name}", given.bias))
            return
        steps = steps * input_step
        integers = np.clip(np.rint(given.bias / steps.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        self._restored(node, 2, bias_name, integers, steps, 0)

    def _restored(
        self,
        node: onnx_ir.Node,
        index: int,
        name: str,
        integers: NDArray[np.generic],
        steps: NDArray[np.float32],
        axis: int,
    ) -> None:
        """Input ``index`` becomes integers behind DequantizeLinear."""
        import onnx_ir as ir

        stem = f"{name}_{node.name}" if f"{name}_quantized" in self.graph.initializers else name
        zeros = np.zeros(steps.shape, integers.dtype)
        inputs = [
            self._stored(f"{stem}_quantized", integers),
            self._stored(f"{stem}_scale", steps),
            self._stored(f"{stem}_zero_point", zeros),
        ]
        restored = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{stem}_dequantize")
        restored.outputs[0].name, restored.outputs[0].dtype = f"{stem}_dequantized", ir.DataType.FLOAT
        restored.outputs[0].shape = ir.Shape(integers.shape)
        self.graph.insert_before(node, restored)
        self._replace_input(node, index, restored.outputs[0])

    def _replace_input(self, node: onnx_ir.Node, index: int, value: onnx_ir.Value) -> None:
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        before = node.inputs[index]
        node.replace_input_with(index, value)
        if before is not None and before.is_initializer() and not before.uses() and not before.is_graph_output():
            self.graph.initializers.pop(str(before.name), None)


def _with_room_for_bias(given: RoundedWeights, input_step: np.float32, axis: int) -> RoundedWeights:
    """Larger steps for channels whose bias int32 could not hold otherwise: those with hardly any weights."""
    if given.bias is None:
        return given
    steps = np.maximum(given.steps, np.abs(given.bias) / np.float32(input_step * _BIAS_ROOM)).astype(np.float32)
    if (steps == given.steps).all():
        return replace(given, steps=steps)
    shape = [1] * given.integers.ndim
    shape[axis] = -1
    integers = np.rint(given.integers * (given.steps / steps).reshape(shape)).astype(np.int8)
    return replace(given, integers=integers, steps=steps)


def _values(graph: onnx_ir.Graph) -> Iterator[tuple[str, onnx_ir.Value]]:
    for value in graph.inputs:
        yield str(value.name), value
    for node in graph:
        for value in node.outputs:
            yield str(value.name), value
