"""Countdown: reach a target from given numbers, each used exactly once, with + - * / and ( ).

Many expressions are right, so an answer is not compared with a text but evaluated, exactly and
safely, by an evaluator of numbers, + - * / and parentheses for text that a model wrote: no `eval`,
no names, no powers; bounds on length, nesting and digits, so that no input takes long or grows
large; `fractions.Fraction`, so that 1/3*3 is 1.

Grammar:  sum = product (("+"|"-") product)* ;  product = atom (("*"|"/") atom)* ;
          atom = number | "(" sum ")" | "-" atom

The ground truth carries what the check needs, as a JSON string:
`{"numbers": [3, 7, 25], "target": 46}`.
"""

import json
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from trl_r1zero.data.tasks.base import Example, GeneratedTask, Rewards
from trl_r1zero.rewards.extraction import Extraction, extract_question_only, extract_r1_zero


def countdown_is_right(answer: str, ground_truth: str) -> bool:
    """True if `answer` is an expression that uses each number exactly once and equals the target. A
    ValueError for a ground truth that is not a JSON string as `CountdownTask` makes it; a bad
    *answer* is never an error, only wrong."""
    numbers, target = _decode(ground_truth)
    try:
        value, used = evaluate_expression(answer)
    except ExpressionError:
        return False
    return sorted(used) == sorted(numbers) and value == target


def countdown_tags_reward_fn(response: str, ground_truth: str | list[str]) -> dict[str, float]:
    """Reward of `... </think> <answer> EXPRESSION </answer>`; the format rule is r1_zero's."""
    return _reward(extract_r1_zero(response), ground_truth)


def countdown_boxed_reward_fn(response: str, ground_truth: str | list[str]) -> dict[str, float]:
    r"""Reward of a response with `\boxed{EXPRESSION}`; the format rule is question_only's."""
    return _reward(extract_question_only(response), ground_truth)


@dataclass(frozen=True)
class CountdownTask(GeneratedTask):
    """Puzzles made from a random expression, hence always solvable."""

    # min_numbers, max_numbers: how many numbers a puzzle has, uniformly.
    min_numbers: int = 3
    max_numbers: int = 4
    max_number: int = 25  # numbers are in 1..max_number
    max_target: int = 100  # targets are integers in 1..max_target

    name = "countdown"
    default_prompt = "r1_zero"
    rewards: ClassVar[Rewards] = {
        "tags": countdown_tags_reward_fn,
        "boxed": countdown_boxed_reward_fn,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(
            min_numbers=2, max_numbers=self.min_numbers, max_number=2, max_target=2
        )

    def draw(self, rng: random.Random) -> Example:
        while True:
            count = rng.randint(self.min_numbers, self.max_numbers)
            # Sorted, so that one puzzle cannot be in both splits with its numbers rearranged.
            numbers = sorted(rng.randint(1, self.max_number) for _ in range(count))
            target = _combine(numbers, rng)
            if 1 <= target <= self.max_target:
                break
        question = (
            f"Using each of the numbers {', '.join(map(str, numbers))} exactly once, with the "
            f"operations + - * / and parentheses, write an expression that equals {target}."
        )
        return Example(question, json.dumps({"numbers": numbers, "target": target}))


def _combine(numbers: list[int], rng: random.Random) -> int:
    """Joins random pairs by random operations until one integer is left: a solution exists."""
    values = list(numbers)
    while len(values) > 1:
        right = values.pop(rng.randrange(len(values)))
        left = values.pop(rng.randrange(len(values)))
        results = [left + right, left - right, left * right]
        if right != 0 and left % right == 0:
            results.append(left // right)
        values.append(rng.choice(results))
    return values[0]


def _reward(extraction: Extraction, ground_truth: str | list[str]) -> dict[str, float]:
    truths = [ground_truth] if isinstance(ground_truth, str) else ground_truth
    answer = extraction.answer
    right = [answer is not None and countdown_is_right(answer, truth) for truth in truths]
    return {
        "format_reward": float(extraction.formatted),
        "answer_reward": float(any(right)),
        "reward": float(any(right)),
    }


def _decode(ground_truth: str) -> tuple[list[int], int]:
    try:
        decoded: Any = json.loads(ground_truth)
        numbers, target = decoded["numbers"], decoded["target"]
        right = type(numbers) is list and {type(number) for number in [*numbers, target]} == {int}
    except (ValueError, TypeError, KeyError):
        right = False
    if not right or len(decoded) != 2:
        raise ValueError(
            f"ground_truth: got {ground_truth!r}, expected a JSON string such as "
            '{"numbers": [3, 7, 25], "target": 46}'
        )
    return numbers, target


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
