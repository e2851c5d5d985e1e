"""Low rank: a large constant matrix becomes the product of two thin ones (Denil et al. 2013; Xue et al. 2013).

Rules:

1. ``Gemm`` (``transA`` 0) and ``MatMul`` whose right side is a constant matrix M of K×N, at least ``LARGE`` weights.
2. M ≈ A·B, A of K×r and B of r×N: the best of that rank by its singular values (Eckart & Young 1936). r is given, or is
   the smallest that keeps a share of their squares' sum (the energy).
3. Two nodes replace one only where they hold fewer weights: r·(K + N) < K·N. Bias, alpha and beta go to the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.compressions import FactoredLayer
from deploykit.errors import InputError
from deploykit.graph.precision import QUANTIZED_OPERATORS
from deploykit.graph.weights import nodes_of

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGE", "LowRank", "check_rank", "low_rank"]

LARGE = 1 << 16
"""Weights: a smaller matrix takes microseconds, of which a second node would take its share."""

_OLDEST_IR = 4  # below, every weight has to be an input of the graph
_BLOCK = 1 << 22  # values that are looked at in float64 at once


@dataclass(frozen=True)
class LowRank:
    """A model with thin matrices.

    Attributes:
        model: The rewritten copy.
        layers: What was replaced.
        whole: Large matrices that stay, and why, a sentence each.
    """

    model: onnx.ModelProto
    layers: tuple[FactoredLayer, ...]
    whole: tuple[str, ...]


@dataclass(frozen=True)
class _Spot:
    """The matrix of a node that may be replaced."""

    tensor: onnx.TensorProto
    turned: bool  # stored as N×K

    @property
    def name(self) -> str:
        return self.tensor.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        first, second = self.tensor.dims
        return (second, first) if self.turned else (first, second)

    @property
    def most(self) -> int:
        """The largest rank that holds fewer weights."""
        rows, columns = self.shape
        return (rows * columns - 1) // (rows + columns)


@dataclass(frozen=True)
class _Factors:
    """What stands for a matrix: K×r, and r×N or as N×r."""

    layer: FactoredLayer
    first: onnx.TensorProto
    second: onnx.TensorProto
    turned: bool


def check_rank(rank: float) -> None:
    """Raises: InputError for what is neither a rank nor a share of the energy."""
    if isinstance(rank, int) and not isinstance(rank, bool):
        allowed = rank >= 1
    else:
        allowed = math.isfinite(rank) and 0.0 < rank < 1.0
    if not allowed:
        raise InputError(
            f"rank {rank}; allowed: a whole number of 1 or more, or a share of the energy below 1, as 0.95"
        )


def low_rank(model: onnx.ModelProto, rank: float) -> LowRank:
    """A copy of the model with its large constant matrices factorised; the model stays as it was.

    Args:
        model: A float model with its weights in it.
        rank: A whole number; or, below 1, the share of the squared singular values to keep.

    Raises:
        InputError: The model is quantized, a rank that is not allowed, or no matrix that becomes smaller.
    """
    import onnx

    check_rank(rank)
    _check_float(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    spots = dict(_spots(made.graph))
    found: dict[str, _Factors] = {}
    whole: dict[str, str] = {}
    for spot in spots.values():
        if spot.tensor.name not in found | whole:
            answer = _factorised(spot, rank)
            if isinstance(answer, str):
                whole[spot.tensor.name] = answer
            else:
                found[spot.tensor.name] = answer
    if not found:
        raise InputError(_nothing(list(spots.values()), rank, whole))
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(made.graph.node):
        factors = found.get(spots[index].tensor.name) if index in spots else None
        fits = factors is not None and factors.turned == spots[index].turned
        nodes += _pair(node, factors) if factors and fits else [node]
    _replace(made.graph, nodes, found)
    made.ir_version = max(made.ir_version, _OLDEST_IR)
    return LowRank(made, tuple(factors.layer for factors in found.values()), tuple(whole.values()))


def _check_float(model: onnx.ModelProto) -> None:
    if found := sorted({node.op_type for node in nodes_of(model.graph)} & QUANTIZED_OPERATORS):
        raise InputError(
            f"the model is quantized (it has {', '.join(found)}); factorise the float model, then quantize"
        )


def _spots(graph: onnx.GraphProto) -> Iterator[tuple[int, _Spot]]:
    """By the node's number: rule 1."""
    import onnx

    kinds = onnx.TensorProto
    floats = {
        tensor.name: tensor
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE)
    }
    for index, node in enumerate(graph.node):
        given = {item.name: item.i for item in node.attribute}
        tensor = floats.get(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
        if tensor is not None and not given.get("transA", 0) and math.prod(tensor.dims) >= LARGE:
            yield index, _Spot(tensor, bool(given.get("transB", 0)))


def _factorised(spot: _Spot, rank: float) -> _Factors | str:
    """Both factors, or why the matrix stays whole: rules 2 and 3."""
    from onnx import numpy_helper

    rows, columns = spot.shape
    told = f"{spot.name} ({rows}×{columns})"
    if rank >= 1 and rank > spot.most:
        return f"{told} stays whole: rank {rank} would not make it smaller; allowed: up to {spot.most}"
    stored = numpy_helper.to_array(spot.tensor)
    matrix = stored.T if spot.turned else stored
    basis, squares = _directions(matrix)
    total = float(squares.sum())
    if total == 0.0:
        return f"{told} stays whole: it holds only zeros"
    kept = int(rank) if rank >= 1 else _rank_for(squares, rank)
    if kept > spot.most:
        return f"{told} stays whole: {rank} of its energy takes rank {kept}; smaller are those up to {spot.most}"
    lost = float(squares[kept:].sum()) / total
    layer = FactoredLayer(
        name=spot.name,
        inputs=rows,
        outputs=columns,
        rank=kept,
        energy=1.0 - lost,
        relative_error=math.sqrt(lost),
        macs_before=rows * columns,
        macs_after=kept * (rows + columns),
    )
    first, second = _split(matrix, basis[:, :kept])
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(values, stored.dtype), f"{spot.name}.{part}.weight")
        for values, part in ((first, "first"), (second.T if spot.turned else second, "second"))
    ]
    return _Factors(layer, tensors[0], tensors[1], spot.turned)


def _directions(matrix: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The singular vectors of the shorter side (S×S, as columns) and the squared singular values, the largest first.

    From the eigenvalues of the Gram matrix in float64: for weights of 24 bits its squares lose nothing that counts, and
    a matrix of 25,088×4,096 takes a Gram matrix of 134 MB where the singular value decomposition takes gigabytes.
    """
    tall = _tall(matrix)
    gram = np.zeros((tall.shape[1],) * 2)
    for part in _parts(tall):
        gram += part.T @ part
    squares, basis = np.linalg.eigh(gram)
    return basis[:, ::-1], np.maximum(squares[::-1], 0.0)


def _split(matrix: NDArray[Any], basis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (K×r) and B (r×N); the one with the shorter side is orthonormal."""
    projected = np.concatenate([part @ basis for part in _parts(_tall(matrix))])
    if _is_tall(matrix):
        return projected, basis.T
    return basis, projected.T


def _is_tall(matrix: NDArray[Any]) -> bool:
    rows, columns = matrix.shape
    return bool(rows >= columns)


def _tall(matrix: NDArray[Any]) -> NDArray[Any]:
    return matrix if _is_tall(matrix) else matrix.T


def _parts(tall: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Rows in float64, so many at once that they take little memory."""
    step = max(1, _BLOCK // tall.shape[1])
    for start in range(0, len(tall), step):
        yield tall[start : start + step].astype(np.float64)


def _rank_for(squares: NDArray[np.float64], energy: float) -> int:
    """The smallest rank that keeps this share of the energy."""
    return min(int(np.searchsorted(np.cumsum(squares), energy * squares.sum())) + 1, len(squares))


def _pair(node: onnx.NodeProto, factors: _Factors) -> list[onnx.NodeProto]:
    """The first is a MatMul whatever the node is: Gemm has an optional bias from opset 11 on only."""
    from onnx import helper

    between, name = f"{node.output[0]}.first", node.name or node.output[0]
    first = helper.make_node("MatMul", [node.input[0], factors.first.name], [between], name=f"{name}.first")
    second = type(node)()
    second.CopyFrom(node)
    second.name = f"{name}.second"
    second.input[:2] = [between, factors.second.name]
    return [first, second]


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], found: dict[str, _Factors]) -> None:
    """Puts the nodes in, and takes out the matrices that nothing reads any more."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in nodes_of(graph) for name in node.input} | {value.name for value in graph.output}
    for values in (graph.initializer, graph.input):  # files of IR 3 name their weights as inputs too
        for value in [value for value in values if value.name in found and value.name not in read]:
            values.remove(value)
    for factors in found.values():
        graph.initializer.extend((factors.first, factors.second))


def _nothing(spots: list[_Spot], rank: float, whole: dict[str, str]) -> str:
    if not spots:
        return f"no Gemm or MatMul with a constant matrix of {LARGE:,} weights or more; low rank is for large ones"
    return f"rank {rank} makes no matrix smaller: {'; '.join(whole.values())}"
