"""Kinds of answers that are equal, and their neighbours that are not; a ground truth and an answer
each."""

import pytest

from trl_r1zero.rewards import explain, lenient_opinion
from trl_r1zero.rewards.math_reward import CONFUSIONS, answers_agree, explain_math
from trl_r1zero.rewards.plain_kinds import plainly_unequal
from trl_r1zero.rewards.reward_functions import strict_verdict

EQUAL = [
    (r"(-\infty,3]", r"x \le 3"), (r"(-\infty,3]", '3 >= x'), (r"x \le 3", r"(-\infty,3]"),
    ('x=3', '3=x'), ('3', '3=x'), ('y=2x+1', '2x-y+1=0'), ('2x-y+1=0', 'y=2x+1'),
    ('y=1/x', 'xy=1'), ('1/3', r"0.\overline{3}"), ('1/6', r"0.1\overline{6}"),
    ('1/3', '0.333...'), ('1/7', r"0.\overline{142857}"), ('10', r"\binom{5}{2}"),
    ('10', r"{5 \choose 2}"), ('120', '5!'), ('15', '5!!'),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}"), (r"\{1,2\}", r"\{1,1,2\}"), (r"50\%", '0.5'),
    ('50%', '1/2'), ('0.5', r"50\%"), (r"50\%", '50'), ('1/2', '½'), ('x^2', 'x²'),
    (r"\mathbb{R}", "\u211d"), (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"\mathbb{R}", 'all real numbers'), (r"(-\infty,2)\cup(2,\infty)", r"x \ne 2"),
    (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
    (r"(-\infty,1)\cup(2,\infty)", 'x<1 or x>2'), ('(1,2]', r"1<x\le 2"),
    ('(1,2]', 'x>1 and x<=2'), ('(-3,3)', '|x|<3'), (r"[3,\infty)", r"\{x \mid x \ge 3\}"),
    (r"\emptyset", r"\varnothing"), (r"\emptyset", 'no solution'), (r"\frac{31}{4}", '7 3/4'),
    (r"\frac{31}{4}", r"7\frac34"), ('7.5', '7½'), ('3e8', r"3\times10^8"),
    ('300000000', r"3 \times 10^8"), ('3e8', '3 x 10^8'), (r"[0,\infty)", r"[0,+\infty)"),
    (r"(-\infty,2)", r"]-\infty,2["), (r"\begin{pmatrix}1\\2\end{pmatrix}", '(1,2)'),
    ('(1,2)', r"\langle 1,2\rangle"), ('(1,2)', r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ('1,2,3', '1, 2, and 3'), ('1,2', '1 or 2'), (r"30^\circ", '30'), (r"30^\circ", '30 degrees'),
    ('30', '30°'), (r"30^\circ", r"\frac{\pi}{6}"), ('3:30', '3:30 pm'), ('3:30 pm', '15:30'),
    (r"\$5", '5 dollars'), (r"\$5", '$5.00'), (r"\$0.50", '50 cents'), ('5 cm', '50 mm'),
    ('1101_2', '1101_{2}'), ('1101_2', '1101'), ('1101_2', r"1101_{\text{two}}"),
    ('2516_8', '2516'), ('1101_2', '1101 base 2'), (r"\ln 2", r"\log 2"), ('2', r"\log 100"),
    ('3', r"\log_2 8"), ('3', r"\log_{2}{8}"), (r"\lfloor 2.5\rfloor", '2'),
    ('3', r"\lceil 2.5\rceil"), ('1/2', '0.5'), ('5', 'five'), (r"\text{(C)}", 'C'),
    (r"\text{(C)}", '(C)'), (r"\text{even}", 'Even.'), (r"\text{ellipse}", 'an ellipse'),
    (r"\arctan x", r"\tan^{-1} x"), ('-2', r"\sqrt[3]{-8}"), ('5', r"\boxed {5}"),
    ('5', r"\boxed 5"), ('12', r"The number of ways is $\boxed{12}$."), ('x=5', '5'),
    ('5', 'x = 5'), ('x^2+y^2=1', 'x^2+y^2-1=0'),
    ('9x^2+4y^2=36', r"\frac{x^2}{4}+\frac{y^2}{9}=1"), (r"y^{\prime}+ry-rx(t)=0", "y'+ry=rx(t)"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}"), ('1, 2', r"\{2, 1\}"),
    ('62.5%', '0.625'),
    (r"\frac{1}{10}\begin{pmatrix}1&2\\3&4\end{pmatrix}",
     r"\begin{pmatrix}.1&.2\\.3&.4\end{pmatrix}"),
    ('3:4', '3/4'), ('x<1', r"(-\infty, 1)"), (r"x \in [-2,7]", r"-2\le x\le 7"),
    (r"2\sqrt{13}", '2√13'), ('90', r"90^{\circ}"), ('6 - 5i', '-5i+6'), (r"\frac{\pi}{2}", 'π/2'),
    ('1000000', '1 million'), ('1,000', '1000'), ('10^{-3}', '0.001'),
    ('4.5e33', r"4.5 \times 10^{33}"), ('y=2x', '2x=y'), ('y = x', 'x = y'),
    ('(1,2),(3,4)', '(3,4), (1,2)'), (r"\frac{\sqrt3}{3}", r"\frac1{\sqrt3}"),
    (r"\text{Evelyn}", 'Evelyn'), ('p - q', '-q+p'), ('undefined', 'Undefined'), ('3', 'Three'),
]  # fmt: skip
DIFFERENT = [
    (r"(-\infty,3]", 'x < 3'), (r"(-\infty,3]", r"x \ge 3"), ('x=3', '2x=6'), ('x=3', 'x=-3'),
    ('y=2x+1', 'y=2x-1'), ('1/3', r"0.\overline{4}"), ('1/3', '0.33'), ('10', r"\binom{5}{3}+1"),
    (r"\{1,2\}", r"\{1,2,3\}"), (r"50\%", r"0.5\%"), (r"50\%", '5'), ('(1,2]', '1<x< 2'),
    (r"\mathbb{R}", r"\mathbb{Z}"), (r"\mathbb{R}", r"[0,\infty)"), ('1101_2', '1101_3'),
    ('1101_2', '13'), ('5 cm', '5 m'), ('3:30 pm', '3:30 am'), ('3:30', '4:30'),
    (r"\$5", '5 cents'), (r"\frac{1}{23}", r"\frac{12}{3}"), ('(a+b)c', 'a+bc'),
    (r"\text{even}", 'odd'), (r"\text{(C)}", '(B)'),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", '(2,1)'), (r"30^\circ", r"\frac{\pi}{3}"),
    (r"\ln 2", r"\log_2 2"), ('1,2', '1,2,3'), ('x<5', 'x>5'), ('x^2+y^2=1', 'x^2+y^2=2'),
    ('5', 'x=6'), ('x=5', '-x=5'), ('5!', '5'), ('10', '100'), ('-5', '5'), ('(1,2)', '(2,1)'),
    ('x=5', 'y^2=25'), ('east', 'west'), ('x', 'y'), ('0.5', '50'), ('3', r"30\%"), ('2', '1+2'),
]  # fmt: skip

# Kinds that a reader of the tables above may miss: the same as text, a pair a line.
MORE_EQUAL = r"""
x \leq -1 \text{ or } x \geq 5 | (-\infty,-1]\cup[5,\infty)
x\ne 0, 1 | (-\infty,0)\cup(0,1)\cup(1,\infty)
\mathbb{R}\setminus\{0\} | all real numbers except 0
\mathbb{R} - \{1\} | x \ne 1
(0,\infty) | \mathbb{R}^+
y = 3x - 5 | y + 5 = 3x
2x+3y=6 | \frac{x}{3}+\frac{y}{2}=1
4/11 | \overline{0.36}
1/3 | 0.\widehat{3}
10 | C(5,2)
10 | C_5^2
20 | P(5,2)
\frac{n(n-1)}{2} | \binom{n}{2}
(n+1)! | (n+1) n!
\mathbb{N} | natural numbers
3\mathbf{i}+4\mathbf{j} | 3\hat{i}+4\hat{\jmath}
\vec{AB} | \overrightarrow{AB}
\phi | \varphi
777_8 | 777 (base 8)
1010_2 | (1010)_2
10 | 10 m/s
33 | 33 km/h
72 km/h | 20 m/s
\$3.75 | 3 dollars and 75 cents
63 inches | 5 feet 3 inches
xy=6 | y=\frac{6}{x}
3 | \log_5 125
FF_{16} | FF_{\text{sixteen}}
5 \text{ kcal m}^{-2} | 5
4.5 \times 10^{14} | 4.5 \times 10^{14} Hz
n\pi | n\pi, n\in\mathbb{Z}
\sum_{k=1}^{n} a_k b_k | \sum_{k=1}^n b_k a_k
2\int_0^1 x f(x) dx | \int_0^1 2x f(x)\,dx
20 | twenty
42 | forty-two
a = 3, b = 4 | (3, 4)
x = 3, y = 4 | y = 4, x = 3
7.3e14 | 7.3\,e14
1,234,567 | 1234567
1234567 | 1.234.567
1234.56 | 1.234,56
3.5 | 3,5
1000 | 1, 000
\$32,349 | \$32, 349
100, 200 | 200,100
(1,200) | (1, 200)
(1,000) | 1000
(2,251,252) | (2, 251, 252)
\{1,000, 2,000\} | \{2000, 1000\}
"""
MORE_DIFFERENT = r"""
32349 | 32, 349
32, 349 | 32349
100, 200 | 100200
(1,200) | 1200
\{1,200\} | 1200
3,5 | 3.5
1.234 | 1234
2 | x=2 \text{ or } x=3
60 | 60 \text{ and } 120
12 | 1 2
0.27 | 0.\overline{27}
32 | \binom{3}{2}
12 | \cfrac{1}{2}
3.6e-10 | 3.6e-11
x = 3, y = 4 | x = 4, y = 3
72 km/h | 72 m/s
\$3.75 | 3 dollars and 57 cents
A_2 | A
FF_{16} | FE_{16}
AB = 6 | BC = 7
5 \text{ kcal m}^{-2} | 5 \text{ kcal m}^{-3}
4 Hz | 4 kHz
\sum_{k=1}^{n} k | \sum_{k=1}^{m} k
y = x + 1, z = 2 | y = x + 2, z = 2
200 | There are 1,200 people.
"""


def pairs(lines):
    return [tuple(line.split(" | ")) for line in lines.strip().splitlines()]


@pytest.mark.parametrize(("truth", "answer"), EQUAL + pairs(MORE_EQUAL))
def test_equal(truth, answer):
    assert answers_agree(answer, truth)


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT + pairs(MORE_DIFFERENT))
def test_different(truth, answer):
    assert not answers_agree(answer, truth)


@pytest.mark.parametrize(
    ("truth", "answer", "confusion"),
    [
        (r"\sqrt[3]{5}", r"\sqrt{5}", "roots"),
        (r"\frac{1+x}{2}", r"1+\frac{x}{2}", "grouping"),
        ("a+b", "c+b", "letters"),
        ("9007199254740993", "9007199254740992", "large_integers"),
        ("x=5", "-x=5", "left_side"),
        (r"5\text{ cm}", r"5\text{ m}", "units"),
        ("3", r"\boxed{2} and \boxed{3}", "several_answers"),
        ("32349", "32, 349", "several_answers"),
        ("0.3", r"0.\overline{3}", "notation"),
    ],
)
def test_confusions_of_the_strict_grader_have_a_name(truth, answer, confusion):
    response = answer if "boxed" in answer else f"\\boxed{{{answer}}}"
    assert explain_math(response, truth).rule == confusion


def test_what_the_strict_grader_accepts_is_right_but_for_its_confusions(read_corpus):
    accepted = [pair for pair in read_corpus("verdicts.jsonl.gz") if pair["answer_reward"]]
    rejected: dict[str, set[str]] = {}
    for pair in accepted:
        explanation = explain_math(pair["response"], pair["ground_truth"])
        assert explanation.format_reward
        if not explanation.answer_reward:
            rejected.setdefault(explanation.rule, set()).add(pair["id"])
    assert set(rejected) <= set(CONFUSIONS) | {"several_answers"}
    assert len(accepted) == 6865
    assert sum(map(len, rejected.values())) <= 300  # 227 of roots and groups that were made up


def test_equations_below_one_another_are_all_read():
    assert answers_agree("x=1\ny=2", "x=1, y=2")
    assert not answers_agree("x=3\ny=2", "x=1, y=2")


@pytest.mark.parametrize(
    ("truth", "answer"), pairs("3 | 4\n-1/2 | 0.5\n\\frac{14}{3} | 5\n0 | 0.1")
)
def test_numbers_that_are_plainly_unequal_are_so_for_every_grader(truth, answer):
    assert plainly_unequal(answer, truth)
    assert not strict_verdict(answer, truth).right
    assert not plainly_unequal(answer, answer)


def test_explain_says_what_the_lenient_grader_makes_of_a_wrong_answer():
    wrong = explain(r"</think> <answer>\frac{2}{4}</answer>", "1/2")
    assert wrong.rule == "fraction_not_identical"
    assert (wrong.lenient.answer_reward, wrong.lenient.rule) == (1.0, "same_value")
    assert explain("</think> <answer>1/2</answer>", "1/2").lenient is None
    assert lenient_opinion("no_box", "2/4", "1/2") == "right (same_value)"
    assert lenient_opinion("other_option", "A", "B") is None
