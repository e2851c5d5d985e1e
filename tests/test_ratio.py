"""The room ``ratio``: quantiles against tables, coverage and false alarms by simulation."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.ratio import (
    Interval,
    hierarchical_interval,
    look_confidence,
    look_sizes,
    normal_quantile,
    student_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "share", "quantile"),
    [
        (1, 0.975, 12.7062),
        (2, 0.975, 4.30265),
        (2, 0.995, 9.92484),
        (3, 0.975, 3.18245),
        (4, 0.99, 3.74695),
        (5, 0.995, 4.03214),
        (10, 0.9995, 4.58689),
        (29, 0.975, 2.04523),
        (120, 0.975, 1.97993),
    ],
)
def test_students_quantiles_are_those_of_the_tables(freedom, share, quantile):
    """Abramowitz & Stegun 1964, table 26.10, and any later one."""
    assert student_quantile(share, freedom) == pytest.approx(quantile, rel=2e-6)


def test_student_comes_to_the_normal_distribution():
    assert normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-6)
    assert student_quantile(0.975, 20_000) == pytest.approx(normal_quantile(0.975), rel=1e-4)


def test_two_processes_give_the_width_of_students():
    found = hierarchical_interval([[0.01], [0.03]])
    error = math.sqrt(np.var([0.01, 0.03], ddof=1) / 2)
    assert found.middle == pytest.approx(0.02)
    assert found.half_width == pytest.approx(12.7062 * error, rel=1e-5)


def test_processes_that_agree_by_luck_are_no_surer_than_their_rounds():
    generator = np.random.default_rng(0)
    rounds = generator.normal(0.0, 0.05, 15)
    alike = [rounds + 1e-9 * shift for shift in range(3)]
    error = math.sqrt(math.pi / 2 / 15) * 0.05 / math.sqrt(3)  # of the mean of three medians
    assert hierarchical_interval(alike).half_width > 0.5 * student_quantile(0.975, 2) * error


def test_single_rounds_that_were_disturbed_do_not_move_it():
    generator = np.random.default_rng(1)
    quiet = [generator.normal(0.02, 0.002, 15) for _ in range(4)]
    disturbed = [np.concatenate([values[:-3], [2.0, -1.5, 3.0]]) for values in quiet]
    assert hierarchical_interval(disturbed).middle == pytest.approx(hierarchical_interval(quiet).middle, abs=0.002)


@given(
    values=st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=2, max_size=6),
    scale=st.floats(0.1, 10),
    shift=st.floats(-3, 3),
)
def test_it_moves_and_scales_with_the_values(values, scale, shift):
    plain = hierarchical_interval(values)
    moved = hierarchical_interval([[scale * value + shift for value in process] for process in values])
    assert moved.middle == pytest.approx(scale * plain.middle + shift, abs=1e-9)
    assert moved.half_width == pytest.approx(scale * plain.half_width, abs=1e-9)
    assert plain.low <= plain.middle <= plain.high


@pytest.mark.parametrize("wrong", [[], [[1.0]], [[1.0], []], [[1.0], [math.nan]], [[1.0], [math.inf]]])
def test_too_little_to_tell_is_refused(wrong):
    with pytest.raises(ValueError, match="two or more processes"):
        hierarchical_interval(wrong)
    with pytest.raises(ValueError, match="confidence"):
        hierarchical_interval([[1.0], [2.0]], confidence=1.0)


def test_widths_add_as_variances_do():
    one, other = Interval(1.0, 0.7, 1.3), Interval(0.2, -0.2, 0.6)
    difference = one.minus(other)
    assert (difference.middle, difference.half_width) == (pytest.approx(0.8), pytest.approx(0.5))
    assert one.widened(0.4).half_width == pytest.approx(0.5)
    skew = Interval(0.0, -0.3, 0.4).widened(0.0)
    assert (skew.low, skew.high) == (pytest.approx(-0.3), pytest.approx(0.4))


def test_looks_are_a_third_apart_and_share_the_error():
    assert list(itertools.islice(look_sizes(), 7)) == [3, 4, 6, 8, 11, 15, 20]
    spent = sum(1.0 - look_confidence(look) for look in range(1, 2000))
    assert spent == pytest.approx(0.05, rel=1e-3) and spent < 0.05
    assert look_confidence(1) == pytest.approx(0.975)


def test_a_look_takes_a_fifth_of_a_second_at_most():
    generator = np.random.default_rng(2)
    processes = [generator.normal(size=40) for _ in range(20)]
    assert min(_seconds(lambda: hierarchical_interval(processes)) for _ in range(3)) < 0.2


def _seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# By simulation


def draw(generator, effect, between, within, rounds=14):
    """The rounds of one pair of processes; each tenth is disturbed."""
    values = effect + generator.normal(0.0, between) + generator.normal(0.0, within, rounds)
    return values + (generator.random(rounds) < 0.1) * generator.normal(0.0, 20 * within, rounds)


@pytest.mark.parametrize(("between", "within"), [(0.003, 0.001), (0.003, 0.007), (0.0, 0.007)])
@pytest.mark.parametrize("processes", [3, 8])
def test_coverage(between, within, processes):
    generator = np.random.default_rng(3)
    missed = 0
    for _ in range(300):
        found = hierarchical_interval([draw(generator, 0.01, between, within) for _ in range(processes)], resamples=100)
        missed += not found.low <= 0.01 <= found.high
    assert missed <= 26  # 5 % are 15, and 26 comes up in 5 of 1,000 such series


def looked(generator, effect, limit, confidence_of):
    """What a gate says that looks after 3, 4, 6, 8 and 11 pairs."""
    processes = []
    for look, size in enumerate(itertools.islice(look_sizes(), 5), start=1):
        processes += [draw(generator, effect, 0.003, 0.001) for _ in range(size - len(processes))]
        found = hierarchical_interval(processes, confidence=confidence_of(look), resamples=50)
        if found.high <= limit:
            return "pass"
        if found.low > limit:
            return "regression"
    return "inconclusive"


def shares(effect, confidence_of, trials=300):
    generator = np.random.default_rng(4)
    said = [looked(generator, effect, 0.02, confidence_of) for _ in range(trials)]
    return {verdict: said.count(verdict) / trials for verdict in ("pass", "regression", "inconclusive")}


def test_repeated_looks_do_not_raise_false_alarms():
    """At the limit itself every decision is an error; half of the 5 % may fall on either side."""
    careful = shares(0.02, look_confidence)
    careless = shares(0.02, lambda look: 0.95)
    assert careful["regression"] <= 0.04 and careful["pass"] <= 0.04  # 2.5 % and what 300 trials allow
    assert careless["regression"] + careless["pass"] > careful["regression"] + careful["pass"] + 0.02


def test_no_change_passes_and_a_planted_one_is_found():
    assert shares(0.0, look_confidence)["pass"] >= 0.99
    assert shares(0.05, look_confidence)["regression"] >= 0.99
