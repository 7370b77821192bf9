"""Reward functions of one response as reward functions of TRL's trainers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from trl_r1zero.rewards import RewardPool, reward_and_rule

RewardFn = Callable[[str, Any], dict[str, float]]


class TRLReward:
    """Grades each completion once with `reward_fn(response, ground_truth)`.

    An instance is an entry of `reward_funcs` of any TRL trainer whose data set has a column
    `ground_truth`. Through TRL's `log_extra` it reports, one value per completion, the parts that
    `reward_fn` returns besides `reward` (`format_reward`, `answer_reward`, ...) and, for rewards
    that can `explain`, the `rule` that decided; through `log_metric`, with workers, the share of
    rows that failed (`reward_failures`).

    Args:
        reward_fn: Takes a response and its ground truth, returns a dict of floats with `reward`.
        workers: Processes that grade, for functions that may hang or crash: a row that does, in
            its own process, costs that row (graded 0), never the run. 0 grades in this process.
        deadline_seconds: With workers, what one row may take.

    Raises:
        TypeError: `reward_fn` cannot be called.
        ValueError: `workers` is below 0, or with workers the deadline is not above 0.
    """

    def __init__(
        self, reward_fn: RewardFn, *, workers: int = 0, deadline_seconds: float = 5.0
    ) -> None:
        if not callable(reward_fn):
            raise TypeError(
                f"reward_fn must be a function of (response, ground_truth), got {reward_fn!r}"
            )
        if workers < 0:
            raise ValueError(f"workers: got {workers}, expected 0 (this process) or more")
        self.reward_fn = reward_fn
        self.__name__ = getattr(reward_fn, "__name__", type(reward_fn).__name__)
        self.pool: RewardPool | None = None
        if workers > 0:
            self.pool = RewardPool(self._grade_row, workers=workers, deadline_s=deadline_seconds)
            self.pool.start()  # forks now, before there is a model in this process

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        ground_truth: list[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of the completions, in order.

        Raises:
            ValueError: `reward_fn` returned no dict, or one without `reward`, or with other parts
                than for the first completion.
        """
        rows = list(zip(completions, ground_truth, strict=True))
        graded: list[tuple[dict[str, float] | None, str | None]]
        if self.pool is None:
            graded = [self._grade_row(*row) for row in rows]
        else:
            results = self.pool.map(rows)
            graded = [r.value or (None, f"reward_{r.failure}") for r in results]
            if log_metric is not None and rows:
                failed = sum(result.failure is not None for result in results)
                log_metric("reward_failures", failed / len(rows))
        names = next((list(parts) for parts, _ in graded if parts is not None), ["reward"])
        all_parts = [dict.fromkeys(names, 0.0) if p is None else p for p, _ in graded]
        for parts in all_parts:
            if parts.keys() != set(names):
                raise ValueError(
                    f"{self.__name__} returned the parts {sorted(parts)} for one completion and "
                    f"{sorted(names)} for another; return the same keys always"
                )
        if log_extra is not None:
            for name in names:
                if name != "reward":
                    log_extra(name, [parts[name] for parts in all_parts])
            if any(rule is not None for _, rule in graded):
                log_extra("rule", [rule for _, rule in graded])
        return [float(parts["reward"]) for parts in all_parts]

    def _grade_row(self, response: str, ground_truth: Any) -> tuple[dict[str, float], str | None]:
        parts, rule = reward_and_rule(self.reward_fn, response, ground_truth)
        if not isinstance(parts, dict) or "reward" not in parts:
            raise ValueError(
                f"{self.__name__} must return a dict with the key 'reward', got {parts!r}"
            )
        return parts, rule


def as_trl_rewards(reward_funcs: Any) -> list[Any]:
    """Plain `(response, ground_truth)` functions wrapped, TRL's own kinds as they are."""
    funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [TRLReward(func) if _takes_response_and_truth(func) else func for func in funcs]


def _takes_response_and_truth(func: Any) -> bool:
    if isinstance(func, str | torch.nn.Module | TRLReward):
        return False
    names = list(inspect.signature(func).parameters)
    return "completions" not in names and len(names) >= 2
