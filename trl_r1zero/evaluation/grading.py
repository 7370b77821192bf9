"""Grading in worker processes, for reward functions that may hang or crash."""

import traceback
from typing import Any

from trl_r1zero.rewards import PoolResult, RewardPool, reward_identity

from .evaluate import Grade, GradeFn, RewardFn, checked_grade, make_grader

# So many completions that all raise are a broken function, not bad luck.
_BROKEN_AFTER = 8


class PooledGrader:
    """`make_grader` under a deadline: a completion that cannot be graded costs that completion.

    It gets 0 in every part, and the rule `reward_timeout`, `reward_died` or `reward_error`. The
    next completion goes to another worker while that of a failed one is replaced.

    Args:
        reward_fn: `(response, ground_truth) -> dict` with the key `reward`. What it returns must be
            JSON data.
        workers: Number of processes, at least 1.
        deadline_seconds: What one completion may take.
    """

    def __init__(
        self,
        reward_fn: RewardFn,
        *,
        workers: int = 2,
        deadline_seconds: float = 5.0,
    ) -> None:
        grade = make_grader(reward_fn)
        self.__name__ = grade.__name__
        self.__wrapped__ = reward_fn  # for reward_identity
        self._pool = RewardPool(grade, workers=workers, deadline_s=deadline_seconds)
        self._pool.start()  # forks now, before there is a model in this process
        self._parts: list[str] | None = None
        self._raised = 0

    @property
    def failures(self) -> dict[str, int]:
        """How many completions could not be graded, by `timeout`, `died` and `error`."""
        return dict(self._pool.failures)

    def __call__(self, response: str, ground_truth: Any) -> Grade:
        """Grade one completion.

        Raises:
            RuntimeError: The function has raised on every completion so far.
        """
        result = self._run(response, ground_truth)
        if result.failure is None:
            parts, columns = result.value
            self._parts = list(parts)
            return parts, columns
        if self._parts is None:
            self._raised += result.failure == "error"
            if self._raised >= _BROKEN_AFTER:
                raise RuntimeError(
                    f"the reward function {self.__name__} raised on all {self._raised} completions "
                    f"so far, the last time: {result.detail}"
                )
            probed = self.probe(ground_truth)
            names = ["reward"] if probed.failure is not None else list(probed.value[0])
        else:
            names = self._parts
        return dict.fromkeys(names, 0.0), {"rule": f"reward_{result.failure}", "answer": None}

    def close(self) -> None:
        """Stop the workers."""
        self._pool.close()

    def __enter__(self) -> "PooledGrader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, response: str, ground_truth: Any) -> PoolResult:
        return self._pool.map([(response, ground_truth)])[0]

    def probe(self, ground_truth: Any) -> PoolResult:
        """The grade of a simple response, whose parts a completion that failed must have."""
        before = self._pool.failures.copy()
        for response in ("", str(ground_truth)):
            result = self._run(response, ground_truth)
            if result.failure is None:
                break
        self._pool.failures = before  # a probe is no completion
        return result


def check_grader(grade: GradeFn, ground_truth: Any) -> None:
    """Grade a simple response, before a model is loaded: a reward that cannot read the ground
    truths of a task, or is no reward at all, is found out at once.

    In worker processes, where an exception costs one completion, a single grade is enough.

    Args:
        grade: What is to be used in `evaluate`.
        ground_truth: The first example's.

    Raises:
        ValueError: It raises, or what it gives is no grade.
    """
    name = reward_identity(grade)
    if isinstance(grade, PooledGrader):
        result = grade.probe(ground_truth)
        if result.failure == "error":
            raise ValueError(_cannot_grade(name, ground_truth, result.detail))
        if result.failure is not None:
            return  # it hangs or dies, which is what the workers are for
        graded: Any = tuple(result.value)
    else:
        try:
            graded = grade("", ground_truth)
        except Exception as error:  # the function is the user's, and may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            detail = f"{type(error).__name__}: {error}, in {where.filename}:{where.lineno}"
            raise ValueError(_cannot_grade(name, ground_truth, detail)) from error
    try:
        checked_grade(graded)
    except ValueError as error:
        raise ValueError(f"reward: {name}: {error}") from error


def _cannot_grade(name: str, ground_truth: Any, detail: str) -> str:
    return (
        f"reward: {name} cannot grade a response against the ground truth of the first example, "
        f"{ground_truth!r:.200} ({detail}); give a reward that fits the task, or leave reward out "
        "for the task's own"
    )
