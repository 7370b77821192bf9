r"""A mathematical answer without presentation (`presentation`) to tokens; units are dropped.

For `math_parser` only; the reference's route has its own tokenizer (`formula`). To teach it another
way of writing something, add a line to `_WRITINGS`.
"""

import re
from collections.abc import Callable

from .bounds import check_limits
from .formula import FormulaError
from .plain_kinds import UNITS

_UNIT_WORDS = "|".join(name for name in UNITS if len(name) > 3 or "/" in name) + (
    "|mm|cm|km|kg|mph|[kMG]?Hz|[kMG]?eV|[kM]?Pa|k[JW]|day|month|year|degree|radian|percent(?:age)?|"
    "pct|yuan|rupee|USD|EUR|GBP|unit|square|cubic|apple|people|student|way|point"
)
_UNIT_NAME = rf"(?:{_UNIT_WORDS})s?"
_UNIT_POWER = r"(?:\s*\^\s*(?:\{-?[123]\}|[123]))?"
_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt abs floor ceil"
)
FUNCTIONS = frozenset(_NAMES.split())
_SPELLED = FUNCTIONS | {"pi"}
SIGNS = {
    "=": "=", "<": "<", ">": ">", "\\lt": "<", "\\gt": ">", "\\le": "<=", "\\leq": "<=",
    "\\leqslant": "<=", "\\leqq": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "\\geqq": ">=", "\\ne": "!=", "\\neq": "!=", "=<": "<=", "=>": ">=", "==": "=",
    "<=": "<=", ">=": ">=", "!=": "!=", "\\in": "in", "\\approx": "~", "\\sim": "~",
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?[eE][-+]?\d+|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.?\d*|\.\d+)"
    r"|(?P<macro>\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+|\\[{}%|])"
    r"|(?P<sign><=|>=|=<|=>|==|!=|\*\*|.))"
)

Replacement = str | Callable[[re.Match[str]], str]


def _repeating(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as a quotient of integers."""
    before, head, repetend = match["before"] or "0", match["head"] or "", match["repetend"]
    repetend = repetend or match["other"]
    check_limits(literal_digits=len(before) + len(head) + len(repetend))
    scale, nines = 10 ** len(head), 10 ** len(repetend) - 1
    top = int(before + head) * nines + int(repetend)
    return f"(({top})/{scale * nines})"


def _chosen(match: re.Match[str]) -> str:
    """`C(n,k)` and `C_n^k` as a binomial, with P as the number of arrangements."""
    n, k = int(match[2]), int(match[3])
    if k > n:
        return match[0]
    return f"\\binom{{{n}}}{{{k}}}" if match[1] == "C" else f"({n}!/{n - k}!)"


_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_BEFORE_POINT = r"(?<![\d.])(?P<before>\d*)\.(?P<head>\d*)"
_ALL = r"(?:the\s)?(?:set\sof\s)?(?:all\s)?"
_WORD_SETS = {
    rf"{_ALL}real(?:\snumbers?|s)": r"\\mathbb{R}", rf"{_ALL}integers": r"\\mathbb{Z}",
    rf"{_ALL}natural\snumbers": r"\\mathbb{N}", rf"{_ALL}rational\snumbers": r"\\mathbb{Q}",
    rf"{_ALL}complex\snumbers": r"\\mathbb{C}",
    rf"{_ALL}positive\sreal(?:\snumbers|s)": r"(0,\\infty)",
    rf"{_ALL}real(?:\snumbers|s)\s(?:except|but|other\sthan)\s(?:for\s)?(.+)":
        r"\\mathbb{R}\\setminus\\{\1\\}",
    r"(?:the\s)?empty\sset|no\s(?:real\s)?solutions?": r"\\emptyset",
}  # fmt: skip
# Macros that are another name of something.
_OTHER_NAMES = {
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "xfrac"], "\\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "\\binom"),
    **dict.fromkeys(("varnothing", "O"), "\\emptyset "),
    **dict.fromkeys(["lvert", "rvert", "vert", "mid"], "|"),
    **dict.fromkeys(("backslash", "smallsetminus"), "\\setminus "),
    "lbrack": "[", "rbrack": "]", "lbrace": "\\{", "rbrace": "\\}", "langle": "(", "rangle": ")",
    "ast": "*", "ceil": "\\lceil ", "lg": "\\log_{10} ", "bar": "\\overline",
    "overrightarrow": "\\vec", "widehat": "\\hat", "varphi": "\\phi", "varepsilon": "\\epsilon",
}  # fmt: skip
# What a text must have for the rewritings to be tried; these, in order: patterns, and what they
# become.
_WRITINGS: dict[str, tuple[tuple[str, Replacement], ...]] = {
    r"=[^\n]*\n": ((r"(=[^\n=]*)\n(?=[^\n=]*=)", r"\1, "),),  # equations below one another
    r"[a-zA-Z]{4}": (
        *((rf"(?i)\A\s*(?:{words})\s*\Z", name) for words, name in _WORD_SETS.items()),
        (r"(?i)(?<=[\d)}])\s*(?:\\text\s*\{\s*)?\b(thousand|million|billion|trillion)\b(?:\s*\})?",
         lambda match: f"*10^{{{_POWERS[match[1].lower()]}}} "),
    ),
    r"\\[a-zA-Z{]": (
        (r"\\([a-zA-Z]+)", lambda match: _OTHER_NAMES.get(match[1], match[0])),
        (r"(?:\A|\{)([^{}]*)\\choose\b([^{}]*)(?:\}|\Z)", r"\\binom{\1}{\2}"),
        (r"\{([^{}]*)\\(?:over|atop)\b([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:mathbb|Bbb)\s*\{?\s*([RZNQC])\s*\}?", r"\\Set\1 "),
        (r"\\SetR\s*(?:\^\s*\{?\+\}?|_\s*\{?\s*(?:>\s*0|\+)\s*\}?)", r"(0,\\infty)"),
        (r"(\\Set[RZNQC]\s*)-\s*(?=\\\{)", r"\1\\setminus "),
        # Which numbers a letter stands for, behind the answer that has it.
        (r"(?<=\S)\s*(?:[,;(]|\\q?quad|\\text\s*\{[^{}]*\}|\b(?:where|for|with|any|all)\b)[\s,]*"
         r"[a-z]\s*\\in\s*\\Set[ZN]\s*(?:\^\s*\{?[+*]\}?)?\s*\)?\s*\Z", ""),
        (r"\\(?:hat|vec)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\\?([ijk])(?:math)?(?![a-zA-Z]))",
         r" \1\2 "),  # unit vectors
        (r"\^\s*\{\s*((?:\\prime\s*)+)\}|\^\s*(\\prime)(?![a-zA-Z])|\\prime(?![a-zA-Z])",
         lambda match: "'" * max(1, match[0].count("prime"))),
        # Digits without braces: each is an argument.
        (r"\\(frac|binom|sqrt)\s*(\d)(?=\d)", r"\\\1{\2}"),
        (r"\\(frac|binom)\s*(\{[^{}]*\})\s*(\d)(?=\d)", r"\\\1\2{\3}"),
        # Sets that are described: {x | x < 3}.
        (r"\A\s*\\\{\s*[a-z]\s*(?:\\in\s*\\SetR\s*)?(?:\||:)([^|]*)\\\}\s*\Z", r"\1"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", ""),
        (r"\\text\s*\{\s*(?:and|or|,)\s*\}|\\(?:lor|vee|land|wedge)(?![a-zA-Z])", ","),
    ),
    "[CP]": (
        (r"(?:\{\})?[\^_]\s*\{?(\w+)\}?\s*C\s*_\s*(\w|\{[^{}]*\})", r"\\binom{\1}{\2}"),
        (r"(?<![a-zA-Z\\])([CP])\s*\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)", _chosen),
        (r"(?<![a-zA-Z\\}^])([CP])\s*_\s*\{?(\d{1,3})\}?\s*\^\s*\{?(\d{1,3})\}?", _chosen),
    ),
    r"\d[.,]\d{3}[.,]": (  # a comma in front of decimals, points between thousands
        (r"(?<![\d.,])([1-9]\d{0,2}(?:\.\d{3})+),(\d{1,2})(?![\d,.])",
         lambda match: f"{match[1].replace('.', '')}.{match[2]}"),
        (r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![.\d])",
         lambda match: match[0].replace(".", "")),
    ),
    r"\.|dots": (  # decimals that repeat
        (_BEFORE_POINT + r"\\(?:overline|overbar|dot|hat)\s*\{?(?P<repetend>\d+)\}?",
         _repeating),
        (_BEFORE_POINT + r"(?:\(\s*(?P<repetend>\d+)\s*\)|\[(?P<other>\d+)\])(?=\s*(?:\Z|[,;)]))",
         _repeating),
        (r"(?<![\d.])(?P<before>\d*)\.(?P<head>\d{0,6}?)(?P<repetend>\d{1,6}?)(?P=repetend){2,}"
         r"(?:\.\.\.|\\[lc]?dots)", _repeating),
        (r"\\overline\s*\{(?P<before>\d*)\.(?P<head>)(?P<repetend>\d+)\}", _repeating),
        (r"(?<=\d)(?:\.\.\.|\\[lc]?dots)\s*\Z", ""),
    ),
    r"[\[\]]": (  # open ends as they are written in France
        (r"(?:(?<=\\cup)|(?<=\\cup )|\A)\s*\](?=[^\[\]()]*,)", "("),
        (r"(?<=[^\[\]()])\[\s*(?=\\cup|\Z)", ")"),
    ),
    r"[$%{\u20ac\u00a3]": (
        (r"\{,\}", ""),
        # A sum of money is one number.
        (r"(?<=\\\$)\s*\d{1,3}(?:,\s+\d{3})+(?!\d)", lambda match: re.sub(r"\s", "", match[0])),
        (r"\\\$|\\%|[%$\u20ac\u00a3]", " "),
    ),
    r"[a-zA-Z][a-zA-Z/]|C": (  # units, and words between the elements of a list
        (r"\b(?:and|or)\b", ","),
        (r"\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?-?[123]\}?)?", " "),
        (rf"(?<![a-zA-Z\\]){_UNIT_NAME}(?![a-zA-Z])\.?{_UNIT_POWER}", " "),
        (r"(?<![a-zA-Z\\])(?:inf|infinity|oo)(?![a-zA-Z])", r"\\infty "),
    ),
    r"\{": (
        (r"(?<!\\)(?<![\^_}])\{\s*\}", " "),
        (rf"\{{\s*({'|'.join(FUNCTIONS)})\s*\}}", r" \\\1 "),
    ),
    r"\d,?\s+[\dxeE]|[)\]}]\s*U": (  # in plain text
        (r"(?<![\d.])([1-9]\d{0,2}),\s+(?=0\d\d(?!\d))", r"\1"),  # no number begins with a zero
        (r"(?<=\d)\s+x\s+(?=10\s*\^)", "*"),
        (r"(?<=\d)\s+[eE](?:\s*(?=\d)|(?=[-+]\d))", "e"),
        (r"(?<=\d)(?<![_^]\d) (?=\d{3}(?!\d))", ""),
        (r"(?<![\d./^])(\d+) +(\d+)\s*/\s*(\d+)", r"(\1+\2/\3)"),  # a mixed number
        (r"(?<=[)\]}])\s*U\s*(?=[(\[]|\\\{)", r"\\cup "),
    ),
}  # fmt: skip
_REWRITES = [
    (re.compile(needed), [(re.compile(pattern), new) for pattern, new in writings])
    for needed, writings in _WRITINGS.items()
]
# What the same texts may also mean, for both sides at once: marks that have a value, `\log` as the
# natural logarithm.
_OTHER_READING: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\\?%|(?<![a-zA-Z])(?:percent|pct)(?![a-zA-Z])"), "/100 "),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])"), r"\\pi/180 "),
    (re.compile(r"(?:\\text\s*\{\s*)?(?<![a-zA-Z])degrees?(?![a-zA-Z])(?:\s*\})?"), r"\\pi/180 "),
    (re.compile(r"\\?(?<![a-zA-Z])log(?![a-zA-Z])(?!\s*_)"), r"\\ln "),
]


def has_other_reading(*texts: str) -> bool:
    """Whether one of the texts may mean something else than what it first seems to."""
    return any(pattern.search(text) for text in texts for pattern, _ in _OTHER_READING)


def tokenize(text: str, other_reading: bool = False) -> list[tuple[str, str]]:
    """Pairs of kind ("number", "other" or "end") and text; the last is the end.

    Percent and degree signs are dropped and `\\log` is the decimal logarithm; in the other reading
    they count as 1/100 and pi/180, and it is the natural one.
    """
    for pattern, meaning in _OTHER_READING if other_reading else ():
        text = pattern.sub(meaning, text)
    for needed, rewrites in _REWRITES:
        if needed.search(text):
            for pattern, new in rewrites:
                text = pattern.sub(new, text)
    return _tokens(text.strip().rstrip(".").removeprefix("=").strip())


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        token = match[kind]
        if kind == "number":
            tokens.append((kind, token.replace(",", "")))
        else:
            tokens.append(("other", token.partition("{")[0].strip() if len(token) > 2 else token))
    check_limits(formula_tokens=len(tokens))
    return _join_words(tokens)


def _join_words(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Letters that spell a function or a constant become one token; others are symbols."""
    joined: list[tuple[str, str]] = []
    index, end = 0, len(tokens)
    while index < end:
        behind = index
        while behind < end and tokens[behind][1].isalpha():
            behind += 1
        name = None
        if behind > index + 1:
            word = "".join([token for _, token in tokens[index:behind]])
            name = next((word[:n] for n in (6, 5, 4, 3, 2) if word[:n] in _SPELLED), None)
            if name is None and behind - index > 4:
                raise FormulaError(f"{word!r} is a word, not a product")
        joined.append(("other", "\\" + name) if name else tokens[index])
        index += len(name or " ")
    return [*joined, ("end", "")]
