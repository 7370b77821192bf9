"""One way to grade, in this process and in workers, where what fails costs its completion alone."""

import math

import numpy as np
import pytest
import torch
from evaluate_rewards import (
    dies_on_long_responses,
    hangs_on_long_responses,
    length_is_even,
    raises,
    raises_on_anything_but_nothing,
)

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.grading import Grade, Grader, keep_replies
from trl_r1zero.rewards import math_reward_fn, mmlu_reward_fn, r1_zero_reward_fn, reward_identity

ZERO = {"reward": 0.0, "format_reward": 0.0, "answer_reward": 0.0}
LONG = "a response of more than twenty letters"


def grade_one(reward_fn, response, ground_truth) -> Grade:
    (grade,) = Grader(reward_fn).grade([(response, ground_truth)])
    return grade


# What a grade says


def test_rule_and_answer_of_rewards_that_explain():
    right = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
    grader = Grader(r1_zero_reward_fn)
    grades = grader.grade([("so </think> <answer> \\boxed{4} </answer>", "4"), ("four", "4")])
    assert grades[0] == Grade(right, "identical", "4")
    assert (grades[1].rule, grades[1].answer) == ("no_think_answer_tags", None)
    assert grades[0].reward == 1.0
    assert grader.__name__ == "r1_zero_reward_fn"
    assert grader.grade([]) == []


def test_the_answer_of_the_lenient_reward():
    assert grade_one(math_reward_fn, "<answer>2/4</answer>", "0.5").answer == "2/4"
    assert grade_one(math_reward_fn, "It is \\boxed{8}.", "8").answer == "8"
    # Right, but there is no telling what the answer is.
    grade = grade_one(math_reward_fn, "The answer is 8.", "8")
    assert (grade.parts["answer_reward"], grade.rule, grade.answer) == (1.0, "same_text", None)
    countdown = get_task("countdown").reward_fn(load_prompt("chain_arithmetic"))
    truth = '{"numbers": [3, 4], "target": 7}'
    assert grade_one(countdown, "</think> <answer>3 + 4</answer>", truth).answer == "3 + 4"
    assert grade_one(countdown, "</think>\n<answer>3 + 4</answer>", truth).answer is None


def test_a_function_may_give_grades():
    mine = Grade({"reward": 0.5}, "mine", "a", {"note": "n"})
    assert grade_one(lambda response, truth: mine, "r", "t") == mine
    with Grader(lambda response, truth: mine, workers=1) as grader:
        assert grader.grade([("r", "t")]) == [mine]
    assert grade_one(keep_replies(str.strip), " r ", "t") == Grade({}, answer="r")


def test_the_identity_is_that_of_the_reward():
    assert reward_identity(Grader(length_is_even).reward_fn) == "evaluate_rewards.length_is_even"
    assert reward_identity(Grader(keep_replies(str.strip)).reward_fn) == "none"


# What is refused


def test_only_functions_and_numbers_of_workers():
    with pytest.raises(TypeError, match=r"must be a function of \(response, ground_truth\), got 1"):
        Grader(1)
    with pytest.raises(ValueError, match=r"workers: got -1, expected 0 \(this process\) or more"):
        Grader(length_is_even, workers=-1)


@pytest.mark.parametrize("returned", [1.0, {"score": 1.0}, None, {}])
@pytest.mark.parametrize("workers", [0, 1])
def test_other_results_are_an_error(returned, workers):
    with (
        Grader(lambda response, truth: returned, workers=workers) as grader,
        pytest.raises(ValueError, match="must return a dict with the key 'reward', got"),
    ):
        grader.grade([("1", "1")])


@pytest.mark.parametrize("part", [math.nan, math.inf, "1", np.str_("1"), b"1", None, 1j])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [dict, Grade])
def test_parts_are_finite_numbers(part, workers, kind):
    """Text is none, though `float` may read it."""
    told = r"the part 'reward' of .* must be a finite number, got .* for 'a response', ground truth"
    with (
        Grader(lambda response, truth: kind({"reward": part}), workers=workers) as grader,
        pytest.raises(ValueError, match=told),
    ):
        grader.grade([("a response", "t")])


def test_parts_that_differ_are_an_error_in_a_batch_and_between_batches():
    def sometimes(response, truth):
        return {"reward": 1.0} | ({"format_reward": 1.0} if response == "1" else {})

    with pytest.raises(ValueError, match="sometimes returned the parts"):
        Grader(sometimes).grade([("1", "1"), ("2", "1")])
    grader = Grader(sometimes)
    grader.grade([("1", "1")])
    with pytest.raises(ValueError, match="return the same keys always"):
        grader.grade([("2", "1")])


# In workers


def test_workers_grade_as_this_process_does():
    rows = [("1 + 2 = 3 </think> <answer> 3 </answer>", "3"), ("3", "3")]
    with Grader(r1_zero_reward_fn, workers=2) as grader:
        assert grader.grade(rows) == Grader(r1_zero_reward_fn).grade(rows)
        assert grader.failures == {}


@pytest.mark.parametrize(
    ("reward_fn", "failure"),
    [(hangs_on_long_responses, "timeout"), (dies_on_long_responses, "died")],
)
def test_a_failure_is_graded_0_and_the_next_is_graded(reward_fn, failure):
    one = {"reward": 1.0, "format_reward": 1.0, "answer_reward": 1.0}
    with Grader(reward_fn, workers=2, deadline_seconds=1.0) as grader:
        # The parts are those of the function, even where the first completion fails.
        assert grader.grade([(LONG, "3")]) == [Grade(ZERO, f"reward_{failure}", failed=True)]
        grades = grader.grade([("even", "3"), (LONG, "3")])
        assert [grade.parts for grade in grades] == [one, ZERO]
        assert [grade.failed for grade in grades] == [False, True]
        assert grader.failures == {failure: 2}


def test_a_function_that_always_raises_is_an_error():
    with Grader(raises, workers=2) as grader:
        for _ in range(7):
            assert grader.grade([("even", "3")])[0].rule == "reward_error"
        with pytest.raises(
            RuntimeError, match=r"raises raised on all 8 .* KeyError: 'no such thing"
        ):
            grader.grade([("even", "3")])


def test_a_function_that_always_hangs_is_an_error():
    with Grader(hangs_on_long_responses, workers=4, deadline_seconds=0.5) as grader:
        with pytest.raises(RuntimeError, match=r"was too slow on all 8 .* no result after 0.5 s"):
            grader.grade([(LONG, "3")] * 8)
        # One that has graded others may have bad luck with some.
        assert grader.grade([("even", "3")])[0].reward == 1.0
        assert [one.failed for one in grader.grade([(LONG, "3")] * 8)] == [True] * 8


def test_numpy_s_and_torch_s_numbers_are_numbers_and_a_nan_has_its_row():
    def rewards(response, truth):
        parts = {"reward": np.float32(truth), "format_reward": torch.tensor(1)}
        return parts if response == "r" else Grade(parts)

    with Grader(rewards, workers=1) as grader:
        assert grader.grade([("r", 0.5)])[0].parts == {"reward": 0.5, "format_reward": 1.0}
        assert grader.grade([("s", 0.5)])[0].parts == {"reward": 0.5, "format_reward": 1.0}
        with pytest.raises(ValueError, match=r"got nan for 'the response', ground truth nan"):
            grader.grade([("the response", math.nan)])


def test_a_failed_completion_has_the_parts_of_the_function():
    with Grader(raises_on_anything_but_nothing, workers=2) as grader:
        assert grader.grade([("even", "3")])[0].parts == {"reward": 0.0, "style": 0.0}
        assert grader.failures == {"error": 1}


# Before there is a model


def test_a_reward_that_does_not_fit_the_ground_truths():
    with pytest.raises(ValueError, match=r"mmlu_reward_fn cannot grade .*first example, '3' \(Ty"):
        Grader(mmlu_reward_fn).check("3")
    of_mmlu = {"answer": "A", "options": ["1", "2", "3", "4"]}
    with pytest.raises(ValueError, match=r"r1_zero_reward_fn cannot grade .* 'A'.*\(TypeError: "):
        Grader(r1_zero_reward_fn).check(of_mmlu)
    Grader(r1_zero_reward_fn).check("3")
    Grader(keep_replies(str.strip)).check("3")


def test_a_function_that_is_no_reward():
    message = r"math\.hypot cannot grade .*'3' \(TypeError: .*, in .*registry\.py:\d+\); give a rew"
    with pytest.raises(ValueError, match=message):
        Grader(math.hypot).check("3")
    with pytest.raises(ValueError, match="must return a dict with the key 'reward', got 1"):
        Grader(lambda response, truth: 1).check("3")
    with pytest.raises(ValueError, match="must return a dict with the key 'reward', got"):
        Grader(lambda response, truth: {"score": 1.0}).check("3")


def test_workers_survive_what_a_single_response_does():
    with (
        Grader(raises, workers=2) as grader,
        pytest.raises(ValueError, match=r"evaluate_rewards\.raises cannot grade .*no such thing"),
    ):
        grader.check("3")
    for reward_fn in (raises_on_anything_but_nothing, dies_on_long_responses):
        with Grader(reward_fn, workers=2) as grader:
            grader.check("3")
            assert grader.failures == {}
