r"""Differences between two groups of runs, paired by seed, with Student's intervals.

Runs of one seed see the same questions in the same order and begin with the same random numbers, so
part of what chance does to them is the same in both groups, and cancels in their difference.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from trl_r1zero.evaluation import mean, standard_error

__all__ = [
    "CONFIDENCE",
    "SeedDifference",
    "difference_by_seed",
    "holm",
    "mean_over_steps",
    "t_interval",
    "t_p_value",
    "t_quantile",
]

CONFIDENCE = 0.95


@lru_cache
def t_quantile(degrees_of_freedom: int, confidence: float = CONFIDENCE) -> float:
    r"""The t for which a Student variable lies in [-t, t] with probability `confidence`.

    It solves :math:`I_x(\nu / 2, 1 / 2) = 1 - confidence` with :math:`x = \nu / (\nu + t^2)`, where
    :math:`I` is the regularised incomplete beta function and :math:`\nu` the degrees of freedom.

    Raises:
        ValueError: There is no degree of freedom, or the confidence is not between 0 and 1.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"degrees_of_freedom must be at least 1, got {degrees_of_freedom}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    low, high = 0.0, 1.0
    while t_p_value(high, degrees_of_freedom) > 1 - confidence:
        high *= 2
    for _ in range(60):  # halves the bracket to less than a float can tell
        middle = (low + high) / 2
        if t_p_value(middle, degrees_of_freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_p_value(t: float, degrees_of_freedom: int) -> float:
    r"""How probable it is that a Student variable is at least as far from 0 as t (two-sided):
    :math:`I_x(\nu / 2, 1 / 2)` with :math:`x = \nu / (\nu + t^2)`."""
    from mpmath import betainc

    if math.isinf(t):
        return 0.0
    x = degrees_of_freedom / (degrees_of_freedom + t * t)
    return float(betainc(degrees_of_freedom / 2, 0.5, 0, x, regularized=True))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    r"""The interval :math:`\bar x \pm t_{n-1} s / \sqrt n` of a mean; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile(len(values) - 1, confidence) * standard_error(values)
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class SeedDifference:
    """The differences of one variant to the baseline.

    Attributes:
        differences: Seed -> the variant's value less the baseline's, for the seeds of both.
    """

    differences: Mapping[Hashable, float]

    @property
    def num_seeds(self) -> int:
        return len(self.differences)

    @cached_property
    def mean(self) -> float:
        """NaN where no seed is in both."""
        return mean(list(self.differences.values()))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """See `t_interval`."""
        return t_interval(list(self.differences.values()))

    @property
    def half_width(self) -> float:
        """A difference smaller than this would not have been seen."""
        return (self.interval[1] - self.interval[0]) / 2

    @cached_property
    def p_value(self) -> float:
        """Of no difference, by Student's t test over the seeds; NaN for fewer than two."""
        error = standard_error(list(self.differences.values()))
        if math.isnan(error):
            return math.nan
        if error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return t_p_value(self.mean / error, self.num_seeds - 1)

    @property
    def is_seen(self) -> bool:
        """Whether 0 lies outside the interval."""
        low, high = self.interval
        return low > 0 or high < 0

    def as_json(self) -> dict[str, Any]:
        """Numbers for `results.json`; None for what there is not."""
        low, high = self.interval
        return {
            "mean": _or_none(self.mean),
            "interval": None if math.isnan(low) else [low, high],
            "p_value": _or_none(self.p_value),
            "num_seeds": self.num_seeds,
            "by_seed": {str(seed): value for seed, value in self.differences.items()},
        }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def difference_by_seed(
    variant: Mapping[Hashable, float], baseline: Mapping[Hashable, float]
) -> SeedDifference:
    """Seed -> value of both groups, paired where both have the seed."""
    return SeedDifference(
        {seed: value - baseline[seed] for seed, value in variant.items() if seed in baseline}
    )


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    r"""Which of several comparisons are significant together, by Holm's step-down rule.

    The smallest of m p-values is compared with level / m, the next with level / (m - 1), and so on
    up to the first that is larger: the chance of a single false alarm among all is at most `level`.
    NaN is never significant, and counts as a comparison.
    """
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    significant = [False] * len(p_values)
    for rank, number in enumerate(order):
        if not p_values[number] <= level / (len(p_values) - rank):
            break
        significant[number] = True
    return significant


def mean_over_steps(steps: Sequence[float], values: Sequence[float]) -> float:
    r"""The mean height of a curve, its area by trapezoids over its length:
    :math:`\sum_i (x_{i+1} - x_i) (y_i + y_{i+1}) / 2 / (x_n - x_0)`.

    Args:
        steps: Ascending.

    Returns:
        NaN for fewer than two points.
    """
    if len(steps) < 2:
        return math.nan
    pairs = list(zip(steps, values, strict=True))
    area = math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(pairs))
    return area / (steps[-1] - steps[0])
