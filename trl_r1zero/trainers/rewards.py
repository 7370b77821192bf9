"""Reward functions of one response as reward functions of TRL's trainers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

RewardFn = Callable[[str, Any], dict[str, float]]


class TRLReward:
    """Grades each completion once with `reward_fn(response, ground_truth)`.

    An instance is an entry of `reward_funcs` of any TRL trainer whose data set has a column
    `ground_truth`. The parts that `reward_fn` returns besides `reward` (`format_reward`,
    `answer_reward`, ...) are reported through TRL's `log_extra`, one value per completion.

    Args:
        reward_fn: Takes a response and its ground truth, returns a dict of floats with `reward`.

    Raises:
        TypeError: `reward_fn` cannot be called.
    """

    def __init__(self, reward_fn: RewardFn) -> None:
        if not callable(reward_fn):
            raise TypeError(
                f"reward_fn must be a function of (response, ground_truth), got {reward_fn!r}"
            )
        self.reward_fn = reward_fn
        self.__name__ = getattr(reward_fn, "__name__", type(reward_fn).__name__)

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        ground_truth: list[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of the completions, in order.

        Raises:
            ValueError: `reward_fn` returned no dict, or one without `reward`, or with other parts
                than for the first completion.
        """
        graded: list[dict[str, float]] = []
        for completion, truth in zip(completions, ground_truth, strict=True):
            parts = self.reward_fn(completion, truth)
            if not isinstance(parts, dict) or "reward" not in parts:
                raise ValueError(
                    f"{self.__name__} must return a dict with the key 'reward', got {parts!r}"
                )
            if graded and parts.keys() != graded[0].keys():
                raise ValueError(
                    f"{self.__name__} returned the parts {sorted(parts)} for one completion and "
                    f"{sorted(graded[0])} for another; return the same keys always"
                )
            graded.append(parts)
        if log_extra is not None and graded:
            for name in graded[0]:
                if name != "reward":
                    log_extra(name, [parts[name] for parts in graded])
        return [float(parts["reward"]) for parts in graded]


def as_trl_rewards(reward_funcs: Any) -> list[Any]:
    """Plain `(response, ground_truth)` functions wrapped, TRL's own kinds as they are."""
    funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [TRLReward(func) if _takes_response_and_truth(func) else func for func in funcs]


def _takes_response_and_truth(func: Any) -> bool:
    if isinstance(func, str | torch.nn.Module | TRLReward):
        return False
    names = list(inspect.signature(func).parameters)
    return "completions" not in names and len(names) >= 2
