"""The two reward functions of the leaderboard, `r1_zero_reward_fn` and `question_only_reward_fn`.

Both give the verdicts of the course's reference grader (from Dr. GRPO, Liu et al. 2025,
arXiv:2503.20783). They differ in how the answer is taken out of the response; the grading is the
same:

    right  iff  M(answer, truth)  or  S(answer, truth)  or  (not fast and L(answer, truth))

with M a comparison of normalised strings (`mathd`), S a symbolic comparison (`symbolic`) and L
math-verify (`latex_stage`). Where we depart from the reference: text is never executed; a call
returns in bounded time and memory (`bounds`); a ground truth of an unknown type is a TypeError
before anything is graded.
"""

from dataclasses import dataclass

from .bounds import LIMITS, count_bound, one_reward
from .extraction import BOX, Extraction, extract_boxed, extract_question_only, extract_r1_zero
from .mathd import mathd_equal
from .symbolic import Verdict, symbolic_verdict

GroundTruth = str | int | float | list[str]

EXTRACTORS = {"r1_zero": extract_r1_zero, "question_only": extract_question_only}


def r1_zero_reward_fn(
    response: str, ground_truth: GroundTruth, fast: bool = True
) -> dict[str, float]:
    """Reward of a response in the r1_zero style.

    Args:
        response: what the model wrote after the prompt's `<think>`. Well-formed if `</think>
            <answer>` (one space) and `</answer>` occur in it; graded is what follows the last
            `<answer>`, or the last `\\boxed{...}` in that.
        ground_truth: the expected answer; a list of strings if any of several is right.
        fast: with False, math-verify is asked about what the other two stages call wrong (slow; in
            a worker process).

    Returns:
        `format_reward`, `answer_reward`, `reward`: (0, 0, 0) unformatted, (1, 0, 0) formatted and
        wrong, (1, 1, 1) right.

    Raises:
        TypeError: the ground truth is no str, int, float or list of str.
    """
    return explain_strict(response, ground_truth, "r1_zero", fast).parts


def question_only_reward_fn(
    response: str, ground_truth: GroundTruth, fast: bool = True
) -> dict[str, float]:
    """Reward of a response in the question_only style: well-formed if it ends in a complete
    `\\boxed{...}`.

    Arguments, result and errors as in `r1_zero_reward_fn`; tags are not looked at.
    """
    return explain_strict(response, ground_truth, "question_only", fast).parts


def ground_truth_texts(ground_truth: GroundTruth) -> list[str]:
    """The accepted answers as texts; TypeError for anything that is not a str, int, float or list
    of str."""
    if isinstance(ground_truth, str | int | float):
        return [str(ground_truth)]
    if isinstance(ground_truth, list):
        for item in ground_truth:
            if not isinstance(item, str):
                raise TypeError(
                    f"ground_truth is a list with an element of type {type(item).__name__} "
                    f"({item!r:.80}); a list must hold strings only: convert them with str()"
                )
        return ground_truth
    raise TypeError(
        f"ground_truth has type {type(ground_truth).__name__} ({ground_truth!r:.80}); "
        "allowed are str, int, float and list of str"
    )


def _grade(extraction: Extraction, ground_truth: GroundTruth, fast: bool) -> tuple[Verdict, str]:
    """Verdict for the accepted answer that matches, else for the first one, and that answer."""
    texts = ground_truth_texts(ground_truth)
    if extraction.answer is None:
        return Verdict(False, extraction.reason), texts[0] if texts else ""
    if not texts:
        return Verdict(False, "no_ground_truth"), ""
    verdicts = []
    with one_reward():
        for text in texts:
            verdicts.append(strict_verdict(extraction.answer, text, fast))
            if verdicts[-1].right:
                return verdicts[-1], text
    return verdicts[0], texts[0]


def strict_verdict(answer: str, text: str, fast: bool = True) -> Verdict:
    """Whether an answer equals one accepted answer, and the rule that decided."""
    if BOX in text:
        boxed = extract_boxed(text)
        if boxed is None:
            return Verdict(False, "ground_truth_box_broken")
        text = boxed
    verdict = _fast_verdict(answer, text)
    if verdict.right or fast:
        return verdict
    # Only here, so that the default path starts no process and imports no math-verify.
    from .latex_stage import latex_verdict

    return latex_verdict(answer, text, otherwise=verdict)


def _fast_verdict(answer: str, text: str) -> Verdict:
    if answer == text:
        return Verdict(True, "identical")
    if max(len(answer), len(text)) > LIMITS["answer_chars"]:
        count_bound("answer_chars")
        return Verdict(False, "bound:answer_chars")
    if mathd_equal(answer, text):
        return Verdict(True, "string_equal")
    return symbolic_verdict(answer, text)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a response got its reward.

    `rule` is a short name that reports group by, `detail` a sentence; `answer` is the text that
    was graded (None if there was none) and `ground_truth` the accepted answer that it was compared
    with (the first, unless another one matched). `lenient` is what `math_reward_fn` says of an
    answer that is wrong here, where `explain` was asked.
    """

    format_reward: float
    answer_reward: float
    rule: str
    detail: str
    answer: str | None
    ground_truth: str
    lenient: "Explanation | None" = None

    @property
    def parts(self) -> dict[str, float]:
        """What the reward function returns."""
        return {
            "format_reward": self.format_reward,
            "answer_reward": self.answer_reward,
            "reward": self.answer_reward,
        }


RULES: dict[str, str] = {
    "no_think_answer_tags": "there is no `</think> <answer>` with one space between the tags",
    "no_closing_answer_tag": "the response has no `</answer>`",
    "no_box": "the response has no \\boxed",
    "broken_box": "the last \\boxed has no brace directly behind it, or it is never closed",
    "no_ground_truth": "the list of accepted answers is empty",
    "ground_truth_box_broken": "the ground truth has a \\boxed that is not complete",
    "identical": "answer and ground truth are the same text",
    "string_equal": "the same text after string normalisation",
    "symbolic_text_equal": "the same text after LaTeX is converted to plain text",
    "same_fraction": "both are the same fraction of integers",
    "exactly_equal": "the difference of the two formulas is exactly zero",
    "equal_by_algebra": "computer algebra simplifies the difference of the two formulas to zero",
    "latex_equal": "math-verify calls the two equal (fast=False)",
    "empty_answer": "the answer is empty",
    "brackets_differ": "the brackets around the tuples differ",
    "number_of_elements_differs": "the tuples have different numbers of elements",
    "fraction_not_identical": "two fractions of integers must be written alike",
    "integer_required": "the ground truth is an integer, the answer is not written as one",
    "integer_given_for_expression": "the answer is an integer, the ground truth is not",
    "more_than_two_letters": "the texts differ and hold more than two different letters",
    "exponent_too_long": "the texts differ and an exponent is bracketed or has several digits",
    "not_a_formula": "the texts differ and are no formulas (an equation, a set, words ...)",
    "numerically_different": "the two formulas differ numerically",
    "exactly_different": "the two formulas are not equal",
    "not_equal_by_algebra": "computer algebra does not bring their difference to zero",
    "worker_failed": "the worker process that asked math-verify was stopped or died",
}


def explain_strict(
    response: str, ground_truth: GroundTruth, style: str, fast: bool = True
) -> Explanation:
    """As `explain`, without asking the lenient grader."""
    if style not in EXTRACTORS:
        raise ValueError(f"style is {style!r}; allowed are {', '.join(map(repr, EXTRACTORS))}")
    extraction = EXTRACTORS[style](response)
    verdict, text = _grade(extraction, ground_truth, fast)
    formatted, right, rule = float(extraction.formatted), float(verdict.right), verdict.rule
    detail = RULES.get(rule) or f"a limit of the grader was reached: {rule.partition(':')[2]}"
    return Explanation(formatted, right, rule, detail, extraction.answer, text)
