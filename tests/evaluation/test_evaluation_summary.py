"""The numbers of a summary, worked by hand."""

import json
import math
from itertools import combinations

import pytest

from trl_r1zero.evaluation import GradedCompletion, pass_at_k, summarize, summarize_evaluation
from trl_r1zero.evaluation.metrics import share_interval


def graded(
    example: int, answer: str | None, truth: str, completion: int = 0, **changes
) -> GradedCompletion:
    """A response of one token per letter; None has no format."""
    right = float(answer == truth)
    settings = {
        "rewards": {
            "reward": right,
            "format_reward": float(answer is not None),
            "answer_reward": right,
        },
        "length": len(answer or "none"),
        "truncated": False,
        "extra": {"answer": answer},
        "example": example,
        "completion": completion,
    }
    return GradedCompletion("p", str(answer), truth, **{**settings, **changes})


def wilson(right: float, trials: float) -> list[float]:
    """Wilson's interval as the roots p of (right / trials - p)^2 = z^2 p (1 - p) / trials."""
    z2, share = 1.959964**2, right / trials
    a, b, c = 1 + z2 / trials, -(2 * share + z2 / trials), share**2
    root = math.sqrt(b**2 - 4 * a * c)
    return [(-b - root) / (2 * a), (-b + root) / (2 * a)]


# Two examples of four completions: 7 is right three times of four, 5 once.
FOUR_EACH = [
    *(graded(0, answer, "7", k) for k, answer in enumerate(["7", "7", "8", "7"])),
    *(graded(1, answer, "5", k) for k, answer in enumerate(["5", "6", "6", None])),
]


def test_one_completion_each():
    rows = [
        graded(0, "12", "12", extra={"finish_reason": "stop", "mean_log_prob": -0.5}),
        graded(1, "1234", "1", extra={"finish_reason": "stop", "mean_log_prob": -1.25}),
        graded(2, None, "1", length=10, truncated=True, extra={"finish_reason": "length"}),
        graded(3, "1234", "1234", extra={"finish_reason": "stop"}),
    ]
    assert summarize_evaluation(rows, 1, seconds=2.0) == {
        "num_examples": 4,
        "num_completions": 1,
        "accuracy": 0.5,
        "accuracy_stderr": pytest.approx(math.sqrt(0.5 * 0.5 / 3)),
        "accuracy_interval": pytest.approx(wilson(1.5, 3), abs=1e-4),
        "reward": 0.5,
        "reward_stderr": pytest.approx(math.sqrt(0.5 * 0.5 / 3)),
        "format_reward": 0.75,
        "format_reward_stderr": 0.25,  # sqrt(3/4 * 1/4 / 3)
        "length": 5.0,  # (2 + 4 + 10 + 4) / 4
        "length_correct": 3.0,  # (2 + 4) / 2
        "length_incorrect": 7.0,  # (4 + 10) / 2
        "truncated": 0.25,
        "mean_log_prob": -1.0,  # (2 x -0.5 + 4 x -1.25) / 6
        "num_tokens": 20,
        "seconds": 2.0,
        "examples_per_second": 2.0,
        "completions_per_second": 2.0,
        "tokens_per_second": 10.0,
        "categories": {
            "format_1_answer_1": {
                "count": 2,
                "share": 0.5,
                "share_stderr": pytest.approx(math.sqrt(0.5 * 0.5 / 3)),
                "length": 3.0,
            },
            "format_1_answer_0": {"count": 1, "share": 0.25, "share_stderr": 0.25, "length": 4.0},
            "format_0": {"count": 1, "share": 0.25, "share_stderr": 0.25, "length": 10.0},
        },
        "rules": {},
        "finish_reasons": {"stop": 3, "length": 1},
    }


def test_errors_are_over_examples():
    # Accuracies of the examples: 3/4 and 1/4, each 1/4 from their mean: sqrt(2/16 / (2 x 1)).
    summary = summarize_evaluation(FOUR_EACH, 4)
    assert (summary["num_examples"], summary["num_completions"]) == (2, 4)
    assert (summary["accuracy"], summary["accuracy_stderr"]) == (0.5, 0.25)
    # Formats: 4/4 and 3/4.
    assert (summary["format_reward"], summary["format_reward_stderr"]) == (0.875, 0.125)
    # Format right, answer wrong: 1/4 and 2/4.
    wrong = summary["categories"]["format_1_answer_0"]
    assert (wrong["count"], wrong["share"], wrong["share_stderr"]) == (3, 0.375, 0.125)
    metrics = summarize(FOUR_EACH)
    assert (metrics["accuracy_stderr"], metrics["num_examples"]) == (0.25, 2.0)
    # As if they were eight examples: sqrt(1/2 x 1/2 / 7).
    for row in (alone := [graded(0, row.response, row.ground_truth) for row in FOUR_EACH]):
        row.example = None
    assert summarize(alone)["accuracy_stderr"] == pytest.approx(math.sqrt(0.25 / 7))


def test_the_average_of_k_with_the_example_as_the_unit():
    summary = summarize_evaluation(FOUR_EACH, 4)
    assert (summary["avg@4"], summary["avg@4_stderr"]) == (0.5, 0.25)
    # Effective trials: 0.5 x 0.5 / 0.25^2 = 4, and not the eight completions.
    assert summary["avg@4_interval"] == pytest.approx(wilson(2, 4), abs=1e-4)
    assert summary["accuracy_interval"] == summary["avg@4_interval"]
    one_each = [row for row in FOUR_EACH if row.completion == 0]
    assert not [name for name in summarize_evaluation(one_each, 1) if "@" in name]


@pytest.mark.parametrize(
    ("values", "completions", "right", "trials"),
    [
        # As Wilson's of N - 1 trials, where an example has one completion or they are all alike.
        ([1.0, 0.0, 0.0, 0.0, 0.0], 1, 0.8, 4),
        ([1.0, 0.0, 0.0, 0.0, 0.0], 16, 0.8, 4),
        # No more than all completions, where the examples are all alike.
        ([0.5] * 6, 2, 6, 12),
        # N examples, where nothing varies: 16 completions of each do not make it surer.
        ([0.0] * 30, 1, 0, 30),
        ([0.0] * 30, 16, 0, 30),
        ([1.0] * 30, 16, 30, 30),
        ([1.0], 1, 1, 1),
    ],
)
def test_the_interval_of_a_share(values, completions, right, trials):
    expected = wilson(right, trials)
    low, high = share_interval(values, completions)
    assert [low, high] == pytest.approx(expected, abs=1e-4)
    assert 0 <= low < high <= 1


def test_pass_at_k():
    summary = summarize_evaluation(FOUR_EACH, 4)
    assert (summary["pass@1"], summary["pass@1_stderr"]) == (0.5, 0.25)
    # 1 - C(1, 2) / C(4, 2) = 1 and 1 - C(3, 2) / C(4, 2) = 1 - 3/6
    assert (summary["pass@2"], summary["pass@2_stderr"]) == (0.75, 0.25)
    assert (summary["pass@4"], summary["pass@4_stderr"]) == (1.0, 0.0)


def test_majority_at_k():
    summary = summarize_evaluation(FOUR_EACH, 4)
    # Of one completion, the share of right ones: 3/4 and 1/4.
    assert (summary["maj@1"], summary["maj@1_stderr"]) == (0.5, 0.25)
    # 7 7 right, 8 7 a tie that goes to 8; 5 6 a tie that goes to 5, 6 and no answer wrong.
    assert (summary["maj@2"], summary["maj@2_stderr"]) == (0.5, 0.0)
    # 7 three times of four right, 6 twice of three wrong.
    assert (summary["maj@4"], summary["maj@4_stderr"]) == (0.5, 0.5)


def test_the_order_of_sampling_decides_ties():
    backwards = [*reversed(FOUR_EACH)]
    assert summarize_evaluation(backwards, 4) == summarize_evaluation(FOUR_EACH, 4)


def test_sizes_of_k():
    def sizes(n):
        rows = [graded(0, "1", "1", k) for k in range(n)]
        return [
            int(name.removeprefix("pass@"))
            for name in summarize_evaluation(rows, n)
            if name.startswith("pass@")  # one example has no standard error
        ]

    assert [sizes(n) for n in (1, 2, 3, 8, 10)] == [
        [],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 10],
    ]


def test_majority_blocks_are_disjoint():
    # Of three completions blocks of two are 1 2; the third is in none.
    rows = [graded(0, answer, "2", k) for k, answer in enumerate(["1", "2", "2"])]
    summary = summarize_evaluation(rows, 3)
    assert (summary["maj@2"], summary["maj@3"]) == (0.0, 1.0)


def test_votes_are_counted_by_normal_form():
    answers = ["3", "0.5", " \\frac{1}{2} ", "\\tfrac12", "  ", None]
    rows = [
        graded(0, answer, "t", k, rewards={"reward": float(k in (1, 2, 3))})
        for k, answer in enumerate(answers)
    ]
    assert summarize_evaluation(rows, 6)["maj@6"] == 1.0
    # Nobody votes: nothing is right, whatever the reward says.
    nobody = [graded(0, None, "t", k, rewards={"reward": 1.0}) for k in range(2)]
    assert summarize_evaluation(nobody, 2)["maj@2"] == 0.0


def test_no_majority_without_answers():
    rows = [graded(0, "1", "1", k, extra={}) for k in range(2)]
    summary = summarize_evaluation(rows, 2)
    assert "pass@2" in summary
    assert not any(name.startswith("maj@") for name in summary)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (5, 2), (5, 5), (8, 3)])
def test_pass_at_k_is_the_mean_over_all_subsets(n, k):
    for right in range(n + 1):
        drawn = list(combinations([1] * right + [0] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


def test_breakdowns():
    places = [(1, "Algebra"), (5, "Algebra"), (5, "Geometry"), (None, "Algebra")]
    rows = [
        graded(number, answer, "1", extra={"metadata": {"level": level, "subject": subject}})
        for number, (answer, (level, subject)) in enumerate(
            zip(["1", "1", "22", None], places, strict=True)
        )
    ]
    summary = summarize_evaluation(rows, 1)
    assert summary["by_level"] == {
        "1": {"num_examples": 1, "accuracy": 1.0, "format_reward": 1.0, "length": 1.0},
        "5": {
            "num_examples": 2,
            "accuracy": 0.5,
            "accuracy_stderr": 0.5,
            "format_reward": 1.0,
            "length": 1.5,
        },
    }
    algebra = summary["by_subject"]["Algebra"]
    assert (algebra["num_examples"], algebra["accuracy"]) == (3, pytest.approx(2 / 3))
    # sqrt(2/3 x 1/3 / 2)
    assert algebra["accuracy_stderr"] == pytest.approx(1 / 3)
    assert algebra["length"] == 2.0  # (1 + 1 + 4) / 3


def test_the_mean_of_subjects_counts_each_subject_once():
    # Algebra 3 of 4, Geometry 1 of 2.
    answers = [("Algebra", truth) for truth in "1112"] + [("Geometry", truth) for truth in "12"]
    rows = [
        graded(number, "1", truth, extra={"metadata": {"subject": subject}})
        for number, (subject, truth) in enumerate(answers)
    ]
    summary = summarize_evaluation(rows, 1)
    assert summary["accuracy"] == pytest.approx(4 / 6)
    assert summary["accuracy_mean_of_subjects"] == (0.75 + 0.5) / 2
    # The errors are sqrt(3/4 x 1/4 / 3) = 1/4 and sqrt(1/2 x 1/2 / 1) = 1/2.
    error = math.sqrt(0.25**2 + 0.5**2) / 2
    assert summary["accuracy_mean_of_subjects_stderr"] == pytest.approx(error)
    assert "accuracy_mean_of_subjects" not in summarize_evaluation(FOUR_EACH, 4)


def test_what_is_not_graded_has_no_accuracy():
    metadata = {"metadata": {"subject": "Algebra"}, "answer": "1", "finish_reason": "stop"}
    rows = [graded(0, "1234", "1", k, rewards={}, extra=metadata) for k in range(2)]
    assert summarize_evaluation(rows, 2) == {
        "num_examples": 1,
        "num_completions": 2,
        "length": 4.0,
        "truncated": 0.0,
        "num_tokens": 8,
        "finish_reasons": {"stop": 2},
    }


def test_levels_are_in_order():
    def keys(levels):
        rows = [
            graded(number, "1", "1", extra={"metadata": {"level": level}})
            for number, level in enumerate(levels)
        ]
        return list(summarize_evaluation(rows, 1)["by_level"])

    assert keys([10, 9, 2]) == ["2", "9", "10"]
    assert keys(["Level 2", "Level 1"]) == ["Level 1", "Level 2"]
    assert keys(["hard", 3]) == ["3", "hard"]


def test_rules_by_category():
    rules = [("1", "identical"), ("2", "integer"), ("3", "integer"), ("4", "other"), (None, "tags")]
    rows = [
        graded(number, answer, "1", extra={"rule": rule})
        for number, (answer, rule) in enumerate(rules)
    ]
    assert summarize_evaluation(rows, 1)["rules"] == {
        "format_1_answer_1": {"identical": 1},
        "format_1_answer_0": {"integer": 2, "other": 1},
        "format_0": {"tags": 1},
    }


def test_a_reward_without_parts():
    # Every format is right where none is graded.
    rows = [graded(i, "1", "1", rewards={"reward": float(i)}) for i in range(2)]
    summary = summarize_evaluation(rows, 1)
    assert "format_reward" not in summary
    assert [part["count"] for part in summary["categories"].values()] == [1, 1, 0]


def test_a_right_answer_without_format_is_unformatted():
    rewards = {"reward": 0.0, "format_reward": 0.0, "answer_reward": 1.0}
    summary = summarize_evaluation([graded(0, "1", "1", rewards=rewards)], 1)
    assert summary["accuracy"] == 1.0
    assert [part["count"] for part in summary["categories"].values()] == [0, 0, 1]


def test_what_is_not_known_is_left_out():
    summary = summarize_evaluation([graded(0, None, "1")], 1)
    assert not summary.keys() & {"accuracy_stderr", "length_correct", "entropy", "seconds"}
    assert summary["categories"]["format_1_answer_1"] == {"count": 0, "share": 0.0}
    json.dumps(summary, allow_nan=False)


def test_completions_that_are_missing():
    with pytest.raises(ValueError, match="example 1 has 3 completions, expected 4"):
        summarize_evaluation(FOUR_EACH[:-1], 4)
    with pytest.raises(ValueError, match="example 0 has 4 completions, expected 1"):
        summarize_evaluation(FOUR_EACH, 1)
