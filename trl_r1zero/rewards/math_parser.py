r"""A mathematical answer, LaTeX or plain, to a typed value.

This parser serves `math_reward` only. Braces mean grouping or a set, and a text may be a list, a
tuple, an interval, a union, a matrix or a relation.

Values: ("number", node) with a tree as in `formula`; ("list", items) without brackets;
("set", items); ("tuple", "(" or "[", items, ")" or "]"), which an interval of two ends is too;
("union", items); ("matrix", rows); ("relation", sign, left, right); ("named", letter) for a set of
numbers such as R; ("without", value, removed).
"""

from typing import Any

from .bounds import check_limits
from .formula import FormulaError, Node
from .math_formula import FormulaParser
from .math_tokens import SIGNS, tokenize

MathValue = tuple[Any, ...]


def parse_math(text: str, other_reading: bool = False) -> MathValue:
    """The value of `text`; FormulaError if it is no mathematics, BoundHit if it is too large.

    `other_reading` as in `tokenize`.
    """
    check_limits(formula_chars=len(text))
    return _Parser(tokenize(text, other_reading)).parse()


class _Parser(FormulaParser):
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

    def items_until(self, closing: set[str]) -> list[MathValue]:
        """Values separated by commas or semicolons, up to a closing token, which stays."""
        items: list[MathValue] = []
        self.deeper()
        while self.peek() not in closing:
            if self.accept(",", ";"):
                continue
            items += self.relation()
            if self.peek() not in closing and self.peek() not in (",", ";"):
                raise FormulaError(f"unexpected {self.peek()!r}")
        self.depth -= 1
        return items

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
            numbers = all(len(value) == 1 and value[0][0] == "number" for value in values)
            if len(values) > 2 or not numbers:
                return values[-1]
            return [("relation", "=", left[0], values[-1][0])]
        if any(len(value) != 1 for value in values) or len(values) > 3:
            raise FormulaError("a relation of lists")
        if len(values) == 3:
            return [_between(values, signs)]
        return [("relation", signs[0], values[0][0], values[1][0])]

    def union(self) -> list[MathValue]:
        parts = self.sum_values()
        while self.accept("\\setminus"):
            parts = [("without", parts[0], self.sum_values()[0])]
        if self.peek() != "\\cup":
            return parts
        while self.accept("\\cup"):
            parts += self.sum_values()
        return [("union", parts)]

    def sum_values(self) -> list[MathValue]:
        """A sum; a plus-minus sign makes two of it. A bracketed group alone may be a tuple."""
        structure = self.structure()
        if structure is None:
            nodes = self.sum()
            if self.peek() != "\\begin" or len(nodes) != 1:
                return [("number", node) for node in nodes]
            structure = _scaled(nodes[0], self.matrix())
        while structure[0] == "matrix" and self.peek() in ("+", "-"):
            kind = "add" if self.take() == "+" else "sub"
            structure = _added(kind, structure, self.sum_values()[0])
        return [structure]

    def structure(self) -> MathValue | None:
        """A set, tuple, interval or matrix at this point, or None (and nothing is read)."""
        start, depth = self.index, self.depth
        if self.peek() == "\\begin":
            return self.matrix()
        if self.peek() in _SETS:
            return _SETS[self.take()]
        opening = self.take() if self.peek() in ("(", "[", "\\{", "{") else ""
        closing = {"(": {")", "]"}, "[": {")", "]"}, "\\{": {"\\}"}, "{": {"}"}}.get(opening)
        if closing is not None:
            try:
                items = self.items_until(closing)
                closed = self.take()
                inner = items[0] if len(items) == 1 else ("list", items)
                several = len(items) > 1 or opening == "\\{" or (opening == "[" and closed == "]")
                if (several or inner[0] != "number") and (
                    self.peek() in _BEHIND or self.peek() in SIGNS
                ):
                    if not several:
                        return inner
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


_SETS: dict[str, MathValue] = {
    **{f"\\Set{letter}": ("named", letter) for letter in "RZNQC"}, "\\emptyset": ("set", []),
}  # fmt: skip
# What may stand behind a set, tuple or interval.
_BEHIND = frozenset({"", ",", ";", ")", "]", "}", "\\}", "\\cup", "\\setminus"})


def _scaled(factor: Node, matrix: MathValue) -> MathValue:
    return (
        "matrix",
        [[("number", ("mul", factor, _node(entry))) for entry in row] for row in matrix[1]],
    )


def _added(kind: str, matrix: MathValue, other: MathValue) -> MathValue:
    if other[0] != "matrix" or [*map(len, matrix[1])] != [*map(len, other[1])]:
        raise FormulaError("a sum of matrices of two shapes")
    pairs = [zip(*rows, strict=True) for rows in zip(matrix[1], other[1], strict=True)]
    return ("matrix", [[("number", (kind, _node(a), _node(b))) for a, b in row] for row in pairs])


def _node(entry: MathValue) -> Node:
    if entry[0] != "number":
        raise FormulaError("a matrix of something else than numbers")
    return entry[1]


def _is_name(values: list[MathValue]) -> bool:
    return all(is_name(value) for value in values)


def is_name(value: MathValue) -> bool:
    """Whether it is what one names an answer with: `x`, `f(x)`, `(x, y)`, `x_1`, `|AB|`."""
    if value[0] == "tuple":
        return _is_name(value[2])
    return value[0] == "number" and _is_product_of_symbols(value[1])


def _is_product_of_symbols(node: Node) -> bool:
    if node[0] in ("mul", "div"):
        return _is_product_of_symbols(node[1]) and _is_product_of_symbols(node[2])
    if node[0] == "call" and node[1] == "abs":
        return _is_product_of_symbols(node[2])
    return node[0] == "symbol"


def _between(values: list[list[MathValue]], signs: list[str]) -> MathValue:
    """`a < x <= b` as the interval (a, b]."""
    (low,), (middle,), (high,) = values
    first, second = signs
    if first.startswith(">") and second.startswith(">"):
        low, first, second, high = high, second, first, low
    elif not (first.startswith("<") and second.startswith("<")):
        raise FormulaError("not an interval")
    left = "[" if first.endswith("=") else "("
    interval = ("tuple", left, [low, high], "]" if second.endswith("=") else ")")
    if middle[0] == "number" and middle[1][:2] == ("call", "abs"):
        return ("relation", "between", middle, interval)
    return interval
