"""Where the answer stands in a response, and what of it is graded.

Two response styles are known. `r1_zero` responses carry `</think> <answer> ... </answer>`;
`question_only` responses carry a `\\boxed{...}`. Both follow the reference grader of the course to
the letter, oddities included, because its format reward is part of the published numbers. The two
benchmark parsers at the end (GSM8K, MMLU) are free of that.
"""

import itertools
import operator
import re
from dataclasses import dataclass

__all__ = [
    "Extraction",
    "before_next_query",
    "extract_answer",
    "extract_boxed",
    "extract_question_only",
    "extract_r1_zero",
    "parse_gsm8k_response",
    "parse_mmlu_response",
]

BOX = "\\boxed"


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a response offers to the grader.

    `formatted` is the format reward; `answer` the text to grade, None when there is nothing to
    grade; `reason` names the rule that ended the extraction where `answer` is None, and is empty
    otherwise.
    """

    formatted: bool
    answer: str | None
    reason: str = ""


def extract_boxed(text: str) -> str | None:
    """Contents of the last `\\boxed{...}` of `text`, or None.

    Only the last `\\boxed` counts: if it is unclosed, or not followed by `{` at once, there is no
    fallback to an earlier one. Braces are counted without regard to backslashes.
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    inner = start + len(BOX)
    if not text.startswith("{", inner):
        return None
    # Depth after each brace; the box ends at the first 0. Everything runs in C, so a megabyte of
    # braces takes 0.1 s.
    braces = _NO_BRACES.sub("", text[inner:])
    try:
        number = operator.indexOf(itertools.accumulate(map(_DEPTH_CHANGE.__getitem__, braces)), 0)
    except ValueError:
        return None
    return text[inner + 1 : _position_of_brace(text, inner, number)]


_NO_BRACES = re.compile(r"[^{}]+")
_DEPTH_CHANGE = {"{": 1, "}": -1}


def _position_of_brace(text: str, start: int, number: int) -> int:
    """Position of the brace with this number (from 0) behind `start`, by bisection over counts."""
    low, high = start, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        before = text.count("{", low, middle) + text.count("}", low, middle)
        if number < before:
            high = middle
        else:
            number -= before
            low = middle
    return low


def extract_r1_zero(response: str) -> Extraction:
    """Answer of a response in the r1_zero style.

    The format is right when `</think> <answer>` (exactly one space) and `</answer>` both occur,
    anywhere. The answer is what follows the last `<answer>`, without any `</answer>`; a `\\boxed`
    inside it narrows it to the box.
    """
    if "</think> <answer>" not in response:
        return Extraction(False, None, "no_think_answer_tags")
    if "</answer>" not in response:
        return Extraction(False, None, "no_closing_answer_tag")
    answer = response.rsplit("<answer>", 1)[1].replace("</answer>", "")
    if BOX in answer:
        boxed = extract_boxed(answer)
        return Extraction(True, boxed, "" if boxed is not None else "broken_box")
    return Extraction(True, answer)


def extract_question_only(response: str) -> Extraction:
    """Answer of a response in the question_only style: the contents of its last box."""
    boxed = extract_boxed(response)
    if boxed is not None:
        return Extraction(True, boxed)
    return Extraction(False, None, "broken_box" if BOX in response else "no_box")


def extract_answer(response: str) -> str | None:
    """Answer of a response in either style, None if it has none; for votes, not for grading.

    It is what follows the last `<answer>` where one is closed (or the box in it), else the contents
    of the last box.
    """
    if "<answer>" in response and "</answer>" in response:
        answer = response.rsplit("<answer>", 1)[1].replace("</answer>", "")
        return extract_boxed(answer) if BOX in answer else answer
    return extract_boxed(response)


def before_next_query(model_output: str) -> str:
    """What stands before a "# Query", which starts a next question in the prompt `zero_shot`."""
    return model_output.split("# Query", 1)[0]


# A minus is a sign unless it joins two operands ("5-3", "(2)-3"); commas count only as thousands
# separators.
_NUMBER = re.compile(
    r"((?<![\w)\]])[-\u2212])?\s?\$?((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number in the output as a string ("72"), without thousands commas; None if there is
    none.

    The full stop of a sentence and a dollar sign are not part of the number; a minus sign is,
    unless it stands between two operands ("5-3" ends in "3").
    """
    last = None
    for match in _NUMBER.finditer(model_output):
        last = match
    if last is None:
        return None
    return ("-" if last.group(1) else "") + last.group(2).replace(",", "")


_DECORATION = re.compile(r"\\(?:text|mathrm|mathbf|boxed)\b|[*`$\"{}]")
# The blank of "The correct answer is _", filled in: "_B_", "__B__".
_BLANK = re.compile(r"(?<!\w)_+([A-Da-d])_*(?!\w)")
_LEAD_IN = r"(?:(?:answer|option|choice)\s+is|answer\s*:)\s*:?\s*(?:(?:option|choice|letter)\s+)?"
_LETTER = r"[(\[]?([A-D])\b(?!['\u2019])[)\]]?"
# "A" is also an article, so a word after it must be one that starts a reason; after B to D any
# word will do that does not make the statement a choice between letters.
_AFTER = r"(?!\s*(?:or|and|nor|/|,\s*[A-D]\b|&)\s*[(\[]?[A-D]?\b)"
_CLAIM = re.compile(rf"{_LEAD_IN}{_LETTER}{_AFTER}", re.IGNORECASE)
_ARTICLE = re.compile(r"\s+(?!because\b|since\b|as\b|for\b|due\b)[a-z]")
_BARE = re.compile(r"\(?\[?([A-Da-d])\]?\)?\s*[.:)]?\s*(?:$|\n)|\(?\[?([A-D])\]?[.:)]\s")
_NEGATED = re.compile(r"\b(?:not|isn't|cannot|can't|unable|never)\b", re.IGNORECASE)


def parse_mmlu_response(mmlu_example: dict, model_output: str) -> str | None:
    """The option letter, "A" to "D", that the output claims; None if it claims none.

    The expected sentence is "The correct answer is _"; "Answer: B", "the answer is (B).", "_B_",
    `\\boxed{B}`, a bare letter in front ("B", "(B) Paris") and the text of exactly one option in
    place of its letter are understood too. Of several claims the last counts, up to a "# Query"
    that starts a next question. Prose is never guessed at: "I cannot answer that", "A good
    question" and "the answer is A or B" give None.

    `mmlu_example` may hold `options` (or `choices`), the four option texts.
    """
    text = _DECORATION.sub("", before_next_query(model_output)).strip()
    text = _BLANK.sub(r"\1", text)
    for match in reversed(list(_CLAIM.finditer(text))):
        letter = match.group(1)
        closed = text[match.end(1) : match.end()] != ""
        if letter.islower() and not (closed or re.match(r"\s*(?:$|[.\n])", text[match.end() :])):
            continue
        if letter == "A" and not closed and _ARTICLE.match(text, match.end()):
            continue
        return letter.upper()
    bare = _BARE.match(text)
    if bare is not None:
        return (bare.group(1) or bare.group(2)).upper()
    return _letter_of_option_text(mmlu_example, text)


def _letter_of_option_text(mmlu_example: dict, text: str) -> str | None:
    """Letter of the one option whose text is claimed, or is all there is."""
    options = mmlu_example.get("options") or mmlu_example.get("choices") or []
    claim = re.split(_LEAD_IN, text, flags=re.IGNORECASE)[-1].split("\n", 1)[0]
    if _NEGATED.search(claim):
        return None
    said = _plain(claim)
    hits = [
        letter
        for letter, option in zip("ABCD", options, strict=False)
        if _plain(str(option)) == said
    ]
    return hits[0] if len(hits) == 1 and said else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()
