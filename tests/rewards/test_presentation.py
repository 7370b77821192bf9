"""What an answer is dressed in does not decide whether it is right."""

import json
from pathlib import Path

import pytest

from trl_r1zero.rewards.math_reward import answers_agree
from trl_r1zero.rewards.presentation import undress

WRAPPERS = [
    '%s', r"\[%s\]", r"\(%s\)", '$%s$', '$$%s$$', '$$\n%s\n$$', r"\displaystyle %s",
    r"{\displaystyle %s}", r"%s\,", '%s;', '%s.', '%s,', r"\boldsymbol{%s}", r"\bm{%s}",
    r"\mathbf{%s}", r"\Large %s", r"{\Large %s}", r"\huge{%s}", r"\textcolor{red}{%s}",
    r"\color{blue}{%s}", r"{\color{blue} %s}", r"\color{blue} %s", r"\colorbox{yellow}{$%s$}",
    r"\fcolorbox{red}{white}{$%s$}", r"\fbox{%s}", r"\boxed{%s}", r"\boxed{\boxed{%s}}",
    r"\text{%s}", r"\textbf{%s}", r"\textit{%s}", r"\emph{%s}", r"\underline{%s}",
    r"\underline{\underline{%s}}", r"\mathrm{%s}", r"\mbox{$%s$}", r"\bf %s", r"{\bf %s}",
    r"\quad %s \quad", r"\ %s\ ", '~%s~', r"\left. %s \right.", r"\phantom{x}%s",
    r"\hspace{1cm} %s", r"\ensuremath{%s}", '**%s**', '*%s*', '__%s__', '_%s_', '***%s***', '`%s`',
    '```\n%s\n```', '```latex\n%s\n```', '**$%s$**', '$**%s**$', '## %s', '### Answer: %s', '> %s',
    '• %s', '"%s"', '“%s”', 'Answer: %s', 'Answer: $%s$', 'answer is %s', 'The answer is %s.',
    'The answer is $%s$.', 'The answer is: %s', 'Final Answer: %s', '**Answer:** %s',
    '**Answer: %s**', '**Final Answer**\n\n%s', '**Final Answer:**\n\n\\[\n%s\n\\]',
    r"Therefore, the final answer is $\boxed{%s}$.", 'Thus, the answer is **%s**.',
    r"So the answer is \(%s\).", '= %s', '$= %s$', 'ans = %s', 'Result: %s', 'Solution: %s',
    'we get %s', 'Hence %s', r"\therefore %s", r"\implies %s", r"\Rightarrow %s",
    r"\begin{align*} %s \end{align*}", r"\begin{equation}%s\end{equation}",
    r"\begin{aligned} &%s \end{aligned}", r"\[\begin{aligned} &%s \\ \end{aligned}\]",
    r"%s \tag{1}", r"%s \quad \blacksquare", r"%s \checkmark", '%s ✓', '%s ✅', '<b>%s</b>',
    '<strong>%s</strong>', '<span style="color:red">%s</span>', '&nbsp;%s&nbsp;', '\u200b%s\u200b',
    '\xa0%s\xa0', '\ufeff%s', r"\text{Answer: }%s", r"\text{The answer is } %s",
    r"\mathbf{Answer:}\ %s", '%s is the answer.', '$%s$ is the final answer.', '%s\n',
    '\n\n%s\n\n', '%s <|im_end|>', '%s</s>', r"\mathord{%s}", r"\smash{%s}", r"\scriptstyle %s",
    r"\rm %s", r"\large\mathbf{%s}", r"\boldsymbol{\color{red}{%s}}", r"\boxed{\textbf{%s}}",
    r"$\boxed{%s}$", r"\(\boxed{%s}\)",
    r"The final answer is: $\boxed{%s}$. I hope it is correct.", 'My answer: %s',
    'The correct answer is %s', 'The result is %s', 'The value is %s', 'It is %s', 'Answer - %s',
    'Answer = %s', 'A: %s', '%s $', '$%s', r"\framebox{%s}", r"%s\\", r"%s \,.", r"%s\;",
    '<answer>%s</answer>', '<p>%s</p>', 'The answer to the problem is %s.',
    'The answer to this question is therefore $%s$.', 'Final answer:\n%s', '%s (final answer)',
    'Therefore: %s', 'Answer:%s', 'ANSWER: %s', r"\textsf{%s}", r"\hbox{%s}", r"\operatorname{%s}",
    r"\pmb{%s}", r"\displaystyle{%s}", '{%s}', '{{%s}}', r"\textnormal{%s}", '~~%s~~', '<u>%s</u>',
    '<code>%s</code>', 'Final: %s', "'%s'",
]  # fmt: skip
# Of each kind that MATH-500 has, where its own answers are not at hand.
GOLDS = [
    r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\frac{14}{3}", r"\text{Evelyn}", r"90^\circ",
    "x=5", "1,-2", "52_8", r"11\sqrt2", r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
    r"\$32,\!348", "-7", r"\text{(C)}", r"864 \mbox{ inches}^2", r"(2,12) \cup (12,102)",
    r"\{1\pm\sqrt{5},-2\}",
    ".35625", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"137 \frac{1}{2}", "y = 2x + 3",
]  # fmt: skip
_MATH500 = Path(__file__).parents[3] / "shared" / "data" / "math500_test.jsonl"


def wrong_where_it_is_dressed(wrapper: str, golds: list[str]) -> tuple[list[str], list[str]]:
    """Golds that are not right in a wrapper, and those that are right for their neighbour only
    there."""
    dressed = [wrapper.replace("%s", gold) for gold in golds]
    lost = [
        gold for gold, text in zip(golds, dressed, strict=True) if not answers_agree(text, gold)
    ]
    neighbours = golds[1:] + golds[:1]
    new = [
        gold
        for gold, text, other in zip(golds, dressed, neighbours, strict=True)
        if answers_agree(text, other) and not answers_agree(gold, other)
    ]
    return lost, new


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_changes_no_verdict(wrapper):
    assert wrong_where_it_is_dressed(wrapper, GOLDS) == ([], [])


@pytest.mark.parametrize("wrapper", WRAPPERS[::3])
def test_wrappers_around_the_answers_of_math500(wrapper):
    if not _MATH500.exists():
        pytest.skip("MATH-500 is not here: it is no part of the package")
    golds = [json.loads(line)["answer"] for line in _MATH500.open()]
    lost, new = wrong_where_it_is_dressed(wrapper, golds)
    assert len(lost) <= 1, lost
    assert new == []


@pytest.mark.parametrize(
    "text",
    ["2**3", "x*y*z", "a_1", "-5", "- 5", "5!", "0.333...", r"0.\overline{3}", "f(x)", "(1, 2)",
     "1, 2", "x_1 + x_2", r"\frac{1}{2}", "a' + b'", "3:30", "[1,2)", "", ".5", r"\{1\}"],
)  # fmt: skip
def test_mathematics_is_no_presentation(text):
    assert undress(text) == text
