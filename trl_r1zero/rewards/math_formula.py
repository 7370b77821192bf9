r"""Formulas of an answer's tokens, to the trees of `formula`; `math_parser` adds what is no number.

In contrast to the reference's route (`symbolic`), a fraction groups its numerator and denominator
and a root keeps its index. Each rule gives several nodes, because a formula with `\pm` stands for
several values.
"""

import functools
import math

from .bounds import LIMITS, BoundHit, check_limits
from .formula import FormulaError, Node
from .math_tokens import FUNCTIONS


def few(alternatives: list[Node]) -> list[Node]:
    """What a formula with `\\pm` may stand for; each sign doubles it, so it is limited at once."""
    check_limits(plus_minus_alternatives=len(alternatives))
    return alternatives


class FormulaParser:
    """Recursive descent over the tokens of `math_tokens.tokenize`."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.index = 0
        self.depth = 0

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

    def deeper(self) -> None:
        """One level deeper; every rule that can come back to itself calls it, and comes back up."""
        self.depth += 1
        if self.depth > LIMITS["formula_depth"]:
            raise BoundHit("formula_depth")

    def sum(self) -> list[Node]:
        totals = self.product()
        while self.peek() in ("+", "-", "\\pm", "\\mp"):
            sign = self.take()
            terms = self.product()
            kinds = {"+": ["add"], "-": ["sub"]}.get(sign, ["add", "sub"])
            totals = few([(kind, a, b) for a in totals for kind in kinds for b in terms])
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
            factors = few([(kind, a, b) for a in factors for b in right])

    def starts_factor(self) -> bool:
        kind, token = self.tokens[self.index]
        if kind == "number" or token in _FACTORS:
            return True
        return token.isalpha() or (token.startswith("\\") and token[1:] in _NAMED)

    def signed(self) -> list[Node]:
        sign = self.peek()
        if sign not in _SIGNS or self.tokens[self.index][0] == "end":
            return self.power()
        self.index += 1
        self.deeper()
        nodes = self.signed()
        self.depth -= 1
        if sign == "-":
            return [("neg", node) for node in nodes]
        return nodes if sign == "+" else few([n for node in nodes for n in (node, ("neg", node))])

    def power(self) -> list[Node]:
        bases = self.atom()
        while self.accept("!"):
            name = "factorial2" if self.accept("!") else "factorial"
            bases = [("call", name, base) for base in bases]
        if self.accept("^", "**"):
            exponents = self.argument()
            return few([("pow", base, exponent) for base in bases for exponent in exponents])
        return bases

    def argument(self) -> list[Node]:
        """What stands behind `^`, `\\frac` or `\\sqrt`: a group or a signed atom."""
        if not self.accept("-", "+"):
            return self.atom()
        sign = self.tokens[self.index - 1][1]
        self.deeper()
        nodes = self.argument()
        self.depth -= 1
        return [("neg", node) for node in nodes] if sign == "-" else nodes

    def group(self, closing: str) -> list[Node]:
        nodes = self.sum()
        self.expect(closing)
        return nodes

    def atom(self) -> list[Node]:
        self.deeper()
        nodes = self.atom_of_level()
        self.depth -= 1
        return nodes

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
        if token in _ROUNDED:
            return self.rounded(*_ROUNDED[token])
        if token in ("\\frac", "\\binom"):
            build = _quotient if token == "\\frac" else binomial
            tops, bottoms = self.argument(), self.argument()
            return few([build(top, bottom) for top in tops for bottom in bottoms])
        if token == "\\sqrt":
            return self.root()
        if token in _BIG:
            return [self.big(token)]
        if token in ("\\infty", "\\pi"):
            return [("constant", "oo" if token == "\\infty" else "pi")]
        if token[1:] in FUNCTIONS and token.startswith("\\"):
            return self.function(token[1:])
        if token[1:] in _ACCENTS:
            node = self.argument()[0]
            if node[0] not in ("symbol", "mul"):
                raise FormulaError(f"{token} of something that is no name")
            return [("symbol", f"{token}{node}")]
        if token.isalpha() or token[1:] in _GREEK:
            return [self.symbol(token)]
        raise FormulaError(f"unexpected {token!r}")

    def big(self, name: str) -> Node:
        """A sum, an integral or a limit with its bounds: a factor of what stands behind it, which
        is right of factors that do not depend on what it runs over."""
        bounds = []
        while self.peek() in ("^", "_"):
            start = self.index
            self.index += 1
            depth = 0
            while depth or self.index == start + 1:
                if self.tokens[self.index][0] == "end":
                    raise FormulaError("unfinished bounds")
                depth += {"{": 1, "}": -1}.get(self.take(), 0)
            bounds.append("".join(t for _, t in self.tokens[start : self.index] if t not in "{}"))
        return ("symbol", name + "".join(sorted(bounds)))

    def rounded(self, name: str, closing: str) -> list[Node]:
        nodes = self.group(closing)
        if name == "ceil":
            return [("neg", ("call", "floor", ("neg", node))) for node in nodes]
        return [("call", name, node) for node in nodes]

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
        radicands = self.argument()
        if order == ("int", 2):
            return [("call", "sqrt", node) for node in radicands]
        return [_root(node, order) for node in radicands]

    def function(self, name: str) -> list[Node]:
        base: Node | None = self.argument()[0] if self.accept("_") else None
        exponent: Node | None = self.argument()[0] if self.accept("^") else None
        # `\\sin 2x` takes the whole product without signs; `\\sin(x) y` only the group.
        arguments = self.power() if self.peek() in ("(", "{", "[") else self.bare_product()
        if exponent == ("neg", ("int", 1)) and "arc" + name in FUNCTIONS:
            name, exponent = "arc" + name, None
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
        if self.accept("-"):
            self.deeper()
            nodes: list[Node] = [("neg", node) for node in self.bare_product()]
            self.depth -= 1
            return nodes
        factors = self.power()
        while True:
            divides = self.peek() == "/" and self.tokens[self.index + 1][0] == "number"
            if divides:
                self.index += 1
            elif not self.starts_factor() or self.peek()[1:] in FUNCTIONS or self.peek() == "(":
                return factors
            kind = "div" if divides else "mul"
            factors = few([(kind, a, b) for a in factors for b in self.power()])

    def symbol(self, name: str) -> Node:
        """A letter with its subscript and primes; `e` and `i` are the constants."""
        plain = name
        while self.accept("'"):
            name += "'"
        if self.accept("_"):
            if not self.accept("{"):
                name += "_" + self.take()
            else:
                while not self.accept("}"):
                    if self.peek() == "":
                        raise FormulaError("unfinished subscript")
                    name += "_" + self.take()
        constants: dict[str, Node] = {"e": ("call", "exp", ("int", 1)), "i": ("constant", "I")}
        return constants.get(name, ("symbol", name)) if name == plain else ("symbol", name)


_CLOSING = {"(": ")", "[": "]", "{": "}"}
_SIGNS = frozenset({"+", "-", "\\pm", "\\mp"})
_ROUNDED = {
    "|": ("abs", "|"), "\\lfloor": ("floor", "\\rfloor"), "\\lceil": ("ceil", "\\rceil")
}  # fmt: skip
_FACTORS = frozenset({"(", "[", "{", "\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil"})
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho "
    "sigma tau phi varphi chi psi omega pi infty Gamma Delta Theta Lambda Sigma Phi Psi Omega "
    "ell hbar vartheta varrho upsilon Upsilon Xi Pi partial nabla mho"
)
_GREEK = frozenset(_GREEK_NAMES.split())
_ACCENT_NAMES = "vec overrightarrow overline bar hat widehat tilde dot ddot angle triangle"
_ACCENTS = frozenset(_ACCENT_NAMES.split())
_BIG = frozenset({"\\sum", "\\int", "\\iint", "\\oint", "\\lim"})
_NAMED = FUNCTIONS | _GREEK | _ACCENTS | {name[1:] for name in _BIG}


def _quotient(top: Node, bottom: Node) -> Node:
    return ("div", top, bottom)


def _root(radicand: Node, order: Node) -> Node:
    """An odd root of a negative number is the real one."""
    power: Node = ("pow", radicand, ("div", ("int", 1), order))
    if radicand[0] == "neg" and order[0] == "int" and order[1] % 2:
        return ("neg", ("pow", radicand[1], ("div", ("int", 1), order)))
    return power


def binomial(n: Node, k: Node) -> Node:
    """n over k: a number where both are, else factorials."""
    if n[0] == k[0] == "int" and max(n[1], k[1]) <= LIMITS["factorial_argument"]:
        return ("int", math.comb(n[1], k[1]))
    if k[0] == "int" and 1 <= k[1] <= 8:
        factors: list[Node] = [("sub", n, ("int", i)) for i in range(k[1])]
        product = functools.reduce(lambda left, right: ("mul", left, right), factors)
        return ("div", product, ("int", math.factorial(k[1])))
    top, bottom, rest = (("call", "factorial", node) for node in (n, k, ("sub", n, k)))
    return ("div", top, ("mul", bottom, rest))
