"""What an evaluation amounts to: the numbers of `summary.json`."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from trl_r1zero.rewards.mathd import normalize_mathd

from .metrics import (
    GradedCompletion,
    grouped,
    known,
    mean,
    mean_and_error,
    mean_over_tokens,
    per_example,
    share_interval,
    standard_error,
    summarize,
)

# The three kinds of completions.
CATEGORIES = ("format_1_answer_1", "format_1_answer_0", "format_0")
# Columns of the metadata that accuracy is broken down by.
BREAKDOWNS = ("level", "subject")


def summarize_evaluation(
    rows: Sequence[GradedCompletion], num_completions: int, seconds: float | None = None
) -> dict[str, Any]:
    """The metrics of an evaluation; docs/evaluation.md defines each.

    Args:
        rows: `num_completions` rows of each example, with `example` set. `extra` may have
            `finish_reason`, `rule`, `mean_log_prob`, `metadata` (a dict) and `answer` (what the
            response answers, None if nothing).
        seconds: What generating and grading took, None if unknown.

    Returns:
        A dict that JSON can hold. Standard errors (`*_stderr`) are over examples. What cannot be
        known (a standard error of one example, the mean of nothing) is left out, and so is all that
        needs a reward where rows have none.

    Raises:
        ValueError: An example has not `num_completions` rows.
    """
    by_example = _by_example(rows, num_completions)
    graded = any(row.graded for row in rows)
    breakdowns = {name: _breakdown(rows, name) for name in BREAKDOWNS} if graded else {}
    counts = {"num_examples": len(by_example), "num_completions": num_completions}
    metrics: dict[str, float] = {**counts, **summarize(rows)}
    for name in ("reward", "format_reward"):
        known_of = [row for row in rows if name in row.rewards]
        values = per_example(known_of, [row.rewards[name] for row in known_of])
        metrics |= known({f"{name}_stderr": standard_error(values)})
    metrics |= counts
    log_probs = [row.extra.get("mean_log_prob") for row in rows]
    metrics |= known({"mean_log_prob": mean_over_tokens(rows, log_probs)})
    if breakdowns.get("subject"):
        metrics |= _mean_of_groups("accuracy_mean_of_subjects", breakdowns["subject"])
    intervals = {}
    if graded:
        shares = per_example(rows, [float(row.correct) for row in rows])
        intervals["accuracy_interval"] = share_interval(shares, num_completions)
    if graded and num_completions > 1:
        average = f"avg@{num_completions}"
        metrics |= mean_and_error(average, shares)
        intervals[f"{average}_interval"] = intervals["accuracy_interval"]
        metrics |= _at_k("pass", by_example, _pass_at_k)
        if any("answer" in row.extra for row in rows):
            metrics |= _at_k("maj", by_example, _majority_at_k)
    metrics["num_tokens"] = sum(row.length for row in rows)
    if seconds:
        metrics |= {
            "seconds": seconds,
            "examples_per_second": len(by_example) / seconds,
            "completions_per_second": len(rows) / seconds,
            "tokens_per_second": metrics["num_tokens"] / seconds,
        }
    reasons = Counter(r.extra["finish_reason"] for r in rows if "finish_reason" in r.extra)
    return {
        **metrics,
        **intervals,
        **(_categories(rows) if graded else {}),
        "finish_reasons": dict(reasons),
        **{f"by_{name}": groups for name, groups in breakdowns.items() if groups},
    }


def category(row: GradedCompletion) -> str:
    """One of `CATEGORIES`; where no format is graded, every format is right."""
    formatted = row.rewards.get("format_reward", 1.0) > 0
    return f"format_1_answer_{int(row.correct)}" if formatted else "format_0"


def pass_at_k(num_completions: int, num_correct: int, k: int) -> float:
    r"""Unbiased estimate of the chance that one of k completions is right.

    :math:`1 - \binom{n - c}{k} / \binom{n}{k}` of n completions with c right ones (Chen et al.
    2021, arXiv:2107.03374, eq. 1).
    """
    return 1 - math.comb(num_completions - num_correct, k) / math.comb(num_completions, k)


def majority_is_right(block: Sequence[GradedCompletion]) -> bool:
    """Whether the answer that most completions of the block give is right.

    Answers are the same where the grader's normal form of their texts is; of equally many, the one
    that came first wins. Completions without an answer do not vote; without votes it is wrong.
    """
    ballots = [
        (normalize_mathd(str(row.extra["answer"])), row)
        for row in block
        if row.extra.get("answer") is not None and str(row.extra["answer"]).strip()
    ]
    if not ballots:
        return False
    # Of equal counts the most common one is that which came first.
    ((winner, _),) = Counter(answer for answer, _ in ballots).most_common(1)
    return next(row.correct for answer, row in ballots if answer == winner)


def _by_example(
    rows: Sequence[GradedCompletion], num_completions: int
) -> list[list[GradedCompletion]]:
    groups = grouped((r.example, r) for r in sorted(rows, key=lambda row: row.completion))
    for example, group in groups.items():
        if example is None or len(group) != num_completions:
            raise ValueError(
                f"example {example} has {len(group)} completions, expected {num_completions} "
                "(num_completions) of each numbered example"
            )
    return list(groups.values())


def _at_k(
    name: str,
    by_example: Sequence[Sequence[GradedCompletion]],
    value: Callable[[Sequence[GradedCompletion], int], float],
) -> dict[str, float]:
    """`value` of an example's n completions, for k of 1, 2, 4, ... and n."""
    n = len(by_example[0])
    metrics: dict[str, float] = {}
    for k in (*(2**i for i in range(n.bit_length()) if 2**i < n), n):
        metrics |= mean_and_error(f"{name}@{k}", [value(group, k) for group in by_example])
    return metrics


def _pass_at_k(group: Sequence[GradedCompletion], k: int) -> float:
    return pass_at_k(len(group), sum(row.correct for row in group), k)


def _majority_at_k(group: Sequence[GradedCompletion], k: int) -> float:
    # Disjoint blocks; a rest that is no whole block has no vote.
    starts = range(0, len(group) - k + 1, k)
    return mean([float(majority_is_right(group[start : start + k])) for start in starts])


def _categories(rows: Sequence[GradedCompletion]) -> dict[str, Any]:
    """Count, share and mean length of each category, and how often each rule decided in it."""
    own = [category(row) for row in rows]
    categories, rules = {}, {}
    for name in CATEGORIES:
        members = [row for row, its in zip(rows, own, strict=True) if its == name]
        shares = per_example(rows, [float(its == name) for its in own])
        categories[name] = {
            "count": len(members),
            **mean_and_error("share", shares),
            **known({"length": mean([row.length for row in members])}),
        }
        if decided := [str(r.extra["rule"]) for r in members if r.extra.get("rule") is not None]:
            rules[name] = dict(Counter(decided).most_common())
    return {"categories": categories, "rules": rules}


def _breakdown(rows: Sequence[GradedCompletion], column: str) -> dict[str, dict[str, float]]:
    """Metrics by the value of a column of the metadata, numbers in their order, then texts."""
    groups = grouped((row.extra.get("metadata", {}).get(column), row) for row in rows)
    values = [value for value in groups if isinstance(value, str | int | float)]
    kept = ("num_examples", "accuracy", "accuracy_stderr", "format_reward", "length")
    breakdown = {}
    for value in sorted(values, key=lambda value: (isinstance(value, str), value)):
        metrics = summarize(groups[value])
        metrics["num_examples"] = int(metrics["num_examples"])
        breakdown[str(value)] = {name: metrics[name] for name in kept if name in metrics}
    return breakdown


def _mean_of_groups(name: str, groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean accuracy of independent groups of examples, each of which counts the same."""
    errors = [group.get("accuracy_stderr", math.nan) for group in groups.values()]
    error = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    accuracy = mean([group["accuracy"] for group in groups.values()])
    return known({name: accuracy, f"{name}_stderr": error})
