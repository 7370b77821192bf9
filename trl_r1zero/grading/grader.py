"""One way to grade completions, for evaluation and for every trainer."""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_r1zero.common.numbers import as_number
from trl_r1zero.rewards import RewardPool, reward_and_explanation, reward_identity
from trl_r1zero.rewards.extraction import extract_answer

# So many completions in a row that all fail are a broken function, not bad luck: the first ones,
# and more of them where it has graded others.
_BROKEN_AFTER, _BROKEN_LATER = 8, 64


@dataclass(frozen=True)
class Grade:
    """What a completion is worth."""

    # `reward` and, where the reward function reports them, its parts, such as `format_reward` and
    # `answer_reward`; empty if the completion is not graded.
    parts: dict[str, float]
    # What decided, for reward functions that can `explain`, and after a failure `reward_timeout`,
    # `reward_died` or `reward_error`; else None.
    rule: str | None = None
    answer: str | None = None  # what the response answers; None if nothing
    # Further columns of the completion's row, none of them a number.
    columns: dict[str, Any] = field(default_factory=dict)
    failed: bool = False  # whether a worker failed on it

    @property
    def reward(self) -> float:
        return self.parts["reward"]


RewardFn = Callable[[str, Any], dict[str, float] | Grade]


def keep_replies(reply: Callable[[str], str]) -> RewardFn:
    """The reward function of answers that are not graded, but left to a judge or a person.

    Args:
        reply: What a response says, such as `Prompt.reply`: the `answer` of its grade.
    """

    def keep_reply(response: str, ground_truth: Any) -> Grade:
        return Grade({}, answer=reply(response))

    # What evaluations say their reward is.
    keep_reply.__name__ = keep_reply.__qualname__ = "none"
    keep_reply.__module__ = ""
    return keep_reply


def _plain(part: Any) -> Any:
    """A part as JSON data; what is no number becomes words, and an error later."""
    number = as_number(part)
    if number is None:
        return part if part is None or isinstance(part, str) else repr(part)
    return number


class Grader:
    """Grades completions by a reward function, in this process or in workers under a deadline.

    In workers, a completion that cannot be graded costs that completion: it gets 0 in every part.

    Args:
        reward_fn: `(response, ground_truth) -> dict` of numbers with the key `reward`, such as
            `r1_zero_reward_fn`, the same keys always; or one that gives a `Grade`. With workers
            what it returns must be JSON data.
        workers: Processes that grade, for functions that may hang or crash; 0 for this process.
        deadline_seconds: With workers, what one completion may take.

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
        self._names: list[str] | None = None
        self._failed_in_a_row = 0

    @property
    def failures(self) -> dict[str, int]:
        """How many completions could not be graded, by `timeout`, `died` and `error`."""
        return {} if self.pool is None else dict(self.pool.failures)

    def grade(self, rows: Sequence[tuple[str, Any]]) -> list[Grade]:
        """The grade of each (response, ground truth), in order.

        Raises:
            ValueError: What the function returned is no reward, or has other parts than before.
            RuntimeError: With workers, it raised, hung or died on so many completions one after the
                other that it is broken.
        """
        if self.pool is None:
            return [self._checked(self._grade_row(*row), row) for row in rows]
        results = self.pool.map(rows)
        grades = [
            None if result.failure is not None else self._checked(result.value, row)
            for result, row in zip(results, rows, strict=True)
        ]
        failed = [result for result in results if result.failure is not None]
        self._failed_in_a_row += len(failed)
        if len(failed) < len(results):
            self._failed_in_a_row = 0
        most = _BROKEN_AFTER if self._names is None else _BROKEN_LATER
        if failed and self._failed_in_a_row >= most:
            does = {"error": "raised", "timeout": "was too slow", "died": "died"}
            raise RuntimeError(
                f"the reward function {self.__name__} {does[str(failed[-1].failure)]} on all "
                f"{self._failed_in_a_row} completions of late, the last time: {failed[-1].detail}"
            )
        return [
            self._failed(result.failure, row[1]) if grade is None else grade
            for grade, result, row in zip(grades, results, rows, strict=True)
        ]

    def check(self, ground_truth: Any) -> None:
        """Grade a simple response, before a model is loaded: a reward that cannot read the ground
        truths of a task, or is no reward at all, is found out at once.

        In workers, where an exception costs one completion, a single grade is enough.

        Args:
            ground_truth: The first example's.

        Raises:
            ValueError: The function raises, or what it gives is no reward.
        """
        graded, failure, detail = self._probe(ground_truth)
        if failure == "error":
            raise ValueError(
                f"reward: {reward_identity(self.reward_fn)} cannot grade a response against the "
                f"ground truth of the first example, {ground_truth!r:.200} ({detail}); give a "
                "reward that fits the task, or leave reward out for the task's own"
            )
        if failure is None:  # one that hangs or dies is what the workers are for
            self._checked(graded)
            self._names = None  # it was no completion

    def close(self) -> None:
        """Stop the workers."""
        if self.pool is not None:
            self.pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _grade_row(self, response: str, ground_truth: Any) -> tuple[Any, ...]:
        """Parts, rule, answer and columns of a grade, yet to be checked, as JSON data; and whether
        the completion is not to be graded."""
        reward_fn: Any = self.reward_fn
        given, why = reward_and_explanation(reward_fn, response, ground_truth)
        if isinstance(given, Grade):
            parts = {name: _plain(part) for name, part in given.parts.items()}
            return parts, given.rule, given.answer, given.columns, not parts
        if isinstance(given, dict):
            given = {name: _plain(part) for name, part in given.items()}
        if why is not None:
            return given, why.rule, why.answer, {}, False
        # A reward of which nothing more is known: what its format does not admit is no answer.
        formatted = isinstance(given, dict) and given.get("format_reward", 1.0) > 0
        return given, None, extract_answer(response) if formatted else None, {}, False

    def _checked(self, graded: Sequence[Any], row: tuple[str, Any] | None = None) -> Grade:
        parts, rule, answer, columns, ungraded = graded
        if not ungraded and not (isinstance(parts, dict) and "reward" in parts):
            raise ValueError(
                f"{self.__name__} must return a dict with the key 'reward', got {parts!r}"
            )
        for name, part in parts.items():
            if not isinstance(part, float) or not math.isfinite(part):
                raise ValueError(
                    f"the part {name!r} of {self.__name__} must be a finite number, got {part!r}"
                    + ("" if row is None else f" for {row[0]!r:.80}, ground truth {row[1]!r:.80}")
                )
        if self._names is not None and parts.keys() != set(self._names):
            raise ValueError(
                f"{self.__name__} returned the parts {sorted(parts)} for one completion and "
                f"{sorted(self._names)} for another; return the same keys always"
            )
        self._names = list(parts)
        return Grade(dict(parts), rule, answer, columns)

    def _failed(self, failure: str | None, ground_truth: Any) -> Grade:
        """The grade of a completion on which a worker failed: 0 in every part."""
        names = self._names
        if names is None:
            graded, probe_failure, _ = self._probe(ground_truth)
            names = ["reward"] if probe_failure is not None else list(graded[0])
        return Grade(dict.fromkeys(names, 0.0), f"reward_{failure}", failed=True)

    def _probe(self, ground_truth: Any) -> tuple[Any, str | None, str]:
        """What a simple response gives, or how that failed and why; it counts as no completion."""
        if self.pool is None:
            try:
                return self._grade_row("", ground_truth), None, ""
            except Exception as error:  # the function is the user's, and may raise anything
                where = traceback.extract_tb(error.__traceback__)[-1]
                detail = f"{type(error).__name__}: {error}, in {where.filename}:{where.lineno}"
                return None, "error", detail
        before = self.pool.failures.copy()
        for response in ("", str(ground_truth)):
            (result,) = self.pool.map([(response, ground_truth)])
            if result.failure is None:
                break
        self.pool.failures = before
        return result.value, result.failure, result.detail
