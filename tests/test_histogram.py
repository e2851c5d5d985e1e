from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import trunc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.histogram import BINS, Histogram

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def _state(histogram: Histogram) -> tuple[int, float, float, bytes]:
    return histogram.exponent, histogram.low, histogram.high, histogram.counts.tobytes()


def _counted_exactly(values: np.ndarray) -> tuple[int, dict[int, int]]:
    """The rule of the module in whole numbers: the least exponent that fits, and the count of each bin."""
    exact = [Fraction(float(value)) for value in values]
    low, high = min(0, *exact), max(0, *exact)
    exponent = -120
    while trunc(high / Fraction(2) ** exponent) - trunc(low / Fraction(2) ** exponent) >= BINS:
        exponent += 1
    return exponent, dict(Counter(trunc(value / Fraction(2) ** exponent) for value in exact))


def _found(histogram: Histogram) -> dict[int, int]:
    positive, negative = histogram.counts
    found = {int(index): int(positive[index]) for index in np.flatnonzero(positive)}
    return found | {-int(index): int(negative[index]) for index in np.flatnonzero(negative)}


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
@pytest.mark.parametrize("kind", ["normal", "spread", "tiny", "constant", "zeros"])
def test_counts_are_those_of_exact_arithmetic(kind: str, sign: str) -> None:
    random = np.random.default_rng(0)
    normal = random.standard_normal(400)
    values = {
        "normal": normal,
        "spread": normal * 10.0 ** random.integers(-44, 37, 400),
        "tiny": normal * 1e-41,
        "constant": np.full(9, 3.0),
        "zeros": np.zeros(9),
    }[kind].astype(np.float32)
    values = {"both": values, "positive": np.abs(values), "negative": -np.abs(values)}[sign]
    histogram = _of(*np.array_split(values, 5))
    exponent, counts = _counted_exactly(values)
    assert (histogram.exponent, _found(histogram)) == (exponent, counts)
    assert (histogram.low, histogram.high) == (values.min(), values.max())


@given(st.lists(FLOATS, min_size=1, max_size=60), st.randoms(use_true_random=False), st.integers(1, 6))
def test_order_and_parts_do_not_matter(values: list[float], random: object, parts: int) -> None:
    whole = np.array(values, np.float32)
    random.shuffle(values)  # type: ignore[attr-defined]
    shuffled = np.array_split(np.array(values, np.float32), parts)
    merged = Histogram()
    for part in shuffled:
        merged.merge(_of(part))
    assert _state(_of(whole)) == _state(_of(*shuffled)) == _state(merged)


def test_large_arrays_are_counted_in_pieces() -> None:
    values = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    one_by_one = _of(*np.array_split(values, 9))
    assert _of(values.reshape(3, -1)).counts.sum() == 200_001 == one_by_one.total
    assert _state(_of(values)) == _state(one_by_one)


def test_bins_are_those_of_numpy() -> None:
    for values in (
        np.random.default_rng(0).gamma(2.0, size=5000),
        np.random.default_rng(1).standard_normal(5000) - 9.0,
    ):
        edges, counts = _of(values).bins()
        assert (edges[0], edges[-1]) == (values.min(), values.max())
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        assert np.diff(edges)[1:-1] == pytest.approx(_of(values).width)


def test_eight_bit_steps_are_resolved() -> None:
    for values in (np.linspace(0, 1.001, 50), np.linspace(-1.7, 3.2, 50), np.linspace(0, 0.999, 50)):
        histogram = _of(values.astype(np.float32))
        assert BINS / 2 <= (values.max() - min(values.min(), 0)) / histogram.width <= BINS


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_element_types(dtype: type) -> None:
    values = np.random.default_rng(0).standard_normal(100).astype(dtype)
    assert _found(_of(values)) == _counted_exactly(values)[1]


def test_nothing_counts_nothing() -> None:
    empty = _of(np.zeros(0, np.float32))
    assert (empty.total, empty.bins()[1].size) == (0, 0)
    held = _of(np.array([1.0, -2.0]))
    before = _state(held)
    held.merge(empty)
    assert _state(held) == before
