"""The last resort: sympy, on an expression that is built node by node from our own tree.

No text reaches sympy: integers, decimals (as mantissa and exponent) and symbol names are passed to
the constructors. Before anything is built, `_check_size` estimates what building and simplifying
would cost and refuses what is too much; what still takes long is stopped by a budget of calls.
"""

import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from types import FrameType
from typing import Any

import sympy

# `simplify` imports these on demand; here they do not delay the first formula that needs it.
import sympy.combinatorics
import sympy.physics.units
import sympy.sets.setexpr
import sympy.tensor.tensor
from mpmath.libmp import dps_to_prec, from_man_exp, from_rational
from sympy.core.cache import clear_cache

from .bounds import BoundHit, check_limits, one_reward
from .formula import Step


def simplifies_to_zero(program: list[Step]) -> bool:
    """Whether sympy's `simplify` brings the formula to zero; BoundHit if that takes too much."""
    _check_size(program)
    try:
        with one_reward() as calls_left, _call_budget(calls_left):
            return _simplifies_to_zero(program)
    except _BudgetSpent:
        # Half-evaluated assumptions may sit in sympy's caches.
        clear_cache()
        raise BoundHit("algebra_calls") from None


def _simplifies_to_zero(program: list[Step]) -> bool:
    expression = _build(program)
    if expression is None:
        return False
    if expression == 0:
        return True
    if expression.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return False
    if (expression.is_number and expression.is_Atom) or _is_irrational_plus_decimal(expression):
        return False
    try:
        return bool(sympy.simplify(expression) == 0)
    except Exception:
        # Whatever sympy raises (it has dozens of errors of its own), the reference calls not equal.
        return False


class _BudgetSpent(BaseException):
    """Not an Exception, because sympy catches those to try something else."""


@contextmanager
def _call_budget(calls_left: list[int]) -> Iterator[None]:
    """Count down at each call of a Python function, and raise _BudgetSpent in this thread below 0.

    The interpreter's trace hook counts them. It works in any thread, needs no signal, and, unlike
    a clock, stops the same formula at about the same point on every machine (sympy's caches make
    it vary a little).
    """

    def count(frame: FrameType, event: str, argument: Any) -> None:
        calls_left[0] -= 1
        # Raised while a generator or an object is being finalised, an exception would be lost.
        code = frame.f_code
        finalising = code.co_flags & inspect.CO_GENERATOR or code.co_name == "__del__"
        if calls_left[0] < 0 and not finalising:
            raise _BudgetSpent

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _is_irrational_plus_decimal(expression: Any) -> bool:
    """Whether it is a decimal plus an exact irrational number, a sum that sympy never evaluates."""
    if not expression.is_Add or not any(term.is_Float for term in expression.args):
        return False
    rest = expression.func(*(term for term in expression.args if not term.is_Float))
    return bool(rest.is_irrational) and not any(atom.is_Float for atom in rest.atoms())


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sqrt": sympy.sqrt,
    "ln": sympy.log,
    "frac": sympy.frac,
    "re": sympy.re,
    "im": sympy.im,
    "factorial": sympy.factorial,
    "factorial2": sympy.factorial2,
}
_CONSTANTS = {"pi": sympy.pi, "oo": sympy.oo, "zoo": sympy.zoo, "nan": sympy.nan, "I": sympy.I}


def _build(program: list[Step]) -> Any:
    """The sympy expression, or None where a step has no value."""
    stack: list[Any] = []
    for step in program:
        operation, operands = _operation(step, stack)
        try:
            stack.append(operation(*operands))
        except Exception:
            # As in `_simplifies_to_zero`: of sympy alone, a fault of this module is not hidden.
            return None
    (expression,) = stack
    return expression


def _operation(step: Step, stack: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
    """What a step does, and with what; operands are taken off the stack."""
    kind = step[0]
    if kind in _BINARY:
        right, left = stack.pop(), stack.pop()
        return _BINARY[kind], [left, right]
    if kind == "neg":
        return operator.neg, [stack.pop()]
    if kind == "call":
        return _FUNCTIONS[step[1]], [stack.pop()]
    if kind == "constant":
        constant = _CONSTANTS[step[1]]
        return lambda: constant, []
    return {"int": sympy.Integer, "float": _float, "symbol": sympy.Symbol}[kind], [step[1]]


def _float(literal: str) -> Any:
    """A decimal with the precision that sympy gives it: its own digits, at least 15."""
    value = Fraction(literal)
    mantissa = literal.partition("e")[0].replace(".", "").lstrip("0")
    precision = dps_to_prec(max(15, len(mantissa)))
    if value.denominator == 1:
        number = from_man_exp(value.numerator, 0, precision, "n")
    else:
        number = from_rational(value.numerator, value.denominator, precision, "n")
    return sympy.Float._new(number, precision)


def _check_size(program: list[Step]) -> None:
    """Raise BoundHit where the expression would grow beyond the limits."""
    check_limits(algebra_nodes=len(program))
    stack: list[_Size] = []
    radicals = factorials = 0
    orders = 1
    nested = False
    for step in program:
        kind = step[0]
        order = 1
        if kind == "int":
            stack.append(_Size(step[1].bit_length(), 0, 1, Fraction(step[1])))
        elif kind == "float":
            value = Fraction(step[1])
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            stack.append(_Size(bits, 0, 1, value if bits <= _EXACT_BITS else None))
        elif kind in ("symbol", "constant"):
            stack.append(_Size(1, 1, 1) if kind == "symbol" else _Size(2, 0, 1))
        elif kind == "neg":
            exact = stack[-1].exact
            stack[-1] = replace(stack[-1], exact=None if exact is None else -exact)
        else:
            right = stack.pop() if kind in _BINARY else None
            operand = stack[-1]
            if right is None:
                order = 2 if step[1] == "sqrt" else 1
                if step[1] in ("factorial", "factorial2") and operand.exact is None:
                    factorials += 1
                    if operand.degree > 1 or operand.terms > 2 or operand.has_radical:
                        raise BoundHit("algebra_factorials")
                stack[-1] = operand.applied(step[1])
            elif kind == "pow":
                order = right.root_order()
                stack[-1] = operand.power(right)
            else:
                stack[-1] = operand.combined(kind, right)
            if order > 1:
                radicals += 1
                nested |= operand.has_radical
                orders = math.lcm(orders, order)
        top = stack[-1]
        check_limits(
            integer_bits=top.bits,
            algebra_degree=top.degree,
            algebra_terms=top.terms,
            algebra_radicals=radicals,
            algebra_root_order=orders,
            algebra_nested_radicals=radicals if nested else 0,
            algebra_factorials=factorials,
        )


_EXACT_BITS = 256
_EXPONENT_BITS = 12


@dataclass(frozen=True, slots=True)
class _Size:
    """Upper estimates for a sub-expression: bits of its integers, degree, number of terms when
    expanded; `exact` is its value while it is a rational constant of moderate size."""

    bits: int
    degree: int
    terms: int
    exact: Fraction | None = None
    has_radical: bool = False

    def root_order(self) -> int:
        """Order of the radical that a power with this exponent is; 1 for an integer or unknown
        exponent."""
        return 1 if self.exact is None else self.exact.denominator

    def applied(self, name: str) -> "_Size":
        if name in ("factorial", "factorial2") and self.exact is not None:
            check_limits(factorial_argument=abs(self.exact))
            n = int(abs(self.exact))
            bits = max(2, n) * max(2, n).bit_length()
            known = name == "factorial" and n == self.exact and n <= 20
            return _Size(bits, 0, 1, Fraction(math.factorial(n)) if known else None)
        return _Size(self.bits, self.degree, 1, has_radical=self.has_radical or name == "sqrt")

    def power(self, exponent: "_Size") -> "_Size":
        n = exponent.exact
        radical = self.has_radical or exponent.has_radical or exponent.root_order() > 1
        if n is not None:
            check_limits(power_exponent=abs(n))
        elif exponent.bits > _EXPONENT_BITS:
            # The exponent may yet turn out to be a constant of that many bits.
            raise BoundHit("power_exponent")
        whole = 2**exponent.bits if n is None else max(1, math.ceil(abs(n)))
        terms = 1 if self.terms == 1 else math.comb(whole + self.terms - 1, self.terms - 1)
        degree = self.degree * whole
        if n is None and self.terms == 1:
            degree = self.degree + exponent.degree + 1
        exact = None
        if self.exact and n is not None and n.denominator == 1 and self.bits * whole <= _EXACT_BITS:
            exact = self.exact ** int(n)
        return _Size(self.bits * whole, degree, terms, exact, radical)

    def combined(self, kind: str, other: "_Size") -> "_Size":
        a, b = self.exact, other.exact
        exact = None
        bits = self.bits + other.bits
        if a is not None and b is not None and bits <= _EXACT_BITS and (kind != "div" or b != 0):
            exact = _BINARY[kind](a, b)
        if kind in ("add", "sub"):
            degree, terms = max(self.degree, other.degree), self.terms + other.terms
        else:
            degree, terms = self.degree + other.degree, self.terms * other.terms
        return _Size(bits, degree, terms, exact, self.has_radical or other.has_radical)
