"""From float weights to small integers: where a channel's step lies, and which way each weight is rounded.

A layer's weights are rows here, (channels, K): a row is what one output is a sum over, in the order in which integer
kernels walk it (``graph.weight_rows``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "layer_error", "learned_rounding", "mse_steps", "nearest"]

Float = NDArray[np.float32]
Integer = NDArray[np.int8]

_COARSE = np.geomspace(0.5, 2.0, 13)  # of the step that just holds the largest weight
_FINE = np.linspace(0.955, 1.045, 7)  # of the best coarse one
_COLUMNS = 4096  # of a row are enough to choose its step by
_CHUNK = 1 << 18  # values worked on at a time, so that they stay in the cache
_DAMPING = 0.01  # Frantar et al. 2022, section 3.3: of the mean of the diagonal
_LAZY = 128  # columns after which the rest of the rows hears of their errors


@dataclass(frozen=True)
class Grid:
    """The integers that weights may become.

    Attributes:
        most: Largest magnitude; the grid reaches from −most to most.
        pair_limit: Largest magnitude of the sum of two neighbours, 2j and 2j + 1 of a row. x86 without VNNI adds two
            products u8 × s8 in 16 bits (VPMADDUBSW): 255 · 128 = 32,640 fits, whatever the activations are, and two
            weights of opposite signs may have all of their range. None where no kernel saturates.
    """

    most: int
    pair_limit: int | None = None


def nearest(rows: Float, steps: Float, grid: Grid) -> Integer:
    """The nearest integers, (channels, K); a pair beyond the limit goes to the nearest that is within.

    Args:
        rows: (channels, K).
        steps: (channels, 1) or (channels, K), positive.
        grid: What is allowed.
    """
    out = np.empty(rows.shape, np.int8)
    for part in _parts(rows):
        scaled = rows[part] / steps[part]
        integers = np.clip(np.rint(scaled), -grid.most, grid.most)
        if grid.pair_limit is not None and rows.shape[1] > 1:
            _limit_pairs(integers, scaled, grid.most, grid.pair_limit)
        out[part] = integers
    return out


def _parts(rows: Float) -> Iterator[slice]:
    height = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), height):
        yield slice(start, start + height)


def _limit_pairs(integers: Float, scaled: Float, most: int, limit: int) -> None:
    """Moves each pair whose sum is beyond the limit to the nearest one on it, in place."""
    even = integers.shape[1] // 2 * 2
    first, second = integers[:, 0:even:2], integers[:, 1:even:2]
    beyond = np.abs(first + second) > limit
    if not beyond.any():
        return
    line = np.copysign(np.float32(limit), (first + second)[beyond])
    nearest_on_line = (scaled[:, 0:even:2][beyond] - scaled[:, 1:even:2][beyond] + line) / 2
    first[beyond] = np.clip(np.rint(nearest_on_line), np.maximum(line, 0) - most, np.minimum(line, 0) + most)
    second[beyond] = line - first[beyond]


def mse_steps(rows: Float, grid: Grid) -> Float:
    """The step of each row, (channels, 1), that leaves the least squared error after rounding.

    The candidates lie around the step that just holds the row's largest weight: smaller ones cut the largest weights
    and resolve the rest, larger ones keep pairs below their limit.
    """
    most = np.abs(rows).max(axis=1, keepdims=True) if rows.size else np.zeros((len(rows), 1), np.float32)
    base = np.where(most > 0, most / grid.most, 1.0).astype(np.float32)
    sample = _columns(rows)
    best = _best(sample, base, grid, _COARSE)
    steps: Float = np.maximum(_best(sample, best, grid, _FINE), np.finfo(np.float32).tiny)
    return steps


def _columns(rows: Float) -> Float:
    """Pairs of columns spread over the row, all of a short one."""
    width = rows.shape[1]
    if width <= _COLUMNS:
        return rows
    firsts = np.linspace(0, width // 2 - 1, _COLUMNS // 2).astype(int) * 2
    return np.ascontiguousarray(rows[:, np.sort(np.concatenate((firsts, firsts + 1)))])


def _best(rows: Float, base: Float, grid: Grid, factors: NDArray[np.float64]) -> Float:
    errors = np.stack([_squared_error(rows, base * np.float32(factor), grid) for factor in factors])
    # A row that several steps serve alike (one weight, zeros) keeps the one nearest to its base.
    order = np.argsort(np.abs(np.log(factors)), kind="stable")
    chosen = factors[order][errors[order].argmin(axis=0)].astype(np.float32)
    steps: Float = base * chosen[:, None]
    return steps


def _squared_error(rows: Float, steps: Float, grid: Grid) -> NDArray[np.float64]:
    errors = np.empty(len(rows))
    for part in _parts(rows):
        integers = nearest(rows[part], steps[part], grid)
        errors[part] = np.square(integers * steps[part] - rows[part]).sum(axis=1, dtype=np.float64)
    return errors


def learned_rounding(rows: Float, steps: Float, grid: Grid, gram: NDArray[np.floating]) -> Integer:
    """Rounds so that the layer's outputs, not its weights, stay near: Frantar et al. 2022 (GPTQ), algorithm 1.

    Column after column is rounded, and its error is made good by the columns that are still free, as far as the
    inputs that the layer sees let one weight stand in for another. A row that nearest rounding serves better keeps
    that.

    Args:
        rows: (channels, K).
        steps: (channels, 1) or (channels, K), positive.
        grid: What is allowed.
        gram: (K, K), the sum over samples of x·xᵀ, x being what a row is multiplied with.

    Returns:
        (channels, K).
    """
    plain = nearest(rows, steps, grid)
    steps = np.broadcast_to(steps, rows.shape)
    integers = _sequential(rows, steps, grid, _inverse_factor(gram))
    better = layer_error(rows, integers, steps, gram) < layer_error(rows, plain, steps, gram)
    return np.where(better[:, None], integers, plain)


def layer_error(rows: Float, integers: Integer, steps: Float, gram: NDArray[np.floating]) -> NDArray[np.float64]:
    """Σ (output − rounded output)² of each row over the samples of ``gram``, (channels,)."""
    difference = (integers * steps - rows).astype(np.float64)
    error: NDArray[np.float64] = np.einsum("ck,ck->c", difference @ gram.astype(np.float64), difference)
    return error


def _inverse_factor(gram: NDArray[np.floating]) -> Float:
    """The upper Cholesky factor of the damped matrix's inverse."""
    matrix = gram.astype(np.float64)
    diagonal = np.diagonal(matrix).copy()
    mean = float(diagonal.mean()) or 1.0
    # What no sample ever fed would make the matrix singular; such a weight hears of no error and makes none.
    matrix[np.diag_indices_from(matrix)] += _DAMPING * mean + np.where(diagonal == 0, mean, 0.0)
    inverse = np.linalg.inv(matrix)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, dtype=np.float32)


def _sequential(rows: Float, steps: Float, grid: Grid, factor: Float) -> Integer:
    left, integers = rows.astype(np.float32).copy(), np.zeros(rows.shape, np.int8)
    width = rows.shape[1]
    for start in range(0, width, _LAZY):
        end = min(start + _LAZY, width)
        errors = np.zeros((len(rows), end - start), np.float32)
        for column in range(start, end):
            before = integers[:, column - 1].astype(np.float32) if column % 2 else None
            chosen = _rounded_column(left[:, column] / steps[:, column], before, grid)
            integers[:, column] = chosen
            error = (left[:, column] - chosen * steps[:, column]) / factor[column, column]
            left[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return integers


def _rounded_column(scaled: Float, before: Float | None, grid: Grid) -> Float:
    """Rounds a column; the second of a pair keeps their sum within the limit."""
    low, high = np.full_like(scaled, -grid.most), np.full_like(scaled, grid.most)
    if before is not None and grid.pair_limit is not None:
        low, high = np.maximum(low, -grid.pair_limit - before), np.minimum(high, grid.pair_limit - before)
    return np.clip(np.rint(scaled), low, high)
