"""Means, standard errors and summaries, worked by hand."""

import math

import pytest

from trl_r1zero.evaluation import GradedCompletion, mean, standard_error, summarize


def graded(answer: float, length: int, **settings) -> GradedCompletion:
    return GradedCompletion(
        prompt="p",
        response="r",
        ground_truth="g",
        length=length,
        **{
            "rewards": {"reward": answer, "format_reward": 1.0, "answer_reward": answer},
            "truncated": False,
            **settings,
        },
    )


def test_mean():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert math.isnan(mean([]))


def test_standard_error():
    # Deviations -2 -1 3: squares 4 + 1 + 9 = 14; 14 / (3 * 2) = 7/3
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7 / 3))
    assert standard_error([5.0, 5.0]) == 0.0
    assert math.isnan(standard_error([1.0]))


@pytest.mark.parametrize(("right", "n"), [(3, 4), (1, 10), (512, 1024), (0, 7)])
def test_standard_error_of_a_share(right, n):
    p = right / n
    values = [1.0] * right + [0.0] * (n - right)
    assert standard_error(values) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_summarize():
    rows = [
        graded(1.0, 10, entropy=0.5),
        graded(0.0, 40, entropy=1.5, truncated=True),
        graded(1.0, 20, entropy=1.0),
        graded(1.0, 30, rewards={"reward": 1.0, "format_reward": 0.0, "answer_reward": 1.0}),
    ]
    assert summarize(rows) == {
        "accuracy": 0.75,
        # sqrt(3/4 * 1/4 / 3)
        "accuracy_stderr": 0.25,
        "reward": 0.75,
        "format_reward": 0.75,
        "length": 25.0,
        "length_correct": 20.0,
        "length_incorrect": 40.0,
        "truncated": 0.25,
        "entropy": 85 / 70,  # (5 + 60 + 20) nats in the 70 tokens whose entropy is known
        "num_examples": 4.0,
    }


def test_accuracy_is_about_the_answer_not_the_reward():
    # A right answer in a wrong format, and the format rewarded by itself.
    rows = [
        graded(0, 1, rewards={"reward": 0.0, "format_reward": 0.0, "answer_reward": 1.0}),
        graded(0, 1, rewards={"reward": 0.5, "format_reward": 1.0, "answer_reward": 0.0}),
    ]
    assert [row.correct for row in rows] == [True, False]
    # Without parts the reward decides.
    assert graded(0, 1, rewards={"reward": 0.5}).correct


def test_what_has_no_rows_is_left_out():
    right = summarize([graded(1.0, 10)])
    assert "length_incorrect" not in right
    assert "accuracy_stderr" not in right  # of one row
    assert "entropy" not in right
    assert "format_reward" not in summarize([graded(1.0, 10, rewards={"reward": 1.0})])
    assert "length_correct" not in summarize([graded(0.0, 10)])
    assert summarize([]) == {"num_examples": 0.0}
