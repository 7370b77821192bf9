"""Every limit of the grader in one table, and a counter of the verdicts that a limit decided.

The reference has no limits and can be made to run for hours. Ours gives up on a text that is
longer, deeper or more expensive than the table says, grades it as the last rule that was decided
says (almost always: wrong), and counts it.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction

LIMITS: dict[str, int] = {
    # Characters of an answer or a ground truth that are normalised at all; longer ones are
    # compared as they are.
    "answer_chars": 20_000,
    # LaTeX to text: characters, nesting of groups, tokens read (a broken macro makes the reference
    # read twice), characters of the text that matrices may become.
    "latex_chars": 10_000,
    "latex_depth": 150,
    "latex_steps": 8_000,
    "latex_matrix_chars": 200_000,
    # Formula (both sides together): characters, tokens, nesting of parentheses.
    "formula_chars": 2_000,
    "formula_tokens": 1_000,
    "formula_depth": 60,
    # Numbers: digits of a literal, bits of any intermediate integer, exponent and factorial
    # argument.
    "literal_digits": 400,
    "integer_bits": 8_192,
    "power_exponent": 1_000,
    "factorial_argument": 500,
    # Values of a formula with plus-minus signs (`math_reward_fn` only).
    "plus_minus_alternatives": 16,
    # Computer algebra: nodes of the tree, polynomial degree and number of terms, radicals (all of
    # them, and all of them if one is under another), factorials of anything but a number.
    "algebra_nodes": 80,
    "algebra_degree": 24,
    "algebra_terms": 200,
    "algebra_radicals": 10,
    "algebra_nested_radicals": 8,
    "algebra_root_order": 64,
    "algebra_factorials": 4,
    # Calls of Python functions that sympy may make for one reward, over all its formulas: about a
    # quarter of a second.
    "algebra_calls": 120_000,
}


class BoundHit(Exception):
    """A limit was reached; `name` is its key in `LIMITS`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"limit {name} = {LIMITS[name]}")
        self.name = name


def check_limits(**values: int | Fraction) -> None:
    """BoundHit for the first value that is above the limit of its name."""
    for name, value in values.items():
        if value > LIMITS[name]:
            raise BoundHit(name)


_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count_bound(name: str) -> None:
    """Record that the limit `name` decided a verdict in this process."""
    with _lock:
        _counts[name] += 1


def bound_counts() -> dict[str, int]:
    """How many verdicts each limit has decided in this process since the last reset."""
    with _lock:
        return dict(_counts)


def reset_bound_counts() -> None:
    """Set all counts to zero."""
    with _lock:
        _counts.clear()


_calls_left: ContextVar[list[int] | None] = ContextVar("algebra_calls_left", default=None)


@contextmanager
def one_reward() -> Iterator[list[int]]:
    """All formulas that are graded inside share one allowance of `algebra_calls`.

    Otherwise the time of a reward would grow with its tuples and its list of ground truths. Gives
    the calls that are left, in a list of one; inside of another `one_reward`, that one's.
    """
    outer = _calls_left.get()
    if outer is not None:
        yield outer
        return
    calls_left = [LIMITS["algebra_calls"]]
    token = _calls_left.set(calls_left)
    try:
        yield calls_left
    finally:
        _calls_left.reset(token)
