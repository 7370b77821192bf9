"""Grading in worker processes: what hangs, dies or raises costs its completion alone."""

import pytest
from evaluate_rewards import (
    dies_on_long_responses,
    hangs_on_long_responses,
    length_is_even,
    raises,
    raises_on_anything_but_nothing,
)

from trl_r1zero.evaluation import keep_replies, make_grader
from trl_r1zero.evaluation.grading import PooledGrader
from trl_r1zero.rewards import r1_zero_reward_fn, reward_identity

ZERO = {"reward": 0.0, "format_reward": 0.0, "answer_reward": 0.0}
LONG = "a response of more than twenty letters"


def test_it_grades_as_in_this_process():
    response = "1 + 2 = 3 </think> <answer> 3 </answer>"
    with PooledGrader(r1_zero_reward_fn) as grade:
        assert grade(response, "3") == make_grader(r1_zero_reward_fn)(response, "3")
        assert grade.__name__ == "r1_zero_reward_fn"
        assert grade.failures == {}


@pytest.mark.parametrize(
    ("reward_fn", "failure"),
    [(hangs_on_long_responses, "timeout"), (dies_on_long_responses, "died")],
)
def test_a_failure_is_graded_0_and_the_next_is_graded(reward_fn, failure):
    with PooledGrader(reward_fn, deadline_seconds=1.0) as grade:
        # The parts are those of the function, even where the first completion fails.
        assert grade(LONG, "3") == (ZERO, {"rule": f"reward_{failure}", "answer": None})
        assert grade("even", "3")[0] == {"reward": 1.0, "format_reward": 1.0, "answer_reward": 1.0}
        assert grade(LONG, "3")[0] == ZERO
        assert grade.failures == {failure: 2}


def test_a_function_that_always_raises_is_an_error():
    with PooledGrader(raises) as grade:
        for _ in range(7):
            assert grade("even", "3")[1]["rule"] == "reward_error"
        with pytest.raises(
            RuntimeError, match=r"raises raised on all 8 .* KeyError: 'no such thing"
        ):
            grade("even", "3")


def test_a_failed_completion_has_the_parts_of_the_function():
    with PooledGrader(raises_on_anything_but_nothing) as grade:
        assert grade("even", "3")[0] == {"reward": 0.0, "style": 0.0}
        assert grade.failures == {"error": 1}


def test_the_identity_is_that_of_the_reward():
    with PooledGrader(length_is_even) as grade:
        assert reward_identity(grade) == "evaluate_rewards.length_is_even"
    assert reward_identity(make_grader(length_is_even)) == "evaluate_rewards.length_is_even"
    assert reward_identity(keep_replies(str.strip)) == "none"
