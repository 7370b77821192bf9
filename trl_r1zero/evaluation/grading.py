"""Grading in worker processes, for reward functions that may hang or crash."""

from typing import Any

from trl_r1zero.rewards import PoolResult, RewardPool

from .evaluate import Grade, RewardFn, make_grader

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
            names = self._probe(ground_truth)
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

    def _probe(self, ground_truth: Any) -> list[str]:
        """The parts that the function gives for simple responses: a failed one must have them."""
        before = self._pool.failures.copy()
        for response in ("", str(ground_truth)):
            result = self._run(response, ground_truth)
            if result.failure is None:
                break
        self._pool.failures = before  # a probe is no completion
        return ["reward"] if result.failure is not None else list(result.value[0])
