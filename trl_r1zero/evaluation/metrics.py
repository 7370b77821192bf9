"""Numbers with their uncertainty, from graded completions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from trl_r1zero.rewards import is_correct

K = TypeVar("K")
V = TypeVar("V")

# Of a normal distribution, 95% lie within so many standard deviations.
Z_95 = 1.96


@dataclass
class GradedCompletion:
    """One completion with everything that a table or a summary needs."""

    # prompt, response, ground_truth: The texts; `ground_truth` may be a list of accepted answers.
    prompt: str
    response: str
    ground_truth: Any
    # `reward`, and usually its parts `format_reward` and `answer_reward`; empty if it is not
    # graded.
    rewards: dict[str, float]
    length: int  # tokens of the response
    truncated: bool  # whether it ended at the length limit
    # Mean entropy over its tokens, in nats; None where the backend gives none.
    entropy: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # further columns, such as the advantage
    # Number of the example, whose completions are not independent; None: it has one.
    example: int | None = None
    completion: int = 0  # number among the completions of its example, in sampling order

    @property
    def graded(self) -> bool:
        """Whether it has a reward."""
        return bool(self.rewards)

    @property
    def correct(self) -> bool:
        """Answer reward (total reward, where there are no parts) above 0; only if it is graded."""
        return is_correct(self.rewards)

    def as_row(self) -> dict[str, Any]:
        """One flat dict, as tables of generations hold it; the numbers only with an example."""
        numbers = {"example": self.example, "completion": self.completion}
        return {
            **(numbers if self.example is not None else {}),
            "prompt": self.prompt,
            "response": self.response,
            "ground_truth": self.ground_truth,
            **self.rewards,
            "entropy": self.entropy,
            "length": self.length,
            "truncated": self.truncated,
            **self.extra,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "GradedCompletion":
        """What `as_row` gave, where no extra column but `mean_log_prob` is a number."""
        own = {name: value for name, value in row.items() if name in _COLUMNS}
        others = {name: value for name, value in row.items() if name not in _COLUMNS}
        rewards = {n: v for n, v in others.items() if is_number(v) and n != "mean_log_prob"}
        extra = {name: value for name, value in others.items() if name not in rewards}
        return cls(**own, rewards=rewards, extra=extra)


# Columns of a row that are attributes.
_COLUMNS = {field.name for field in fields(GradedCompletion)} - {"rewards", "extra"}


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Values by key, in order of appearance."""
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    r"""Standard error of the mean, :math:`\sqrt{\sum (x - \bar x)^2 / (n (n - 1))}`.

    For 0/1 values this is :math:`\sqrt{p (1 - p) / (n - 1)}`. NaN for fewer than two values.
    """
    n = len(values)
    if n < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (n * (n - 1)))


def share_interval(values: Sequence[float], num_completions: int = 1) -> list[float]:
    r"""95% interval of a share: low and high, within 0 and 1 also where all values are 0 or all 1.

    Wilson's score interval (1927) for :math:`p = \bar x` of :math:`m` independent trials, with the
    effective sample size :math:`m = p (1 - p) / s^2` of surveys (Korn and Graubard 1998; for
    clusters Dean and Pagano 2015, doi:10.1093/jssam/smv024), :math:`s` the standard error over
    examples. The example is the unit: m is between N - 1 (the completions of each are all alike)
    and all completions; where all are right or none is, N.

    Args:
        values: For each example the mean over its completions, at least one.
        num_completions: Completions of each.
    """
    num_examples, p, error = len(values), mean(values), standard_error(values)
    trials = float(num_examples)
    if 0 < p < 1:
        most = trials * num_completions
        trials = min(p * (1 - p) / error**2, most) if error > 0 else most
    return score_interval(p, trials)


def score_interval(share: float, trials: float) -> list[float]:
    """Wilson's 95% interval of a share of independent trials: low and high."""
    z2 = Z_95**2 / trials
    centre, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return [max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))]


def mean_and_error(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name` and `{name}_stderr`, as far as they are known."""
    return known({name: mean(values), f"{name}_stderr": standard_error(values)})


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are not NaN: a mean of nothing, or the error of one, is left out."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def per_example(rows: Sequence[GradedCompletion], values: Sequence[float]) -> list[float]:
    """The mean of each example's values, one value per row: examples are independent."""
    # Below 0: the only one of its example.
    keys = [-1 - n if row.example is None else row.example for n, row in enumerate(rows)]
    return [mean(of_one) for of_one in grouped(zip(keys, values, strict=True)).values()]


def summarize(rows: Sequence[GradedCompletion]) -> dict[str, float]:
    """The metrics of a set of graded completions.

    Returns:
        `accuracy` and `accuracy_stderr` (share of correct answers, per example first), `reward`,
        `format_reward` (where graded), `length`, `length_correct`, `length_incorrect` (mean
        tokens), `truncated` (share), `entropy` (mean over all tokens of all completions whose
        entropy is known, nats) and `num_examples`. A mean over no rows (no correct answer, say, or
        nothing that is graded) is left out.
    """
    graded = [row for row in rows if row.graded]
    formats = [r.rewards["format_reward"] for r in graded if "format_reward" in r.rewards]
    lengths = [row.length for row in rows]
    metrics = {
        **mean_and_error("accuracy", per_example(graded, [float(row.correct) for row in graded])),
        "reward": mean([row.rewards["reward"] for row in graded]),
        "format_reward": mean(formats),
        "length": mean(lengths),
        "length_correct": mean([row.length for row in graded if row.correct]),
        "length_incorrect": mean([row.length for row in graded if not row.correct]),
        "truncated": mean([float(row.truncated) for row in rows]),
        "entropy": mean_over_tokens(rows, [row.entropy for row in rows]),
        "num_examples": float(len(per_example(rows, lengths))),
    }
    return known(metrics)


def mean_over_tokens(rows: Sequence[GradedCompletion], means: Sequence[float | None]) -> float:
    """Mean over the tokens of all rows, from each row's mean, None where it is not known."""
    known = [(m, row.length) for row, m in zip(rows, means, strict=True) if m is not None]
    tokens = sum(length for _, length in known)
    return math.fsum(m * length for m, length in known) / tokens if tokens else math.nan
