"""Numeric refutation: a difference that is not zero at one point is not zero.

Every value carries a bound of its rounding error, so that a refutation is a proof and a value
within its error decides nothing. Symbols take positive real values; roots of negative numbers
become complex.
"""

import cmath
import math
from collections.abc import Callable

from .formula import Step

_EPS = 4.0 * 2.0**-53
# Positive points first, because everything is real there; then the ones where sqrt(x**2) is not x.
_POINTS: tuple[tuple[float | complex, ...], ...] = (
    (1.3717421124828532, 0.7548776662466927, 2.2360679774997896, 0.4142135623730951,
     3.1462643699419726),
    (0.3819660112501051, 2.6457513110645907, 1.1447142425533319, 5.0990195135927845,
     0.9159655941772190),
    (-7.389056098930650, 4.6692016091029907, -2.685452001065306, -0.261497212847642,
     -13.81740598163902),
    (0.5 + 2.8j, -1.7 + 0.6j, -0.3 - 3.1j, 2.9 - 1.3j, -4.1 + 0.2j),
)  # fmt: skip
_Value = tuple[float | complex, float]
_CONSTANTS: dict[str, _Value] = {"pi": (math.pi, math.pi * _EPS), "I": (1j, 0.0)}


class Undecided(Exception):
    """The value cannot be computed, or not with a useful error bound."""


_NO_VALUE = (Undecided, OverflowError, ZeroDivisionError, ValueError)


def is_refuted(program: list[Step], points: int = 4) -> bool:
    """Whether the program's value is certainly not zero at one of the first points."""
    for point in _POINTS[:points]:
        try:
            value, error = _evaluate(program, point)
        except _NO_VALUE:
            continue
        if math.isfinite(error) and abs(value) > 4.0 * error:
            return True
    return False


def values_agree(a: list[Step], b: list[Step], tolerance: float) -> bool:
    """Whether two programs have the same values at all points where both can be computed.

    Without a decimal in either, "same" means up to rounding; with one, up to `tolerance` and, for
    small values, ten times as much relatively. One point suffices for numbers, formulas with
    symbols need two.
    """
    symbols = {step[1] for step in (*a, *b) if step[0] == "symbol"}
    if not any(step[0] == "float" for step in (*a, *b)):
        tolerance = 0.0
    decided = 0
    for point in _POINTS:
        values: dict[str, float | complex] = {}
        try:
            left, left_error = _evaluate(a, point, values)
            right, right_error = _evaluate(b, point, values)
        except _NO_VALUE:
            continue
        scale = max(abs(left), abs(right))
        if not math.isfinite(scale) or left_error + right_error > 1e-7 * max(scale, 1e-9):
            continue
        allowed = tolerance * min(1.0, 10.0 * scale) + 4.0 * (left_error + right_error)
        if abs(left - right) > allowed + 1e-13 * scale:
            return False
        decided += 1
    return decided >= (2 if symbols else 1)


def constant_value(program: list[Step]) -> float | None:
    """Value of a program without symbols; None where it is not real or cannot be computed."""
    if any(step[0] == "symbol" for step in program):
        return None
    try:
        value, error = _evaluate(program, ())
    except _NO_VALUE:
        return None
    if isinstance(value, complex) or not math.isfinite(value) or error > 1e-7 * abs(value):
        return None
    return value


def _evaluate(
    program: list[Step],
    point: tuple[float | complex, ...],
    symbols: dict[str, float | complex] | None = None,
) -> _Value:
    stack: list[_Value] = []
    symbols = {} if symbols is None else symbols
    for step in program:
        kind = step[0]
        if kind == "int":
            number = float(step[1])
            stack.append((number, 0.0 if abs(step[1]) < 2**53 else abs(number) * _EPS))
        elif kind == "float":
            number = float(step[1])
            stack.append((number, abs(number) * _EPS))
        elif kind == "symbol":
            index = len(symbols)
            if step[1] not in symbols:
                symbols[step[1]] = point[index % len(point)] + index // len(point)
            stack.append((symbols[step[1]], 0.0))
        elif kind == "constant":
            if step[1] not in _CONSTANTS:
                raise Undecided
            stack.append(_CONSTANTS[step[1]])
        elif kind == "neg":
            value, error = stack[-1]
            stack[-1] = (-value, error)
        elif kind == "call":
            stack[-1] = _call(step[1], *stack[-1])
        else:
            right = stack.pop()
            stack.append(_binary(kind, *stack.pop(), *right))
    return stack[0]


def _binary(
    kind: str, a: float | complex, a_error: float, b: float | complex, b_error: float
) -> _Value:
    if kind in ("add", "sub"):
        value = a + b if kind == "add" else a - b
        error = a_error + b_error + (abs(a) + abs(b)) * _EPS
    elif kind == "mul":
        value = a * b
        error = abs(a) * b_error + abs(b) * a_error + a_error * b_error + abs(value) * _EPS
    elif kind == "div":
        size = abs(b)
        if size <= 2.0 * b_error:
            raise Undecided
        value = a / b
        error = 2.0 * (a_error + abs(value) * b_error) / size + abs(value) * _EPS
    else:
        return _power(a, a_error, b, b_error)
    return value, error


def _power(a: float | complex, a_error: float, b: float | complex, b_error: float) -> _Value:
    size = abs(a)
    if a_error and size <= 8.0 * a_error * (1.0 + abs(b)):
        raise Undecided
    integer = b_error == 0.0 and not isinstance(b, complex) and b == int(b)
    if a == 0.0:
        if isinstance(b, complex) or b <= 2.0 * b_error:
            raise Undecided
        return 0.0, 0.0
    value: float | complex
    if integer or (not isinstance(a, complex) and not isinstance(b, complex) and a > 0.0):
        value = a**b
    else:
        if isinstance(a, complex) and a.real < 0.0 and abs(a.imag) <= 4.0 * a_error:
            raise Undecided  # on the branch cut
        value = cmath.exp(b * cmath.log(a))
    log_size = abs(math.log(size)) + math.pi
    relative = 2.0 * (abs(b) * a_error / size + log_size * b_error) + _EPS * (
        1.0 + abs(b) * log_size
    )
    return value, abs(value) * relative


def _call(name: str, a: float | complex, error: float) -> _Value:
    if name == "sqrt":
        return _power(a, error, 0.5, 0.0)
    if name in ("re", "im", "abs"):
        return {"re": a.real, "im": a.imag, "abs": abs(a)}[name], error
    if name == "ln":
        size = abs(a)
        if size <= 4.0 * error or (
            isinstance(a, complex) and a.real < 0.0 and abs(a.imag) <= 4.0 * error
        ):
            raise Undecided
        value = math.log(a) if not isinstance(a, complex) and a > 0.0 else cmath.log(a)
        return value, 2.0 * error / size + _EPS * (1.0 + abs(value))
    if name in _SMOOTH:
        return _smooth(name, a, error)
    if isinstance(a, complex):
        raise Undecided
    if name == "floor" and abs(a - round(a)) > 4.0 * error + 1e-12:
        return float(math.floor(a)), 0.0
    if name == "floor" and error == 0.0 and a == int(a):
        return a, 0.0
    if name == "factorial" and a >= 0.0:
        result = math.gamma(a + 1.0)
        return result, result * (64.0 * _EPS + 4.0 * math.log(a + 2.0) * error)
    if name == "factorial2" and error == 0.0 and a == int(a) and 0.0 <= a <= 300.0:
        result = float(math.prod(range(int(a), 0, -2)))
        return result, result * _EPS
    raise Undecided


# Functions that no formula of the reference contains (`math_reward` reads them): real and complex
# version, and a bound of the derivative's size in terms of the argument and the value.
_SMOOTH: dict[str, tuple[Callable[..., float], Callable[..., complex]]] = {
    name: (getattr(math, function), getattr(cmath, function))
    for name, function in {
        **{name: name for name in ("exp", "sin", "cos", "tan", "sinh", "cosh", "tanh")},
        **{"arcsin": "asin", "arccos": "acos", "arctan": "atan"},
        **{"cot": "tan", "sec": "cos", "csc": "sin"},
    }.items()
}
_RECIPROCALS = ("cot", "sec", "csc")


def _smooth(name: str, a: float | complex, error: float) -> _Value:
    """Value of an analytic function; the error comes from a difference quotient."""
    real, complex_version = _SMOOTH[name]
    inside = isinstance(a, complex) or (name in ("arcsin", "arccos") and abs(a) > 1.0)
    function: Callable[..., float | complex] = complex_version if inside else real
    value = function(a)
    step = max(error, abs(a) * _EPS, 1e-300)
    slope = abs(function(a + 1e-7 * (1.0 + abs(a))) - value) / (1e-7 * (1.0 + abs(a)))
    spread = 4.0 * (slope + abs(value)) * step + abs(value) * _EPS
    if name in _RECIPROCALS:
        return _binary("div", 1.0, 0.0, value, spread)
    return value, spread
