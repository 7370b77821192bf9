"""What an evaluation amounts to: the numbers of `summary.json`."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from trl_r1zero.rewards.mathd import normalize_mathd

from .metrics import (
    GradedCompletion,
    mean,
    mean_over_tokens,
    per_example,
    standard_error,
    summarize,
)

# The three kinds of completions, by name.
CATEGORIES: dict[str, Callable[[bool, bool], bool]] = {
    "format_1_answer_1": lambda formatted, correct: formatted and correct,
    "format_1_answer_0": lambda formatted, correct: formatted and not correct,
    "format_0": lambda formatted, correct: not formatted,
}
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
        num_completions: Completions of each example, n.
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
    metrics: dict[str, float] = {**counts, **summarize(rows), **_reward_errors(rows), **counts}
    log_probs = [row.extra.get("mean_log_prob") for row in rows]
    metrics["mean_log_prob"] = mean_over_tokens(rows, log_probs)
    if breakdowns.get("subject"):
        metrics |= _mean_of_groups("accuracy_mean_of_subjects", breakdowns["subject"])
    if graded and num_completions > 1:
        metrics |= _pass_at_k(by_example)
        if any("answer" in row.extra for row in rows):
            metrics |= _majority_at_k(by_example)
    metrics["num_tokens"] = sum(row.length for row in rows)
    if seconds:
        metrics |= {
            "seconds": seconds,
            "examples_per_second": len(by_example) / seconds,
            "completions_per_second": len(rows) / seconds,
            "tokens_per_second": metrics["num_tokens"] / seconds,
        }
    return {
        **_known(metrics),
        **(_categories(rows) if graded else {}),
        "finish_reasons": dict(
            Counter(r.extra["finish_reason"] for r in rows if "finish_reason" in r.extra)
        ),
        **{f"by_{name}": groups for name, groups in breakdowns.items() if groups},
    }


def category(row: GradedCompletion) -> str:
    """The key of `CATEGORIES`; where no format is graded, every format is right."""
    formatted = row.rewards.get("format_reward", 1.0) > 0
    return next(name for name, holds in CATEGORIES.items() if holds(formatted, row.correct))


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
    answers = [row.extra.get("answer") for row in block]
    ballots = [
        (normalize_mathd(str(answer)), row)
        for answer, row in zip(answers, block, strict=True)
        if answer is not None and str(answer).strip()
    ]
    if not ballots:
        return False
    # max takes the first of equal counts, and a Counter keeps the order in which answers came.
    counts = Counter(answer for answer, _ in ballots)
    winner = max(counts, key=counts.__getitem__)
    return next(row.correct for answer, row in ballots if answer == winner)


def _by_example(
    rows: Sequence[GradedCompletion], num_completions: int
) -> list[list[GradedCompletion]]:
    groups: dict[int | None, list[GradedCompletion]] = {}
    for row in sorted(rows, key=lambda row: row.completion):
        groups.setdefault(row.example, []).append(row)
    for example, group in groups.items():
        if example is None or len(group) != num_completions:
            raise ValueError(
                f"example {example} has {len(group)} completions, expected {num_completions} "
                "(num_completions) of each numbered example"
            )
    return list(groups.values())


def _reward_errors(rows: Sequence[GradedCompletion]) -> dict[str, float]:
    errors = {}
    for name in ("reward", "format_reward"):
        graded = [row for row in rows if name in row.rewards]
        values = per_example(graded, [row.rewards[name] for row in graded])
        errors[f"{name}_stderr"] = standard_error(values)
    return errors


def _sizes(num_completions: int) -> list[int]:
    """1, 2, 4, ... and n."""
    powers = [2**i for i in range(num_completions.bit_length()) if 2**i < num_completions]
    return [*powers, num_completions]


def _pass_at_k(by_example: Sequence[Sequence[GradedCompletion]]) -> dict[str, float]:
    counts = [(len(group), sum(row.correct for row in group)) for group in by_example]
    metrics = {}
    for k in _sizes(counts[0][0]) if counts else []:
        values = [pass_at_k(n, right, k) for n, right in counts]
        metrics[f"pass@{k}"], metrics[f"pass@{k}_stderr"] = mean(values), standard_error(values)
    return metrics


def _majority_at_k(by_example: Sequence[Sequence[GradedCompletion]]) -> dict[str, float]:
    metrics = {}
    n = len(by_example[0])
    for k in _sizes(n):
        # Disjoint blocks; a rest that is no whole block has no vote.
        starts = range(0, n - k + 1, k)
        values = [
            mean([float(majority_is_right(group[start : start + k])) for start in starts])
            for group in by_example
        ]
        metrics[f"maj@{k}"], metrics[f"maj@{k}_stderr"] = mean(values), standard_error(values)
    return metrics


def _categories(rows: Sequence[GradedCompletion]) -> dict[str, Any]:
    categories = [category(row) for row in rows]
    return {
        "categories": {name: _share(rows, categories, name) for name in CATEGORIES},
        "rules": _rules(rows, categories),
    }


def _share(
    rows: Sequence[GradedCompletion], categories: Sequence[str], name: str
) -> dict[str, float]:
    of_category = [row for row, own in zip(rows, categories, strict=True) if own == name]
    shares = per_example(rows, [float(own == name) for own in categories])
    return {
        "count": len(of_category),
        **_known(
            {
                "share": mean(shares),
                "share_stderr": standard_error(shares),
                "length": mean([row.length for row in of_category]),
            }
        ),
    }


def _rules(
    rows: Sequence[GradedCompletion], categories: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How often each rule decided, by category, the most frequent first."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in CATEGORIES}
    for row, own in zip(rows, categories, strict=True):
        if row.extra.get("rule") is not None:
            counts[own][str(row.extra["rule"])] += 1
    return {name: dict(counter.most_common()) for name, counter in counts.items() if counter}


def _breakdown(rows: Sequence[GradedCompletion], column: str) -> dict[str, dict[str, float]]:
    """Metrics by the value of a column of the metadata, numbers in their order, then texts."""
    groups: dict[Any, list[GradedCompletion]] = {}
    for row in rows:
        value = row.extra.get("metadata", {}).get(column)
        if isinstance(value, str | int | float):
            groups.setdefault(value, []).append(row)
    ordered = sorted(groups, key=lambda value: (isinstance(value, str), value))
    kept = ("num_examples", "accuracy", "accuracy_stderr", "format_reward", "length")
    breakdown = {}
    for value in ordered:
        metrics = summarize(groups[value])
        metrics["num_examples"] = int(metrics["num_examples"])
        breakdown[str(value)] = {name: metrics[name] for name in kept if name in metrics}
    return breakdown


def _mean_of_groups(name: str, groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean accuracy of groups of examples, each of which counts the same."""
    errors = [group.get("accuracy_stderr", math.nan) for group in groups.values()]
    return {
        name: mean([group["accuracy"] for group in groups.values()]),
        # The groups are independent of one another.
        f"{name}_stderr": math.sqrt(math.fsum(error**2 for error in errors)) / len(errors),
    }


def _known(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
