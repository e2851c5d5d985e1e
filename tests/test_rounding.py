"""Rounding against brute force, and against what saturates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.rounding import Grid, layer_error, learned_rounding, mse_steps, nearest

GRIDS = [Grid(127), Grid(127, pair_limit=128), Grid(64), Grid(7)]


def _rows(seed: int, channels: int = 6, width: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((channels, width)) * random.uniform(0.01, 3, (channels, 1))).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_nearest_is_rint_where_no_pair_is_beyond(grid: Grid) -> None:
    rows = _rows(0)
    steps = np.abs(rows).max(axis=1, keepdims=True) / min(grid.most, 60)
    np.testing.assert_array_equal(nearest(rows, steps, grid), np.rint(rows / steps).clip(-grid.most, grid.most))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_pairs_are_the_nearest_that_are_allowed(seed: int, width: int) -> None:
    """Brute force over all integers near a pair."""
    rows = np.random.default_rng(seed).uniform(-140, 140, (3, width)).astype(np.float32)
    integers = nearest(rows, np.ones((3, 1), np.float32), Grid(127, pair_limit=128)).astype(int)
    for row, got in zip(rows, integers, strict=True):
        for first in range(0, width - 1, 2):
            (one, two), (a, b) = row[first : first + 2], got[first : first + 2]
            assert abs(a + b) <= 128 and max(abs(a), abs(b)) <= 127
            around = itertools.product(range(a - 9, a + 10), range(b - 9, b + 10))
            allowed = [(p, q) for p, q in around if abs(p + q) <= 128 and max(abs(p), abs(q)) <= 127]
            least = min((p - one) ** 2 + (q - two) ** 2 for p, q in allowed)
            assert (a - one) ** 2 + (b - two) ** 2 <= least * (1 + 1e-5) + 1e-3


def test_no_two_products_leave_sixteen_bits() -> None:
    rows = np.full((2, 6), 1.0, np.float32)
    integers = nearest(rows, np.full((2, 1), 1 / 127, np.float32), Grid(127, pair_limit=128)).astype(int)
    assert (255 * (integers[:, 0::2] + integers[:, 1::2]) < 2**15).all()
    opposite = np.tile(np.array([1.0, -1.0], np.float32), (2, 3))
    np.testing.assert_array_equal(np.abs(nearest(opposite, np.full((2, 1), 1 / 127, np.float32), Grid(127, 128))), 127)


@pytest.mark.parametrize("grid", GRIDS)
def test_steps_are_as_good_as_a_fine_search(grid: Grid) -> None:
    rows = _rows(1, width=512)
    steps = mse_steps(rows, grid)

    def error(candidate: np.ndarray) -> np.ndarray:
        return ((nearest(rows, candidate, grid) * candidate - rows) ** 2).sum(axis=1)

    base = np.abs(rows).max(axis=1, keepdims=True) / grid.most
    best = np.min([error((base * factor).astype(np.float32)) for factor in np.linspace(0.4, 2.2, 400)], axis=0)
    assert (error(steps) <= 1.15 * best).all()
    assert error(steps).sum() <= error(base).sum()


def test_pairs_resolve_more_than_seven_bits_do() -> None:
    """What the portable grid is for: on weights as networks have them it loses less than a halved range."""
    rows = _rows(2, channels=64, width=576)

    def noise(grid: Grid) -> float:
        steps = mse_steps(rows, grid)
        return float(((nearest(rows, steps, grid) * steps - rows) ** 2 / rows.var(axis=1, keepdims=True)).mean())

    assert noise(Grid(127, pair_limit=128)) < 0.6 * noise(Grid(64))


def test_rows_of_zeros_and_of_one_weight() -> None:
    rows = np.array([[0, 0, 0, 0], [0, 5e-9, 0, 0]], np.float32)
    steps = mse_steps(rows, Grid(127))
    assert (steps > 0).all() and np.isfinite(steps).all()
    np.testing.assert_allclose(nearest(rows, steps, Grid(127)) * steps, rows, rtol=1e-2, atol=0)
    assert mse_steps(np.zeros((0, 4), np.float32), Grid(127)).shape == (0, 1)


@pytest.mark.parametrize("grid", GRIDS)
def test_learned_rounding_serves_the_outputs(grid: Grid) -> None:
    """On correlated inputs the layer's error falls, within the same grid; an input that no sample feeds is harmless."""
    random = np.random.default_rng(3)
    rows = _rows(4, channels=12, width=48)
    inputs = np.maximum(random.standard_normal((2000, 12)) @ random.standard_normal((12, 48)), 0)
    inputs[:, 5] = 0
    gram, steps = inputs.T @ inputs, mse_steps(rows, grid)
    learned, plain = learned_rounding(rows, steps, grid, gram), nearest(rows, steps, grid)
    outputs = [((inputs @ (integers * steps - rows).T) ** 2).sum(axis=0) for integers in (learned, plain)]
    np.testing.assert_allclose(layer_error(rows, learned, steps, gram), outputs[0], rtol=1e-4)
    assert (outputs[0] <= outputs[1] * (1 + 1e-6)).all()
    assert outputs[0].sum() < 0.7 * outputs[1].sum()
    assert np.abs(learned.astype(int)).max() <= grid.most
    if grid.pair_limit:
        assert np.abs(learned[:, 0::2].astype(int) + learned[:, 1::2]).max() <= grid.pair_limit
    np.testing.assert_array_equal(learned, learned_rounding(rows, steps, grid, gram))


def test_learned_rounding_without_any_input() -> None:
    rows = _rows(5)
    steps = mse_steps(rows, Grid(127))
    np.testing.assert_array_equal(
        learned_rounding(rows, steps, Grid(127), np.zeros((40, 40))), nearest(rows, steps, Grid(127))
    )
