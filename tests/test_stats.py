from __future__ import annotations

import numpy as np
import pytest

from deploykit.stats import bootstrap_median_interval, median, percentile, relative_spread


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
