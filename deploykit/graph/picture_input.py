"""Pixels as a network's input: what ``preprocess`` does in Python, as standard operators at the head of the graph.

1. Resize is bilinear with antialiasing, half-pixel coordinates and no weight outside of the picture, on uint8 with the
   channels last: Pillow's filter with Pillow's arithmetic. The longer side is cut off to a whole number, as there.
2. The middle is cut out with torchvision's rounding, and zeros are put around what is smaller.
3. Then come the order of the axes, the order of the channels, and ``pixel * factor + offset`` in float32: the products
   and sums that ``preprocess.normalize`` computes, to the last bit.

The number of channels is the network's: a grey picture for a colour network, or one with transparency, is converted by
whoever decodes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.graph.editing import constant, operator
from deploykit.preprocessing_spec import Preprocess

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["PictureInput", "insert_picture_input", "pixels_model"]

_AXES = (1, 2)  # of height and width in (N, H, W, C)
_SIZED_OPSET = 18  # the first whose Resize has antialiasing
_PLAIN_OPSET = 13  # enough where nothing is resized or cut
_STEM = "picture"


@dataclass(frozen=True)
class PictureInput:
    """What the graph does to pixels.

    Attributes:
        network: What the network's own input has to be fed with.
        any_size: Whether pictures of every size are taken; otherwise one size, ``content``.
    """

    network: Preprocess
    any_size: bool

    @classmethod
    def of(cls, network: Preprocess, *, fixed_size: bool = False) -> PictureInput:
        """A network whose preprocessing neither resizes nor cuts takes one size in any case."""
        return cls(network, not fixed_size and (network.resize is not None or network.crop is not None))

    @property
    def content(self) -> tuple[int, int]:
        """``(H, W)`` of the pictures that a fixed size takes: the network's, less a border of zeros that is always
        there.
        """
        resize, size = self.network.resize, self.network.size
        if not isinstance(resize, tuple) or self.network.crop is None:
            return size
        return min(resize[0], size[0]), min(resize[1], size[1])

    @property
    def fed(self) -> Preprocess:
        """What the new input has to be fed with: pixels."""
        plain = {"channels": "L" if self.network.depth == 1 else "RGB", "scale": 1.0, "layout": "NHWC"}
        resize, crop = self.network.resize, self.network.crop
        if not self.any_size:
            return Preprocess(size=self.content, resize=resize, crop=crop, dtype="uint8", **plain)  # type: ignore[arg-type]
        size = resize if isinstance(resize, tuple) else self.network.size if resize is None else (resize, resize)
        crop = None if size == resize else "center"
        return Preprocess(size=size, resize=resize, crop=crop, dtype="uint8", any_size=True, **plain)  # type: ignore[arg-type]

    @property
    def opset(self) -> int:
        """The oldest operator set that the head can be written in."""
        return _SIZED_OPSET if self.any_size else _PLAIN_OPSET


def insert_picture_input(model: onnx_ir.Model, picture: PictureInput) -> onnx_ir.Value:
    """Puts the head before a network; changes ``model``.

    Args:
        model: With one input (N, C, H, W) or (N, H, W, C), as ``picture.network`` says.
        picture: What to do.

    Returns:
        The new input, uint8 (N, H, W, C).
    """
    (before,) = model.graph.inputs
    batch = before.shape[0] if before.shape is not None and len(before.shape) else None
    head = _Head(model)
    image = head.image(picture, batch)
    prepared = head.normalized(picture.network, head.pixels(picture, image))
    before.replace_all_uses_with(prepared)
    model.graph.inputs[0] = image
    model.graph.insert_before(model.graph[0], head.nodes)
    return image


def pixels_model(picture: PictureInput) -> onnx_ir.Model:
    """A model that ends where the pixels have the network's size, uint8 (N, H, W, C); to be compared with Python's."""
    import onnx_ir as ir

    graph = ir.Graph([], [], nodes=[], opset_imports={"": max(picture.opset, _PLAIN_OPSET)}, name="pixels")
    model = ir.Model(graph, ir_version=8)
    head = _Head(model)
    image = head.image(picture, None)
    pixels = head.pixels(picture, image)
    if pixels is image:
        pixels = head.made("Identity", [image], {}, "pixels")
    pixels.type = ir.TensorType(ir.DataType.UINT8)
    pixels.shape = ir.Shape([None, *picture.network.size, picture.network.depth])
    graph.inputs.append(image)
    graph.outputs.append(pixels)
    graph.extend(head.nodes)
    return model


@dataclass
class _Head:
    """Nodes for a graph, in their order, before they are put into it."""

    model: onnx_ir.Model
    nodes: list[onnx_ir.Node] = field(default_factory=list)

    def image(self, picture: PictureInput, batch: Any) -> onnx_ir.Value:
        import onnx_ir as ir

        sides = ["height", "width"] if picture.any_size else list(picture.content)
        shape = ir.Shape([batch, *sides, picture.network.depth])
        name = "image" if not self._taken("image") else f"{_STEM}.image"
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=shape)

    def pixels(self, picture: PictureInput, image: onnx_ir.Value) -> onnx_ir.Value:
        """(N, H, W, C) uint8 of the network's size."""
        network = picture.network
        if not picture.any_size:
            return self._window(image, picture.content, network)
        if isinstance(network.resize, tuple):
            resized = self._resized(image, self.stored(network.resize, "resized_size"))
            return self._window(resized, network.resize, network)
        size = self.made("Shape", [image], {"start": 1, "end": 3}, "size")
        if network.resize is None:
            return self._known(self._computed_window(image, size, network, padded=True), network)
        shorter = self.made("ReduceMin", [size], {"keepdims": 1}, "shorter_side")
        enlarged = self.made("Mul", [size, self.stored([network.resize], "shorter_side_wanted")], {}, "enlarged_size")
        target = self.made("Div", [enlarged, shorter], {}, "resized_size")
        resized = self._resized(image, target)
        padded = network.resize < max(network.size)
        return self._known(self._computed_window(resized, target, network, padded=padded), network)

    def normalized(self, network: Preprocess, pixels: onnx_ir.Value) -> onnx_ir.Value:
        """The network's own input."""
        import onnx_ir as ir

        first = network.layout == "NCHW"
        turned = self.made("Transpose", [pixels], {"perm": (0, 3, 1, 2)}, "planes") if first else pixels
        if network.channels == "BGR":
            turned = self.made(
                "Gather", [turned, self.stored((2, 1, 0), "bgr")], {"axis": 1 if first else 3}, "reordered"
            )
        value = self.made("Cast", [turned], {"to": ir.DataType.FLOAT.value}, "float")
        factor = np.asarray(network.scale, np.float64) / np.asarray(network.std)
        offset = -np.asarray(network.mean) / np.asarray(network.std)
        for op, numbers, neutral in (("Mul", factor, 1.0), ("Add", offset, 0.0)):
            if (numbers.astype(np.float32) != neutral).any():
                what = "factor" if op == "Mul" else "offset"
                value = self.made(op, [value, self.stored(_by_channel(numbers, first), what)], {}, f"{what}_done")
        if network.dtype != "float32":
            value = self.made("Cast", [value], {"to": ir.DataType.FLOAT16.value}, "half")
        return value

    def _resized(self, image: onnx_ir.Value, size: onnx_ir.Value) -> onnx_ir.Value:
        attributes = {
            "axes": _AXES,
            "mode": "linear",
            "antialias": 1,
            "coordinate_transformation_mode": "half_pixel",
            "exclude_outside": 1,
        }
        return self.made("Resize", [image, None, None, size], attributes, "resized")

    def _window(self, pixels: onnx_ir.Value, have: tuple[int, int], network: Preprocess) -> onnx_ir.Value:
        """The middle of a known size, or it with zeros around."""
        wanted = network.size
        starts = [max(0, round((old - new) / 2)) for old, new in zip(have, wanted, strict=True)]  # half to even
        if any(old > new for old, new in zip(have, wanted, strict=True)):
            ends = [start + min(old, new) for start, old, new in zip(starts, have, wanted, strict=True)]
            places = [self.stored(starts, "crop_starts"), self.stored(ends, "crop_ends"), self.stored(_AXES, "axes")]
            pixels = self.made("Slice", [pixels, *places], {}, "cropped")
        missing = [max(0, new - old) for old, new in zip(have, wanted, strict=True)]
        if any(missing):
            before = [pixel // 2 for pixel in missing]
            after = [pixel - half for pixel, half in zip(missing, before, strict=True)]
            pads = self.stored([0, *before, 0, 0, *after, 0], "pads")
            pixels = self.made("Pad", [pixels, pads], {}, "padded")  # zeros, as nothing else is said
        return pixels

    def _computed_window(
        self, pixels: onnx_ir.Value, have: onnx_ir.Value, network: Preprocess, *, padded: bool
    ) -> onnx_ir.Value:
        """The same of a size that is known when the model runs."""
        wanted, two = self.stored(network.size, "wanted_size"), self.stored([2], "two")
        spare = self.made("Sub", [have, wanted], {}, "spare")
        if padded:
            zero = self.stored([0], "zero")
            spare = self.made("Max", [spare, zero], {}, "spare_or_none")
        # Half of an odd number is rounded to the even neighbour.
        half = self.made("Div", [spare, two], {}, "half")
        odd = self.made("Mod", [spare, two], {}, "spare_is_odd")
        half_is_odd = self.made("Mod", [half, two], {}, "half_is_odd")
        up = self.made("Mul", [odd, half_is_odd], {}, "rounded_up")
        start = self.made("Add", [half, up], {}, "crop_starts")
        end = self.made("Add", [start, wanted], {}, "crop_ends")  # beyond the picture means to its end
        cropped = self.made("Slice", [pixels, start, end, self.stored(_AXES, "axes")], {}, "cropped")
        if not padded:
            return cropped
        short = self.made("Sub", [wanted, have], {}, "missing_or_less")
        missing = self.made("Max", [short, zero], {}, "missing")
        before = self.made("Div", [missing, two], {}, "pads_before")
        after = self.made("Sub", [missing, before], {}, "pads_after")
        pads = self.made("Concat", [zero, before, zero, zero, after, zero], {"axis": 0}, "pads")
        return self.made("Pad", [cropped, pads], {}, "padded")

    def _known(self, pixels: onnx_ir.Value, network: Preprocess) -> onnx_ir.Value:
        """Tells shape inference the size, which it cannot compute."""
        shape = self.stored([0, *network.size, network.depth], "wanted_shape")
        return self.made("Reshape", [pixels, shape], {}, "pixels")

    def made(
        self, op_type: str, inputs: Sequence[onnx_ir.Value | None], attributes: Mapping[str, Any], what: str
    ) -> onnx_ir.Value:
        """The output of a new node."""
        node = operator(op_type, inputs, attributes, name=self._name(what))
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def stored(self, numbers: Any, what: str) -> onnx_ir.Value:
        """A new tensor: int64, unless it is one of floats."""
        array = np.asarray(numbers)
        return constant(self.model, array if array.dtype.kind == "f" else array.astype(np.int64), f"{_STEM}.{what}")

    def _name(self, what: str) -> str:
        name, number = f"{_STEM}.{what}", 1
        while self._taken(name):
            name, number = f"{_STEM}.{what}.{number}", number + 1
        return name

    def _taken(self, name: str) -> bool:
        graph = self.model.graph
        made = (value for node in (*graph.all_nodes(), *self.nodes) for value in node.outputs)
        return any(value.name == name for value in (*made, *graph.inputs)) or name in graph.initializers


def _by_channel(numbers: NDArray[np.float64], first: bool) -> NDArray[np.float32]:
    """One number where all channels have the same, otherwise one a channel along their axis."""
    if (numbers == numbers[0]).all():
        return np.asarray(numbers[0], np.float32)
    return numbers.astype(np.float32).reshape((-1, 1, 1) if first else (-1,))
