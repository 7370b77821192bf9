"""Student's t, paired differences and Holm's rule, against tables and numbers worked by hand."""

import math

import pytest

from trl_r1zero.reports.statistics import (
    SeedDifference,
    difference_by_seed,
    holm,
    mean_over_steps,
    t_interval,
    t_p_value,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (100_000, 1.960)],
)
def test_quantiles_are_those_of_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_quantiles_of_other_confidences_have_closed_forms():
    # One degree of freedom is Cauchy's distribution: P(|T| < t) = 2 atan(t) / pi.
    assert t_quantile(1, 0.5) == pytest.approx(1.0)
    # Two: P(|T| < t) = t / sqrt(2 + t^2).
    assert t_quantile(2, 0.99) == pytest.approx(0.99 * math.sqrt(2 / (1 - 0.99**2)))
    assert t_p_value(0.0, 3) == 1.0
    assert t_p_value(math.inf, 3) == 0.0


def test_quantiles_of_nonsense_are_errors():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        t_quantile(0)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        t_quantile(3, 95)


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
