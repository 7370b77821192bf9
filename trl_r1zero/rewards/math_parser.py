"""A mathematical answer, LaTeX or plain, to a typed value; grouping, roots and sets are kept apart.

This parser serves `math_reward` only. In contrast to the reference's route (`symbolic`), a fraction
groups its numerator and denominator, a root keeps its index, braces mean grouping or a set, and a
text may be a list, a tuple, an interval, a union, a matrix or a relation.

Values: ("number", node) with a tree as in `formula`; ("list", items) without brackets;
("set", items); ("tuple", "(" or "[", items, ")" or "]"), which an interval of two ends is too;
("union", items); ("matrix", rows); ("relation", sign, left, right).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .bounds import check_limits
from .formula import FormulaError, Node
from .math_tokens import FUNCTIONS, SIGNS, tokenize

MathValue = tuple[Any, ...]


def parse_math(text: str) -> MathValue:
    """The value of `text`; FormulaError if it is no mathematics, BoundHit if it is too large."""
    check_limits(formula_chars=len(text))
    return _Parser(tokenize(text)).parse()


def _few(alternatives: list[Node]) -> list[Node]:
    """What a formula with `\\pm` may stand for; each sign doubles it, so it is limited at once."""
    check_limits(plus_minus_alternatives=len(alternatives))
    return alternatives


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.index = 0
        self.depth = 0

    def parse(self) -> MathValue:
        groups = [self.items_until({"", ";"})]
        while self.accept(";"):
            groups.append(self.items_until({"", ";"}))
        groups = [group for group in groups if group]
        if self.peek() != "" or not groups:
            raise FormulaError("empty, or unbalanced brackets")
        if len(groups) > 1 and all(len(group) > 1 for group in groups):
            # `p=5, q=2; p=7, q=2` lists pairs.
            return ("list", [("tuple", "(", group, ")") for group in groups])
        value = [item for group in groups for item in group]
        return value[0] if len(value) == 1 else ("list", value)

    def peek(self) -> str:
        return self.tokens[self.index][1]

    def take(self) -> str:
        self.index += self.tokens[self.index][0] != "end"
        return self.tokens[self.index - 1][1]

    def accept(self, *texts: str) -> bool:
        if self.tokens[self.index][0] != "end" and self.peek() in texts:
            self.index += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise FormulaError(f"expected {text!r}, found {self.peek()!r}")

    def items_until(self, closing: set[str]) -> list[MathValue]:
        """Values separated by commas or semicolons, up to a closing token, which stays."""
        items: list[MathValue] = []
        with self.level():
            while self.peek() not in closing:
                if self.accept(",", ";"):
                    continue
                items += self.relation()
                if self.peek() not in closing and self.peek() not in (",", ";"):
                    raise FormulaError(f"unexpected {self.peek()!r}")
        return items

    @contextmanager
    def level(self) -> Iterator[None]:
        """One level deeper; every rule that can come back to itself goes through it."""
        self.depth += 1
        check_limits(formula_depth=self.depth)
        try:
            yield
        finally:
            self.depth -= 1

    def relation(self) -> list[MathValue]:
        left = self.union()
        chain: list[tuple[str, list[MathValue]]] = []
        while self.peek() in SIGNS:
            sign = SIGNS[self.take()]
            chain.append((sign, self.union()))
        if not chain:
            return left
        values = [left, *(value for _, value in chain)]
        signs = [sign for sign, _ in chain]
        if signs[-1] == "in":
            return values[-1]
        if signs[-1] == "~":
            # `x = 1/3 ~ 0.33` means the exact value, `x ~ 11` the only one there is.
            return values[-2] if len(values) > 2 or not _is_name(left) else values[-1]
        if all(sign == "=" for sign in signs):
            if len(values) > 2 or _is_name(left) or len(left) != 1 or len(values[-1]) != 1:
                return values[-1]
            return [("relation", "=", left[0], values[-1][0])]
        if any(len(value) != 1 for value in values) or len(values) > 3:
            raise FormulaError("a relation of lists")
        if len(values) == 3:
            return [_between(values[0][0], signs[0], signs[1], values[2][0])]
        return [("relation", signs[0], values[0][0], values[1][0])]

    def union(self) -> list[MathValue]:
        parts = self.sum_values()
        if self.peek() != "\\cup":
            return parts
        while self.accept("\\cup"):
            parts += self.sum_values()
        return [("union", parts)]

    def sum_values(self) -> list[MathValue]:
        """A sum; a plus-minus sign makes two of it. A bracketed group alone may be a tuple."""
        structure = self.structure()
        if structure is not None:
            return [structure]
        return [("number", node) for node in self.sum()]

    def structure(self) -> MathValue | None:
        """A set, tuple, interval or matrix at this point, or None (and nothing is read)."""
        start, depth = self.index, self.depth
        if self.peek() == "\\begin":
            return self.matrix()
        opening = self.take() if self.peek() in ("(", "[", "\\{", "{") else ""
        closing = {"(": {")", "]"}, "[": {")", "]"}, "\\{": {"\\}"}, "{": {"}"}}.get(opening)
        if closing is not None:
            try:
                items = self.items_until(closing)
                closed = self.take()
                several = len(items) > 1 or opening == "\\{" or (opening == "[" and closed == "]")
                if several and (self.peek() in _BEHIND or self.peek() in SIGNS):
                    if opening in ("\\{", "{"):
                        return ("set", items)
                    return ("tuple", opening, items, closed)
            except FormulaError:
                pass
        self.index, self.depth = start, depth
        return None

    def matrix(self) -> MathValue:
        self.take()
        if self.peek() == "{":
            while self.take() != "}":
                if self.peek() == "":
                    raise FormulaError("unfinished column specification")
        rows: list[list[MathValue]] = [[]]
        while not self.accept("\\end"):
            if self.peek() == "":
                raise FormulaError("\\begin without \\end")
            if self.accept("\\"):
                self.expect("\\")
                rows.append([])
            elif not self.accept("&"):
                rows[-1] += self.sum_values()
        return ("matrix", [row for row in rows if row])

    def sum(self) -> list[Node]:
        totals = self.product()
        while self.peek() in ("+", "-", "\\pm", "\\mp"):
            sign = self.take()
            terms = self.product()
            kinds = {"+": ["add"], "-": ["sub"]}.get(sign, ["add", "sub"])
            totals = _few([(kind, a, b) for a in totals for kind in kinds for b in terms])
        return totals

    def product(self) -> list[Node]:
        factors = self.signed()
        while True:
            if self.accept("*", "\\cdot", "\\times"):
                right, kind = self.signed(), "mul"
            elif self.accept("/", "\\div", ":"):
                right, kind = self.signed(), "div"
            elif self.starts_factor():
                right, kind = self.power(), "mul"
            else:
                return factors
            factors = _few([(kind, a, b) for a in factors for b in right])

    def starts_factor(self) -> bool:
        kind, token = self.tokens[self.index]
        if kind == "number" or token in ("(", "[", "{", "\\frac", "\\sqrt", "\\lfloor"):
            return True
        return token.isalpha() or (token.startswith("\\") and token[1:] in FUNCTIONS | _GREEK)

    def signed(self) -> list[Node]:
        with self.level():
            if self.accept("+"):
                return self.signed()
            if self.accept("-"):
                return [("neg", node) for node in self.signed()]
            if self.accept("\\pm", "\\mp"):
                return _few([signed for node in self.signed() for signed in (node, ("neg", node))])
        return self.power()

    def power(self) -> list[Node]:
        bases = self.atom()
        while self.accept("!"):
            bases = [("call", "factorial", base) for base in bases]
        if self.accept("^", "**"):
            exponents = self.argument()
            return _few([("pow", base, exponent) for base in bases for exponent in exponents])
        return bases

    def argument(self) -> list[Node]:
        """What stands behind `^`, `\\frac` or `\\sqrt`: a group, a signed atom, one digit."""
        if not self.accept("-"):
            return self.atom()
        with self.level():
            return [("neg", node) for node in self.argument()]

    def digit_or_group(self) -> list[Node]:
        """An argument of `\\frac`: of the digits of a number without braces only the first
        counts."""
        kind, token = self.tokens[self.index]
        if kind == "number" and len(token) > 1 and token.isdigit():
            self.tokens[self.index] = (kind, token[1:])
            return [("int", int(token[0]))]
        return self.argument()

    def group(self, closing: str) -> list[Node]:
        nodes = self.sum()
        self.expect(closing)
        return nodes

    def atom(self) -> list[Node]:
        with self.level():
            return self.atom_of_level()

    def atom_of_level(self) -> list[Node]:
        kind, token = self.tokens[self.index]
        if kind == "end":
            raise FormulaError("the text ends too early")
        self.index += 1
        if kind == "number":
            check_limits(literal_digits=len(token))
            check_limits(power_exponent=abs(int(token.lower().partition("e")[2] or 0)))
            if not token.isdigit():
                return [("float", token)]
            return [self.mixed_number(int(token))]
        if token in _CLOSING:
            return self.group(_CLOSING[token])
        if token in ("|", "\\lfloor"):
            name, closing = ("abs", "|") if token == "|" else ("floor", "\\rfloor")
            return [("call", name, node) for node in self.group(closing)]
        if token == "\\frac":
            tops, bottoms = self.digit_or_group(), self.digit_or_group()
            return _few([("div", top, bottom) for top in tops for bottom in bottoms])
        if token == "\\sqrt":
            return self.root()
        if token in ("\\infty", "\\pi"):
            return [("constant", "oo" if token == "\\infty" else "pi")]
        if token[1:] in FUNCTIONS and token.startswith("\\"):
            return self.function(token[1:])
        if token.isalpha() or token[1:] in _GREEK:
            return [self.symbol(token)]
        raise FormulaError(f"unexpected {token!r}")

    def mixed_number(self, whole: int) -> Node:
        """`7\\frac{3}{4}` is 7 + 3/4: an integer before a proper fraction of integers."""
        start = self.index
        if self.peek() == "\\frac":
            fraction = self.atom()[0]
            _, top, bottom = fraction if fraction[0] == "div" else ("", ("",), ("",))
            proper = top[0] == bottom[0] == "int" and top[1] < bottom[1]
            if proper and self.peek() not in ("^", "!"):
                return ("add", ("int", whole), fraction)
            self.index = start
        return ("int", whole)

    def root(self) -> list[Node]:
        order: Node = self.group("]")[0] if self.accept("[") else ("int", 2)
        radicands = self.digit_or_group()
        if order == ("int", 2):
            return [("call", "sqrt", node) for node in radicands]
        return [("pow", node, ("div", ("int", 1), order)) for node in radicands]

    def function(self, name: str) -> list[Node]:
        base: Node | None = self.argument()[0] if self.accept("_") else None
        exponent: Node | None = self.argument()[0] if self.accept("^") else None
        # `\\sin 2x` takes the whole product without signs; `\\sin(x) y` only the group.
        arguments = self.power() if self.peek() in ("(", "{", "[") else self.bare_product()
        if name == "log":
            name = "ln"
            base = base or ("int", 10)
        nodes: list[Node] = [("call", name, node) for node in arguments]
        if base is not None:
            nodes = [("div", node, ("call", "ln", base)) for node in nodes]
        if exponent is not None:
            nodes = [("pow", node, exponent) for node in nodes]
        return nodes

    def bare_product(self) -> list[Node]:
        factors = self.power()
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() != "(":
            factors = _few([("mul", a, b) for a in factors for b in self.power()])
        return factors

    def symbol(self, name: str) -> Node:
        """A letter with its subscript; `e` and `i` are the constants."""
        if not self.accept("_"):
            constants: dict[str, Node] = {"e": ("call", "exp", ("int", 1)), "i": ("constant", "I")}
            return constants.get(name, ("symbol", name))
        if not self.accept("{"):
            return ("symbol", name + "_" + self.take())
        while not self.accept("}"):
            if self.peek() == "":
                raise FormulaError("unfinished subscript")
            name += "_" + self.take()
        return ("symbol", name)


_CLOSING = {"(": ")", "[": "]", "{": "}"}
_BEHIND = frozenset({"", ",", ";", ")", "]", "}", "\\}", "\\cup"})  # a set, tuple or interval
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho "
    "sigma tau phi varphi chi psi omega pi infty Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
_GREEK = frozenset(_GREEK_NAMES.split())


def _is_name(values: list[MathValue]) -> bool:
    """Whether it is what one names an answer with: `x`, `f(x)`, `(x, y)`, `x_1`, `|AB|`."""
    return all(
        _is_name(value[2])
        if value[0] == "tuple"
        else value[0] == "number" and _is_product_of_symbols(value[1])
        for value in values
    )


def _is_product_of_symbols(node: Node) -> bool:
    if node[0] in ("mul", "div"):
        return _is_product_of_symbols(node[1]) and _is_product_of_symbols(node[2])
    if node[0] == "call" and node[1] == "abs":
        return _is_product_of_symbols(node[2])
    return node[0] == "symbol"


def _between(low: MathValue, first: str, second: str, high: MathValue) -> MathValue:
    """`a < x <= b` as the interval (a, b]."""
    if first.startswith(">") and second.startswith(">"):
        low, first, second, high = high, second, first, low
    elif not (first.startswith("<") and second.startswith("<")):
        raise FormulaError("not an interval")
    left = "[" if first.endswith("=") else "("
    return ("tuple", left, [low, high], "]" if second.endswith("=") else ")")
