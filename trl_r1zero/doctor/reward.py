"""The reward on real rows: whether it accepts the right answers, and how long it takes."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from trl_r1zero.common.numbers import as_rewards

from .data import Split
from .findings import Finding, ok, problem, warning

MOST_ROWS = 300
MOST_SECONDS = 15.0
_LEAST_SHARE = 0.95
_SLOW_SECONDS = 60.0
_LISTED = 3
# A response that gives an answer in the prompt's format; for free text there is none.
_RESPONSES = {
    "tags": " So it is so. </think> <answer> {} </answer>",
    "boxed": "So it is \\boxed{{{}}}.",
}


def check_reward(
    reward_fn: Callable[[str, Any], dict[str, float]], split: Split, answer_format: str
) -> Iterator[Finding]:
    """Grade answers against themselves, evenly over the rows: are they accepted, fast enough?"""
    answers = [
        (line, answer, truth)
        for line, truth in zip(split.lines, split.truths, strict=False)
        if (answer := _answer(truth)) is not None
    ][:: max(1, len(split.truths) // MOST_ROWS)]
    if not answers or answer_format not in _RESPONSES:
        yield ok("reward/gold", "not asked: the rows do not spell out an answer")
        return
    rejected, graded, start = [], 0, time.perf_counter()
    for line, answer, truth in answers:
        try:
            response = _RESPONSES[answer_format].format(answer)
            (reward,) = as_rewards("the reward", [reward_fn(response, truth)["reward"]], [response])
        except Exception as error:  # a user's own function
            found = f"the reward raised, row {line}: {type(error).__name__}: {error}"
            advice = "correct the function, or the row"
            yield problem("reward/gold", found, "a number for every response", advice)
            return
        graded += 1
        if reward < 1:
            rejected.append(f"row {line}: {truth!r:.60}")
        if time.perf_counter() - start > MOST_SECONDS:
            break
    per_1000 = 1000 * (time.perf_counter() - start) / graded
    accepted = graded - len(rejected)
    share = accepted / graded
    facts = f"{accepted:,} of {graded:,} answers are accepted when the model says just them"
    if share >= _LEAST_SHARE:
        yield ok("reward/gold", f"{facts} ({share:.1%})")
    else:
        level = warning if accepted else problem
        facts += f" ({share:.0%}): {'; '.join(rejected[:_LISTED])}"
        advice = "look at these rows, at prompt and at reward: they do not fit one another"
        yield level("reward/gold", facts, "a reward that accepts the right answer", advice)
    speed = f"{per_1000:.2g} s for 1,000 short responses, on this machine"
    yield (warning if per_1000 > _SLOW_SECONDS else ok)("reward/seconds", speed)


def _answer(truth: Any) -> str | None:
    """The answer that a ground truth spells out; None for those that only say how to check one."""
    if isinstance(truth, list):
        truth = truth[0] if truth else None
    return truth if isinstance(truth, str) else None
