"""The stages of the grader one by one, each against its definition."""

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text

from trl_r1zero.rewards import bound_counts, r1_zero_reward_fn, reset_bound_counts
from trl_r1zero.rewards.bounds import BoundHit
from trl_r1zero.rewards.difference import formula_is_zero
from trl_r1zero.rewards.extraction import extract_boxed
from trl_r1zero.rewards.formula import FormulaError, compile_tree, parse_formula
from trl_r1zero.rewards.latex_text import UnrenderableError, latex_to_text
from trl_r1zero.rewards.mathd import BASE_UNITS, UNITS, _drop_units, normalize_mathd
from trl_r1zero.rewards.modular import is_zero_modulo_primes
from trl_r1zero.rewards.numeric import is_refuted
from trl_r1zero.rewards.symbolic import normalize_symbolic


def test_the_unit_list_is_the_references():
    digest = hashlib.sha256("\n".join(BASE_UNITS).encode()).hexdigest()
    assert digest == "4eac12fbffc0d9df8e15085d0fcdc08c5f09220b0e60d3300a719fbd01d1a4f1"
    assert len(UNITS) == 2 * len(BASE_UNITS) == 264


UNIT_TEXTS = st.lists(
    st.sampled_from([*UNITS, "x", "12", " ", ".", "(", "^", "_", "\\", "+"]), max_size=8
).map("".join)


@settings(max_examples=200, deadline=None)
@given(UNIT_TEXTS)
def test_units_are_deleted_as_by_one_regular_expression_each(text):
    expected = text
    for _ in range(2):
        for unit in UNITS:
            expected = re.sub(rf"(^|\W){unit}($|\W)", r"\1\2", expected) or expected
    assert _drop_units(text) == expected


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"\text{12}", "12"),
        (r"12\text{ cm}", "12"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"\frac{1}{2}"),
        ("-0/2", "-0/2"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt[3]{5}", r"\sqrt{[}3]{5}"),
        ("x=5", "5"),
        ("abc=5", "abc=5"),
        (r"90^\circ", "90"),
        (r"\pm 2", "\\2"),
        (r"\begin{array}{rr}1\end{array}", r"\begin{pmatrix}1\end{pmatrix}"),
        (r"  \sqrt", r"\sqrt"),  # no argument: the text stays as it was, stripped
    ],
)
def test_string_normalisation(text, normal):
    assert normalize_mathd(text) == normal


LATEX_WORDS = (
    r"\frac \sqrt \pi \left( \right) \text \mathbf \bar \overline \cfrac \mbox \, \; \{ \} \\ "
    r"\foo { } [ ] x 1 2 ^ _ -- --- `` '' ~ & \begin{pmatrix} \end{pmatrix} \( \)"
)
LATEX_PIECES = [*LATEX_WORDS.split(), " ", "\n", "\n\n", "\\"]
LATEX = st.lists(st.sampled_from(LATEX_PIECES), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(LATEX)
def test_latex_becomes_the_text_that_pylatexenc_makes_of_it(text):
    try:
        expected = LatexNodes2Text().latex_to_text(text)
    except Exception:
        with pytest.raises(UnrenderableError):
            latex_to_text(text)
    else:
        assert latex_to_text(text) == expected


def test_macros_that_are_read_again_and_again_hit_a_limit():
    with pytest.raises(BoundHit, match="latex_steps"):
        latex_to_text("\\frac{" * 40)
    with pytest.raises(BoundHit, match="latex_depth"):
        latex_to_text("\\sqrt{" * 400)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"\frac{1+x}{2}", "1+x/2"),
        (r"10\%", "10"),
        (r"$\sqrt[3]{5}$", "sqrt(5)"),
        ("7 3/4", "7+3/4"),
        ("1,234", "1234"),
        ("5 million", "5*10^6"),
        ("Monday", "mon"),
        ("1_000", "1000"),
        ("3.0000001", "3"),
        (r"(-\infty,2]\cup\{3\}", "(-inf,2]u3"),
    ],
)
def test_symbolic_normalisation(text, normal):
    assert normalize_symbolic(text) == normal


x, y = ("symbol", "x"), ("symbol", "y")
one, two, three = ("int", 1), ("int", 2), ("int", 3)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("x+1", ("add", x, one)),
        ("2x", ("mul", two, x)),
        ("x2", ("mul", x, two)),
        ("xy", ("mul", x, y)),
        ("1/2x", ("mul", ("div", one, two), x)),
        ("-x**2", ("neg", ("pow", x, two))),
        ("2**-x", ("pow", two, ("neg", x))),
        ("2**3**2", ("pow", two, ("pow", three, two))),
        ("2**xy", ("mul", ("pow", two, x), y)),
        ("x(y+1)", ("mul", x, ("add", y, one))),
        ("sqrt(2)x", ("mul", ("call", "sqrt", two), x)),
        ("x!", ("call", "factorial", x)),
        ("2x!", ("mul", two, ("call", "factorial", x))),
        ("xy!", ("call", "factorial", ("mul", x, y))),
        ("0.2[3]", ("div", ("int", 7), ("int", 30))),
        ("01", ("mul", ("int", 0), one)),
        ("0x10", ("int", 16)),
        ("x_1", ("symbol", "x_1")),
        ("mu", ("symbol", "mu")),
        ("(x\n+1)", ("add", x, one)),
    ],
)
def test_formulas(text, tree):
    assert parse_formula(text) == tree


@pytest.mark.parametrize(
    "text",
    ["", "x+", "*x", "(x", "x)", "x=1", "x<1", "1,2", "[1]", "'x'", "x.y", "sqrt", "sqrt+1",
     "5!!!", "x\u00b2", "x01", "(x)\n+(1)", "(x\ny)", "ln", "if", "lambda:x", "()", "x\ny",
     "x(2)!", "csc(2)", "2//1", "1<<3", "0.[0]"],
)  # fmt: skip
def test_what_is_no_formula(text):
    with pytest.raises(FormulaError):
        parse_formula(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1+" * 1500 + "1", "formula_chars"),
        ("-" * 100 + "1", "formula_depth"),
        ("(" * 100 + "1" + ")" * 100, "formula_depth"),
        ("2**" * 100 + "2", "formula_depth"),
        ("1" * 500, "literal_digits"),
        ("1e99999", "power_exponent"),
    ],
)
def test_limits_of_formulas(text, limit):
    with pytest.raises(BoundHit, match=limit):
        parse_formula(text)


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("(x+1)**2-x**2-2x-1", True),
        ("(x+1)**2-x**2-2x", False),
        ("(x**2-1)/(x-1)-x-1", True),
        ("1/(sqrt(2)-1)-sqrt(2)-1", True),
        ("sqrt(12)-2sqrt(3)", True),
        ("sqrt(2)sqrt(3)-sqrt(6)", True),
        ("sqrt(2)+sqrt(3)-sqrt(5)", False),
        ("sqrt(3/4)-sqrt(3)/2", True),
        ("ln(12)-2ln(2)-ln(3)", True),
        ("20!/18!-380", True),
        ("x**999-x*x**998", True),
        ("2pi-pi-pi", True),
        ("0.5-1/2", True),
        ("0.5x-x/2", True),
        # Not for this method: nested roots, inexact decimals, symbols under a root, division by 0.
        ("sqrt(3+2sqrt(2))-1-sqrt(2)", None),
        ("1/3-0.5+1/6", None),
        ("2**0.5-sqrt(2)", None),
        ("sqrt(x)-sqrt(x)", None),
        ("1/(x-x)", None),
    ],
)
def test_exact_zero(text, zero):
    assert is_zero_modulo_primes(compile_tree(parse_formula(text))) is zero


@pytest.mark.parametrize(
    ("text", "refuted"),
    [
        ("x-x", False),
        ("x-2", True),
        ("sqrt(x**2)-x", True),  # at the negative points
        ("sqrt(x)*sqrt(y)-sqrt(x*y)", True),
        ("sqrt(2)**2-2", False),  # within rounding
        ("1/3-0.3333333333", True),
        ("10**20+1-10**20", False),  # lost in rounding, so nothing is claimed
        ("sqrt(-1)-1", True),
        ("x**99999", False),
        ("1/0", False),
    ],
)
def test_numeric_refutation(text, refuted):
    assert is_refuted(compile_tree(parse_formula(text))) is refuted


def test_a_sum_of_many_terms_is_no_problem():
    assert formula_is_zero(f"({'+'.join(['x'] * 400)})-(400x)") == (True, "exactly_equal")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} and", r"\frac{1}{2}"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{a\}b}", "a\\"),  # a backslash does not protect a brace
        (r"\boxed{1", None),
        (r"\boxed 1", None),
        (r"\boxed}1{", None),
        ("1", None),
    ],
)
def test_boxes(text, box):
    assert extract_boxed(text) == box


def test_limits_that_decide_are_counted():
    reset_bound_counts()
    r1_zero_reward_fn("</think> <answer>9**9**9</answer>", "x")
    r1_zero_reward_fn("</think> <answer>9**9**9</answer>", "x")
    r1_zero_reward_fn(f"</think> <answer>{'1' * 30_000}</answer>", "x")
    assert bound_counts() == {"power_exponent": 2, "answer_chars": 1}
    reset_bound_counts()
    assert bound_counts() == {}
