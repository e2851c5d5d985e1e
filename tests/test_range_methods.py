from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import InputError, UnknownNameError
from deploykit.histogram import Histogram
from deploykit.range_methods import METHODS, RangeOptions, _least_divergence, choose_range

RANDOM = np.random.default_rng(0)
VALUES = {
    "normal": RANDOM.standard_normal(20_000),
    "relu": np.maximum(RANDOM.standard_normal(20_000) - 0.5, 0.0),
    "negative": -RANDOM.gamma(2.0, size=20_000),
    "heavy": RANDOM.standard_t(3, 20_000),
    "skew": RANDOM.gamma(1.5, size=20_000) - 0.7,
    "outlier": np.append(RANDOM.standard_normal(20_000), 60.0),
}
VALUES = {name: values.astype(np.float32).astype(np.float64) for name, values in VALUES.items()}


def _histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values))
    return histogram


def _error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    """Mean squared error of a quantizer as ONNX has it; with ends equally far from zero a level less, so that zero is
    one."""
    most = 2 * ((levels - 1) // 2) if low == -high else levels - 1
    scale = (high - low) / most
    zero = np.rint(-low / scale)
    levels_of = np.clip(np.rint(values / scale) + zero, 0, most)
    return float((((levels_of - zero) * scale - values) ** 2).mean())


def _near_percentile(values: np.ndarray, percent: float, found: float, width: float) -> bool:
    """Whether ``found`` is, but for a bin, between numpy's percentiles one rank to either side."""
    ranks = np.clip([percent - 100.0 / len(values), percent + 100.0 / len(values)], 0.0, 100.0)
    below, above = np.percentile(values, ranks[0], method="lower"), np.percentile(values, ranks[1], method="higher")
    return bool(below - width <= found <= above + width)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("name", VALUES)
def test_percentiles_are_those_of_numpy(name: str, percentile: float) -> None:
    values, histogram = VALUES[name], _histogram(VALUES[name])
    low, high = choose_range(histogram, RangeOptions("percentile", percentile=percentile))
    cut = 100.0 - percentile if values.min() >= 0 or values.max() <= 0 else (100.0 - percentile) / 2
    assert low == 0.0 if values.min() >= 0 else _near_percentile(values, cut, low, histogram.width)
    assert high == 0.0 if values.max() <= 0 else _near_percentile(values, 100.0 - cut, high, histogram.width)
    left, right = choose_range(histogram, RangeOptions("percentile", percentile=percentile, symmetric=True))
    assert left == -right
    assert _near_percentile(np.abs(values), percentile, right, histogram.width)


@pytest.mark.parametrize("levels", [256, 16])
@pytest.mark.parametrize("name", VALUES)
def test_squared_error_beats_a_brute_force_search(name: str, levels: int) -> None:
    values = VALUES[name]
    shares = np.linspace(0.03, 1.0, 20)
    lows = min(values.min(), 0.0) * (shares if values.min() < 0 else np.ones(1))
    highs = max(values.max(), 0.0) * (shares if values.max() > 0 else np.ones(1))
    least = min(_error(values, low, high, levels) for low in lows for high in highs)
    low, high = choose_range(_histogram(values), RangeOptions("mse", levels=levels))
    # With one value twenty times as far out as the others, the error has many hollows, one for each place of zero.
    assert _error(values, low, high, levels) <= (1.04 if name == "outlier" else 1.01) * least
    zero = -low / ((high - low) / (levels - 1))
    assert zero == pytest.approx(round(zero), abs=1e-6)  # zero is one of the levels


def test_symmetric_squared_error() -> None:
    values = VALUES["skew"]
    reach = np.abs(values).max()
    least = min(_error(values, -reach * share, reach * share, 16) for share in np.linspace(0.03, 1.0, 60))
    low, high = choose_range(_histogram(values), RangeOptions("mse", levels=16, symmetric=True))
    assert low == -high
    assert _error(values, low, high, 16) <= 1.01 * least


def _slow_divergence(counts: list[float], stop: int, levels: int) -> float:
    """Migacz's pseudo code, number by number."""
    true = [float(count) for count in counts[:stop]]
    true[-1] += sum(counts[stop:])
    quantized = [0.0] * stop
    bounds = [level * stop // levels for level in range(levels)] + [stop]
    for level in range(levels):
        part = range(bounds[level], bounds[level + 1])
        held = [index for index in part if counts[index]]
        for index in held:
            quantized[index] = sum(counts[i] for i in held) / len(held)
    total, total_quantized = sum(true), sum(quantized)
    if not total_quantized:
        return math.inf
    divergence = 0.0
    for p, q in zip(true, quantized, strict=True):
        if p:
            divergence += p / total * math.log(p / total / (q / total_quantized if q else 1e-9))
    return divergence


@pytest.mark.parametrize("name", ["relu", "outlier", "heavy"])
@pytest.mark.parametrize("levels", [8, 64])
def test_entropy_finds_the_least_divergence(name: str, levels: int) -> None:
    counts, edges = np.histogram(np.abs(VALUES[name]), 400)
    found = _least_divergence(edges, counts.astype(np.int64), levels)
    slow = [float(count) for count in counts]
    slow[0] = min(slow[0], slow[1])
    stops = range(400, levels - 1, -16)
    divergence = [_slow_divergence(slow, stop, levels) for stop in stops]
    assert found == pytest.approx(edges[-1] * stops[int(np.argmin(divergence))] / 400)


def test_entropy_cuts_outliers_off() -> None:
    low, high = choose_range(_histogram(VALUES["outlier"]), RangeOptions("entropy"))
    assert low == pytest.approx(VALUES["outlier"].min())
    assert 2.0 < high < 15.0
    assert choose_range(_histogram(VALUES["relu"]), RangeOptions("entropy"))[0] == 0.0


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    st.sampled_from(sorted(METHODS)),
    st.booleans(),
    st.sampled_from([4, 16, 255, 256]),
)
def test_zero_is_inside_and_the_values_reach_around_it(
    values: list[float], method: str, symmetric: bool, levels: int
) -> None:
    histogram = _histogram(np.array(values, np.float32))
    low, high = choose_range(histogram, RangeOptions(method, levels=levels, symmetric=symmetric))
    reach = max(map(abs, values))
    step = 2.0 * reach / (levels - 1)
    assert -reach - step <= low <= 0.0 <= high <= reach + step
    assert (low < high) == any(values)
    assert not symmetric or low == -high
    if method == "minmax" and not symmetric:
        assert (low, high) == (min(0.0, *values), max(0.0, *values))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "entropie"}, "calibration method 'entropie'; did you mean 'entropy'"),
        ({"levels": 2}, "2 levels; allowed: 4 to 65536"),
        ({"percentile": 0.999}, "percentile 0.999; allowed: above 50, up to 100"),
    ],
)
def test_options_are_checked(options: dict[str, object], says: str) -> None:
    with pytest.raises((InputError, UnknownNameError), match=says):
        RangeOptions(**options)  # type: ignore[arg-type]
