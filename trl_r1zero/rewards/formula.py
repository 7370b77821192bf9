"""Text of a formula to an expression tree, without ever handing text to an interpreter.

The language is what sympy's `parse_expr` makes of Python's tokens with implicit multiplication:
`2x`, `x(y+1)`, `sqrt(2)x`, `x2` (a product, digit by digit group), `5!`, `0.2[3]` (a repeating
decimal), Python's number literals. What the reference would evaluate to something that is no
number (comparisons, tuples, lists, strings, attribute access, lambda, bare functions) is a syntax
error here, because there it can never end in "equal".

A tree is nested tuples: ("int", n), ("float", literal), ("symbol", name), ("constant", name),
("neg", a), ("add", a, b), ("sub", a, b), ("mul", a, b), ("div", a, b), ("pow", a, b), ("call",
name, a).
"""

import functools
import re
import unicodedata
from fractions import Fraction
from typing import Any, NamedTuple

from .bounds import check_limits

Node = tuple[Any, ...]

CONSTANTS = frozenset({"pi", "oo", "zoo", "nan"})
FUNCTIONS = frozenset({"sqrt", "ln", "frac", "re", "im"})
# Names of sympy and Python with at most two different letters that cannot be part of a number here.
_OTHER = "all csc eye ff fft fu gff hn1 hn2 id jn li ntt rf yn as if in is or"
_OTHER_NAMES = frozenset(_OTHER.split())


class FormulaError(ValueError):
    """Not a formula of the language above; the reference cannot call it equal to anything."""


class _Token(NamedTuple):
    kind: str  # "number", "repeating", "name", "newline", "end" or the operator itself
    text: str


_DIGITS = r"[0-9](?:_?[0-9])*"
_EXPONENT = rf"[eE][-+]?{_DIGITS}"
_POINT_FLOAT = rf"(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})"
_TOKEN = re.compile(
    r"(?P<blank>[ \t\f]+)"
    r"|(?P<comment>\#[^\r\n]*)"
    r"|(?P<newline>\r?\n)"
    rf"|(?P<repeating>{_POINT_FLOAT}\[[0-9_]*[0-9][0-9_]*\])"
    rf"|(?P<number>(?:{_POINT_FLOAT}(?:{_EXPONENT})?|{_DIGITS}{_EXPONENT})[jJ]?|{_DIGITS}[jJ]"
    r"|0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0(?:_?0)*|[1-9](?:_?[0-9])*)"
    r"|(?P<operator>\*\*|//|[-+*/()!])"
    r"|(?P<name>\w+)"
)


def parse_formula(text: str) -> Node:
    """The tree of `text`; FormulaError if it is none, BoundHit if it is too long or too deep."""
    check_limits(formula_chars=len(text))
    return _Parser(_tokens(text)).parse()


def _tokens(text: str) -> list[_Token]:
    tokens = []
    pos = 0
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        if match is None:
            raise FormulaError(f"unexpected character {text[pos]!r}")
        pos = match.end()
        kind = match.lastgroup or ""
        if kind not in ("blank", "comment"):
            tokens.append(_Token(match[0] if kind == "operator" else kind, match[0]))
    check_limits(formula_tokens=len(tokens))
    tokens.append(_Token("end", ""))
    return tokens


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.index = 0
        self.depth = 0

    def parse(self) -> Node:
        tree = self.sum()
        if self.peek() != "end":
            raise FormulaError(f"unexpected {self.peek()!r}")
        return tree

    def peek(self) -> str:
        return self.tokens[self.index].kind

    def take(self) -> _Token:
        token = self.tokens[self.index]
        self.index += 1
        return token

    def skip_newlines(self) -> None:
        # In parentheses a line break means nothing, but no factor may follow without a sign.
        while self.peek() == "newline" and self.depth:
            self.index += 1

    def sum(self) -> Node:
        self.skip_newlines()
        tree = self.product()
        while True:
            self.skip_newlines()
            if self.peek() not in ("+", "-"):
                return tree
            kind = "add" if self.take().kind == "+" else "sub"
            self.skip_newlines()
            tree = (kind, tree, self.product())

    def product(self) -> Node:
        tree = _product(self.signed())
        while True:
            blank = self.peek() == "newline"
            self.skip_newlines()
            kind = self.peek()
            if kind in ("*", "/"):
                self.take()
                self.skip_newlines()
                factors = self.signed()
            elif kind in _ATOM_STARTS and not blank:
                kind = "*"
                factors = self.power()
            else:
                return tree
            tree = _product([("mul" if kind == "*" else "div", tree, factors[0]), *factors[1:]])

    def signed(self) -> list[Node]:
        """A factor with its signs, which belong to the first of a name's several factors."""
        sign = 0
        while self.peek() in ("+", "-"):
            sign += self.take().kind == "-"
            self.skip_newlines()
            check_limits(formula_depth=sign)
        factors = self.power()
        for _ in range(sign):
            factors[0] = ("neg", factors[0])
        return factors

    def power(self) -> list[Node]:
        """`a**b`: the last of several factors is the base, the first the exponent."""
        factors = self.atom()
        behind = self.index
        self.skip_newlines()
        if self.peek() == "**":
            self.take()
            self.skip_newlines()
            self.enter()
            exponents = self.signed()
            self.depth -= 1
            factors[-1:] = [("pow", factors[-1], exponents[0]), *exponents[1:]]
        else:
            self.index = behind  # the caller must see the line break
        return factors

    def enter(self) -> None:
        self.depth += 1
        check_limits(formula_depth=self.depth)

    def atom(self) -> list[Node]:
        token = self.take()
        if token.kind == "number":
            factors = _number(token.text)
        elif token.kind == "repeating":
            factors = [_repeating_decimal(token.text)]
        elif token.kind == "name":
            factors = self.named(token.text)
        elif token.kind == "(":
            factors = [self.group()]
        else:
            raise FormulaError(f"unexpected {token.text!r}")
        return self.factorials(factors)

    def group(self) -> Node:
        self.enter()
        tree = self.sum()
        self.skip_newlines()
        if self.take().kind != ")":
            raise FormulaError("unbalanced parentheses")
        self.depth -= 1
        return tree

    def named(self, name: str) -> list[Node]:
        if name in FUNCTIONS:
            if self.take().kind != "(":
                raise FormulaError(f"{name} without an argument")
            return [("call", name, self.group())]
        if name in CONSTANTS:
            kind = "constant"
        elif name in _OTHER_NAMES:
            raise FormulaError(f"{name} is not a number")
        elif _is_splittable(name):
            return _split_name(name)
        else:
            kind = "symbol"
        if self.peek() != "(":
            return [(kind, name)]
        self.take()
        group = self.group()
        if self.peek() != "!":
            return [(kind, name), group]
        if kind == "symbol":
            raise FormulaError("factorial behind an applied symbol")
        # The reference takes `pi(3)!` for the factorial of a product.
        return [("mul", (kind, name), group)]

    def factorials(self, factors: list[Node]) -> list[Node]:
        marks = 0
        while self.peek() == "!":
            self.take()
            marks += 1
        if marks == 0:
            return factors
        if marks > 2:
            raise FormulaError("more than two factorial marks")
        return [("call", "factorial" if marks == 1 else "factorial2", _product(factors))]


_ATOM_STARTS = frozenset({"number", "repeating", "name", "("})


def _product(factors: list[Node]) -> Node:
    return functools.reduce(lambda left, right: ("mul", left, right), factors)


def _check_digits(text: str) -> None:
    check_limits(literal_digits=len(text))


def _integer(text: str) -> Node:
    _check_digits(text)
    return ("int", int(text, 0))


def _number(text: str) -> list[Node]:
    if text[-1] in "jJ" and not text.startswith(("0x", "0X")):
        if re.fullmatch(r"0+[1-9_].*", text[:-1]) and text[:-1].replace("_", "").isdigit():
            raise FormulaError("an integer with leading zeros")
        return [_number(text[:-1])[0], ("constant", "I")]
    if text.startswith(("0x", "0X", "0b", "0B", "0o", "0O")) or not (
        "." in text or "e" in text or "E" in text
    ):
        return [_integer(text)]
    _check_digits(text)
    literal = text.replace("_", "").lower()
    exponent = literal.partition("e")[2]
    check_limits(power_exponent=abs(int(exponent or 0)))
    return [("float", literal)]


def _repeating_decimal(text: str) -> Node:
    _check_digits(text)
    head, repetend = text.replace("_", "")[:-1].split("[")
    before, after = head.split(".")
    if before.strip("0") and before.startswith("0"):
        raise FormulaError("an integer with leading zeros")
    if not repetend.strip("0"):
        raise FormulaError("a repeating decimal needs a digit other than 0")
    scale = 10 ** len(after)
    value = int(before or "0") + Fraction(int(after or "0"), scale)
    value += Fraction(int(repetend), scale * (10 ** len(repetend) - 1))
    return ("div", ("int", value.numerator), ("int", value.denominator))


def _is_splittable(name: str) -> bool:
    if "_" in name or len(name) == 1:
        return False
    try:
        unicodedata.lookup("GREEK SMALL LETTER " + name)
    except KeyError:
        return True
    except UnicodeError:
        raise FormulaError("a name with a lone surrogate") from None
    return False


def _split_name(name: str) -> list[Node]:
    """One factor per letter, one per run of digits."""
    factors: list[Node] = []
    for match in re.finditer(r"\d+|\D", name):
        piece = match.group()
        if not any(char.isdigit() for char in piece):
            factors.append(("symbol", piece))
        elif re.fullmatch(r"0+|[1-9][0-9]*", piece):
            factors.append(_integer(piece))
        else:
            raise FormulaError(f"{piece!r} inside a name is not a number")
    return factors


Step = tuple
_BINARY = frozenset({"add", "sub", "mul", "div", "pow"})


def compile_tree(tree: Node) -> list[Step]:
    """The tree as a postfix program: steps that leave its value on an empty stack.

    So no evaluator recurses, and a sum of a thousand terms, a tree a thousand levels deep, is a
    list. A step is a tuple: ("int", n), ("float", literal), ("symbol", name), ("constant", name)
    push a value; ("neg",), ("call", name) replace the top; ("add",), ("sub",), ("mul",), ("div",),
    ("pow",) replace the two on top.
    """
    steps: list[Step] = []
    pending: list[Node] = [tree]
    # Right-to-left preorder, reversed, is left-to-right postorder.
    while pending:
        node = pending.pop()
        arguments = {"neg": 1, "call": 2}.get(node[0], 1 if node[0] in _BINARY else len(node))
        steps.append(node[:arguments])
        pending += node[arguments:]
    return steps[::-1]
