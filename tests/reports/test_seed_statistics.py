"""Student's t, paired differences and Holm's rule, against tables and numbers worked by hand."""

import math

import pytest

from trl_r1zero.evaluation import standard_error
from trl_r1zero.reports.statistics import (
    SeedDifference,
    difference_by_seed,
    holm,
    mean_over_steps,
    t_interval,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062047362), (2, 4.3026527297), (3, 3.1824463053), (4, 2.7764451052),
     (10, 2.2281388520), (1000, 1.9623390808)],
)  # fmt: skip
def test_half_widths_are_the_quantiles_of_tables(degrees, quantile):
    values = [(-1.0) ** i for i in range(degrees + 1)]
    low, high = t_interval(values)
    assert (high - low) / 2 / standard_error(values) == pytest.approx(quantile, abs=1e-9)


def test_other_confidences_have_closed_forms():
    # One degree of freedom is Cauchy's distribution: P(|T| < t) = 2 atan(t) / pi.
    assert t_interval([0.0, 2.0], 0.5) == pytest.approx((0.0, 2.0))
    # Two: P(|T| < t) = t / sqrt(2 + t^2).
    quantile = 0.99 * math.sqrt(2 / (1 - 0.99**2))
    assert t_interval([1.0, 2.0, 3.0], 0.99)[1] == pytest.approx(2 + quantile / math.sqrt(3))
    difference = SeedDifference({0: 1.0, 1: 2.0, 2: 3.0})
    t = 2 * math.sqrt(3)
    assert difference.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2), abs=1e-12)


def test_interval_of_a_mean():
    # mean 2, variance 1, standard error 1 / sqrt(3)
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3)),
        pytest.approx(2 + 4.302653 / math.sqrt(3)),
    )
    assert all(math.isnan(end) for end in t_interval([1.0]))


def test_differences_are_of_the_seeds_that_both_have():
    difference = difference_by_seed({0: 0.5, 1: 0.7, 5: 0.9}, {1: 0.6, 0: 0.2, 2: 0.1})
    assert difference.differences == {0: pytest.approx(0.3), 1: pytest.approx(0.1)}
    assert difference.num_seeds == 2
    assert difference.mean == pytest.approx(0.2)
    # standard error of 0.3 and 0.1: half their difference
    assert difference.half_width == pytest.approx(12.7062 * 0.1, rel=1e-5)
    assert not difference.is_seen
    # t = 0.2 / 0.1 = 2: 1 - 2 atan(2) / pi
    assert difference.p_value == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_a_difference_is_seen_if_0_is_outside_on_either_side():
    assert SeedDifference({0: 0.10, 1: 0.11, 2: 0.12}).is_seen
    assert SeedDifference({0: -0.10, 1: -0.11, 2: -0.12}).is_seen
    assert not SeedDifference({0: 0.1, 1: -0.1, 2: 0.0}).is_seen


def test_differences_without_spread_or_interval():
    same = SeedDifference({0: 0.0, 1: 0.0})
    assert same.interval == (0.0, 0.0) and not same.is_seen and same.p_value == 1.0
    assert SeedDifference({0: 0.5, 1: 0.5}).p_value == 0.0
    for few in (SeedDifference({0: 0.5}), SeedDifference({})):
        assert math.isnan(few.p_value) and not few.is_seen
    assert SeedDifference({0: 0.5}).as_json() == {
        "mean": 0.5, "interval": None, "p_value": None, "num_seeds": 1, "by_seed": {"0": 0.5}
    }  # fmt: skip
    assert SeedDifference({}).as_json()["mean"] is None


def test_holm_stops_at_the_first_that_fails():
    # 0.05 / 4 = 0.0125, / 3 = 0.0167, / 2 = 0.025, / 1
    assert holm([0.02, 0.01, 0.04, 0.013]) == [True, True, True, True]
    assert holm([0.03, 0.01, 0.04, 0.013]) == [False, True, False, True]
    assert holm([0.02, 0.02]) == [True, True]
    assert holm([math.nan, 0.04]) == [False, False]
    assert holm([math.nan, 0.02]) == [False, True]
    assert holm([0.04]) == [True]
    assert holm([]) == []


def test_mean_of_a_curve_weighs_by_the_distance_of_its_points():
    # (1 - 0) * 1 + (3 - 1) * 2 over 3
    assert mean_over_steps([0, 1, 3], [0.0, 2.0, 2.0]) == pytest.approx((1 + 4) / 3)
    assert mean_over_steps([10, 20], [0.5, 0.7]) == pytest.approx(0.6)
    assert math.isnan(mean_over_steps([0], [0.5]))
