"""The metrics of one optimizer update, over all processes."""

import math
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_r1zero.evaluation import GradedCompletion

from .rollouts import Rollout

_REWARDS = ("reward", "format_reward", "answer_reward")
_PER_TOKEN = ("nll", "entropy", "ratio", "clip_fraction", "kl")
# What is logged of the values that `add_values` takes.
_STATISTICS = {
    "sampler_log_prob_diff": ("mean", "max"),
    "importance_weight": ("mean", "min", "max"),
}


class UpdateMetrics:
    """Adds up sums over tokens while an update runs, and turns them into means at its end.

    Every process has to add the same names: their numbers meet in collective calls.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        """Add sums over trained tokens: `trained_tokens` (their number), `entropy`, `kl`, ..."""
        for name, value in sums.items():
            total = value.detach().float()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def add_values(self, name: str, values: Tensor) -> None:
        """Add values, any number of them, of a key of `_STATISTICS`."""
        values = values.detach().float().flatten()
        count = torch.tensor(float(values.numel()))
        self.add(**{f"{name}/sum": values.sum(), f"{name}/count": count})
        self._raise_maximum(f"{name}/max", values)
        self._raise_maximum(f"{name}/-min", -values)

    def _raise_maximum(self, name: str, values: Tensor) -> None:
        # The maximum of no values is the one that every other exceeds.
        candidates = [values, values.new_full((1,), -math.inf)]
        if name in self._maxima:
            candidates.append(self._maxima[name].to(values.device).reshape(1))
        self._maxima[name] = torch.cat(candidates).max()

    def collect(self, rows: Sequence[Rollout], accelerator: Accelerator) -> dict[str, float]:
        """`collect_sums` of this process's rows, with the means of their rewards and `truncated`,
        and `length/correct` and `length/incorrect`."""
        return self.collect_sums(_row_sums(rows), [row.length for row in rows], accelerator)

    def collect_sums(
        self, row_sums: Mapping[str, float], lengths: Sequence[int], accelerator: Accelerator
    ) -> dict[str, float]:
        """Means over all processes since the last call; a collective call.

        Args:
            row_sums: Of this process's rows: `rows` (their number), `tokens`, and where known
                `correct`, `length_correct`, `truncated` and the rewards.
            lengths: Response tokens of each row.
            accelerator: Reduces over processes.

        Returns:
            Means over trained tokens of what was added (none where there are no such tokens), means
            over rows of what `row_sums` has, `length/mean`, `length/max`, `tokens`, the number of
            tokens of the rows, and what `_STATISTICS` names of the values that were added (nothing
            where there were none).
        """
        of_rows = {**row_sums, "length": sum(lengths)}
        self.add(**{name: torch.tensor(float(value)) for name, value in of_rows.items()})
        self._raise_maximum("length/max", torch.tensor([float(length) for length in lengths]))
        # In an order that all processes have.
        names = sorted(self._sums)
        local = torch.stack([self._sums[name].to(accelerator.device) for name in names])
        sums = dict(zip(names, accelerator.reduce(local, "sum").tolist(), strict=True))
        names = sorted(self._maxima)
        local = torch.stack([self._maxima[name].to(accelerator.device) for name in names])
        maxima_WN = accelerator.gather(local).view(-1, len(names))  # W processes
        maxima = dict(zip(names, maxima_WN.amax(dim=0).tolist(), strict=True))
        self._sums.clear()
        self._maxima.clear()

        trained_tokens, n = sums["trained_tokens"], sums["rows"]
        metrics = {}  # the mean over no tokens is none
        if trained_tokens:
            metrics = {name: sums[name] / trained_tokens for name in _PER_TOKEN if name in sums}
        metrics |= {name: sums[name] / n for name in (*_REWARDS, "truncated") if name in sums}
        metrics |= {"length/mean": sums["length"] / n, "length/max": maxima["length/max"]}
        if "correct" in sums:
            correct, length_correct = sums["correct"], sums["length_correct"]
            if correct:
                metrics["length/correct"] = length_correct / correct
            if correct < n:
                metrics["length/incorrect"] = (sums["length"] - length_correct) / (n - correct)
        metrics["tokens"] = sums["tokens"]
        for name, statistics in _STATISTICS.items():
            count = sums.get(f"{name}/count", 0.0)
            if count > 0:
                values = {
                    "mean": sums[f"{name}/sum"] / count,
                    "min": -maxima[f"{name}/-min"],
                    "max": maxima[f"{name}/max"],
                }
                metrics |= {f"{name}/{statistic}": values[statistic] for statistic in statistics}
        return metrics


def _row_sums(rows: Sequence[Rollout]) -> dict[str, float]:
    graded = [graded_rollout(row) for row in rows]
    known = [name for name in _REWARDS if all(name in row.rewards for row in rows)]
    return {
        "rows": len(rows),
        "tokens": sum(row.num_tokens for row in rows),
        "length_correct": sum(g.length for g in graded if g.correct),
        "correct": sum(g.correct for g in graded),
        "truncated": sum(g.truncated for g in graded),
        **{name: sum(row.rewards[name] for row in rows) for name in known},
    }


def graded_rollout(row: Rollout) -> GradedCompletion:
    """A rollout as a row of a table of generations."""
    staleness = row.completion.staleness
    stale = {} if staleness is None else {"staleness": staleness}
    return GradedCompletion(
        prompt=row.prompt,
        response=row.completion.text,
        ground_truth=row.ground_truth,
        rewards=row.rewards,
        length=row.length,
        truncated=row.completion.truncated,
        entropy=row.completion.mean_entropy,
        extra={"advantage": row.advantage, **stale, **row.extra},
    )
