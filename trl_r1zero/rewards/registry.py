"""Reward functions by name, as recipes call them. To add one, add a line to `REWARDS`."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from trl_r1zero.rewards.benchmarks import (
    explain_gsm8k,
    explain_mmlu,
    gsm8k_reward_fn,
    mmlu_reward_fn,
)
from trl_r1zero.rewards.math_reward import math_reward_fn
from trl_r1zero.rewards.reward_functions import (
    Explanation,
    explain,
    question_only_reward_fn,
    r1_zero_reward_fn,
)

RewardFn = Callable[[str, Any], dict[str, float]]

# Reward functions that can say which rule decided -> the function that does, on the same arguments.
_EXPLAINED: dict[RewardFn, Callable[[str, Any], Explanation]] = {
    r1_zero_reward_fn: partial(explain, style="r1_zero"),
    question_only_reward_fn: partial(explain, style="question_only"),
    mmlu_reward_fn: explain_mmlu,
    gsm8k_reward_fn: explain_gsm8k,
}

REWARDS: dict[str, RewardFn] = {
    "r1_zero": r1_zero_reward_fn,
    "question_only": question_only_reward_fn,
    "math": math_reward_fn,
    "mmlu": mmlu_reward_fn,
    "gsm8k": gsm8k_reward_fn,
}


def resolve_reward(name: str) -> RewardFn:
    """The reward function of that name, or the function at that dotted path.

    Args:
        name: A key of `REWARDS`, or `package.module.function` of a function
            `(response, ground_truth) -> dict` with the key `reward`.

    Raises:
        ValueError: There is no such name, module or function, or it cannot be called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        nearest = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"reward: got {name!r}, expected one of {', '.join(REWARDS)}, or the dotted path of a "
            f"function, package.module.function.{hint}"
        )
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reward: got {name!r}, but {error}; a dotted path is package.module.function, and its "
            "package must be installed or on PYTHONPATH"
        ) from error
    function = vars(module).get(attribute)
    if not callable(function):
        raise ValueError(f"reward: module {module_name!r} has no function {attribute!r}")
    return function


def is_correct(parts: Mapping[str, float]) -> bool:
    """Answer reward (total reward, where there are no parts) above 0."""
    return parts.get("answer_reward", parts["reward"]) > 0


def reward_and_rule(
    reward_fn: RewardFn, response: str, ground_truth: Any
) -> tuple[dict[str, float], str | None]:
    """What `reward_fn` gives, and the rule that decided, from one grading.

    The rule is None for functions that cannot explain themselves.
    """
    parts, why = reward_and_explanation(reward_fn, response, ground_truth)
    return parts, None if why is None else why.rule


def reward_and_explanation(
    reward_fn: RewardFn, response: str, ground_truth: Any
) -> tuple[dict[str, float], Explanation | None]:
    """As `reward_and_rule`, with the whole explanation, the graded answer among it."""
    explained = _EXPLAINED.get(reward_fn)
    if explained is None:
        return reward_fn(response, ground_truth), None
    why = explained(response, ground_truth)
    return why.parts, why
