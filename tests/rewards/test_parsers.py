"""The answer parsers of the two benchmarks, and the one for votes."""

import pytest
from bounded_work import bounded_work

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
        ("the last number of all: 7 # Query: 9", "9"),
    ],
)
def test_gsm8k(output, answer):
    assert parse_gsm8k_response(output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("-5", "-5"),
        ("-$18", "-18"),
        ("$-18", "-18"),
        (r"-\$18", "-18"),
        ("(-3)", "-3"),
        ("= -4", "-4"),
        ("-.5", "-.5"),
        ("Answer:\n- 72 apples", "72"),
        ("She earns:\n- $18 per day", "18"),
        ("Total cost - $72", "72"),
        ("The total cost--72", "72"),
        ("between 5 - 10", "10"),
        ("20 - 5", "5"),
        ("20%-30%", "30"),
        ("(2)-3", "3"),
        ("[2]-3", "3"),
        ("2^{2}-3", "3"),
        ("$5$-$3$", "3"),
    ],
)
def test_gsm8k_a_minus_is_a_sign_where_it_touches_the_number_only(output, answer):
    assert parse_gsm8k_response(output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (r"\boxed{1{,}200}", "1200"),
        (r"\boxed{1,\!200}", "1200"),
        (r"1\,200", "1200"),
        (r"-1{,}200{,}300.5", "-1200300.5"),
        (r"1{,}20", "20"),
        ("the answer is...5", "5"),
        ("No.5", "5"),
        ("f(x).5", "5"),
        (".5", ".5"),
        ("0.5", "0.5"),
        ("x=.5", ".5"),
        ("($.50)", ".50"),
    ],
)
def test_gsm8k_thousands_of_latex_and_decimal_points(output, answer):
    assert parse_gsm8k_response(output) == answer


@pytest.mark.parametrize(
    "separator",
    [
        " ",
        ",",
        "\u00a0",
        "\u2009",
        "\u202f",
        "'",
        "\u2019",
        "_",
        "~",
        "\\ ",
        "\\,",
        "\\;",
        "{,}",
        "{\\,}",
    ],
)
def test_gsm8k_groups_of_thousands(separator):
    assert parse_gsm8k_response(f"In all 10{separator}000 apples") == "10000"
    assert parse_gsm8k_response(f"It costs $1{separator}234{separator}567.50.") == "1234567.50"
    assert parse_gsm8k_response(f"from 3{separator}10{separator}20") == "20"


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("1,00,000 rupees", "100000"),
        ("12,34,56,789", "123456789"),
        ("5\n100", "100"),
        ("1 2345", "2345"),
        ("2 10 100", "100"),
    ],
)
def test_gsm8k_other_groups(output, answer):
    assert parse_gsm8k_response(output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Answer: I think it is C", "C"),
        ("Answer: I think it's C.", "C"),
        ("Answer: it is probably (C)", "C"),
        ("Answer = C", "C"),
        ("Answer - C", "C"),
        ("Ans: C", "C"),
        ("My choice: C", "C"),
        ("I think it is C.", "C"),
        ("I'd go with C.", "C"),
        ("I would choose option C", "C"),
        ("The answer is most likely C.", "C"),
        ("The answer is the option C.", "C"),
        ("The answer should be C", "C"),
        ("Answer: I believe the correct answer is C", "C"),
        ("b. 4", "B"),
        ("b) 4", "B"),
        ("(b) 4", "B"),
        ("b: Paris", "B"),
        ("a) Lyon", "A"),
        # Nothing is claimed.
        ("a. a rise\nb. a fall\nc. no change", None),
        ("a) 1 b) 2 c) 3 d) 4", None),
        ("Answer: I don't think it is C", None),
        ("Answer: I think it is a city", None),
        ("I think it is a matter of taste", None),
        ("I think it is B or C", None),
        ("a city", None),
    ],
)
def test_mmlu_hedged_claims_and_small_letters(output, answer):
    assert parse_mmlu_response(EXAMPLE, output) == answer


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
        # As a small model answers.
        ("The correct answer to this question is C. Nice", "C"),
        ('The correct answer to the question "Which city?" is B. Paris.', "B"),
        ("The answer I responded to is D. Lille.", "D"),
        ("The correct answer to the question is 1.", None),
        ("The answer to why A is wrong is not given.", None),
        ("B is the correct answer.", "B"),
        ("Option B is the right choice.", "B"),
        ("B is correct.", "B"),
        ("The shortest time for 100,000 riders is C", "C"),
        ("The wrong option is C", None),
        ("Paris is the correct answer.", "B"),
        ("Neither A nor B is the correct answer.", None),
        ("A or B is correct.", None),
        ("If B is correct, then so is A.", None),
        ("A, B is the correct answer", None),
    ],
)
def test_mmlu(output, answer):
    assert parse_mmlu_response(EXAMPLE, output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("The correct answer is B, a sharp decrease in demand.", "B"),
        ("The correct answer is B, A sharp decrease in demand.", "B"),
        ("The correct answer is B and here is why.", "B"),
        ("The correct answer is B\n\nAnd here is why: it grows.", "B"),
        ("The correct answer is C and the rest are false.", "C"),
        ("The correct answer is B or, in other words, two.", "B"),
        ("The correct answer is B, C is wrong because it shrinks.", "B"),
        ("The correct answer is C, D being false.", "C"),
        ("The correct answer is B, not C.", "B"),
        ("The correct answer is B and not C.", "B"),
        ("The correct answer is B\n- A is wrong\n- C: wrong", "B"),
        ("The correct answer is A which states that x.", "A"),
        ("The correct answer is A and here is why.", "A"),
        # Several, or none.
        ("The correct answer is B and C", None),
        ("The correct answer is B or C", None),
        ("The correct answer is B or C because they grow", None),
        ("The correct answer is B, or C.", None),
        ("The correct answer is A, B", None),
        ("The correct answer is A, B, C is wrong.", None),
        ("The correct answer is B or maybe option C.", None),
        ("The correct answer is B and possibly (C).", None),
        ("The correct answer is (b) or (c).", None),
        ("The correct answer is B or c.", None),
        ("The correct answer is B/C.", None),
        ("The correct answer is B & C.", None),
        ("The correct answer is B-D.", None),
        ("B is tempting. The answer is A. No: the answer is B or C.", None),
        ("The correct answer is D-glucose.", None),
        ("The correct answer is C++.", None),
        ("The correct answer is a for-profit firm.", None),
        ("The correct answer is A for-profit firm.", None),
    ],
)
def test_mmlu_what_follows_a_claimed_letter(output, answer):
    assert parse_mmlu_response(EXAMPLE, output) == answer


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("A) is incorrect because x. B) is right.", None),
        ("A) is incorrect because", None),
        ("A. Lyon is not the capital.", None),
        ("(A) is false since x; (C) is false. Hence (B).", None),
        ("A. Lyon is large. Option B is right", None),
        ("B) Paris. Hence (A).", None),
        ("A. a rise\nB. a fall\nC. no change\nD. none of these", None),
        ("A. a rise B. a fall C. no change D. none of these", None),
        ("A. Lyon B. Paris C. Nice D. Lille", None),
        ("A\nB\nC\nD", None),
        ("A.\na rise\nB.\na fall", None),
        # Cut off in the list, or a letter behind it.
        ("A. a rise\nB. a fall\nC.", None),
        ("A. a rise\nB. a fall\nC", None),
        ("A. a rise\nB. a fall\nC. no change\nD. none of these\n\nB", "B"),
        ("A) is incorrect because x.\n\nB", "B"),
        ("Paris is the capital.\n\nB", "B"),
        # One option in front, with what is said of it and against the others.
        ("B. Paris, the capital since 987.", "B"),
        ("(A) is correct because x.", "A"),
        ("B. Paris\n\nOption A is incorrect because x. C isn't the capital. (D) is wrong.", "B"),
        ("B. Paris. A city such as Lyon is large, too.", "B"),
        ("B. Washington, D.C.", "B"),
        ("B. Paris, not A. It is the capital.", "B"),
        ("B\n\nA is a city. C is one, too.", "B"),
    ],
)
def test_mmlu_options_that_are_gone_through_are_no_claim(output, answer):
    assert parse_mmlu_response(EXAMPLE, output) == answer


@pytest.mark.parametrize(
    "output",
    [
        r"\[\boxed{B}\]",
        r"The correct answer is \( \boxed{B} \).",
        r"The correct answer is \(\boxed{B}\).",
        r"The correct answer is \textbf{(B)}.",
        r"$\textbf{B}$",
        "'B'",
        "'B'.",
        "\u2018B\u2019",
        "\u201cB\u201d",
        "The correct answer is '(B)'.",
        "The correct answer is 'B. Paris'.",
        "'B. Paris'",
        "The correct answer is \u2018Paris\u2019.",
        "<b>B</b>",
        "The correct answer is <strong>B</strong>.",
        "<answer>B</answer>",
    ],
)
def test_mmlu_what_a_letter_is_wrapped_in(output):
    assert parse_mmlu_response(EXAMPLE, output) == "B"


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Cannot be determined", "D"),
        ("The correct answer is: cannot be determined.", "D"),
        ("D. Cannot be determined", "D"),
        ("B. x is not 2", "B"),
        ("The correct answer is B and C", "C"),
        ("The correct answer is $x^{2}$.", "A"),
        ("The answer cannot be determined.", None),
        ("The correct answer is not x^2.", None),
    ],
)
def test_mmlu_texts_of_options_that_look_like_something_else(output, answer):
    options = [r"$x^{2}$", "x is not 2", "B and C", "Cannot be determined"]
    assert parse_mmlu_response({"options": options}, output) == answer


@pytest.mark.parametrize(
    "piece",
    [
        "answer:a ",
        "answer is ",
        "answer is A or ",
        "(A) ",
        "\nB. x",
        "\nA",
        "_",
        " ",
        "'",
        "1,",
        "-",
        "1 ",
        "12 345 ",
        "answer: that ",
        "i think it is ",
        "\nb. ",
    ],
)
@pytest.mark.parametrize("start", ["", "A. x ", "The answer is B"])
def test_long_repetitions_are_read_with_bounded_work(start, piece):
    text = start + piece * (100_000 // len(piece))
    with bounded_work():
        parse_mmlu_response(EXAMPLE, text)
        parse_gsm8k_response(text)


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


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (
            "What a committee does is organize protests and acts of disobedience.",
            "C",
        ),
        ("A committee does not organize protests and acts of disobedience.", None),
        ("It gives money, or they organize protests and acts of disobedience.", None),
        ("Some would organize protests and acts of disobedience.\nI would not.", None),
    ],
)
def test_mmlu_one_sentence_that_ends_in_a_long_option(output, answer):
    options = [
        "give money to candidates now",
        "vote",
        "organize protests and acts of disobedience",
        "win",
    ]
    assert parse_mmlu_response({"options": options}, output) == answer
