"""Where our grades meet TRL's reward functions: the only place that knows TRL's convention."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from trl_r1zero.common.numbers import as_number, as_rewards
from trl_r1zero.evaluation import mean
from trl_r1zero.generation import Completion
from trl_r1zero.grading import Grade, Grader, RewardFn

from .trl_compat import trl_rewards

# Grades this process's completions of examples with a `ground_truth`; a collective call with
# equally many on each process. It also returns metrics of this process, with the same names on all.
GradeFn = Callable[
    [Sequence[Mapping[str, Any]], Sequence[Completion]], tuple[list[Grade], dict[str, float]]
]


class TRLReward:
    """Grades each completion once with `reward_fn(response, ground_truth)`.

    An instance is an entry of `reward_funcs` of any TRL trainer whose data set has a column
    `ground_truth`. Through TRL's `log_extra` it reports, one value per completion, the parts that
    `reward_fn` returns besides `reward` (`format_reward`, `answer_reward`, ...) and, for rewards
    that can `explain`, the `rule` that decided; through `log_metric`, with workers, the share of
    rows that failed (`reward_failures`).

    Args:
        reward_fn, workers, deadline_seconds: As in `Grader`, with its errors.
    """

    def __init__(
        self, reward_fn: RewardFn, *, workers: int = 0, deadline_seconds: float = 5.0
    ) -> None:
        self.grader = Grader(reward_fn, workers=workers, deadline_seconds=deadline_seconds)
        self.reward_fn = reward_fn
        self.__name__ = self.grader.__name__

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        ground_truth: list[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of the completions, in order; errors as of `Grader.grade`."""
        grades = self.grader.grade(list(zip(completions, ground_truth, strict=True)))
        if log_metric is not None:
            for name, value in _failures(self.grader, grades).items():
                log_metric(name, value)
        if log_extra is not None and grades:
            for name in grades[0].parts:
                if name != "reward":
                    log_extra(name, [grade.parts[name] for grade in grades])
            if any(grade.rule is not None for grade in grades):
                log_extra("rule", [grade.rule for grade in grades])
        return [grade.reward for grade in grades]


def _failures(grader: Grader, grades: Sequence[Grade]) -> dict[str, float]:
    if grader.pool is None or not grades:
        return {}
    return {"reward_failures": mean([float(grade.failed) for grade in grades])}


def grader_of(reward: Any) -> Grader | None:
    """What grades by itself: a `TRLReward`, or a plain `(response, ground_truth)` function; None
    for TRL's own kinds."""
    if isinstance(reward, TRLReward):
        return reward.grader
    return Grader(reward) if _takes_response_and_truth(reward) else None


def grade_with(grader: Grader) -> GradeFn:
    """Grading by a grader alone."""

    def grade(
        examples: Sequence[Mapping[str, Any]], completions: Sequence[Completion]
    ) -> tuple[list[Grade], dict[str, float]]:
        rows = [
            (completion.text, example["ground_truth"])
            for example, completion in zip(examples, completions, strict=True)
        ]
        grades = grader.grade(rows)
        return grades, _failures(grader, grades)

    return grade


def extra_columns(grades: Sequence[Grade]) -> list[dict[str, Any]]:
    """What the rows of a batch of completions have besides numbers."""
    with_rules = any(grade.rule is not None for grade in grades)
    return [({"rule": grade.rule} if with_rules else {}) | grade.columns for grade in grades]


def as_trl_rewards(reward_funcs: Any) -> list[Any]:
    """Plain `(response, ground_truth)` functions wrapped, TRL's own kinds as they are."""
    funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [
        TRLReward(func) if _takes_response_and_truth(func) else _of_numbers(func) for func in funcs
    ]


def _of_numbers(func: Any) -> Any:
    """One of TRL's own kinds whose errors name the row of what is no number."""
    if isinstance(func, str | torch.nn.Module | TRLReward):
        return func
    name = get_callable_name(func)

    def checked(given: Any, completions: Any) -> list[float]:
        given = list(given)
        # TRL has its own words for another number of them.
        return given if len(given) != len(completions) else as_rewards(name, given, completions)

    async def rewards_later(*, completions: Any, **columns: Any) -> list[float]:
        return checked(await func(completions=completions, **columns), completions)

    def rewards(*, completions: Any, **columns: Any) -> list[float]:
        return checked(func(completions=completions, **columns), completions)

    wrapped = functools.wraps(func)(rewards_later if is_async_callable(func) else rewards)
    wrapped.__name__ = name
    return wrapped


def grade_with_trl(trainer: Any) -> GradeFn:
    """Grading by the reward functions of a GRPO trainer, whatever TRL takes for one: the reward is
    their weighted sum, what they `log_extra` are parts (numbers) and columns, and what they
    `log_metric` are metrics."""

    def grade(
        examples: Sequence[Mapping[str, Any]], completions: Sequence[Completion]
    ) -> tuple[list[Grade], dict[str, float]]:
        rewards_NF, logged, logged_metrics = trl_rewards(trainer, examples, completions)
        without = torch.isnan(rewards_NF).all(dim=1).nonzero().flatten().tolist()
        if without:
            raise ValueError(
                f"a reward function returned None or NaN for row {without[0]} of "
                f"{len(rewards_NF)}, as did all others; return a number for each completion"
            )
        weights_F = trainer.reward_weights.to(rewards_NF.device)
        rewards = (rewards_NF * weights_F).nansum(dim=1).tolist()
        start = trainer.accelerator.process_index * len(completions)
        grades = []
        for number, reward in enumerate(rewards[start : start + len(completions)]):
            row = {name: values[number] for name, values in logged.items()}
            numbers = {name: as_number(value) for name, value in row.items()}
            parts = {name: value for name, value in numbers.items() if value is not None}
            columns = {name: value for name, value in row.items() if name not in parts}
            grades.append(Grade({"reward": reward, **parts}, columns=columns))
        return grades, {name: mean(values) for name, values in logged_metrics.items()}

    return grade


def _takes_response_and_truth(func: Any) -> bool:
    if isinstance(func, str | torch.nn.Module | TRLReward):
        return False
    names = list(inspect.signature(func).parameters)
    return "completions" not in names and len(names) >= 2
