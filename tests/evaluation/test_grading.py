"""Grading in worker processes: what hangs, dies or raises costs its completion alone."""

import math

import pytest
from evaluate_rewards import (
    dies_on_long_responses,
    hangs_on_long_responses,
    length_is_even,
    raises,
    raises_on_anything_but_nothing,
)

from trl_r1zero.evaluation import keep_replies, make_grader
from trl_r1zero.evaluation.grading import PooledGrader, check_grader
from trl_r1zero.rewards import mmlu_reward_fn, r1_zero_reward_fn, reward_identity

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


# Before there is a model


def test_a_reward_that_does_not_fit_the_ground_truths():
    with pytest.raises(ValueError, match=r"mmlu_reward_fn cannot grade .*first example, '3' \(Ty"):
        check_grader(make_grader(mmlu_reward_fn), "3")
    of_mmlu = {"answer": "A", "options": ["1", "2", "3", "4"]}
    with pytest.raises(ValueError, match=r"r1_zero_reward_fn cannot grade .* 'A'.*\(TypeError: "):
        check_grader(make_grader(r1_zero_reward_fn), of_mmlu)
    check_grader(make_grader(r1_zero_reward_fn), "3")
    check_grader(keep_replies(str.strip), "3")


def test_a_function_that_is_no_reward():
    message = r"math\.hypot cannot grade .*'3' \(TypeError: .*, in .*registry\.py:\d+\); give a rew"
    with pytest.raises(ValueError, match=message):
        check_grader(make_grader(math.hypot), "3")
    with pytest.raises(ValueError, match="a reward must be a dict with the key 'reward', got 1"):
        check_grader(make_grader(lambda response, truth: 1), "3")
    with pytest.raises(ValueError, match="a reward must be a dict with the key 'reward', got"):
        check_grader(make_grader(lambda response, truth: {"score": 1.0}), "3")


def test_workers_survive_what_a_single_response_does():
    with (
        PooledGrader(raises) as grade,
        pytest.raises(ValueError, match=r"evaluate_rewards\.raises cannot grade .*no such thing"),
    ):
        check_grader(grade, "3")
    for reward_fn in (raises_on_anything_but_nothing, dies_on_long_responses):
        with PooledGrader(reward_fn) as grade:
            check_grader(grade, "3")
            assert grade.failures == {}
