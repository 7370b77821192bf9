"""LaTeX to plain text as pylatexenc 2.10 and 2.11 do it with default options, about twenty times
faster.

`latex_to_text` reads the common part of the language (groups, macros with their arguments, the
character ligatures) in one pass over the string; the replacement texts come from pylatexenc's own
tables. Environments, math delimiters and macros with unusual arguments are handed to pylatexenc
itself, under a budget of tokens. The reference's own quirks are part of the contract:
`\\frac{a}{b}` becomes `a/b` without grouping, the index of a root is dropped, an unfinished
`\\frac` becomes `%s/%s`, and a macro that pylatexenc cannot render leaves the whole text as it
was.
"""

import logging
import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from .bounds import BoundHit, check_limits


class UnrenderableError(Exception):
    """pylatexenc raises on this text; the caller keeps the text unchanged."""


class _Unsupported(Exception):
    """Outside the part of the language that is read here."""


def latex_to_text(text: str) -> str:
    """Plain text of `text`; UnrenderableError where pylatexenc raises, BoundHit at a limit."""
    check_limits(latex_chars=len(text))
    if _NEEDS_PYLATEXENC.search(text):
        return _pylatexenc_text(text)
    try:
        return _Reader(text).read_nodes("")
    except (_Unsupported, UnrenderableError):
        # An unrenderable macro inside an argument that is dropped does no harm: pylatexenc has the
        # last word.
        return _pylatexenc_text(text)


# Environments, math delimiters (other than the dollar sign, which never gets here), comments.
_NEEDS_PYLATEXENC = re.compile(r"\\(?:begin|end|[()\[\]])|[%$]")
_STOP = re.compile(r"[\\{}\[\]&~`'\-!?]")
# Of two that begin alike, the longer one first.
_SPECIALS = {
    "---": "\u2014", "--": "\u2013", "``": "\u201c", "''": "\u201d", "!`": "\u00a1", "?`": "\u00bf",
    "&": "   ", "~": "\u00a0",
}  # fmt: skip


class _EndOfText(Exception):
    """An argument was expected and the text is over."""


class _Reader:
    """One pass over a text; `pos` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.depth = 0
        self.steps = 0

    def read_nodes(self, closing: str) -> str:
        """Text of everything up to `closing` ("}", "]", or "" for the end of the text)."""
        self.depth += 1
        check_limits(latex_depth=self.depth)
        text = self.text
        out: list[str] = []
        while True:
            stop = _STOP.search(text, self.pos)
            if stop is None:
                out.append(text[self.pos :])
                self.pos = len(text)
                break
            out.append(text[self.pos : stop.start()])
            self.pos = stop.start()
            self.step()
            char = text[self.pos]
            if char == "\\":
                if self.pos + 1 >= len(text):
                    # A lone backslash ends the text and takes the blanks before it along, back to
                    # a paragraph break.
                    out[-1] = _without_trailing_blanks(out[-1])
                    self.pos = len(text)
                    break
                out.append(self.read_macro())
            elif char == "{" or (char == "[" and closing == "]"):
                self.pos += 1
                out.append(self.read_nodes("}" if char == "{" else "]"))
            elif char == closing:
                self.pos += 1
                break
            elif char == "}":
                self.pos += 1
            else:
                out.append(self.read_special() or self.read_char())
        self.depth -= 1
        return "".join(out)

    def step(self) -> None:
        self.steps += 1
        check_limits(latex_steps=self.steps)

    def read_char(self) -> str:
        self.pos += 1
        return self.text[self.pos - 1]

    def read_special(self) -> str:
        for special, character in _SPECIALS.items():
            if self.text.startswith(special, self.pos):
                self.pos += len(special)
                return character
        return ""

    def read_macro_name(self) -> str:
        """Name of the macro at `pos`, which is left behind the blanks that belong to the macro."""
        text = self.text
        end = self.pos + 2
        if not text[self.pos + 1].isalpha():
            self.pos = end
            return text[end - 1]
        while end < len(text) and text[end].isalpha():
            end += 1
        name = text[self.pos + 1 : end]
        self.pos = self.skip_blanks(end)
        return name

    def skip_blanks(self, pos: int) -> int:
        """Position after the blanks at `pos`, or of the blank line among them."""
        text = self.text
        start = pos
        while pos < len(text) and text[pos].isspace():
            pos += 1
            if text.endswith("\n\n", start, pos):
                return pos - 2
        return pos

    def read_macro(self) -> str:
        macro = _macro(self.read_macro_name())
        if not macro.arguments:
            return macro.render([])
        start = self.pos
        depth = self.depth
        try:
            arguments = [self.read_argument(kind) for kind in macro.arguments]
        except _EndOfText:
            # The macro then has none, and what was read for them is read again as plain content.
            self.pos = start
            self.depth = depth
            return macro.bare()
        return macro.render(arguments)

    def read_argument(self, kind: str) -> str:
        self.step()
        text = self.text
        pos = self.skip_blanks(self.pos)
        if kind == "[":
            if pos >= len(text) or text[pos] != "[":
                return ""
            self.pos = pos + 1
            return self.read_nodes("]")
        if text.startswith("\n\n", pos):
            self.pos = pos + 2
            return "\n\n"
        if pos >= len(text) or text[pos:] == "\\":
            raise _EndOfText
        self.pos = pos
        char = text[pos]
        if char == "{":
            self.pos += 1
            return self.read_nodes("}")
        if char == "}":
            return ""
        if char == "\\":
            return _macro(self.read_macro_name()).bare()
        return self.read_special() or self.read_char()


def _without_trailing_blanks(text: str) -> str:
    end = len(text.rstrip())
    paragraph = text.find("\n\n", end)
    while paragraph >= 0:
        end = paragraph + 2
        paragraph = text.find("\n\n", end)
    return text[:end]


class _Macro(NamedTuple):
    """A macro: its arguments (a string of "{" and "["), its text with and without them."""

    arguments: str
    render: Callable[[list[str]], str]
    bare: Callable[[], str]


def _raise_unrenderable() -> str:
    raise UnrenderableError


@lru_cache(maxsize=4096)
def _macro(name: str) -> _Macro:
    walker, texts = _databases()
    spec = walker.get_macro_spec(name)
    arguments = getattr(getattr(spec, "args_parser", None), "argspec", None) or ""
    text_spec = texts.get_macro_spec(name)
    replacement = None if text_spec is None else text_spec.simplify_repl
    if spec is not None and type(spec.args_parser).__name__ != "MacroStandardArgsParser":
        raise _Unsupported
    if name == "sqrt":
        return _Macro("[{", lambda args: f"\u221a({args[1]})", _raise_unrenderable)
    if not replacement:
        keep = text_spec is not None and not text_spec.discard
        if set(arguments) <= {"{"}:
            return _Macro(arguments, "".join if keep else lambda _: "", lambda: "")
    elif isinstance(replacement, str):
        constant = replacement
        if arguments == "" and ("%" not in constant or len(constant) == 1):
            return _Macro("", lambda _: constant, lambda: constant)
        if constant == "%s/%s" and arguments == "{{":
            return _Macro(arguments, "/".join, lambda: constant)
        if constant == "%s" and arguments == "{":
            return _Macro(arguments, "".join, lambda: constant)
    elif arguments == "{" and name in _ACCENTS:
        mark = _ACCENTS[name]
        return _Macro("{", lambda args: _accented(args[0].strip(), mark), lambda: " " + mark)
    elif arguments == "{" and name in _ALPHABETS:
        style = _ALPHABETS[name]
        return _Macro(arguments, lambda args: _styled(args[0], style), lambda: "")
    raise _Unsupported


_ACCENTS = {
    "vec": "\u20d7", "dot": "\u0307", "hat": "\u0302", "tilde": "\u0303", "bar": "\u0305",
    "ddot": "\u0308", "not": "\u0338", ".": "\u0307", "'": "\u0301",
}  # fmt: skip
_ALPHABETS = {
    "mathbf": "bold", "mathit": "italic", "mathsf": "sans", "mathbb": "doublestruck",
    "mathtt": "monospace", "mathcal": "script", "mathscr": "script", "mathfrak": "fraktur",
}  # fmt: skip


def _accented(text: str, mark: str) -> str:
    undotted = {"\u0131": "i", "\u0237": "j"}
    return "".join(unicodedata.normalize("NFC", undotted.get(char, char) + mark) for char in text)


def _styled(text: str, style: str) -> str:
    from pylatexenc.latex2text import fmt_math_text_style

    return fmt_math_text_style(text, style)


@cache
def _databases() -> tuple[Any, Any]:
    from pylatexenc import latex2text, latexwalker

    # It warns of a faulty configuration whenever a model writes `\\frac` without arguments.
    logging.getLogger(latex2text.__name__).setLevel(logging.ERROR)
    return latexwalker.get_default_latex_context_db(), latex2text.get_default_latex_context_db()


@cache
def _budgeted_walker() -> Any:
    from pylatexenc import latexwalker

    class BudgetedWalker(latexwalker.LatexWalker):
        """Counts tokens: text of macros that lack their last argument is read again and again."""

        tokens_read = 0

        def get_token(self, *args: Any, **kwargs: Any) -> Any:
            self.tokens_read += 1
            check_limits(latex_steps=self.tokens_read)
            return super().get_token(*args, **kwargs)

    return BudgetedWalker


def _pylatexenc_text(text: str) -> str:
    from pylatexenc import latex2text

    check_limits(latex_depth=_depth(text))
    check_limits(latex_matrix_chars=_matrix_chars(text))
    walker = _budgeted_walker()(text, latex_context=_databases()[0])
    try:
        nodes = walker.get_latex_nodes()[0]
        return latex2text.LatexNodes2Text(latex_context=_databases()[1]).nodelist_to_text(nodes)
    except BoundHit:
        raise
    except RecursionError:
        raise BoundHit("latex_depth") from None
    except Exception as error:  # KeyError, TypeError, ValueError and errors of pylatexenc's own
        raise UnrenderableError(str(error)) from error


def _matrix_chars(text: str) -> int:
    """At most how long the text of the matrices is.

    pylatexenc pads each cell to the widest one of its matrix, so that a matrix is as long as its
    widest cell times its cells; in a nest of matrices these factors multiply.
    """
    depth = deepest = 0
    for match in re.finditer(r"\\(begin|end)", text):
        depth = depth + 1 if match.group(1) == "begin" else max(0, depth - 1)
        deepest = max(deepest, depth)
    cells = text.count("&") + text.count("\\\\") + 1
    return len(text) * cells**deepest


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in re.finditer(r"\\begin|\\end|\\?[{}()\[\]]", text):
        token = match.group()
        if token in ("{", "[", "\\begin", "\\(", "\\["):
            depth += 1
            deepest = max(deepest, depth)
        elif token in ("}", "]", "\\end", "\\)", "\\]"):
            depth = max(0, depth - 1)
    return deepest
