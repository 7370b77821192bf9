"""`math_reward_fn`: mathematically right or wrong, where the reference grader is known to err.

For training and for a strict/lenient comparison in reports, never for the leaderboard's number.
Right here and wrong there: unreduced fractions, sums and roots for an integer, `x =` in front,
units, percent signs, sets and lists in any order, intervals written as inequalities, exponents of
several digits, any number of variables. Wrong here and right there: `1+x/2` for (1+x)/2, a square
root for a cube root, letters that are also units. Formulas are compared by their values at fixed
points with an error bound, so an identity is accepted with certainty only up to coincidence at
four unrelated points; decimals must agree to 1e-6, absolutely, and to 1e-5, relatively.
"""

import itertools
import re
from collections.abc import Callable
from functools import lru_cache

from .bounds import LIMITS, BoundHit, count_bound, one_reward
from .extraction import BOX, extract_boxed
from .formula import FormulaError, Node, compile_tree
from .math_parser import MathValue, parse_math
from .modular import is_zero_modulo_primes
from .numeric import values_agree
from .reward_functions import GroundTruth, ground_truth_texts

DECIMAL_TOLERANCE = 1e-6


def math_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    """Lenient mathematical reward of a response in either style.

    The answer is what follows the last `<answer>`, else the last box, else the text behind the
    last "answer is". Neighbouring boxes are one list, or one answer where all of them agree. The
    format reward is 1 for a closed `<answer>` or a complete box. `fast` is
    accepted for a signature like the other rewards' and changes nothing.

    Returns and raises as `r1_zero_reward_fn`, but without a format the answer can still be right:
    `reward` is 1 only if both are.
    """
    texts = ground_truth_texts(ground_truth)
    tail = response[-LIMITS["answer_chars"] :]
    tagged = "<answer>" in tail and "</answer>" in tail
    answer = tail.rsplit("<answer>", 1)[-1].replace("</answer>", "") if tagged else tail
    formatted = tagged or extract_boxed(tail) is not None
    with one_reward():
        right = any(answers_agree(answer, text) for text in texts)
    return {
        "format_reward": float(formatted),
        "answer_reward": float(right),
        "reward": float(formatted and right),
    }


def answers_agree(answer: str, ground_truth: str) -> bool:
    """Whether two texts state the same mathematical answer."""
    return any(
        _cores_agree(given, truth) for given in _cores(answer) for truth in _cores(ground_truth)
    )


def _cores_agree(given: str, truth: str) -> bool:
    if given == truth or _words(given) == _words(truth) != "":
        return True
    # Of prose only one side may be: two sentences that end alike need not say the same.
    given_value, truth_value = _try(given), _try(truth)
    if given_value is None and truth_value is None:
        return False
    given_value = given_value or _ending(given)
    truth_value = truth_value or _ending(truth)
    if given_value is None or truth_value is None:
        return False
    try:
        return _agree(given_value, truth_value)
    except BoundHit as bound:
        count_bound(bound.name)
        return False


_MATH = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_LEAD_IN = re.compile(r"\A.*\b(?:answer|result|solution)\b[^.\n]{0,40}?(?:\bis\b|:)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w])")


def _cores(text: str) -> list[str]:
    """The parts of a text that state the answer: its boxes, or all of it. Several boxes are a list;
    where all of them agree they may as well be one answer that is given twice."""
    text = text[-LIMITS["answer_chars"] :].strip()
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # escaped once too often
    if BOX not in text:
        return [text]
    boxes: list[str] = []  # the last one first
    rest = text
    # Neighbouring boxes are one answer: `\\boxed{1} and \\boxed{2}`.
    while (inside := extract_boxed(rest)) is not None:
        boxes.append(inside)
        rest = rest[: rest.rfind(BOX)]
        if re.sub(r"and|or|\\text|\\quad|[^a-zA-Z]", "", rest[rest.rfind("}") :]):
            break
    if not boxes:
        return [text]
    cores = [", ".join(reversed(boxes))]
    if len(boxes) > 1 and all(_cores_agree(box, boxes[0]) for box in boxes[1:]):
        cores.append(boxes[0])
    return cores


def _words(text: str) -> str:
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\b|[\s${}()\\]", "", text)
    return text.rstrip(".").casefold()


def _ending(text: str) -> MathValue | None:
    """What a sentence ends in: its claim, or its last formula, or its last number."""
    said = _AFTERWORD.sub("", text[-LIMITS["formula_chars"] :])
    if not _PROSE.search(said):
        return None
    said = _LEAD_IN.sub("", said, count=1)
    formulas = [next(filter(None, groups)) for groups in _MATH.findall(said)]
    claim = said.rsplit(" is ", 1)[-1].split(". ", 1)[0] if " is " in said else said
    numbers = _NUMBER.findall(said)
    for candidate in (claim, *reversed(formulas), *numbers[-1:]):
        value = _try(candidate)
        if value is not None:
            return value
    return None


_AFTERWORD = re.compile(r"I hope it is correct.*|<\|im_(?:start|end)\|>.*", re.DOTALL)
_PROSE = re.compile(r"[A-Za-z]{3,} ")


@lru_cache(maxsize=2048)
def _try(text: str) -> MathValue | None:
    try:
        return parse_math(text)
    except (FormulaError, BoundHit):
        return None


def _agree(given: MathValue, truth: MathValue) -> bool:
    """Whether two values are equal; see `_COMPARISONS` for what is compared with what."""
    given, truth = _plain(given), _plain(truth)
    compare = _COMPARISONS.get((given[0], truth[0]))
    return compare is not None and compare(given, truth)


def _plain(value: MathValue) -> MathValue:
    """A bracketed single value is that value; a list of one element too."""
    while value[0] in ("list", "tuple") and len(value[1 if value[0] == "list" else 2]) == 1:
        value = value[1 if value[0] == "list" else 2][0]
    return value


def _nodes_agree(a: Node, b: Node) -> bool:
    if a == b:
        return True
    difference = compile_tree(("sub", a, b))
    exactly = is_zero_modulo_primes(difference)
    if exactly is not None and not any(step[0] == "float" for step in difference):
        return exactly
    return values_agree(compile_tree(a), compile_tree(b), DECIMAL_TOLERANCE)


def _unordered(given: list[MathValue], truth: list[MathValue]) -> bool:
    """Whether the elements agree in some order; every element is matched at most once."""
    left = list(truth)
    for item in given:
        match = next((other for other in left if _agree(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _ordered(given: list[MathValue], truth: list[MathValue]) -> bool:
    return len(given) == len(truth) and all(map(_agree, given, truth))


def _tuples_agree(given: MathValue, truth: MathValue) -> bool:
    # With two elements it may be an interval, whose ends are open or closed.
    same_brackets = (given[1], given[3]) == (truth[1], truth[3]) or len(truth[2]) > 2
    return same_brackets and _ordered(given[2], truth[2])


def _relations_agree(given: MathValue, truth: MathValue) -> bool:
    """Equal up to a factor: positive for an inequality, any but 0 for an equation."""
    sign, left, right = _normal_relation(given)
    other_sign, other_left, other_right = _normal_relation(truth)
    if sign != other_sign or {left[0], right[0], other_left[0], other_right[0]} != {"number"}:
        return False
    a = ("sub", left[1], right[1])
    b = ("sub", other_left[1], other_right[1])
    if _nodes_agree(a, b):
        return True
    ratio = ("div", a, b)
    for numerator, denominator in itertools.product(range(1, 13), repeat=2):
        factor: Node = ("div", ("int", numerator), ("int", denominator))
        if _nodes_agree(ratio, factor):
            return True
        if sign in ("=", "!=") and _nodes_agree(ratio, ("neg", factor)):
            return True
    return False


def _normal_relation(relation: MathValue) -> tuple[str, MathValue, MathValue]:
    sign, left, right = relation[1:]
    if sign.startswith(">"):
        return "<" + sign[1:], right, left
    return sign, left, right


_COMPARISONS: dict[tuple[str, str], Callable[[MathValue, MathValue], bool]] = {
    ("number", "number"): lambda a, b: _nodes_agree(a[1], b[1]),
    ("relation", "relation"): _relations_agree,
    ("tuple", "tuple"): _tuples_agree,
    ("matrix", "matrix"): lambda a, b: len(a[1]) == len(b[1]) and all(map(_ordered, a[1], b[1])),
    # Braces and the lack of them are not told apart; a set may be announced in words.
    **dict.fromkeys(
        [("union", "union"), ("set", "set"), ("list", "list"), ("set", "list"), ("list", "set")],
        lambda a, b: _unordered(a[1], b[1]),
    ),
    ("set", "number"): lambda a, b: _unordered(a[1], [b]),
    ("number", "set"): lambda a, b: _unordered([a], b[1]),
    # An ordered answer whose parts are named one by one.
    ("tuple", "list"): lambda a, b: _ordered(a[2], b[1]),
    ("list", "tuple"): lambda a, b: _ordered(a[1], b[2]),
}
