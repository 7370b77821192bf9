"""The answer parsers of the two benchmarks, and the one for votes."""

import pytest

from trl_r1zero.rewards import parse_gsm8k_response, parse_mmlu_response
from trl_r1zero.rewards.extraction import extract_answer

EXAMPLE = {
    "question": "Capital of France?",
    "options": ["Lyon", "Paris", "Nice", "Lille"],
    "answer": "B",
}


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Natalia sold 48/2 = 24 clips in May. She sold 48+24 = 72 clips altogether.", "72"),
        ("She sold twenty-four, thus seventy-two clips.", None),
        ("", None),
        ("It costs $1,234.50.", "1234.50"),
        ("1,000,000 people", "1000000"),
        ("the values are 1,2,3", "3"),
        ("so x = -5", "-5"),
        ("so x = \u22125", "-5"),
        ("we get 5-3", "3"),
        ("a loss of -$40", "-40"),
        ("#### 18", "18"),
        ("The answer is .5", ".5"),
        ("a 10-year-old", "10"),
    ],
)
def test_gsm8k(output, answer):
    assert parse_gsm8k_response(output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("The correct answer is B.", "B"),
        ("The correct answer is B. Paris is the capital.", "B"),
        ("The correct answer is (C)", "C"),
        ("the correct answer is **D**", "D"),
        ("The answer is: A", "A"),
        ("Answer: C", "C"),
        ("B", "B"),
        ("B.", "B"),
        ("(b)", "B"),
        ("B) Paris", "B"),
        (r"\boxed{B}", "B"),
        (r"The correct answer is $\boxed{\text{B}}$.", "B"),
        ("The correct answer is A because it is.", "A"),
        ("The answer is A. Wait: the correct answer is D.", "D"),
        ("The correct answer is B.\n# Query: next\n# Answer: The correct answer is C.", "B"),
        ("The correct answer is Paris.", "B"),
        ("Paris", "B"),
        ("The correct answer is option C", "C"),
        ("", None),
        ("I cannot answer that.", None),
        ("A good question, but I cannot say.", None),
        ("The correct answer is a matter of taste.", None),
        ("The correct answer is A matter of taste.", None),
        ("The correct answer is A or B.", None),
        ("The correct answer is not B.", None),
        ("The correct answer is 42.", None),
        ("The correct answer is E.", None),
        ("I don't know", None),
    ],
)
def test_mmlu(output, answer):
    assert parse_mmlu_response(EXAMPLE, output) == answer


def test_mmlu_without_options():
    assert parse_mmlu_response({}, "The correct answer is B.") == "B"
    assert parse_mmlu_response({}, "The correct answer is Paris.") is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("4 </think> <answer> 4 </answer>", " 4 "),
        ("4 </think>\n<answer>4</answer>", "4"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        ("<answer>it is \\boxed{4}.</answer>", "4"),
        ("<answer>it is \\boxed{4</answer>", None),
        ("it is \\boxed{3} or \\boxed{4}", "4"),
        ("<answer>3 \\boxed{4}", "4"),  # not closed: what counts is the box
        ("<answer>4", None),
        ("the answer is 4", None),
        ("", None),
    ],
)
def test_answer_of_either_style(response, answer):
    assert extract_answer(response) == answer
