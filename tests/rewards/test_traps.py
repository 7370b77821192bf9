"""The worked traps of the reference: what it calls right and wrong, one line each."""

import pytest

from trl_r1zero.rewards import explain, question_only_reward_fn, r1_zero_reward_fn

RIGHT = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
WRONG = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
UNFORMATTED = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}


def grade(truth, answer: str) -> dict[str, float]:
    return r1_zero_reward_fn(f"thoughts </think> <answer>{answer}</answer>", truth)


# (ground truth, answer)
@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("a+b", "c+b"),
        (r"\frac{a}{c}", r"\frac{m}{d}"),
        ("x", "x1"),
        (r"\sqrt[3]{5}", r"\sqrt{5}"),
        (r"\frac{1}{1+x}", "1+x"),
        (r"\frac{1+x}{2}", r"1+\frac{x}{2}"),
        (r"\frac{1}{2x}", "x/2"),
        ("9007199254740993", "9007199254740992"),
        ("5", "5%"),
        ("3", "3.0000001"),
        ("5", "(5)"),
        ("5", "[5]"),
        ("(1,200)", "1200"),
        ("(312,123,231)", "[312,123,231]"),
        ("5", "x=5"),
        ("x=5", "5"),
        ("5", "\u0665"),
        ("10", r"10\%"),
        ("12", "12 apples"),
        ("A", "(a)"),
        ("", ""),
        ("1/2", "0.50"),
        ("1/10", "0.1"),
        ("3/2", "1.5"),
        ("5", "5."),
        ("xy", "yx"),
        ("2x", "x2"),
        (r"\frac{1}{\sqrt{2}-1}", r"1/\sqrt{2}-1"),
        (r"\sqrt{12}", r"2\sqrt{3}"),
        (r"\fbox{5}", "5"),
        ("1,999", "1999"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\frac{\sqrt{3}x}{2}", r"3x/(2\sqrt{3})"),
        ("ln(4)", "2ln(2)"),
        ("n!", "n*(n-1)!"),
        (["7", "8"], "8"),
        (5, "5"),
        (5.0, "5"),
    ],
)
def test_right(truth, answer):
    assert grade(truth, answer) == RIGHT


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "3%"),
        ("1/3", "0.3333333333333333"),
        ("5", "abc=5"),
        ("1/2", "2/4"),
        ("2", "4/2"),
        ("2", "1+1"),
        ("10", "10^1"),
        ("1,2", "2,1"),
        ("1,2", "(1,2)"),
        (r"(0,\infty)", r"(0,+\infty)"),
        ("-31/4", "-7 3/4"),
        ("x**10", "x^10"),
        ("x+y+z", "z+y+x"),
        ("5", "5!"),
        ("5", "5,"),
        (r"\frac12", "1/2."),
        (r"8.7\times 10^{8}", "8.7e8"),
        (r"\pm 2", "2,-2"),
        ("5", "The answer is 5"),
        ("5", "**5**"),
        ("5000000", "5 million"),
        ("0.5", r"50\%"),
        ("5", "five"),
        ("", "5"),
        ("5 \\sqrt{2}", "5(2)^{0.5}"),
        ("0.3", "0.1+0.2"),
        ("-1/6", "1/3-0.5"),  # in binary floating point
        ("pi", "3.141592653589793"),
        ("sqrt(x**2)", "x"),
        ("1/0", "2/0"),
        ("n!", "n(n-1)!"),  # an applied symbol with a factorial behind it
        ([], "5"),
        (True, "1"),
        ("\\boxed{5", "5"),
    ],
)
def test_wrong(truth, answer):
    assert grade(truth, answer) == WRONG


@pytest.mark.parametrize(
    "response",
    [
        "5",
        "<answer>5</answer>",
        "</think><answer>5</answer>",
        "</think>\n<answer>5</answer>",
        "</think>  <answer>5</answer>",
        "</think>\u00a0<answer>5</answer>",
        "</think> <answer>5",
        "</THINK> <ANSWER>5</ANSWER>",
        "",
    ],
)
def test_unformatted_r1_zero(response):
    assert r1_zero_reward_fn(response, "5") == UNFORMATTED


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        ("</answer></think> <answer>5", RIGHT),  # order is not looked at
        ("</think> <answer>7</answer> <answer>5</answer>", RIGHT),  # the last one counts
        ("</think> <answer>5</answer> bye", WRONG),  # what follows belongs to the answer
        (r"</think> <answer>so \boxed{4} and \boxed{5}</answer>", RIGHT),
        (r"\boxed{5} </think> <answer>4</answer>", WRONG),  # boxes outside do not matter
        (r"</think> <answer>\boxed {5}</answer>", WRONG),
        (r"</think> <answer>\boxed{5</answer>", WRONG),
        (r"</think> <answer>\boxed{\boxed{5}}</answer>", RIGHT),
    ],
)
def test_extraction_r1_zero(response, rewards):
    assert r1_zero_reward_fn(response, "5") == rewards


@pytest.mark.parametrize(
    ("response", "truth", "rewards"),
    [
        (r"so \boxed{5}", "5", RIGHT),
        (r"so \boxed{4}, \boxed{5}", "5", RIGHT),
        (r"so \boxed{5}, \boxed{", "5", UNFORMATTED),  # no fallback to an earlier box
        (r"so \boxed 5", "5", UNFORMATTED),
        (r"so \fbox{5}", "5", UNFORMATTED),
        ("5", "5", UNFORMATTED),
        (r"\boxed{}", "", RIGHT),
        (r"\boxed{\{1\}}", r"\{1\}", RIGHT),
        (r"\boxed{5}", r"the answer is \boxed{5}", RIGHT),
    ],
)
def test_extraction_question_only(response, truth, rewards):
    assert question_only_reward_fn(response, truth) == rewards


@pytest.mark.parametrize("truth", [None, {}, ("5",), b"5", [5], ["5", None]])
def test_other_types_of_ground_truth_are_an_error_that_says_what_is_allowed(truth):
    with pytest.raises(TypeError, match=r"allowed are str, int, float|strings only"):
        grade(truth, "5")


@pytest.mark.parametrize(
    ("response", "truth", "rule"),
    [
        ("5", "5", "no_think_answer_tags"),
        ("</think> <answer>5", "5", "no_closing_answer_tag"),
        (r"</think> <answer>\boxed{5</answer>", "5", "broken_box"),
        ("</think> <answer>5</answer>", "5", "identical"),
        ("</think> <answer>5 </answer>", "5", "string_equal"),
        ("</think> <answer>$5$</answer>", "5", "symbolic_text_equal"),
        ("</think> <answer>4/2</answer>", "2", "integer_required"),
        ("</think> <answer>2</answer>", "4/3", "integer_given_for_expression"),
        ("</think> <answer>2/4</answer>", "1/2", "fraction_not_identical"),
        ("</think> <answer>(1,2,3)</answer>", "(1,2)", "number_of_elements_differs"),
        ("</think> <answer>(1,2)</answer>", "(1,2]", "brackets_differ"),
        ("</think> <answer>x+y+z</answer>", "z+y+x", "more_than_two_letters"),
        ("</think> <answer>x+1=y</answer>", "y", "not_a_formula"),
        ("</think> <answer>2x</answer>", "x", "numerically_different"),
        ("</think> <answer>2x+x</answer>", "3x", "exactly_equal"),
        ("</think> <answer>9**9**9**9</answer>", "x", "bound:power_exponent"),
        ("</think> <answer>5</answer>", [], "no_ground_truth"),
    ],
)
def test_explain_names_the_rule(response, truth, rule):
    explanation = explain(response, truth)
    assert explanation.rule == rule
    assert explanation.detail
    rewards = r1_zero_reward_fn(response, truth)
    assert rewards["answer_reward"] == explanation.answer_reward
    assert rewards["format_reward"] == explanation.format_reward


def test_explain_rejects_an_unknown_style():
    with pytest.raises(ValueError, match="'r1_zero', 'question_only'"):
        explain("5", "5", style="boxed")
