"""The metrics of one optimizer update, over all processes."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_r1zero.evaluation import GradedCompletion

from .rollouts import Rollout

_REWARDS = ("reward", "format_reward", "answer_reward")
_PER_TOKEN = ("entropy", "ratio", "clip_fraction", "kl")


class UpdateMetrics:
    """Adds up sums over tokens while an update runs, and turns them into means at its end."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        """Add sums over trained tokens: `trained_tokens` (their number), `entropy`, `kl`, ..."""
        for name, value in sums.items():
            total = value.detach().float()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def collect(self, rows: Sequence[Rollout], accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call.

        Args:
            rows: This process's rows of the train batch.
            accelerator: Reduces over processes (a collective call).

        Returns:
            Means over trained tokens (`entropy` and, where added, `ratio`, `clip_fraction`, `kl`),
            means over rows (the rewards, `truncated`, `length/mean`, `length/correct`,
            `length/incorrect`), `length/max`, and `tokens`, the number of tokens of the rows.
        """
        self.add(**{name: torch.tensor(float(value)) for name, value in _row_sums(rows).items()})
        names = sorted(self._sums)
        local = torch.stack([self._sums[name].to(accelerator.device) for name in names])
        sums = dict(zip(names, accelerator.reduce(local, "sum").tolist(), strict=True))
        self._sums.clear()
        longest = torch.tensor([max(row.length for row in rows)], device=accelerator.device)

        trained_tokens, n = max(sums["trained_tokens"], 1.0), sums["rows"]
        metrics = {name: sums[name] / trained_tokens for name in _PER_TOKEN if name in sums}
        metrics |= {name: sums[name] / n for name in (*_REWARDS, "truncated") if name in sums}
        metrics["length/mean"] = sums["length"] / n
        metrics["length/max"] = float(accelerator.gather(longest).max().item())
        if sums["correct"] > 0:
            metrics["length/correct"] = sums["length_correct"] / sums["correct"]
        if sums["correct"] < n:
            incorrect = sums["length"] - sums["length_correct"]
            metrics["length/incorrect"] = incorrect / (n - sums["correct"])
        metrics["tokens"] = sums["tokens"]
        return metrics


def _row_sums(rows: Sequence[Rollout]) -> dict[str, float]:
    graded = [graded_rollout(row) for row in rows]
    sums: dict[str, float] = {
        "rows": len(rows),
        "tokens": sum(row.num_tokens for row in rows),
        "length": sum(row.length for row in rows),
        "length_correct": sum(g.length for g in graded if g.correct),
        "correct": sum(g.correct for g in graded),
        "truncated": sum(g.truncated for g in graded),
    }
    for name in _REWARDS:
        if all(name in row.rewards for row in rows):
            sums[name] = sum(row.rewards[name] for row in rows)
    return sums


def graded_rollout(row: Rollout) -> GradedCompletion:
    """A rollout as a row of a table of generations."""
    return GradedCompletion(
        prompt=row.prompt,
        response=row.completion.text,
        ground_truth=row.ground_truth,
        rewards=row.rewards,
        length=row.length,
        truncated=row.completion.truncated,
        entropy=row.completion.mean_entropy,
        extra={"advantage": row.advantage, **row.extra},
    )
