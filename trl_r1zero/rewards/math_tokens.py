"""A mathematical answer, LaTeX or plain, to tokens: units, spacing and wrappers are dropped.

For `math_parser` only; the reference's route has its own tokenizer (`formula`).
"""

import re

from .bounds import check_limits
from .formula import FormulaError

_UNIT_WORDS = (
    "millimeters?|centimeters?|kilometers?|meters?|metres?|inch(?:es)?|feet|foot|miles?|yards?|"
    "mm|cm|km|kg|kilograms?|grams?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|degrees?|"
    "dollars?|cents?|yuan|euros?|percent(?:age)?|pct|units?|square|cubic|liters?|litres?|mph|"
    "apples?|people|students?|ways?|points?"
)
_UNIT_NAME = rf"(?:{_UNIT_WORDS})"
_UNIT_POWER = r"(?:\s*\^\s*(?:\{[123]\}|[123]))?"
_UNIT = re.compile(
    rf"\\mathrm\s*\{{[~\s]*{_UNIT_NAME}\s*\}}{_UNIT_POWER}"
    rf"|(?<![a-zA-Z\\]){_UNIT_NAME}(?![a-zA-Z])\.?{_UNIT_POWER}"
)
_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt abs floor"
FUNCTIONS = frozenset(_NAMES.split())
SIGNS = {
    "=": "=", "<": "<", ">": ">", "\\lt": "<", "\\gt": ">", "\\le": "<=", "\\leq": "<=",
    "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "\\ne": "!=", "\\neq": "!=",
    "<=": "<=", ">=": ">=", "!=": "!=", "\\in": "in", "\\approx": "~", "\\sim": "~",
}  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr?|Bigl?|Bigr?|q?quad|bf)(?![a-zA-Z])"
    r"|\\[,;!:\s]|(?<!\\)\\[()\[\]]|\$|~"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?[eE][-+]?\d+|\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.?\d*|\.\d+)"
    r"|(?P<macro>\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+|\\[{}%|])|(?P<sign><=|>=|!=|\*\*|.))"
)
_WRAPPERS = re.compile(
    r"\\(?:mathrm|mathbf|mathit|operatorname|boldsymbol|boxed|fbox|mathcal)\s*\{"
)


_UNICODE = {
    "\u2212": "-", "\u00d7": "*", "\u00b7": "*", "\u03c0": "\\pi ", "\u221e": "\\infty ",
    "\u221a": "\\sqrt ", "\u222a": "\\cup ", "\u00b1": "\\pm ",
    "\u2264": "\\le ", "\u2265": "\\ge ", "\u00b0": "",
}  # fmt: skip


def tokenize(text: str) -> list[tuple[str, str]]:
    """Pairs of kind ("number", "other" or "end") and text; the last is the end."""
    return _tokens(_prepared(text))


def _prepared(text: str) -> str:
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "", text)
    text = text.replace("{,}", "")
    text = re.sub(r"\\\$|,\\!\s*|\\%|%", lambda m: {",": ""}.get(m.group()[0], " "), text)
    text = re.sub(r"\\text(?:rm|bf|it)?\s*\{\s*(?:and|or|,)\s*\}|\b(?:and|or)\b", ",", text)
    text = re.sub(r"\\(?:text|textrm|textbf|mbox)\s*\{[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?", " ", text)
    text = _UNIT.sub(" ", text)
    text = _WRAPPERS.sub("{", text)
    text = _DROPPED.sub(" ", text)
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d./^])(\d+) +(\d+)/(\d+)", r"(\1+\2/\3)", text)  # a mixed number
    text = re.sub(r"(?<=[)\]])\s*U\s*(?=[(\[]|\\\{)", r"\\cup ", text)
    text = re.sub(r"(?<![a-zA-Z\\])(?:inf|infinity|oo)(?![a-zA-Z])", r"\\infty ", text)
    for char, macro in _UNICODE.items():
        text = text.replace(char, macro)
    return text.strip().rstrip(".").removeprefix("=").strip()


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        token = match.group(kind)
        if kind == "number":
            tokens.append((kind, token.replace(",", "")))
        else:
            tokens.append(("other", token.partition("{")[0].strip() if len(token) > 2 else token))
    check_limits(formula_tokens=len(tokens))
    return _join_words(tokens)


def _join_words(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Letters that spell a function or a constant become one token; others are symbols."""
    joined: list[tuple[str, str]] = []
    index = 0
    while index < len(tokens):
        letters = 0
        while index + letters < len(tokens) and tokens[index + letters][1].isalpha():
            letters += 1
        word = "".join(token for _, token in tokens[index : index + letters])
        name = next((word[:n] for n in (6, 5, 4, 3, 2) if word[:n] in FUNCTIONS | {"pi"}), None)
        if name is None and letters > 4:
            raise FormulaError(f"{word!r} is a word, not a product")
        joined.append(("other", "\\" + name) if name else tokens[index])
        index += len(name or " ")
    return [*joined, ("end", "")]
