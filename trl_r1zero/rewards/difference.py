"""Whether a formula is zero: guards, then numeric refutation, then exact arithmetic, then computer
algebra.

`formula_is_zero("(a)-(b)")` gives the verdict of the reference's symbolic test and the rule that
decided.
"""

import re
from functools import lru_cache

from .algebra import simplifies_to_zero
from .bounds import BoundHit, count_bound
from .formula import FormulaError, Node, compile_tree, parse_formula
from .modular import is_zero_modulo_primes
from .numeric import is_refuted

_TOWER = re.compile(r"\^[0-9]+\^|\^[0-9][0-9]+")
# A character that can only make a syntax error or something that is no number.
_HOPELESS = re.compile(r"[=<>,:;@'\"`$?&|~\\]")
MAX_LETTERS = 2


def formula_is_zero(text: str) -> tuple[bool, str]:
    """Verdict and rule for the formula `text`; a bound that is hit is counted and means "not
    zero"."""
    verdict, rule = _decide(text)
    if rule.startswith("bound:"):
        count_bound(rule.removeprefix("bound:"))
    return verdict, rule


@lru_cache(maxsize=4096)
def _decide(text: str) -> tuple[bool, str]:
    if sum(map(str.isalpha, set(text.replace("sqrt", "").replace("frac", "")))) > MAX_LETTERS:
        return False, "more_than_two_letters"
    if "^{" in text or "^(" in text or _TOWER.search(text):
        return False, "exponent_too_long"
    if _HOPELESS.search(text):
        return False, "not_a_formula"
    try:
        tree = parse_formula(text.replace("^", "**"))
        return _tree_is_zero(tree)
    except FormulaError:
        return False, "not_a_formula"
    except BoundHit as bound:
        return False, f"bound:{bound.name}"


def _tree_is_zero(tree: Node) -> tuple[bool, str]:
    program = compile_tree(tree)
    if is_refuted(program):
        return False, "numerically_different"
    zero = is_zero_modulo_primes(program)
    if zero is not None:
        return zero, "exactly_equal" if zero else "exactly_different"
    if simplifies_to_zero(program):
        return True, "equal_by_algebra"
    return False, "not_equal_by_algebra"
