"""M, the string route: both sides are normalised as text and compared.

The normalisation is that of the reference, step by step (its origin is the MATH dataset's grader).
It knows no grammar: stand-alone letters that are also unit words vanish, so `a+b` equals `c+b`.
Each step below says what it does, not why it is a good idea.

The reference runs 528 regular expressions per side for the unit words alone; here only those run
whose word is in the text.
"""

import re
from functools import cache, lru_cache

# The unit words that are deleted, in the reference's order. Its authors typed the list by hand; it
# holds duplicates, typing errors and three entries in broken encoding. All of that decides
# verdicts, so it stays as it is; a checksum in the tests guards it.
_LIST = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|"
    "profit of rs|rd|o|gm|p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|"
    "g .|h .|t|a|h|no change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|"
    "acre|rise|a . m|th|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|"
    "am|pm|hr|cu cm|square|v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|"
    "minute|min|second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|"
    "cm 2|rs .|rs|kg|g|month|km|m|cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|"
    "less|Surface|litre|pi sq m|s .|metre|meter|inch"
)
BASE_UNITS: tuple[str, ...] = tuple(_LIST.split("|"))
# Every word, then every plural.
UNITS: tuple[str, ...] = BASE_UNITS + tuple(unit + "s" for unit in BASE_UNITS)

_ARRAY = re.compile(r"\\begin\{array\}\{[^}]*\}")
_TEXT_WRAPPER = re.compile(r"\\text\{(.+?)\}$")
_CANONICAL_INTEGER = re.compile(r"-?[1-9][0-9]{0,4000}\Z|0\Z")
_RENAMES = {
    "\\end{array}": "\\end{pmatrix}", "bmatrix": "pmatrix", "tfrac": "frac", "dfrac": "frac",
    "\\neq": "\\ne", "\\leq": "\\le", "\\geq": "\\ge", "\\left": "", "\\right": "",
}  # fmt: skip


class _Abort(Exception):
    """A step that the reference leaves with an exception: the text stays as it was before."""


def mathd_equal(answer: str, ground_truth: str) -> bool:
    """Whether both texts have the same normal form; equal texts always have."""
    return answer == ground_truth or normalize_mathd(answer) == normalize_mathd(ground_truth)


@lru_cache(maxsize=4096)
def normalize_mathd(text: str) -> str:
    """The normal form of one side."""
    text = text.strip()
    wrapped = _TEXT_WRAPPER.match(text)
    if wrapped is not None:
        text = wrapped.group(1).strip()
    try:
        return _strip_string(text)
    except _Abort:
        return text


def _strip_string(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    if "\\begin{array}" in text:  # becomes a pmatrix, up to the nearest brace
        text = _ARRAY.sub(r"\\begin{pmatrix}", text)
    for old, new in _RENAMES.items():
        text = text.replace(old, new)
    text = _drop_trailing_text(text)
    text = _drop_units(text)
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        before, *rest = text.split("\\text{ ")
        if len(rest) > 1:
            raise _Abort
        text = before
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _brace_roots(text).replace(" ", "")
    text = _brace_fractions(text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    parts = text.split("/")
    if len(parts) == 2 and all(_CANONICAL_INTEGER.match(part) for part in parts):
        text = f"\\frac{{{parts[0]}}}{{{parts[1]}}}"
    return text


def _drop_trailing_text(text: str) -> str:
    """Drop all from the first `\\text{` on if the whole ends with a brace and something is left."""
    start = text.find("\\text{")
    inside = text[:start] if start >= 0 and text.endswith("}") else text
    return inside.strip() or text


def _drop_units(text: str) -> str:
    """Two rounds over the unit words, each deleted between two characters of no word."""
    # A deletion joins no two words, so a unit can only match if its first word is a whole word of
    # the text at the start.
    words = set(_WORD.findall(text))
    rules = sorted(rule for word in words & _RULES_BY_WORD.keys() for rule in _RULES_BY_WORD[word])
    for _ in range(2):
        before = text
        for number in rules:
            text = _unit_pattern(UNITS[number]).sub(r"\1\2", text) or text
        if text == before:
            break
    return text


@cache
def _unit_pattern(unit: str) -> re.Pattern[str]:
    # Without escaping, as in the reference: a dot in a unit matches any character.
    return re.compile(rf"(^|\W){unit}($|\W)")


_WORD = re.compile(r"\w+")
_RULES_BY_WORD: dict[str, list[int]] = {}
for _number, _unit in enumerate(UNITS):
    _RULES_BY_WORD.setdefault(_WORD.findall(_unit)[0], []).append(_number)


def _brace_roots(text: str) -> str:
    """`\\sqrt2` to `\\sqrt{2}`: one character is wrapped, whatever it is."""
    first, *pieces = text.split("\\sqrt")
    out = [first]
    for piece in pieces:
        if not piece:
            raise _Abort
        out.append("\\sqrt" + (piece if piece[0] == "{" else f"{{{piece[0]}}}{piece[1:]}"))
    return "".join(out)


def _brace_fractions(text: str) -> str:
    """`\\frac12` to `\\frac{1}{2}`, character by character."""
    first, *pieces = text.split("\\frac")
    out = [first]
    for piece in pieces:
        if not piece:
            raise _Abort
        if piece[0] == "{":
            out.append("\\frac" + piece)
        elif len(piece) < 2:
            return text
        elif piece[1] == "{":
            out.append(f"\\frac{{{piece[0]}}}{piece[1:]}")
        else:
            out.append(f"\\frac{{{piece[0]}}}{{{piece[1]}}}{piece[2:]}")
    return "".join(out)
