"""A safe evaluator of small arithmetic expressions: numbers, + - * / and parentheses, exactly.

For text that a model wrote: no `eval`, no names, no powers; bounds on length, nesting and digits,
so that no input takes long or grows large; `fractions.Fraction`, so that 1/3*3 is 1.

Grammar:  sum = product (("+"|"-") product)* ;  product = atom (("*"|"/") atom)* ;
          atom = number | "(" sum ")" | "-" atom
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 20
MAX_DIGITS = 9

TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])", re.ASCII)

# Other ways in which models write the same signs.
SYNONYMS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left(": "(", "\\right)": ")"}
SYNONYMS |= {"×": "*", "·": "*", "÷": "/", "−": "-"}  # noqa: RUF001  (Unicode's signs are meant)


class ExpressionError(ValueError):
    """The text is not an expression of the grammar, or breaks a bound, or divides by zero."""


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """Returns the exact value of an expression and the numbers in it, in the order of the text.

    `"(25 - 3) * 7"` -> `(Fraction(154), [25, 3, 7])`.

    Raises:
        ExpressionError: with the reason.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"got {len(text)} characters, expected at most {MAX_CHARACTERS}")
    for written, meant in SYNONYMS.items():
        text = text.replace(written, meant)
    parser = _Parser(_tokens(text.rstrip()), [])
    value = parser.sum(depth=0)
    if parser.tokens:
        raise ExpressionError(f"got {parser.tokens[0]!r} after a complete expression")
    return value, parser.numbers


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(
                f"got {text[position:].strip()[:1]!r}, expected a number or + - * / ( )"
            )
        if len(match[1]) > MAX_DIGITS:
            raise ExpressionError(
                f"got a number of {len(match[1])} digits, at most {MAX_DIGITS} allowed"
            )
        tokens.append(match[1])
        position = match.end()
    return tokens


@dataclass
class _Parser:
    """Recursive descent; every method consumes the front of `tokens`."""

    tokens: list[str]
    numbers: list[int]

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next_is("+", "-"):
            sign = 1 if self.tokens.pop(0) == "+" else -1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.next_is("*", "/"):
            operator = self.tokens.pop(0)
            factor = self.atom(depth)
            if operator == "/" and factor == 0:
                raise ExpressionError("got a division by zero")
            value = value * factor if operator == "*" else value / factor
        return value

    def atom(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"got more than {MAX_DEPTH} levels of parentheses or signs")
        if not self.tokens:
            raise ExpressionError("got the end of the text, expected a number or (")
        token = self.tokens.pop(0)
        if token == "-":
            return -self.atom(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if not self.next_is(")"):
                raise ExpressionError("got a ( without its )")
            self.tokens.pop(0)
            return value
        if not token.isdigit():
            raise ExpressionError(f"got {token!r}, expected a number or (")
        self.numbers.append(int(token))
        return Fraction(int(token))

    def next_is(self, *allowed: str) -> bool:
        return bool(self.tokens) and self.tokens[0] in allowed
