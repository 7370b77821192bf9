"""Reward functions by name, as recipes call them. To add one, add a line to `REWARDS`."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trl_r1zero.common.naming import resolve

from .benchmarks import explain_gsm8k, explain_mmlu, gsm8k_reward_fn, mmlu_reward_fn
from .math_reward import explain_math, math_reward_fn
from .reward_functions import (
    Explanation,
    explain_strict,
    question_only_reward_fn,
    r1_zero_reward_fn,
)

RewardFn = Callable[[str, Any], dict[str, float]]

# Reward functions that can say which rule decided -> the function that does, on the same arguments.
_EXPLAINED: dict[RewardFn, Callable[[str, Any], Explanation]] = {
    r1_zero_reward_fn: partial(explain_strict, style="r1_zero"),
    question_only_reward_fn: partial(explain_strict, style="question_only"),
    math_reward_fn: explain_math,
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
    function = resolve("reward", name, REWARDS)
    if not callable(function):
        raise ValueError(f"reward: {name!r} is no function, but {function!r:.100}")
    return function


def reward_identity(reward_fn: Callable[..., Any]) -> str:
    """Identity of a reward function: `module.qualname`, and a partial's arguments.

    Wrappers that keep what they wrap in `__wrapped__` count as that, and a function of the script
    that runs has the script's name for its module, as where the script is imported. Of an instance
    it is that of its class.
    """
    function = inspect.unwrap(reward_fn)
    if isinstance(function, partial):
        given = [_argument(value) for value in function.args]
        given += [f"{key}={_argument(function.keywords[key])}" for key in sorted(function.keywords)]
        return f"partial({', '.join([reward_identity(function.func), *given])})"
    # Functions, methods, builtins and classes have a name of their own.
    has_name = inspect.isroutine(function) or inspect.isclass(function)
    named: Any = function if has_name else type(function)
    module = named.__module__
    if module == "__main__":
        module = _main_module()
    return f"{module}.{named.__qualname__}" if module else named.__qualname__


def _argument(value: Any) -> str:
    return reward_identity(value) if callable(value) else repr(value)


def _main_module() -> str:
    """The name by which the script that runs can be imported; __main__ where nothing runs one."""
    main = vars(sys.modules["__main__"])
    if main.get("__spec__") is not None:  # python -m
        return str(main["__spec__"].name)
    return Path(main["__file__"]).stem if main.get("__file__") else "__main__"


def is_correct(parts: Mapping[str, float]) -> bool:
    """Answer reward (total reward, where there are no parts) above 0."""
    return parts.get("answer_reward", parts["reward"]) > 0


def reward_and_explanation(
    reward_fn: RewardFn, response: str, ground_truth: Any
) -> tuple[dict[str, float], Explanation | None]:
    """What `reward_fn` gives, and why, from one grading; None for functions that cannot explain
    themselves."""
    explained = _EXPLAINED.get(reward_fn)
    if explained is None:
        return reward_fn(response, ground_truth), None
    why = explained(response, ground_truth)
    return why.parts, why
