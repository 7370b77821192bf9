"""The reward on real rows: whether it accepts the right answers, and how long it takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .findings import Finding, ok, problem, warning

MOST_ROWS = 300
MOST_SECONDS = 15.0
_LEAST_SHARE = 0.95
_SLOW_SECONDS = 60.0
_SHOWN = 3


@dataclass(frozen=True)
class Graded:
    """What the reward says of right answers.

    Attributes:
        rows: How many were graded.
        rejected: (row from 1, ground truth) of those that got less than full reward.
        seconds: For all of them.
        error: What it raised; empty if nothing.
    """

    rows: int
    rejected: tuple[tuple[int, Any], ...]
    seconds: float
    error: str = ""


def right_response(answer: str, answer_format: str) -> str | None:
    """A response that says an answer as the prompt asks for it; None for free text."""
    if answer_format == "tags":
        return f" So it is so. </think> <answer> {answer} </answer>"
    if answer_format == "boxed":
        return f"So it is \\boxed{{{answer}}}."
    return None


def grade_gold(
    reward_fn: Callable[[str, Any], dict[str, float]], truths: Sequence[Any], answer_format: str
) -> Graded | None:
    """Grade answers against themselves, evenly over the rows; None where that cannot be asked."""
    step = max(1, len(truths) // MOST_ROWS)
    rows = [(n, truth) for n, truth in enumerate(truths, 1) if _answer(truth) is not None][::step]
    if not rows or right_response("", answer_format) is None:
        return None
    rejected, graded, start = [], 0, time.perf_counter()
    for number, truth in rows:
        try:
            reward = reward_fn(str(right_response(_answer(truth) or "", answer_format)), truth)
        except Exception as error:  # a user's own function
            return Graded(graded, (), 0.0, f"row {number}: {type(error).__name__}: {error}")
        graded += 1
        if reward["reward"] < 1:
            rejected.append((number, truth))
        if time.perf_counter() - start > MOST_SECONDS:
            break
    return Graded(graded, tuple(rejected), time.perf_counter() - start)


def _answer(truth: Any) -> str | None:
    """The answer that a ground truth spells out; None for those that only say how to check one."""
    if isinstance(truth, list):
        truth = truth[0] if truth else None
    return truth if isinstance(truth, str) else None


def check_reward(graded: Graded | None) -> list[Finding]:
    """Whether right answers are accepted, fast enough."""
    if graded is None:
        return [ok("reward", "gold", "not asked: the rows do not spell out an answer")]
    if graded.error:
        return [
            problem(
                "reward",
                "gold",
                f"the reward raised, {graded.error}",
                "a number for every response",
                "correct the function, or the row",
            )
        ]
    accepted = graded.rows - len(graded.rejected)
    share = accepted / graded.rows
    per_1000 = 1000 * graded.seconds / graded.rows
    facts = f"{accepted:,} of {graded.rows:,} answers are accepted when the model says just them"
    findings = []
    if share < _LEAST_SHARE:
        shown = "; ".join(f"row {row}: {truth!r:.60}" for row, truth in graded.rejected[:_SHOWN])
        make = problem if share == 0 else warning
        findings.append(
            make(
                "reward",
                "gold",
                f"{facts} ({share:.0%}): {shown}",
                "a reward that accepts the right answer",
                "look at these rows, at prompt and at reward: they do not fit one another",
            )
        )
    else:
        findings.append(ok("reward", "gold", f"{facts} ({share:.1%})"))
    make_time = warning if per_1000 > _SLOW_SECONDS else ok
    findings.append(
        make_time(
            "reward", "seconds", f"{per_1000:.2g} s for 1,000 short responses, on this machine"
        )
    )
    return findings
