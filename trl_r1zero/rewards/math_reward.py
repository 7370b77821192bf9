"""`math_reward_fn`: mathematically right or wrong, where the reference grader is known to err.

For training and for a strict/lenient comparison in reports, never for the leaderboard's number.
What the strict grader accepts is right here too, except for its `CONFUSIONS`. Beyond that an answer
is read without its presentation (`presentation`), as words, a time, a number with a base or a unit
(`plain_kinds`), or as mathematics (`math_parser`), and compared by value (`math_compare`).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from .bounds import LIMITS, BoundHit, count_bound, one_reward
from .extraction import (
    BOX,
    extract_answer,
    extract_boxed,
    extract_question_only,
    extract_r1_zero,
)
from .formula import FormulaError, compile_tree
from .math_compare import equal_values, symbols_of
from .math_parser import MathValue, parse_math
from .math_tokens import has_other_reading
from .numeric import constant_value
from .plain_kinds import (
    KINDS,
    Quantity,
    comma_readings,
    plainly_unequal,
    quantity,
    same_text,
    unit_powers_differ,
)
from .presentation import undress
from .reward_functions import (
    RULES,
    Explanation,
    GroundTruth,
    explain_strict,
    ground_truth_texts,
    strict_verdict,
)

MATH_RULES: dict[str, str] = {
    "same_text": "the same text without its presentation",
    "same_kind": "the same time of the day, or number in its base",
    "same_quantity": "the same quantity in its unit",
    "same_value": "the same mathematical value",
    "strict": "the strict grader accepts it",
    "different_value": "both are mathematics, and their values differ",
    "no_mathematics": "the texts differ and one of them is not understood as mathematics",
    "no_answer": "there is no answer in the response",
    "roots": "the strict grader accepts it, but the indices of the roots differ",
    "letters": "the strict grader accepts it, but takes letters of the formula for units",
    "grouping": "the strict grader accepts it, but loses the braces that group a formula",
    "left_side": "the strict grader accepts it, but drops the left side of the equation",
    "large_integers": "the strict grader accepts it, but rounds integers above 2^53",
    "several_answers": "the strict grader accepts it, but one is a list and the other is not",
    "notation": "the strict grader accepts it, but loses an overline, a blank or a tiny number",
    "units": "the strict grader accepts it, but the units of measurement differ",
}


def math_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    """Lenient mathematical reward of a response in either style.

    The answer is what follows the last `<answer>`, else the last box, else the text behind the
    last "answer is". Boxes joined by "and", "or" or a comma are one list, or one answer where all
    of them agree. The format reward is 1 for a closed `<answer>` or a complete box. `fast` is
    accepted for a signature like the other rewards' and changes nothing.

    Returns and raises as `r1_zero_reward_fn`, but without a format the answer can still be right:
    `reward` is 1 only if both are.
    """
    return explain_math(response, ground_truth).parts


def explain_math(response: str, ground_truth: GroundTruth) -> Explanation:
    """What `math_reward_fn` graded, and the rule that decided; rules are those of `MATH_RULES`."""
    texts = ground_truth_texts(ground_truth)
    tagged = "<answer>" in response and "</answer>" in response
    answer = response.rsplit("<answer>", 1)[-1].replace("</answer>", "") if tagged else response
    answer = answer[-LIMITS["answer_chars"] :]
    formatted = tagged or extract_boxed(response) is not None
    extraction = extract_r1_zero(response)
    if not extraction.formatted:
        extraction = extract_question_only(response if not tagged else answer)
    verdict, truth = (False, "no_ground_truth"), texts[0] if texts else ""
    with one_reward():
        for number, text in enumerate(texts):
            found = _verdict(answer, extraction.answer, text)
            if found[0]:
                verdict, truth = found, text
                break
            if number == 0 or found[1] in CONFUSIONS:
                verdict, truth = found, text
    right, rule = verdict
    detail = (MATH_RULES | RULES).get(rule) or f"a limit was reached: {rule.partition(':')[2]}"
    # Without a format it can be right, but there is no telling what the answer is.
    graded = extract_answer(response) if formatted else None
    return MathExplanation(float(formatted), float(right), rule, detail, graded, truth)


def explain(
    response: str,
    ground_truth: GroundTruth,
    style: Literal["r1_zero", "question_only"] = "r1_zero",
    fast: bool = True,
) -> Explanation:
    """Which rule decided the reward of `response`, for people who ask why it was 0.

    The rule names are the keys of `RULES`, or `bound:<name>` where a limit of `bounds.LIMITS`
    decided. Of a wrong answer, `lenient` says what the lenient grader makes of it and why.
    """
    strict = explain_strict(response, ground_truth, style, fast)
    if strict.answer_reward:
        return strict
    return replace(strict, lenient=explain_math(response, ground_truth))


def lenient_opinion(rule: str | None, response: str, ground_truth: GroundTruth) -> str | None:
    """What the lenient grader says of an answer that a rule of the strict one calls wrong, such as
    "right (same_value)"; None for rules of other rewards."""
    if rule is None or (rule not in RULES and not rule.startswith("bound:")):
        return None
    explanation = explain_math(response, ground_truth)
    return f"{'right' if explanation.answer_reward else 'wrong'} ({explanation.rule})"


class MathExplanation(Explanation):
    """An explanation whose reward needs the format as well."""

    @property
    def parts(self) -> dict[str, float]:
        return super().parts | {"reward": self.answer_reward * self.format_reward}


def answers_agree(answer: str, ground_truth: str) -> bool:
    """Whether two texts state the same mathematical answer."""
    return _verdict(answer, answer, ground_truth)[0]


def _verdict(answer: str, strict_answer: str | None, truth: str) -> tuple[bool, str]:
    """Whether the answer is right, and the rule that decided."""
    parts, is_list = _parts(answer)
    truths, _ = _parts(truth)
    rule = "no_answer"
    rejected: set[tuple[str, str]] = set()
    for given in parts:
        for expected in truths:
            right, rule = _undressed_verdict(undress(given), undress(expected), rejected)
            if right:
                return True, rule
    if strict_answer is None:
        return False, rule
    # Blanks around an answer decide nothing, but for a quirk of `\\text` at its beginning.
    asked = strict_answer if "\\text" in strict_answer else strict_answer.strip()
    if (asked, truth) not in rejected and strict_verdict(strict_answer, truth).right:
        confusion = "several_answers" if is_list else confusion_of(strict_answer, truths[0])
        return confusion is None, confusion or "strict"
    return False, rule


def _undressed_verdict(
    given: str, truth: str, rejected: set[tuple[str, str]] | None = None
) -> tuple[bool, str]:
    """`rejected` collects the texts that the strict grader was asked for and calls unequal."""
    if same_text(given, truth):
        return True, "same_text"
    rejected = set() if rejected is None else rejected
    if plainly_unequal(given, truth):
        rejected.add((given, truth))
        return False, "different_value"
    for compare in KINDS:
        same = compare(given, truth)
        if same is not None:
            return same, "same_kind" if same else "different_value"
    quantities = quantity(given), quantity(truth)
    if quantities[0] and quantities[1]:
        same = _same_quantity(quantities[0], quantities[1])
        if same is not None:
            return same, "same_quantity" if same else "units"
    if unit_powers_differ(given, truth):
        return False, "units"
    try:
        verdict = _compare(given, truth)
    except BoundHit as bound:
        count_bound(bound.name)
        return False, f"bound:{bound.name}"
    if verdict[0]:
        return verdict
    if not strict_verdict(given, truth).right:
        rejected.add((given, truth))
        return verdict
    confusion = confusion_of(given, truth)
    return confusion is None, confusion or "strict"


def _same_quantity(given: Quantity, truth: Quantity) -> bool | None:
    values = []
    for side in (given, truth):
        value = _try(side.number)
        if value is None or value[0] != "number":
            return None
        size = ("div", ("int", side.factor.numerator), ("int", side.factor.denominator))
        values.append(("number", ("mul", value[1], size)))
    return given.kind == truth.kind and equal_values(values[0], values[1])


def _compare(given: str, truth: str) -> tuple[bool, str]:
    verdicts = [_compare_as_read(*texts) for texts in comma_readings(given, truth)]
    return max(verdicts, key=lambda verdict: verdict[0])


def _compare_as_read(given: str, truth: str) -> tuple[bool, str]:
    for other in (False, True) if has_other_reading(given, truth) else (False,):
        # Of prose only one side may be: two sentences that end alike need not say the same.
        given_value, truth_value = _try(given, other), _try(truth, other)
        if given_value is None and truth_value is None:
            return False, "no_mathematics"
        given_value = given_value or _ending(given, other)
        truth_value = truth_value or _ending(truth, other)
        if given_value is None or truth_value is None:
            return False, "no_mathematics"
        if equal_values(given_value, truth_value):
            return True, "same_value"
    return False, "different_value"


@lru_cache(maxsize=4096)
def _try(text: str, other_reading: bool = False) -> MathValue | None:
    try:
        return parse_math(text, other_reading)
    except (FormulaError, BoundHit):
        return None


# Where the strict grader is wrong. Each is asked only of answers that it accepts and that have
# another value here, also without regard to capitals, which it does not tell apart.
_INDEX = re.compile(r"\\sqrt\s*\[([^\]]*)\]")
_GROUPED = re.compile(r"\\frac|\\sqrt|/|\^")
Sides = tuple[tuple[str, MathValue | None], tuple[str, MathValue | None]]


def _indices_differ(sides: Sides) -> bool:
    return len({tuple(sorted(_INDEX.findall(text))) for text, _ in sides}) > 1


def _units_differ(sides: Sides) -> bool:
    if unit_powers_differ(sides[0][0], sides[1][0]):
        return True
    given, truth = (quantity(text) for text, _ in sides)
    return None not in (given, truth) and given[1:] != truth[1:]  # type: ignore[index]


def _letters_differ(sides: Sides) -> bool:
    letters = [symbols_of(value) for _, value in sides]
    return all(letters) and letters[0] != letters[1]


def _sides_are_lost(sides: Sides) -> bool:
    kinds = [value[0] for _, value in sides if value]
    return len(kinds) == 2 and "relation" in kinds and not _letters_differ(sides)


def _integers_are_large(sides: Sides) -> bool:
    return all(re.fullmatch(r"-?\d{16,}", text) for text, _ in sides)


def _groups_are_lost(sides: Sides) -> bool:
    (given, given_value), (truth, truth_value) = sides
    if given_value is None or truth_value is None or given_value[0] != truth_value[0]:
        return False
    # Where one side has letters that the other has not, they are units.
    return bool(_GROUPED.search(given + truth)) and symbols_of(given_value) == symbols_of(
        truth_value
    )


def _one_is_a_list(sides: Sides) -> bool:
    kinds = [value[0] for _, value in sides if value]
    return len(kinds) == 2 and sum(kind in ("list", "set", "tuple") for kind in kinds) == 1


def _constants_differ(sides: Sides) -> bool:
    nodes = [value[1] for _, value in sides if value and value[0] == "number"]
    return len(nodes) == 2 and None not in [constant_value(compile_tree(node)) for node in nodes]


CONFUSIONS: dict[str, Callable[[Sides], bool]] = {
    "roots": _indices_differ,
    "units": _units_differ,
    "several_answers": _one_is_a_list,
    "letters": _letters_differ,
    "large_integers": _integers_are_large,
    "grouping": _groups_are_lost,
    "left_side": _sides_are_lost,
    "notation": _constants_differ,
}


def confusion_of(answer: str, ground_truth: str) -> str | None:
    """Which confusion of the strict grader makes it accept an answer of another value, if any."""
    texts = [undress(text).casefold() for text in (answer, ground_truth)]
    given, truth = comma_readings(*texts)[0]
    sides = (given, _try(given)), (truth, _try(truth))
    # Formulas are compared without their units.
    if not _units_differ(sides) and (given == truth or _compare(given, truth)[0]):
        return None
    return next((name for name, applies in CONFUSIONS.items() if applies(sides)), None)


_JOINING = re.compile(r"and|or|[,;&]")
_JOINED = re.compile(r"and|or|\\text|\\quad|[a-zA-Z](?:_\{?\w\}?)?\s*=|[^a-zA-Z]")


def _parts(text: str) -> tuple[list[str], bool]:
    """The texts that state the answer, its boxes or all of it; and whether it is a list.

    Boxes that are joined by "and", "or" or a comma are one list, or one answer where all of them
    agree; of boxes that only follow one another, the last may also be the answer.
    """
    text = text[-LIMITS["answer_chars"] :].strip()
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # escaped once too often
    boxes: list[str] = []  # the last one first
    rest, listed = text, True
    while (inside := extract_boxed(rest)) is not None:
        boxes.append(inside)
        rest = rest[: rest.rfind(BOX)]
        between = rest[rest.rfind("}") + 1 :]
        if _JOINED.sub("", between) or BOX not in rest:
            break
        listed = listed and bool(_JOINING.search(between))
    if len(boxes) < 2:
        return boxes or [text], False
    alike = all(_undressed_verdict(undress(box), undress(boxes[0]))[0] for box in boxes[1:])
    together = ", ".join(reversed(boxes))
    return [together, *boxes[: alike or not listed]], listed and not alike


_MATH = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_LEAD_IN = re.compile(r"\A.*\b(?:answer|result|solution)\b[^.\n]{0,40}?(?:\bis\b|:)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w])")
_SENTENCE = re.compile(r"(?<=[.!?$\])])\s+(?=[A-Z])|\n\s*\n")
_AFTERWORD = re.compile(r"I hope it is correct.*", re.DOTALL)
_PROSE = re.compile(r"[A-Za-z]{3,} ")


def _ending(text: str, other_reading: bool) -> MathValue | None:
    """What a sentence ends in: its claim, or its last formula, or its last number."""
    said = _AFTERWORD.sub("", text[-LIMITS["formula_chars"] :])
    if not _PROSE.search(said):
        return None
    said = _LEAD_IN.sub("", said, count=1)
    for sentence in reversed(_SENTENCE.split(said)):
        formulas = [next(filter(None, groups)) for groups in _MATH.findall(sentence)]
        claim = sentence.rsplit(" is ", 1)[-1] if " is " in sentence else sentence
        numbers = _NUMBER.findall(sentence)
        for candidate in (claim, *reversed(formulas), *numbers[-1:]):
            value = _try(undress(candidate), other_reading)
            if value is not None:
                return value
    return None
