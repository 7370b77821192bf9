"""The rewards of MMLU and GSM8K on what models write, and what they say of it."""

import pickle

import pytest

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.rewards import (
    REWARDS,
    gsm8k_reward_fn,
    mmlu_reward_fn,
    resolve_reward,
    reward_and_explanation,
)
from trl_r1zero.rewards.benchmarks import RULES

CAPITAL = {"answer": "B", "options": ["Lyon", "Paris", "Nice", "Lille"]}

# Endings of responses to the prompt zero_shot, as a model that goes on with it writes them.
ENDINGS = ["", "\n```", "```", "\n```\n\n# Query:", "\n\n# Query:", "\n```\n\n# Query:\n```"]

# What a model wrote for CAPITAL, and the option that it claims.
MMLU_OUTPUTS = [
    ("The correct answer is B.", "B"),
    ("The correct answer is B", "B"),
    (" The correct answer is B", "B"),
    ("\nThe correct answer is B.", "B"),
    ("The correct answer is _B_.", "B"),
    ("The correct answer is _B.", "B"),
    ("The correct answer is __B__. Paris", "B"),
    ("The correct answer is *B*.", "B"),
    ("The correct answer is **B. Paris**.", "B"),
    ('The correct answer is "B".', "B"),
    ("The correct answer is (B).", "B"),
    ("The correct answer is [B].", "B"),
    ("The correct answer is: B", "B"),
    ("The correct answer is B: Paris.", "B"),
    ("The correct answer is B, Paris.", "B"),
    ("The correct answer is B (Paris).", "B"),
    ("The correct answer is option B.", "B"),
    ("The correct answer is choice B.", "B"),
    ("THE CORRECT ANSWER IS B.", "B"),
    ("The answer is B.", "B"),
    ("So the final answer is B, as Paris is the capital.", "B"),
    ("Sure! The correct answer is B. Paris has been the capital since 987.", "B"),
    ("Lyon is a large city, but the capital is Paris. The correct answer is B.", "B"),
    ("Answer: B", "B"),
    ("B", "B"),
    ("B.", "B"),
    ("B. Paris", "B"),
    ("(B)", "B"),
    ("b", "B"),
    (r"\boxed{B}", "B"),
    ("The correct answer is Paris.", "B"),
    ("Paris", "B"),
    ("The correct answer is A.", "A"),
    ("The correct answer is A. Lyon", "A"),
    ("The correct answer is C.", "C"),
    ("The correct answer is D", "D"),
    ("D", "D"),
    ("The correct answer is Lille.", "D"),
    ("The correct answer is B. No: the correct answer is C.", "C"),
    # Nothing is claimed.
    ("", None),
    (" \n", None),
    (".", None),
    ("I cannot answer that.", None),
    ("I'm sorry, but I can't help with that.", None),
    ("I am not able to answer this question, as an AI language model.", None),
    ("As a responsible assistant, I decline to answer.", None),
    ("A good question! It depends on what you mean by capital.", None),
    ("Could you give me more context?", None),
    ("The correct answer is _", None),
    ("The correct answer is _B_ or _C_.", None),
    ("The correct answer is a_b.", None),
    ("The correct answer is", None),
    ("The correct answer is A or B.", None),
    ("The correct answer is A, B and C.", None),
    ("The correct answer is B and C.", None),
    ("The correct answer is not B.", None),
    ("The correct answer is none of the above.", None),
    ("The correct answer is E.", None),
    ("The correct answer is London.", None),
    ("The correct answer is a matter of debate.", None),
    ("Lyon or Paris", None),
    ("Deciding this takes a moment.", None),
    ("42", None),
]

# What a model wrote, and the number that is read.
GSM8K_OUTPUTS = [
    ("48/2 = 24 clips in May. 48 + 24 = 72 clips altogether. The answer is 72.", "72"),
    ("72", "72"),
    ("72.", "72"),
    ("72.0", "72.0"),
    ("72.00 clips", "72.00"),
    ("#### 72", "72"),
    ("The answer is 72", "72"),
    ("The answer is **72**.", "72"),
    ("The answer is $72.", "72"),
    ("She earns $72 in total.", "72"),
    ("She sold 72 clips.", "72"),
    ("It is 72%.", "72"),
    (r"\boxed{72}", "72"),
    (r"$48 + 24 = 72$", "72"),
    ("36 x 2 = 72", "72"),
    ("= 72 km/h", "72"),
    ("Step 1: halve 48.\nStep 2: add.\n\nAnswer: 72 clips", "72"),
    ("```python\nprint(48 + 24)\n```\nThis prints 72.", "72"),
    ("072", "072"),
    # Another number, or more of them behind the right one.
    ("The answer is 7.", "7"),
    ("The answer is 720.", "720"),
    ("The answer is 7,200.", "7200"),
    ("The answer is -72.", "-72"),
    ("The answer is 72.5.", "72.5"),
    ("The answer is 72, which took me 2 steps.", "2"),
    ("It is 72 or 73", "73"),
    ("1. Halve. 2. Add.", "2"),
    # No number.
    ("", None),
    (" \n", None),
    ("Seventy-two.", None),
    ("I cannot answer that.", None),
    ("I'm sorry, but I can't help with that.", None),
    ("Natalia sold twenty-four clips in May, thus seventy-two.", None),
    ("x + y", None),
]
RIGHT_NUMBERS = {"72", "72.0", "72.00", "072"}


def parts(formatted, right):
    return {
        "format_reward": float(formatted),
        "answer_reward": float(right),
        "reward": float(right),
    }


# MMLU


@pytest.mark.parametrize(("output", "letter"), MMLU_OUTPUTS)
def test_mmlu(output, letter):
    reward, why = reward_and_explanation(mmlu_reward_fn, output, CAPITAL)
    assert reward == mmlu_reward_fn(output, CAPITAL) == parts(letter is not None, letter == "B")
    assert (why.answer, why.ground_truth) == (letter, "B")
    assert why.rule == {None: "no_option_claimed", "B": "right_option"}.get(letter, "other_option")
    assert why.detail == RULES[why.rule]


@pytest.mark.parametrize("ending", ENDINGS)
def test_mmlu_whatever_a_response_to_zero_shot_ends_with(ending):
    reply = load_prompt("zero_shot").reply
    for output, letter in MMLU_OUTPUTS:
        response = output + ending
        # Grading the whole response is as good as grading what of it is the reply.
        expected = mmlu_reward_fn(output, CAPITAL)
        assert mmlu_reward_fn(response, CAPITAL) == expected, response
        assert mmlu_reward_fn(reply(response), CAPITAL) == expected, response
        assert (expected["format_reward"] == 1) == (letter is not None)


def test_mmlu_does_not_read_the_next_question():
    next_one = "\n```\n\n# Query:\n```And of Italy?```\n\n# Answer:\n```The correct answer is B.```"
    assert mmlu_reward_fn("The correct answer is C." + next_one, CAPITAL) == parts(1, 0)
    assert mmlu_reward_fn("I cannot say." + next_one, CAPITAL) == parts(0, 0)


def test_mmlu_without_the_options():
    assert mmlu_reward_fn("The correct answer is B.", {"answer": "B"}) == parts(1, 1)
    assert mmlu_reward_fn("The correct answer is Paris.", {"answer": "B"}) == parts(0, 0)


@pytest.mark.parametrize(
    "ground_truth", ["B", None, {}, {"answer": "b"}, {"answer": 1}, {"options": []}, ["B"]]
)
def test_mmlu_needs_the_right_letter(ground_truth):
    with pytest.raises(TypeError, match=r"ground_truth of MMLU: got .* one of A, B, C, D"):
        mmlu_reward_fn("B", ground_truth)


# GSM8K


@pytest.mark.parametrize(("output", "number"), GSM8K_OUTPUTS)
def test_gsm8k(output, number):
    right = number in RIGHT_NUMBERS
    reward, why = reward_and_explanation(gsm8k_reward_fn, output, "72")
    assert reward == gsm8k_reward_fn(output, "72") == parts(number is not None, right)
    assert (why.answer, why.ground_truth) == (number, "72")
    expected = "same_number" if right else "other_number"
    assert why.rule == ("no_number" if number is None else expected)
    assert why.detail == RULES[why.rule]


@pytest.mark.parametrize("ending", ENDINGS)
def test_gsm8k_whatever_a_response_to_zero_shot_ends_with(ending):
    reply = load_prompt("zero_shot").reply
    for output, number in GSM8K_OUTPUTS:
        expected = gsm8k_reward_fn(output, "72")
        assert gsm8k_reward_fn(output + ending, "72") == expected, output + ending
        assert gsm8k_reward_fn(reply(output + ending), "72") == expected, output + ending
        assert (expected["format_reward"] == 1) == (number is not None)


def test_gsm8k_does_not_read_the_next_question():
    next_one = "\n```\n\n# Query:\n```What is 36 x 2?```\n\n# Answer:\n```72```"
    assert gsm8k_reward_fn("It is 71." + next_one, "72") == parts(1, 0)
    assert gsm8k_reward_fn("Who knows." + next_one, "72") == parts(0, 0)
    assert gsm8k_reward_fn("It is 72." + "\n# Query:\n```What is 1 + 1?```", "72") == parts(1, 1)


@pytest.mark.parametrize(
    ("output", "ground_truth"),
    [
        ("It costs $1,234.50.", "1234.5"),
        ("It costs $1,234.50.", "1,234.50"),
        ("so x = -5", "-5"),
        ("so x = \u22125", -5),
        ("half of it, .5", 0.5),
        ("18", 18),
        ("18", ["17", "18"]),
        ("0.0", "0"),
        ("1" + "0" * 400, "1" + "0" * 400),  # more than a float can hold
    ],
)
def test_gsm8k_compares_numbers_and_not_texts(output, ground_truth):
    assert gsm8k_reward_fn(output, ground_truth) == parts(1, 1)


def test_gsm8k_compares_exactly():
    assert gsm8k_reward_fn("9007199254740993", "9007199254740992") == parts(1, 0)
    assert gsm8k_reward_fn("0.1", "0.10000000000000000001") == parts(1, 0)


@pytest.mark.parametrize(
    ("ground_truth", "error", "message"),
    [
        ("seventy-two", ValueError, "ground_truth of GSM8K: got 'seventy-two', expected a number"),
        ("", ValueError, "ground_truth of GSM8K: got ''"),
        ("nan", ValueError, "ground_truth of GSM8K: got 'nan'"),
        ([], ValueError, "ground_truth of GSM8K: got an empty list"),
        (None, TypeError, "ground_truth has type NoneType"),
        ({"answer": "72"}, TypeError, "ground_truth has type dict"),
    ],
)
def test_gsm8k_needs_a_number(ground_truth, error, message):
    with pytest.raises(error, match=message):
        gsm8k_reward_fn("72", ground_truth)


# Both


def test_they_are_rewards_by_name_and_go_to_other_processes():
    assert (REWARDS["mmlu"], REWARDS["gsm8k"]) == (mmlu_reward_fn, gsm8k_reward_fn)
    assert resolve_reward("mmlu") is mmlu_reward_fn
    for function in (mmlu_reward_fn, gsm8k_reward_fn):
        assert pickle.loads(pickle.dumps(function)) is function
