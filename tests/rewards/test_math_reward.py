"""The lenient reward: right where the reference is known to be wrong, and the other way round."""

import pytest
from bounded_work import bounded_work

from trl_r1zero.rewards import (
    REWARDS,
    math_reward_fn,
    question_only_reward_fn,
    r1_zero_reward_fn,
    resolve_reward,
)
from trl_r1zero.rewards.math_reward import answers_agree


# (ground truth, answer); the reference calls all of them wrong.
@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("1/2", r"\frac{2}{4}"),
        ("2", "4/2"),
        ("2", r"\sqrt{4}"),
        ("2", "1+1"),
        ("-31/4", r"-7\frac{3}{4}\text{ meters}"),
        (r"x^{10}", r"x^5 \cdot x^5"),
        ("x+y+z", "z+y+x"),
        (r"\frac{1}{1+x+y}", "1/(1+x+y)"),
        ("1,2", "2,1"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"(0,\infty)", r"(0,+\infty)"),
        (r"\pm 2", "2,-2"),
        (r"(-793, 10)", r"-793 < a < 10"),
        ("5", "abc=5"),
        ("5", "The answer is 5"),
        (r"x \leq 5", r"5 \geq x"),
        ("x+y=1", "2x+2y=2"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&8/2\end{bmatrix}"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        ("[0,1) \\cup (2,3]", "(2,3] \\cup [0,1)"),
        (r"e^{x+y}", r"e^x e^y"),
        (r"\log_2 8", "3"),
    ],
)  # fmt: skip
def test_right_here_and_wrong_there(truth, answer):
    assert answers_agree(answer, truth)
    assert question_only_reward_fn(f"\\boxed{{{answer}}}", truth)["reward"] == 0.0


# The reference calls all of these right.
@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("a+b", "c+b"),
        (r"\frac{a}{c}", r"\frac{m}{d}"),
        (r"\sqrt[3]{5}", r"\sqrt{5}"),
        (r"\frac{1}{1+x}", "1+x"),
        (r"\frac{1+x}{2}", r"1+\frac{x}{2}"),
        ("9007199254740993", "9007199254740992"),
    ],
)
def test_wrong_here_and_right_there(truth, answer):
    assert not answers_agree(answer, truth)
    assert question_only_reward_fn(f"\\boxed{{{answer}}}", truth)["reward"] == 1.0


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "6"),
        ("293", "293.0001"),
        ("1/3", "0.33"),
        ("[0,1)", "[0,1]"),
        ("x < 5", "x > 5"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        ("(1,2)", "(2,1)"),
        ("x", "y"),
        (r"\sin x", r"\cos x"),
        ("1", r"\frac{0}{0}"),
        ("2", "AZYUK2A"),
        ("", "5"),
        ("5", ""),
    ],
)
def test_wrong(truth, answer):
    assert not answers_agree(answer, truth)


@pytest.mark.parametrize(
    ("truth", "response", "right"),
    [
        ("3", "\\boxed{3}\n\\boxed{3}", True),
        ("3", r"\boxed{3} and \boxed{6/2} or \boxed{3.0}", True),
        (r"\frac{639}{40}", r"$\boxed{15\frac{39}{40}},$ or $\boxed{\frac{639}{40}}$", True),
        (r"$\boxed{15\frac{39}{40}},$ or $\boxed{\frac{639}{40}}$", r"\boxed{639/40}", True),
        ("3, 3", r"\boxed{3}, \boxed{3}", True),
        ("2, 3", r"\boxed{3} and \boxed{2}", True),
        # A list of different answers is none of them.
        ("3", r"\boxed{2} and \boxed{3}", False),
        ("3", r"\boxed{3} and \boxed{2}", False),
        ("3", r"\boxed{3}, \boxed{2}, \boxed{3}", False),
        ("2", "\\boxed{3}\n\\boxed{3}", False),
    ],
)
def test_neighbouring_boxes(truth, response, right):
    assert math_reward_fn(response, truth)["answer_reward"] == float(right)


def test_the_format_reward_needs_tags_or_a_box():
    assert math_reward_fn("so <answer>4/2</answer>", 2) == {
        "format_reward": 1.0,
        "answer_reward": 1.0,
        "reward": 1.0,
    }
    assert math_reward_fn(r"so \boxed{4/2}", ["3", "2"])["reward"] == 1.0
    assert math_reward_fn("The answer is 2.", "2") == {
        "format_reward": 0.0,
        "answer_reward": 1.0,
        "reward": 0.0,
    }


def test_math_verifys_own_cases(read_corpus):
    """Published test cases of math-verify, each as a plain answer, in prose and in a box."""
    cases = [pair for pair in read_corpus("verdicts.jsonl.gz") if "math_verify_expected" in pair]
    graded = [math_reward_fn(case["response"], case["ground_truth"]) for case in cases]
    pairs = list(zip(cases, graded, strict=True))
    right = sum(reward["answer_reward"] == case["math_verify_expected"] for case, reward in pairs)
    by_reference = sum(case["answer_reward"] == case["math_verify_expected"] for case in cases)
    assert len(cases) == 465
    assert by_reference == 242
    assert right >= 447  # 96.1 %
    # What it misses is long prose, sums and decimal commas; nothing wrong is let through but
    # "32, 349" for 32349, which the strict grader accepts.
    let_through = [c for c, r in pairs if r["answer_reward"] > c["math_verify_expected"]]
    assert all("32, 349" in case["response"] and case["answer_reward"] for case in let_through)


def test_rewards_are_found_by_name_and_by_path():
    assert resolve_reward("r1_zero") is r1_zero_reward_fn
    assert resolve_reward("math") is math_reward_fn
    path = "trl_r1zero.rewards.math_reward.math_reward_fn"
    assert resolve_reward(path) is math_reward_fn
    with pytest.raises(ValueError, match=r"did you mean 'r1_zero'. Allowed: gsm8k, math, mmlu, "):
        resolve_reward("r1zero")
    with pytest.raises(ValueError, match=r"no_such_package"):
        resolve_reward("no_such_package.reward")
    with pytest.raises(ValueError, match=r"has no name 'nothing'"):
        resolve_reward("trl_r1zero.rewards.math_reward.nothing")
    assert set(REWARDS) == {"r1_zero", "question_only", "math", "mmlu", "gsm8k"}


@pytest.mark.parametrize(
    "answer",
    [
        r"\pm" * 60 + "1",
        r"1\pm1" * 40,
        r"\frac{\pm\pm\pm 1}{\pm\pm\pm 1}^{\pm\pm\pm 1}",
        r"\sqrt[\pm\pm\pm 2]{\pm\pm\pm 2}" * 3,
        "(1\\pm" * 30 + "1" + ")" * 30,
        r"\sqrt" * 400 + "2",
        r"-\sqrt" * 300 + "2",
        r"\frac1" * 300,
        r"\ln" * 400 + "2",
        "-" * 900 + "1",
        "(" * 900 + "1",
        r"\{" * 400 + "1",
    ],
    ids=lambda answer: answer[:12],
)
def test_repeated_operators_neither_multiply_nor_nest_without_end(answer):
    with bounded_work():
        rewards = math_reward_fn(f"<answer>{answer}</answer>", "2")
    assert rewards["answer_reward"] == 0.0
