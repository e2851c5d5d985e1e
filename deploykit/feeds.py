"""Which arrays a model has to be fed with: names, element types and complete shapes, from the file or from a flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploykit.artifact import Artifact, TensorSpec
from deploykit.errors import InputError, UnknownNameError

__all__ = ["Feed", "feeds_of", "parse_shapes"]

_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_FEEDABLE = ("float16", "float32", "float64", "bool", *_INTEGERS)


@dataclass(frozen=True)
class Feed:
    """One input array: its name, numpy's name of the element type, and its complete shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def feeds_of(
    artifact: Artifact, *, batch: int = 1, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Feed, ...]:
    """The inputs of ``artifact`` at a batch size.

    A dynamic first axis is the batch. Other dynamic axes come from ``shapes``, or for pictures from
    ``deploykit.preprocess``.

    Raises:
        UnknownNameError: ``shapes`` names an input that the model lacks.
        InputError: An unknown axis, a shape or batch that contradicts the file, an element type without numpy array.
    """
    given = dict(shapes or {})
    names = [spec.name for spec in artifact.inputs]
    for name in given:
        if name not in names:
            raise UnknownNameError("input", name, names)
    for spec in artifact.inputs:
        if spec.dtype not in _FEEDABLE:
            raise InputError(f"{artifact.path}: input {spec.name!r} is {spec.dtype}; allowed: {', '.join(_FEEDABLE)}")
    return tuple(
        Feed(spec.name, spec.dtype, _given(artifact, spec, given[spec.name], batch))
        if spec.name in given
        else Feed(spec.name, spec.dtype, _of_file(artifact, spec, batch, first=index == 0))
        for index, spec in enumerate(artifact.inputs)
    )


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from the words of the command line: ``["input=1x3x224x224"]``.

    Raises:
        InputError: A word of another form, a size below 1, or a name given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.lower().replace("×", "x").split("x")
        if not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise InputError(f"shape {text!r}; expected name=1x3x224x224, sizes of 1 or more")
        if name in shapes:
            raise InputError(f"shape of input {name!r} is given twice: {_text(shapes[name])} and {sizes}")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _given(artifact: Artifact, spec: TensorSpec, shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """The shape of the flag, checked against what the file says."""
    axes = spec.shape
    fits = axes is None or (
        len(axes) == len(shape) and all(not isinstance(a, int) or a == s for a, s in zip(axes, shape, strict=True))
    )
    if not fits:
        raise InputError(
            f"shape {spec.name}={_text(shape)} does not fit {artifact.path}, which has {_text(axes or ())}"
        )
    if axes and not isinstance(axes[0], int) and shape[0] != batch:
        raise InputError(f"shape {spec.name}={_text(shape)} has batch {shape[0]}, but batch {batch} was asked for")
    return tuple(shape)


def _of_file(artifact: Artifact, spec: TensorSpec, batch: int, *, first: bool) -> tuple[int, ...]:
    axes = spec.shape
    if axes is None:
        example = f"--shape {spec.name}=1x3x224x224"
        raise InputError(f"{artifact.path}: input {spec.name!r} has no shape in the file; give it with {example}")
    if axes and isinstance(axes[0], int) and first and axes[0] != batch:
        raise InputError(f"{artifact.path}: batch {batch} was asked for; its batch is fixed at {axes[0]}, use that")
    sizes = _picture_sizes(artifact, spec) if first else None
    shape = [batch if index == 0 and not isinstance(axis, int) else axis for index, axis in enumerate(axes)]
    if sizes:
        shape = [axis if isinstance(axis, int) else size for axis, size in zip(shape, (batch, *sizes), strict=True)]
    known = tuple(axis for axis in shape if isinstance(axis, int))
    if len(known) != len(shape):
        example = "x".join(str(axis) if isinstance(axis, int) else "224" for axis in shape)
        raise InputError(
            f"{artifact.path}: input {spec.name!r} has axes of unknown size, {_text(axes)};"
            f" give them with --shape {spec.name}={example}"
        )
    return known


def _picture_sizes(artifact: Artifact, spec: TensorSpec) -> tuple[int, int, int] | None:
    """Channels, height and width in the order of the network's axes, for a model that knows its preprocessing."""
    preprocess = artifact.preprocess
    if preprocess is None or spec.rank != 4:
        return None
    height, width = preprocess.size
    nchw = preprocess.layout == "NCHW"
    return (preprocess.depth, height, width) if nchw else (height, width, preprocess.depth)


def _text(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape)
