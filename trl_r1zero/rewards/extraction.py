"""Where the answer stands in a response, and what of it is graded.

Two response styles are known. `r1_zero` responses carry `</think> <answer> ... </answer>`;
`question_only` responses carry a `\\boxed{...}`. Both follow the reference grader of the course to
the letter, oddities included, because its format reward is part of the published numbers. The two
benchmark parsers at the end (GSM8K, MMLU) are free of that.
"""

import re
from dataclasses import dataclass

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
    depth = 0
    for position, char in enumerate(text[inner:], start=inner):
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[inner + 1 : position]
    return None


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
    answer = extract_answer(response)
    return Extraction(True, answer, "broken_box" if answer is None else "")


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


# A minus is a sign if it touches the number or its dollar sign and does not stand behind an operand
# ("5-3", "(2)-3", "20%-30%", "$5$-3") or another hyphen, with which it is a dash.
_SIGN = r"(?<![\w)\]}%\-])(?<![0-9]\$)([-\u2212])(?:\\?\$\s?)?"
# What stands between groups of three digits, as people and LaTeX write it; one kind in a number.
_SEPARATORS = (
    r",", r",\\!", r"\{,\}", r"\\,", r"\{\\,\}", r"\\[ ;:]", r"~", r"'", r"_", "[\u2019\u066c]",
)  # fmt: skip
_THOUSANDS = (
    rf"[0-9]{{1,3}}(?:{'|'.join(f'(?:{mark}[0-9]{{3}})+' for mark in _SEPARATORS)})(?![0-9])"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"  # lakhs and crores
    # Blanks, unless it is the end of a list of numbers.
    r"|(?<![0-9] )[0-9]{1,3}(?:[ \u00a0\u2007-\u200a\u202f][0-9]{3})+(?![0-9])"
)
# A point before the first digit belongs to the number unless it ends something ("No.5", "is...5").
_NUMBER = re.compile(
    rf"(?:{_SIGN})?((?:{_THOUSANDS}|[0-9]+)(?:\.[0-9]+)?|(?<![\w.)\]}}%])\.[0-9]+)"
)
_SEPARATOR = re.compile(r"[^0-9.]")


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number in the output as a string ("72"), without thousands separators; None if there
    is none.

    The full stop of a sentence and a dollar sign are not part of the number. A minus sign is if it
    touches the number or its dollar sign ("-5", "-$18", "$-18") and does not follow an operand:
    bullets, dashes, ranges and subtractions are none ("- 72 apples", "20 - 5", "5-3").
    """
    numbers = _NUMBER.findall(model_output)
    if not numbers:
        return None
    sign, digits = numbers[-1]
    return ("-" if sign else "") + _SEPARATOR.sub("", digits)


# All white space is one character by the time that the patterns below are used (`_undecorated`), so
# they need no repetitions of it and their time is linear.
_DECORATION = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|boldsymbol|emph|underline|[fm]box|boxed)\b"
    r"|\\[()\[\]]"
    r"|</?(?:b|i|u|p|em|strong|span|code|mark|answer)>"
    r"|[*`$\"\u201c\u201d{}]"
)
# The blank of "The correct answer is _", filled in: "_B_", "__B__"; and a letter in single quotes.
_BLANK = re.compile(r"(?<!\w)_+([A-Da-d])_*(?!\w)")
_QUOTED = re.compile(r"(?<!\w)['\u2018]([(\[]?[A-Da-d][)\]]?\.?)['\u2019](?!\w)")
_QUOTES = "'\u2018\u2019"

# How a claim begins, and what may stand between that and the letter.
_CLAIMING = (
    r"(?<!wrong\s)(?<!false\s)(?<!incorrect\s)(?:(?:answer|option|choice)|answer\s(?:to|for|i|we)\s[^.\n]{1,200}?)"
    r"\s+(?:is|would be|should be|must be)",
    r"(?:answer|choice|ans\.?)\s?[:=]",
    r"(?:answer|choice)\s[-\u2013\u2014](?=\s)",
    r"\bi(?:['\u2019]d|['\u2019]ll|\s(?:would|will))?\s(?:choose|pick|select|go\swith|answer)",
    r"\bi\s(?:think|believe|guess|suspect)\s(?:that\s)?(?:it(?:['\u2019]s|\sis|\sshould\sbe))",
)  # fmt: skip
_HEDGES = (
    r"i\s(?:think|believe|guess|suspect|would\ssay)", r"i['\u2019]d\ssay", "that", "probably",
    r"most\slikely", "likely", "clearly", "therefore",
    r"it(?:['\u2019]s|\sis|\sshould\sbe|\smust\sbe)",
    "the", "correct", "right", "option", "choice", "letter", r"(?:answer|one)\sis",
)  # fmt: skip
_LEAD_IN = rf"(?i:(?:{'|'.join(_CLAIMING)})\s?:?\s?(?:(?:{'|'.join(_HEDGES)}),?\s){{0,5}})"
# A letter that stands for an option, not one of "A's", "C++", "B-52" or "D-glucose".
_WHOLE = r"\b(?!['\u2019+#]|-[a-z0-9])"
_CLAIM = re.compile(rf"{_LEAD_IN}['\u2018]?[(\[]?([A-Da-d]){_WHOLE}([)\]]?)")
# "The shortest of these times is C." and nothing else.
_ONLY_SENTENCE = re.compile(r"(The [^.!?\n]{1,300}) is [(\[]?([A-D])[)\]]?\.?")
# "So option (C) is the right answer", and "B is correct" in front.
_GOOD = r"(?i:(?:the|my)\s)?(?i:(?:correct|right|best|only|final)\s?){1,2}"
_RIGHT = re.compile(
    r"(?:(?P<front>\A)|\n|[.;:!?]\s|(?i:\b(?:so|thus|hence|therefore|think|believe|only|that)\s))"
    r"(?i:(?:only|option|choice|answer)\s){0,2}"
    rf"[(\[]?([A-D]){_WHOLE}[)\]]?\s(?i:is|would be|must be)\s{_GOOD}"
    r"(?:(?i:answer|option|choice|one)|(?(front)|\Z.))(?=\s?(?:\Z|[.,;!\n]|because|as|since))"
)
_ENDED = re.compile(r"\s?(?:$|[.\n])")
# "A" is also an article, if what follows in the line is not a word that never follows an article.
_ARTICLE = re.compile(
    r" (?!(?:because|since|as|for|due|which|that|where|when|while|whereas|if|and|or|nor|but|so|thus"
    r"|hence|therefore|with|by|from|in|on|at|of|to|is|was|being|would|states|says|here|this|these"
    r"|it|they|he|she|we|the|based|not [(\[]?[B-D]\b)\b(?!-))[a-z]"
)
# Another letter beside a claimed one: "B or C", "A, B", "(b)/(c)", "B or maybe option C".
_ANOTHER = re.compile(
    r"(?:,?\s?\(?(?i:(or|nor|and/or)|and|as well as|plus|along with|together with)\b"
    r"| ?[,;/&+\u2013-])"
    r",?\s?(?i:(?:also|else|even|either|maybe|perhaps|possibly|probably|alternatively|the|option"
    r"|choice|answer|letter)\b,?\s?){0,3}"
    rf"(?:[(\[][A-Da-d][)\]]|([A-D]){_WHOLE}|[a-d](?=\s?(?:$|[.,;:!?)/])))"
)
# ... and how a sentence about that other letter begins: "B, C is wrong", "B, C being wrong".
_VERB = (
    r"\s(?:(?:is|was|would|does|has|could)(?:n['\u2019]t)?|can(?:not|['\u2019]t)?|being|must|says"
    r"|states|describes|refers)\b"
)
_STATEMENT = re.compile(_VERB)
_DENIAL = (
    r"\s?(?:can(?:not|['\u2019]t)|(?:is|was|would be|seems|does)(?:n['\u2019]t"
    r"|\s(?:\w{1,20}\s){0,2}(?:not|incorrect|wrong|false|untrue|invalid|eliminated|excluded)))\b"
)
_DENIED = re.compile(_DENIAL)

_ALONE = re.compile(r"[(\[]{0,2}([A-Da-d])[)\]]{0,2}\s?[.:)]?")
_LEADING = re.compile(r"['\u2018]?[(\[]{0,2}([A-Da-d])\]?[.:)]\s")
# The head of another option, where the first has a small letter.
_SMALL_HEAD = re.compile(r"(?:\n|\s)[(\[]?([a-d])[.:)\]]\s")
# A letter at the head of a line or clause, or marked as an option anywhere ("x B. y", "(B)"), of
# which more is said than that it is wrong.
_HEAD = re.compile(
    r"(?:(?:\A|(?<=\n)|(?<=[.;:!?,]\s))(?:[-\u2022>]\s?)?"
    r"(?i:(?:so|hence|thus|therefore|then|and|but|while|whereas|only|option|choice|answer|letter)\b"
    r",?\s?){0,3}"
    rf"(?:([A-D])(?=[.:)](?:\s|$))|([B-D])(?=,?\s|$)|(A)(?={_VERB}))"
    r"|(?<=\s)(?<!not\s)([A-D])(?=[.:)]\s)|(?<!\w)[(\[]([A-D])[)\]])"
    rf"(?![.:)]?{_DENIAL})"
)


def parse_mmlu_response(mmlu_example: dict, model_output: str) -> str | None:
    """The option letter, "A" to "D", that the output claims; None if it claims none.

    The expected sentence is "The correct answer is _"; "Answer: B", "the answer is (B).", "_B_",
    `\\boxed{B}`, "B is correct", "B" alone in the first or the last line, "B. Paris" or "(B) Paris"
    in front, and the text of exactly one option in place of its letter are understood too. Of
    several claims the last counts, up to a "# Query" that starts a next question.

    Prose is never guessed at: "I cannot answer that", "A good question" and "the answer is A or B"
    give None. So do options that are only listed or gone through: a letter with text in front is a
    claim only where it is not called wrong and no other letter heads a later line or clause, unless
    to be called wrong. A letter alone in the last line is a claim behind a list that it was part of
    ("A. Lyon", "B. Paris", ... "B"), but not where it may be the list's next item.

    `mmlu_example` may hold `options` (or `choices`), the four option texts.
    """
    options = [
        _undecorated(str(option))
        for option in mmlu_example.get("options") or mmlu_example.get("choices") or []
    ]
    text = _undecorated(before_next_query(model_output))
    text = _QUOTED.sub(r"\1", _BLANK.sub(r"\1", text))
    for match in reversed(list(_CLAIM.finditer(text))):
        letter, closed = match.groups()
        if letter.islower() and not closed and not _ENDED.match(text, match.end()):
            continue
        if letter == "A" and not closed and _ARTICLE.match(text, match.end()):
            continue
        if _is_one_of_several(text, match.end()):
            return _letter_of_option_text(options, text)
        return letter.upper()
    right = [match[2] for match in _RIGHT.finditer(text)]
    only = _ONLY_SENTENCE.fullmatch(text)
    if only is not None and not _DOUBT.search(only[1]):
        right.append(only[2])
    letter = right[-1] if right else _letter_at_an_end(options, text)
    return letter or _letter_of_option_text(options, text)


def _undecorated(text: str) -> str:
    """`text` without markup, its runs of white space as one space or line break."""
    text = _DECORATION.sub("", text)
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).strip()


def _is_one_of_several(text: str, end: int) -> bool:
    """Whether the claimed letter that ends here is followed by another that is claimed with it."""
    another = _ANOTHER.match(text, end)
    if another is None or (another[2] == "A" and _ARTICLE.match(text, another.end())):
        return False
    return another[1] is not None or not _STATEMENT.match(text, another.end())


def _letter_at_an_end(options: list[str], text: str) -> str | None:
    """Letter that stands alone in the first or last line, or in front of all the text."""
    lines = text.split("\n")
    found = [match.group(1) for match in map(_ALONE.fullmatch, lines) if match]
    if len(set(found)) > 1:
        return None
    if _ALONE.fullmatch(lines[0]):
        return found[0].upper()
    if _ALONE.fullmatch(lines[-1]) and found[0].isupper():
        heads = _heads("\n".join(lines[:-1]))
        return found[0] if not heads or found[0] in heads else None
    leading = _LEADING.match(text)
    if leading is None:
        return None
    letter, end = leading[1].upper(), leading.end()
    if leading[1].islower() and set(_SMALL_HEAD.findall(text, end)) - {leading[1]}:
        return None
    # What an option's own text says is neither a verdict nor another option.
    own = options["ABCD".index(letter)] if len(options) == len("ABCD") else ""
    if text[end : end + len(own)].casefold() == own.casefold():
        end += len(own)
    if _DENIED.match(text, end) or _heads(text, end) - {letter}:
        return None
    return letter


def _heads(text: str, start: int = 0) -> set[str]:
    return {next(filter(None, match.groups())) for match in _HEAD.finditer(text, start)}


def _letter_of_option_text(options: list[str], text: str) -> str | None:
    """Letter of the one option whose text is claimed, is all there is, or ends the one sentence."""
    said = _plain(_BEHIND_TEXT.sub("", _plain(re.split(_LEAD_IN, text)[-1].split("\n", 1)[0])))
    plain = [_plain(option) for option in options[:4]]
    if said and plain.count(said) == 1:
        return "ABCD"[plain.index(said)]
    ends = [n for n, option in enumerate(plain) if " " in option and said.endswith(" " + option)]
    if len(ends) != 1 or plain[ends[0]].count(" ") < 3:
        return None
    before = said[: -len(plain[ends[0]])]
    return None if "\n" in text or _DOUBT.search(before) else "ABCD"[ends[0]]


_BEHIND_TEXT = re.compile(
    r"\s(?:is|would be)\s(?:the|my)\s(?:(?:correct|right|best)\s)?(?:answer|option|choice)$"
)
# Words and marks with which a sentence that ends in an option's text may not be for it.
_DOUBT = re.compile(
    r"n['\u2019]t\b|\b(?:not|no|never|except|wrong|false|incorrect|than|or|if)\b|[.!?;:]"
)


def _plain(text: str) -> str:
    return text.strip(_QUOTES + " .").casefold()
