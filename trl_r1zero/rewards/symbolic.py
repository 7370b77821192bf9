"""S, the symbolic route: a second text normalisation, the comparison of tuples, and the test of a
formula.

`symbolic_verdict` returns the rule that decided as well as the verdict. The text rules are those
of the reference, in its order; the last one, whether a difference of two formulas is zero, is
`formula_is_zero` of `difference`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from .bounds import BoundHit, count_bound
from .difference import formula_is_zero
from .latex_text import UnrenderableError, latex_to_text

_TEXT_WRAPPER = re.compile(r"\\text\{(.+?)\}$")
_WORDS = {"\\%": "%", "\\$": "$", "$": "", "%": "", " or ": " , ", " and ": " , "}
_WORDS |= {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
_UNIT_NAMES = (
    "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard"
)
_UNITS = {unit: re.compile(rf"{unit}(es)?(s)? *(\^[0-9]+)?") for unit in _UNIT_NAMES.split()}
_CIRC = re.compile(r"\^ *\\circ")
_THIN_COMMA = re.compile(r",\\! *")
_MINUS_BLANKS = re.compile(r"- *")
_DIGIT_GAP = re.compile(r"([0-9]) +([0-9])")
_THOUSANDS = re.compile(r"(\d)(,)(\d\d\d)($|\D)")
_LATEX_NAMES = (("\\tfrac", "\\frac"), ("\\dfrac", "\\frac"), ("\\frac", " \\frac"))
_SYMBOLS = str.maketrans(
    {"\u221a": "sqrt", "\u03c0": "pi", "\u221e": "inf", "\u222a": "U", "\u00b7": "*", "\u00d7": "*"}
)
_FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
_BRACKETS = frozenset("()[]")


class Verdict(NamedTuple):
    """Right or wrong, and the name of the rule that decided."""

    right: bool
    rule: str


def _integer_near(text: str) -> int | None:
    """The integer within 1e-7 of the number that `text` spells for Python's `float`, or None."""
    try:
        value = float(text)
        nearest = round(value)
    except (ValueError, OverflowError):
        return None
    return nearest if abs(value - nearest) <= 1e-7 else None


@lru_cache(maxsize=4096)
def normalize_symbolic(text: str) -> str:
    """The normal form N of one side."""
    wrapped = _TEXT_WRAPPER.match(text)
    if wrapped is not None:
        text = wrapped.group(1)
    for old, new in _WORDS.items():
        text = text.replace(old, new)
    for unit, pattern in _UNITS.items():
        if unit in text:
            text = pattern.sub("", text)
    if "^" in text:
        text = _CIRC.sub("", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = _THIN_COMMA.sub("", text)
    integer = _integer_near(text)
    if integer is not None:
        text = str(integer)
    if "\\" in text:
        text = _render_latex(text)
    text = _MINUS_BLANKS.sub("-", text)
    text = _DIGIT_GAP.sub(r"\1+\2", text)
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    if _integer_near(_strip_thousands(text)) is not None:
        text = str(int(float(text.replace(",", ""))))
    return text


def _render_latex(text: str) -> str:
    prepared = text
    for old, new in _LATEX_NAMES:
        prepared = prepared.replace(old, new)
    try:
        return latex_to_text(prepared).translate(_SYMBOLS).strip()
    except UnrenderableError:
        return text


def _strip_thousands(text: str) -> str:
    """Remove the commas of well-formed groups of thousands."""
    if "," not in text:
        return text
    while True:
        shorter = _THOUSANDS.sub(r"\1\3\4", text)
        if shorter == text:
            return text
        text = shorter


def _elements(text: str) -> list[str]:
    """Elements of a bracketed tuple without inner brackets; any other text is one element."""
    text = _strip_thousands(text)
    if not text:
        return []
    bracketed = len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS
    if not bracketed or not _BRACKETS.isdisjoint(text[1:-1]):
        return [text]
    return [element.strip() for element in text[1:-1].split(",")]


def symbolic_verdict(answer: str, ground_truth: str) -> Verdict:
    """Whether the answer equals the ground truth by S."""
    try:
        return Verdict(*_compare(normalize_symbolic(ground_truth), normalize_symbolic(answer)))
    except BoundHit as bound:
        count_bound(bound.name)
        return Verdict(False, f"bound:{bound.name}")


def _compare(truth: str, given: str) -> tuple[bool, str]:
    if truth == given:
        return True, "symbolic_text_equal"
    if not given:
        return False, "empty_answer"
    truths, givens = _elements(truth), _elements(given)
    if len(truths) > 1 and (truth[0] != given[0] or truth[-1] != given[-1]):
        return False, "brackets_differ"
    if len(truths) != len(givens):
        return False, "number_of_elements_differs"
    rule = "symbolic_text_equal"
    for truth_element, given_element in zip(truths, givens, strict=True):
        right, rule = _compare_elements(truth_element, given_element)
        if not right:
            return False, rule
    return True, rule


def _compare_elements(truth: str, given: str) -> tuple[bool, str]:
    if _FRACTION.search(truth) and _FRACTION.search(given):
        return truth == given, "same_fraction" if truth == given else "fraction_not_identical"
    if _is_integer(truth) != _is_integer(given):
        return False, "integer_required" if _is_integer(truth) else "integer_given_for_expression"
    return formula_is_zero(f"({truth})-({given})")


def _is_integer(text: str) -> bool:
    return _integer_near(_strip_thousands(text)) is not None
