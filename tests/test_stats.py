from __future__ import annotations

import numpy as np
import pytest

from deploykit.stats import bootstrap_median_interval, bootstrap_percentiles, median, percentile, relative_spread


def test_agrees_with_numpy() -> None:
    values = np.random.default_rng(0).lognormal(size=501)
    assert median(values) == np.median(values)
    assert percentile(values, 90) == np.percentile(values, 90)


def test_relative_spread_estimates_sigma_and_ignores_outliers() -> None:
    values = np.random.default_rng(0).normal(100.0, 2.0, 20_000)
    assert relative_spread(values) == pytest.approx(0.02, rel=0.05)
    values[:1000] *= 50
    assert relative_spread(values) == pytest.approx(0.02, rel=0.15)
    assert relative_spread([3.0, 3.0, 3.0]) == 0.0


def test_bootstrap_interval_covers_the_true_median() -> None:
    """95 % intervals of 200 normal samples of 60 cover the true median about 95 times in 100."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_median_interval(generator.normal(10.0, 1.0, 60), resamples=300)
        covered += low <= 10.0 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_is_repeatable_and_checks_its_input() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    assert bootstrap_median_interval(values, seed=3) == bootstrap_median_interval(values, seed=3)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_median_interval(values, confidence=95)
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite numbers"):
            median(bad)


def _nested(
    generator: np.random.Generator, processes: int, turns: int, calls: int, of_process: float
) -> list[list[np.ndarray]]:
    """Calls around 10 that differ by process, by turn (0.05) and by call (0.05)."""
    return [
        [10.0 + level + generator.normal(0.0, 0.05) + generator.normal(0.0, 0.05, calls) for _ in range(turns)]
        for level in generator.normal(0.0, of_process, processes)
    ]


@pytest.mark.parametrize(("processes", "turns", "of_process"), [(1, 40, 0.0), (10, 6, 0.1)])
def test_intervals_hold_what_differs_between_turns_and_processes(processes: int, turns: int, of_process: float) -> None:
    """95 % intervals cover the true median nine times in ten where single calls would do so half as often."""
    generator = np.random.default_rng(0)
    covered = naive = 0
    for seed in range(60):
        samples = _nested(generator, processes, turns, 20, of_process)
        ((low, high),) = bootstrap_percentiles(samples, (50.0,), resamples=200, seed=seed)
        covered += low <= 10.0 <= high
        alone = [[np.concatenate([turn for process in samples for turn in process])]]  # each call for itself
        ((low, high),) = bootstrap_percentiles(alone, (50.0,), resamples=200, seed=seed)
        naive += low <= 10.0 <= high
    assert covered >= 50
    assert naive <= 40


def test_intervals_of_other_percentiles_cover_them() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        samples = [[generator.uniform(0.0, 1.0, 20) for _ in range(60)]]
        ((low, high),) = bootstrap_percentiles(samples, (90.0,), resamples=200, seed=seed)
        covered += low <= 0.9 <= high
    assert 52 <= covered <= 60


def test_intervals_of_many_turns_and_calls_are_those_of_few_places() -> None:
    """More turns and calls than are drawn one by one: the intervals stay where the percentiles are, and narrow."""
    generator = np.random.default_rng(2)
    samples = [[generator.normal(5.0, 0.1, 30) for _ in range(1500)]]
    pooled = np.concatenate(samples[0])
    for (low, high), q in zip(bootstrap_percentiles(samples), (50, 90, 99), strict=True):
        assert low <= np.percentile(pooled, q) <= high
        assert high - low < 0.02


def test_too_few_turns_are_replaced_by_calls() -> None:
    calls = np.random.default_rng(3).normal(5.0, 1.0, 400)
    ((low, high),) = bootstrap_percentiles([[calls]], (50.0,))
    expected = bootstrap_median_interval(calls)
    assert (low, high) == pytest.approx(expected, abs=0.05)
    assert bootstrap_percentiles([[[7.0]]]) == [(7.0, 7.0)] * 3
    for bad in ([], [[]], [[[]]], [[[float("inf")]]]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_percentiles(bad)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_percentiles([[[1.0]]], confidence=2.0)
