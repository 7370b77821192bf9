r"""Differences between two groups of runs, paired by seed, with Student's intervals.

Runs of one seed see the same questions in the same order and begin with the same random numbers, so
part of what chance does to them is the same in both groups, and cancels in their difference.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from trl_r1zero.evaluation.metrics import mean, standard_error

CONFIDENCE = 0.95


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    r"""The interval :math:`\bar x \pm t_{n-1} s / \sqrt n` of a mean; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * standard_error(values)
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class SeedDifference:
    """Seed -> a variant's value less the baseline's, for the seeds of both."""

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
        if error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * float(stdtr(self.num_seeds - 1, -abs(self.mean / error)))

    @property
    def is_seen(self) -> bool:
        """Whether 0 lies outside the interval."""
        low, high = self.interval
        return low > 0 or high < 0

    def as_json(self) -> dict[str, Any]:
        """Numbers for `results.json`; None for what there is not."""
        low, high = self.interval
        return {
            "mean": self.mean if math.isfinite(self.mean) else None,
            "interval": None if math.isnan(low) else [low, high],
            "p_value": self.p_value if math.isfinite(self.p_value) else None,
            "num_seeds": self.num_seeds,
            "by_seed": {str(seed): value for seed, value in self.differences.items()},
        }


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
    significant = [False] * len(p_values)
    for rank, number in enumerate(np.argsort(p_values, kind="stable")):  # NaN is last
        if not p_values[number] <= level / (len(p_values) - rank):
            break
        significant[number] = True
    return significant


def mean_over_steps(steps: Sequence[float], values: Sequence[float]) -> float:
    r"""The mean height of a curve, its area by trapezoids over its length; NaN for fewer than two
    points. Steps ascend."""
    if len(steps) < 2:
        return math.nan
    pairs = pairwise(zip(steps, values, strict=True))
    area = math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairs)
    return area / (steps[-1] - steps[0])
