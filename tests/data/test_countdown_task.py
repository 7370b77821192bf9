"""Countdown: the safe evaluator against hostile text, the reward, and the generator."""

import json
from fractions import Fraction
from itertools import product

import pytest
from bounded_work import bounded_work
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.countdown import ExpressionError, countdown_is_right, evaluate_expression

TRUTH = json.dumps({"numbers": [3, 7, 25], "target": 46})


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", 7, [7]),
        ("2 + 3 * 4", 14, [2, 3, 4]),
        ("(2 + 3) * 4", 20, [2, 3, 4]),
        ("10 - 3 - 2", 5, [10, 3, 2]),
        ("24 / 4 / 2", 3, [24, 4, 2]),
        ("1 / 3 * 3", 1, [1, 3, 3]),
        ("7 / 2", Fraction(7, 2), [7, 2]),
        ("-(2 - 5)", 3, [2, 5]),
        ("2 - -3", 5, [2, 3]),
        (" \n( 25-3 )\t", 22, [25, 3]),
        (r"\left(2 \times 3\right) \div 4 \cdot 2", 3, [2, 3, 4, 2]),
        ("2 × 3 − 1", 5, [2, 3, 1]),  # noqa: RUF001
    ],
)
def test_evaluate_expression(text, value, numbers):
    assert evaluate_expression(text) == (value, numbers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"got the end of the text, expected a number or \("),
        ("3 +", "got the end of the text"),
        ("* 3", r"got '\*', expected a number"),
        ("3 4", "got '4' after a complete expression"),
        ("(3", r"got a \( without its \)"),
        ("3)", r"got '\)' after a complete expression"),
        ("()", r"got '\)', expected a number"),
        ("3 / (2 - 2)", "got a division by zero"),
        ("9**9**9", r"got '\*', expected a number"),
        ("9^9", r"got '\^', expected a number or"),
        ("7 // 2", "got '/', expected a number"),
        ("3.5", r"got '\.'"),
        ("1e9", "got 'e'"),
        ("0x10", "got 'x'"),
        ("1_000", "got '_'"),
        ("٣ + 4", "got '٣'"),
        ("²", "got '²'"),
        ("25 + 3 * 7 = 46", "got '='"),
        ("__import__('os').system('true')", "got '_'"),
        ("[].__class__", r"got '\['"),
        ("3 if 1 else 2", "got 'i'"),
        ("3 # 4", "got '#'"),
        ("3\x00", "got '\\\\x00'"),
        ("1" * 10, "got a number of 10 digits, at most 9"),
        ("1+" * 200, "got 400 characters, expected at most 200"),
        ("(" * 90 + "1" + ")" * 90, "got more than 20 levels"),
        ("-" * 150 + "1", "got more than 20 levels"),
    ],
)
def test_evaluate_expression_rejects(text, message):
    with pytest.raises(ExpressionError, match=message):
        evaluate_expression(text)


def test_evaluate_expression_does_little_on_the_worst_that_the_bounds_admit():
    with bounded_work():
        for operator in "*/+-":
            evaluate_expression(operator.join(["999999999"] * 20))
            evaluate_expression("(9" + operator + "9)" + (operator + "(9-8)") * 30)


@given(st.text(alphabet="0123456789+-*/() \n.e_^=x", max_size=60))
@settings(max_examples=300, deadline=None)
def test_evaluate_expression_agrees_with_python_or_rejects(text):
    try:
        value, numbers = evaluate_expression(text)
    except ExpressionError:
        return
    # What is accepted is digits and + - * / ( ) only, so Python's own evaluator may judge it here.
    exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in _split(text))
    assert value == eval(f"({exact})", {"Fraction": Fraction})
    assert numbers == [int(part) for part in _split(text) if part.isdigit()]


def _split(text):
    """`"12+3"` -> `["12", "+", "3"]`, with leading zeros cut, which Python would not read."""
    parts = []
    for character in text:
        if character.isdigit() and parts and parts[-1].isdigit():
            parts[-1] += character
        else:
            parts.append(character)
    return [str(int(part)) if part.isdigit() else part for part in parts]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("25 + 3 * 7", True),
        ("(7*3)+25", True),
        ("25 - 3 * -7", True),
        ("46", False),
        ("25 + 21", False),
        ("25 + 7 + 7 + 7", False),
        ("25 + 3 * 7 + 3 - 3", False),
        ("25 * 3 - 7", False),
        ("25 + 3 * 7 or True", False),
        ("", False),
    ],
)
def test_countdown_is_right(answer, right):
    assert countdown_is_right(answer, TRUTH) is right


@pytest.mark.parametrize(
    "ground_truth",
    ["46", "not json", "[]", '{"numbers": [3]}', '{"numbers": "3", "target": 3}',
     '{"numbers": [3.5], "target": 3}', '{"numbers": [3], "target": true}'],
)  # fmt: skip
def test_countdown_rejects_a_malformed_ground_truth(ground_truth):
    with pytest.raises(ValueError, match=r"ground_truth: got .* expected a JSON string such as"):
        countdown_is_right("3", ground_truth)


def test_countdown_rewards():
    task = get_task("countdown")
    tags = task.reward_fn(load_prompt("r1_zero"))
    boxed = task.reward_fn(load_prompt("question_only"))
    right = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
    wrong = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
    unformatted = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
    assert tags("hm </think> <answer> 25 + 3 * 7 </answer>", TRUTH) == right
    assert tags("hm </think> <answer> 25 + 3 + 7 </answer>", TRUTH) == wrong
    assert tags("hm </think>\n<answer> 25 + 3 * 7 </answer>", TRUTH) == unformatted
    assert boxed(r"so \boxed{25 + 3 \times 7}.", TRUTH) == right
    assert boxed(r"so \boxed{46}.", TRUTH) == wrong
    assert boxed("so 25 + 3 * 7.", TRUTH) == unformatted
    other = json.dumps({"numbers": [1, 2], "target": 3})
    assert tags("hm </think> <answer> 25 + 3 * 7 </answer>", [other, TRUTH]) == right
    assert tags("hm </think> <answer> 25 + 3 * 7 </answer>", [other]) == wrong


def expressions_over(numbers):
    """All values that + - * / make from the numbers, each used once (not as the task does it)."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    values = set()
    for mask in range(1, 2 ** (len(numbers) - 1)):
        left = [number for bit, number in enumerate(numbers) if mask >> bit & 1]
        right = [number for bit, number in enumerate(numbers) if not mask >> bit & 1]
        for a, b in product(expressions_over(left), expressions_over(right)):
            values |= {a + b, a - b, b - a, a * b}
            values |= {a / b} if b else set()
            values |= {b / a} if a else set()
    return values


def test_countdown_puzzles_are_solvable_and_say_what_is_checked():
    for example in get_task("countdown", num_train=60).load():
        truth = json.loads(example.ground_truth)
        assert 3 <= len(truth["numbers"]) <= 4
        assert all(1 <= number <= 25 for number in truth["numbers"])
        assert 1 <= truth["target"] <= 100
        assert f"numbers {', '.join(map(str, truth['numbers']))} exactly once" in example.question
        assert example.question.endswith(f"equals {truth['target']}.")
        assert truth["target"] in expressions_over(truth["numbers"])


def test_countdown_is_deterministic_by_seed_and_its_splits_are_disjoint():
    task = get_task("countdown", num_train=500, num_validation=100, seed=1)
    train, validation = task.load(), task.load(split="validation")
    assert (len(train), len(validation)) == (500, 100)
    assert get_task("countdown", num_train=500, seed=1).load() == train
    assert task.load(limit=7) == train[:7]
    other_seed = get_task("countdown", num_train=500, seed=2).load()
    assert other_seed != train
    questions = {example.question for example in [*train, *other_seed]}
    assert not questions & {example.question for example in validation}
    assert len({example.question for example in train}) == 500


def test_countdown_settings_are_checked():
    with pytest.raises(
        ValueError, match=r"task 'countdown': max_numbers: got 2, expected at least 3"
    ):
        get_task("countdown", max_numbers=2)
    with pytest.raises(ValueError, match=r"found only \d+ distinct questions for split 'train'"):
        get_task("countdown", min_numbers=2, max_numbers=2, max_number=2).load()
