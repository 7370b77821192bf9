"""Numbers with their uncertainty, from graded completions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class GradedCompletion:
    """One completion with everything that a table or a summary needs.

    Attributes:
        prompt, response, ground_truth: The texts; `ground_truth` may be a list of accepted answers.
        rewards: The reward function's parts: `reward`, and usually `format_reward` and
            `answer_reward`.
        length: Tokens of the response.
        truncated: Whether it ended at the length limit.
        entropy: Mean entropy over its tokens, in nats; None where the backend gives none.
        extra: Further columns, such as the advantage.
    """

    prompt: str
    response: str
    ground_truth: Any
    rewards: dict[str, float]
    length: int
    truncated: bool
    entropy: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Answer reward (total reward, where there are no parts) above 0."""
        return self.rewards.get("answer_reward", self.rewards["reward"]) > 0


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


def summarize(rows: Sequence[GradedCompletion]) -> dict[str, float]:
    """The metrics of a set of graded completions.

    Returns:
        `accuracy` and `accuracy_stderr` (share of correct answers), `reward`, `format_reward`
        (where graded), `length`, `length_correct`, `length_incorrect` (mean tokens), `truncated`
        (share), `entropy` (mean over all tokens of all completions whose entropy is known, nats)
        and `num_examples`. A mean over no rows (no correct answer, say) is left out.
    """
    lengths_if = {
        "length": [row.length for row in rows],
        "length_correct": [row.length for row in rows if row.correct],
        "length_incorrect": [row.length for row in rows if not row.correct],
    }
    correct = [float(row.correct) for row in rows]
    metrics = {
        "accuracy": mean(correct),
        "accuracy_stderr": standard_error(correct),
        "reward": mean([row.rewards["reward"] for row in rows]),
        "format_reward": mean(
            [r.rewards["format_reward"] for r in rows if "format_reward" in r.rewards]
        ),
        **{name: mean(lengths) for name, lengths in lengths_if.items()},
        "truncated": mean([float(row.truncated) for row in rows]),
        "entropy": _mean_token_entropy(rows),
        "num_examples": float(len(rows)),
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _mean_token_entropy(rows: Sequence[GradedCompletion]) -> float:
    known = [(row.entropy, row.length) for row in rows if row.entropy is not None]
    tokens = sum(length for _, length in known)
    return math.fsum(entropy * length for entropy, length in known) / tokens if tokens else math.nan
