r"""What an answer is dressed in, taken off: sizes, styles, colours, boxes, spacing, delimiters,
Markdown, HTML, labels such as "The answer is", trailing punctuation, unicode forms.

For `math_reward` only, on answers and ground truths alike, before anything reads them as
mathematics. To teach it a wrapper, add a name to a table. What could be mathematics stays: `**` and
`*` between operands, a dash in front of a number, `!`, `\overline`, an ellipsis.
"""

import html
import re
import unicodedata
from functools import lru_cache

_STYLE_NAMES = (
    "boldsymbol bm bold pmb mathbf mathrm mathit mathsf mathtt mathcal mathscr mathfrak "
    "mathnormal mathbin mathord mathop mathrel mathopen mathclose mathpunct mathstrut "
    "ensuremath boxed fbox framebox underline uline underbar smash mathclap mathrlap mathllap "
    "displaylines centerline mathsurround rm bf it sf tt sl sc cal em bfseries itshape "
    "rmfamily sffamily ttfamily mdseries upshape slshape scshape normalfont boldmath "
    "unboldmath cancel hl highlight bbox tiny scriptsize footnotesize small normalsize large Large "
    "LARGE huge Huge HUGE displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits "
    "bigm Bigm biggm Biggm Biggl Biggr quad qquad enspace enskip kern mkern hskip mskip thinspace "
    "medspace thickspace negthinspace space nobreakspace allowbreak nobreak linebreak newline "
    "break par noindent strut hfill hfil operatorname nonumber notag "
    "blacksquare Box qed qedhere checkmark centering raggedright relax null therefore implies "
    "Rightarrow Longrightarrow Leftrightarrow iff to rightarrow longrightarrow"
)
_WITH_ONE = (
    "textcolor colorbox color scalebox raisebox enclose style class cssId hspace vspace phantom "
    "hphantom vphantom tag label ref footnote"
)
_SIZES = "left right middle big bigl bigr Big Bigl Bigr bigg biggl biggr Bigg"
_NO_SPACE = frozenset(_SIZES.split())
# Macros that say how their last argument looks -> how many arguments stand before that one.
_STYLES = {
    **dict.fromkeys([*_STYLE_NAMES.split(), *_NO_SPACE], 0), **dict.fromkeys(_WITH_ONE.split(), 1),
    **dict.fromkeys(("fcolorbox", "resizebox", "fontsize", "rule"), 2),
}  # fmt: skip
_TEXT_NAMES = (
    "text textrm textbf textit textsf texttt textsl textsc textup textmd textnormal emph mbox "
    "hbox textmath"
)
_TEXT_STYLES = frozenset(_TEXT_NAMES.split())
# A macro (with the blanks that belong to it), a spacing character, a length behind `\kern`.
_MACRO = re.compile(
    r"\\(?P<name>[a-zA-Z]+)\*?(?P<length>(?<=kern|skip)\s*-?[\d.]+\s*(?:em|ex|pt|mu|cm|mm))?\s*"
    r"|\\(?:!\s*|[,;:>/ \n]|(?=\Z))|(?P<skip>\\.)",
    re.DOTALL,
)
_ENVIRONMENTS = (
    "align alignat aligned equation gather gathered split multline eqnarray center displaymath "
    "math flushleft"
).replace(" ", "|")
_ENVIRONMENT = re.compile(
    rf"\s*\\begin\{{((?:{_ENVIRONMENTS})\*?)\}}(.*)\\end\{{\1\}}\s*", re.DOTALL
)

_ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});")
_TAG = re.compile(
    r"</?(?:b|i|u|p|s|br|em|strong|span|div|code|pre|tt|mark|font|center|big|small|strike|math|"
    r"answer|final_answer|ans|body|h[1-6]|kbd|q)(?:\s[^<>]{0,200})?\s?/?>|<\|[a-z_]{1,20}\|>|</?s>"
)
_NEXT_TURN = re.compile(r"(?<=\S)\s*<\|(?:im_start|im_end|eot_id|endoftext)\|>.*", re.DOTALL)
_SCRIPT_TAGS = ((re.compile(r"<sup>([^<>]*)</sup>"), r"^{\1}"),
                (re.compile(r"<sub>([^<>]*)</sub>"), r"_{\1}"))  # fmt: skip

# Characters -> what the mathematics below reads.
_CHARACTERS = {
    "-": "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", " ": "\u00a0\u202f\u205f\u3000",
    "": "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\u2061\u2062\u2063\ufe0f\u202a\u202c"
    "\u220e\u25a0\u25a1\u2713\u2714\u2705",
    "*": "\u2217\u22c6", "\\cdot ": "\u00b7\u22c5\u2219\u2022", "\\times ": "\u00d7\u2a2f",
    "\\div ": "\u00f7", "/": "\u2044\u2215", ":": "\u2236", "\\le ": "\u2264\u2a7d\u2266",
    "\\ge ": "\u2265\u2a7e\u2267", "\\ne ": "\u2260", "\\approx ": "\u2248\u2243\u2245",
    "\\infty ": "\u221e", "\\cup ": "\u222a\u22c3", "\\cap ": "\u2229", "\\in ": "\u2208",
    "\\pm ": "\u00b1", "\\mp ": "\u2213", "^\\circ ": "\u00b0\u00ba\u02da", "\\emptyset ": "\u2205",
    "'": "\u2032\u2018\u2019\u02b9", "''": "\u2033", '"': "\u201c\u201d\u201e\u00ab\u00bb",
    "\\mathbb{R}": "\u211d", "\\mathbb{Z}": "\u2124", "\\mathbb{N}": "\u2115",
    "\\mathbb{Q}": "\u211a", "\\mathbb{C}": "\u2102", "\\setminus ": "\u2216", "|": "\u2223",
    "\\lfloor ": "\u230a", "\\rfloor ": "\u230b", "\\lceil ": "\u2308", "\\rceil ": "\u2309",
    "\\langle ": "\u27e8\u2329", "\\rangle ": "\u27e9\u232a", "...": "\u2026\u22ef",
    " \\Rightarrow ": "\u21d2\u2192\u27f9\u2234",
    "\\pi ": "\u03c0\U0001d70b", "\\angle ": "\u2220", "\\triangle ": "\u25b3\u2206",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma tau upsilon phi chi psi omega"
)
_GREEK = {
    chr(code): f"\\{name} "
    for code, name in zip(
        [*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA)],
        _GREEK_NAMES.split(),
        strict=False,
    )
}
_TRANSLATION = str.maketrans(
    {character: new for new, characters in _CHARACTERS.items() for character in characters}
    | {code: " " for code in map(chr, range(0x2000, 0x200B))}
    | _GREEK
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207f]+")
_LOWERED = re.compile("[\u2080-\u208e]+")
_STYLED = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff\u2460-\u2473]+")
_ROOT = re.compile("([\u221a\u221b\u221c])\\s*(\\d+(?:\\.\\d+)?|[a-zA-Z])?")

# Emphasis: a mark that opens where no operand stands before it and closes where none follows.
_EMPHASIS = re.compile(
    r"(?<![\w)\]}*!])(\*{1,3}|~~)(?=[^\s*~])([^*~]+?)(?<=\S)\1(?![\w({\\*])"
    r"|(?<![\w)\]}\\])(_{1,3})(?=[^\s_{])((?:[^_]|_(?=[\w{]))+?)(?<=[^\s_])\3(?![\w({\\])"
    r"|(`{1,3})(?:[a-z]*\n)?([^`]+)\5"
)
_MARK = re.compile("[*_~`]")
_BLOCK = re.compile(r"\A\s*(?:#{1,6}\s|>\s|[\u2022\u25cf]\s|\\cdot\s)\s*")

_LEAD_IN = re.compile(
    r"""\s*(?:
    (?:(?:so|thus|hence|therefore|then|finally|consequently|clearly|ok(?:ay)?|in\ conclusion|
       in\ summary|to\ conclude|as\ a\ result|it\ follows\ that|we\ conclude\ that|
       (?:and\ )?(?:so\ )?we\ (?:get|have|find|obtain|see)(?:\ that)?|(?:this|which|that)\ gives|
       (?:this|which|that)\ (?:simplifies|evaluates)\ to|it\ is|it's|
       \\(?:therefore|implies|Rightarrow|Longrightarrow)\b|=>|->|approximately|about|roughly)[\s,:]+|(?:=|\\approx(?![a-z]))\s*)
    |(?:(?:the|my|our|your|an?|one)\s+)?
     (?:(?:final|correct|right|exact|numerical|simplified|desired|required|overall|full|complete|
        resulting|only|best|single)\s+){0,3}
     (?:answer|solution|result|value|ans\b\.?|output|conclusion|final)
     (?:\s+(?:to|of|for|in)\s+(?:the|this|our|that)?\s?[a-zA-Z']{1,20}(?:\ [a-zA-Z']{1,20}){0,3}?)?
     \s*(?:(?:\s(?:is|are|equals|was|would\ be|should\ be|must\ be|will\ be|comes\ (?:out\ )?to)
           \b(?!\s+(?:not|wrong|no|n't)\b)
           (?:\s+(?:simply|just|therefore|thus|hence|given\ by|equal\ to|as\ follows|now)\b)?
           |:|=|-+>|\s-\s|\s?\u2014|\n)\s*[:=]?\s*)
    |A\s?:\s
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_TRAIL = re.compile(
    r"""(?:(?:\s|\\\\|(?<!\.)\.(?!\d)|[,;:]|(?<=[\w)}\]$.])\?)+
    |[\s,.;(]\s*(?:(?:which|that|this|and\ that|and\ this|it|so\ that)\s)?
     (?:is|are|was|as|being|equals)\s(?:the|my|our)\s(?:(?:final|correct|right|exact)\s){0,2}
     (?:answer|solution|result)\)?
    |[\s,.;(]\s*(?:as\s)?(?:required|desired|requested|needed|claimed|\(?q\.?e\.?d\.?)\)?
    |\(?final\sanswer\)?|[\s.]\s*i\shope\s(?:it|this)\s(?:is\scorrect|helps).{0,40}
    )\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_TRAIL_CHARS = 120
_MAY_TRAIL = re.compile(r"[\s.,;:?)\\a-zA-Z]\Z|(?i:hope)")
_GROUP_IN_FRONT = re.compile(r"\s*(?:\\text\s?)?\{([^{}]{1,100})\}")
_PAIRS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]", "``": "''", '"': '"', "'": "'"}
_OPENING = frozenset("$\\`\"'{")
_ROUNDS = 12


@lru_cache(maxsize=4096)
def undress(text: str) -> str:
    """`text` without what it is dressed in; itself where nothing else would be left."""
    bare = _plain_characters(text)
    for _ in range(_ROUNDS):
        before = bare
        for step in (_without_markup, _without_macros, _without_labels, _without_pairs):
            bare = step(bare).strip() or bare
        if bare == before:
            break
    return bare


def _plain_characters(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if text.isascii():
        return text
    text = _VULGAR.sub(_fraction, text)
    text = _RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _ROOT.sub(_root, text)
    text = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return text.translate(_TRANSLATION)


def _fraction(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match[0]).split("\u2044")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _root(match: re.Match[str]) -> str:
    index = {"\u221a": "", "\u221b": "[3]", "\u221c": "[4]"}[match[1]]
    return f"\\sqrt{index}" + (f"{{{match[2]}}}" if match[2] else "")


def _without_markup(text: str) -> str:
    if "<" in text:
        text = _NEXT_TURN.sub("", text)
        for pattern, script in _SCRIPT_TAGS:
            text = pattern.sub(script, text)
        text = _TAG.sub(" ", text)
    text = _BLOCK.sub("", text)
    if _MARK.search(text) is None:
        return text
    return _EMPHASIS.sub(lambda match: match[2] or match[4] or match[6], text)


def _without_macros(text: str) -> str:
    text = text.replace("~", " ")
    if "\\" not in text:
        return text
    environment = _ENVIRONMENT.fullmatch(text)
    if environment is not None:
        text = environment[2]
        # The marks of alignment, but not those of a matrix in it.
        text = text.strip("& ") if "\\begin" in text else text.replace("&", " ")
        if environment[1].startswith("alignat"):
            text = re.sub(r"\A\s*\{\d+\}", "", text)
    ends = _group_ends(text)
    out: list[str] = []
    position = 0
    for match in _MACRO.finditer(text):
        start, end = match.span()
        if start < position:
            continue
        name = match["name"]
        new = None
        if name in _TEXT_STYLES:
            new = _text_style(text, end, ends.get(end, end))
        elif name in _STYLES:
            end = _after_arguments(text, end, _STYLES[name], ends)
            new = "" if name in _NO_SPACE else " "
            if name in ("left", "right") and text.startswith(".", end):
                end += 1
        elif name is None and match["skip"] is None:
            new = "" if match[0].startswith("\\!") else " "
        if new is not None:
            out += [text[position:start], new]
            position = end
    out.append(text[position:])
    return "".join(out)


def _group_ends(text: str) -> dict[int, int]:
    """Where each group in braces ends, behind its brace; escaped braces are none."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.end()
    return ends


def _text_style(text: str, start: int, end: int) -> str | None:
    """The macro in front of a group: none before mathematics, `\\text` before words."""
    inside = text[start + 1 : min(end - 1, start + 200)]
    if start == end or re.search(r"[\d$^=+]|\\(?!(?:text|&|%|\$))", inside):
        return ""
    return "\\text"


def _after_arguments(text: str, position: int, count: int, ends: dict[int, int]) -> int:
    while text.startswith("[", position) and count:
        position = text.find("]", position) + 1 or position + 1
    for _ in range(count):
        position = ends.get(position, position)
        if text.startswith("[", position):  # \colorbox[rgb]{...}
            position = text.find("]", position) + 1 or position + 1
    return position


def _without_labels(text: str) -> str:
    words = _GROUP_IN_FRONT.match(text)
    if words is not None and words.end() < len(text):
        label = _LEAD_IN.match(words[1] + " ")
        if label is not None and label.end() >= len(words[1]):
            text = text[words.end() :]
    lead_in = _LEAD_IN.match(text)
    if lead_in is not None:
        text = text[lead_in.end() :]
    while _MAY_TRAIL.search(text, len(text) - _TRAIL_CHARS):
        trail = _TRAIL.search(text, len(text) - _TRAIL_CHARS)
        if trail is None or trail.start() == 0:
            break
        text = text[: trail.start()]
    return text


def _without_pairs(text: str) -> str:
    """Without a pair of delimiters, quotes or braces around all of it, or half of one."""
    if text[:1] not in _OPENING and text[-1:] != "$":
        return text
    for opening, closing in _PAIRS.items():
        inside = text[len(opening) : len(text) - len(closing)]
        if (
            len(text) >= len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and not _has(inside, opening)
            and not _has(inside, closing)
        ):
            return inside
    opened = re.match(r"(?:\\text\s?)?(?=\{)", text)
    if opened is not None and _group_ends(text).get(opened.end()) == len(text):
        return text[opened.end() + 1 : -1]
    for half in ("$$", "$"):
        if len(_DOLLAR.findall(text)) == len(half) and half in (
            text[: len(half)],
            text[-len(half) :],
        ):
            return text.removeprefix(half).removesuffix(half)
    return text


_DOLLAR = re.compile(r"(?<!\\)\$")


def _has(text: str, mark: str) -> bool:
    return bool(_DOLLAR.search(text)) if "$" in mark else mark in text
