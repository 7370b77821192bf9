"""Agreement with the reference grader on its recorded verdicts, and bounded work on hostile
inputs."""

import threading

import pytest
from bounded_work import bounded_work

from trl_r1zero.rewards import question_only_reward_fn, r1_zero_reward_fn

REWARDS = {"r1_zero": r1_zero_reward_fn, "question_only": question_only_reward_fn}

KEYS = ("format_reward", "answer_reward", "reward")
TYPES_OF_GROUND_TRUTH = (str, int, float, list)


@pytest.fixture(scope="module", autouse=True)
def _sympy_is_imported() -> None:
    # The first formula that needs computer algebra imports it, which is not what is counted here.
    r1_zero_reward_fn("</think> <answer>\\sqrt{x}+0.3</answer>", "\\sqrt{x}+\\frac{3}{10}")


def test_verdicts_of_the_reference_are_reproduced(read_corpus):
    pairs = read_corpus("verdicts.jsonl.gz")
    wrong = []
    for pair in pairs:
        rewards = REWARDS[pair["prompt_style"]](pair["response"], pair["ground_truth"])
        if any(rewards[key] != pair[key] for key in KEYS):
            wrong.append((pair["id"], rewards))
    assert len(pairs) == 14_181
    # The goal is 99.95 %, that is at most 7 differences; there are none, and a new one should be
    # looked at.
    assert wrong == []


def test_a_ground_truth_against_itself_is_right_where_the_reference_accepts_it(read_corpus):
    for pair in read_corpus("verdicts.jsonl.gz"):
        if (
            pair["answer_reward"]
            and pair["prompt_style"] == "r1_zero"
            and isinstance(pair["ground_truth"], str)
        ):
            truth = pair["ground_truth"]
            if "answer>" in truth or "\\boxed" in truth:
                continue
            response = f"</think> <answer>{truth}</answer>"
            assert r1_zero_reward_fn(response, truth)["reward"] == 1.0, truth


def _graded_with_bounded_work(inputs: list[dict]) -> None:
    for item in inputs:
        answer = item["response"].split("<answer>")[-1].replace("</answer>", "")
        for style, response in (
            ("r1_zero", item["response"]),
            ("question_only", f"\\boxed{{{answer}}}"),
        ):
            print(item["id"], style)  # shown with a failure
            truth = item["ground_truth"]
            if isinstance(truth, TYPES_OF_GROUND_TRUTH) and truth not in (["1/2", None], [1]):
                with bounded_work():
                    rewards = REWARDS[style](response, truth)
                assert rewards["answer_reward"] in (0.0, 1.0)
            else:
                with pytest.raises(TypeError, match=r"allowed are|strings only"):
                    REWARDS[style](response, truth)


def test_every_hostile_input_is_graded_with_bounded_work(read_corpus):
    _graded_with_bounded_work(read_corpus("hostile.jsonl.gz"))


def test_hostile_inputs_can_be_graded_in_a_thread(read_corpus):
    inputs = [item for item in read_corpus("hostile.jsonl.gz") if item["cls"] in ("bignum", "nest")]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _graded_with_bounded_work(inputs)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
