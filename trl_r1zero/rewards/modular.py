"""Exact zero test by homomorphism: the formula is evaluated in a prime field instead of in the
numbers.

Rational numbers, symbols, pi, square roots of positive rationals and logarithms of positive
rationals are mapped to elements of GF(p) for a prime p of 61 bits; sums, products, quotients and
integer powers are computed there. Symbols, pi and the logarithms of primes are algebraically
independent (the last two conjecturally), so they go to arbitrary elements; the root of a prime
goes to a root modulo p. A value that is not zero modulo p proves that the formula is not zero;
zero modulo two primes at unrelated points proves that it is, up to a chance of about 2**-100
(Schwartz 1980, Zippel 1979).

Numbers never grow, so x**1000 or 500! cost nothing.
"""

import math
import operator
import random
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from .bounds import LIMITS
from .formula import Step


class _Unsupported(Exception):
    """The formula leaves what can be mapped to a prime field."""


_MAX_EXACT_BITS = 256
_PRIMES_FOR_TRIAL = 2_000
_PRIMES_TRIED = 300


def is_zero_modulo_primes(program: list[Step]) -> bool | None:
    """True or False where the formula is zero or not, None where this method does not apply."""
    has_decimal = any(step[0] == "float" for step in program)
    try:
        if has_decimal:
            _reject_inexact_decimals(program)
        # Without a prime: only to find the primes under square roots.
        scan = _Evaluation(None, seed=0)
        scan.run(program)
        for seed in (1, 2):
            prime = _field(seed, frozenset(scan.radicands))
            if _Evaluation(prime, seed).run(program) != 0:
                # The reference rounds what a decimal touches: two close numbers may be one there.
                return None if has_decimal else False
    except (_Unsupported, ZeroDivisionError):
        return None
    return True


_IRRATIONAL = frozenset({"sqrt", "ln", "pi"})


def _reject_inexact_decimals(program: list[Step]) -> None:
    """The reference computes in floating point what a decimal touches.

    That is exact for sums, products and integer powers of short dyadic numbers. A quotient by
    anything but an integer power of 2 is rounded, unless the decimal stands alone on one side: then
    the other side is computed exactly and rounded in the same way.
    """
    alone = program[-1] == ("sub",) and (
        program[-2][0] == "float" or (program[0][0] == "float" and _is_complete(program[1:-1]))
    )
    one_decimal = sum(step[0] == "float" for step in program) == 1
    for previous, step in zip([("start",), *program], program, strict=False):
        if (step[0] == "pow" and previous[0] != "int") or step[-1] in _IRRATIONAL:
            raise _Unsupported
        if step[0] == "div" and not (alone and one_decimal):
            divisor = previous[1] if previous[0] == "int" else 0
            if divisor <= 0 or divisor & (divisor - 1):
                raise _Unsupported


def _is_complete(steps: list[Step]) -> bool:
    """Whether the steps leave exactly one value, without touching what was on the stack before."""
    height = 0
    for step in steps:
        height += {"neg": 0, "call": 0}.get(step[0], 1 if len(step) > 1 else -1)
        if height < 1:
            return False
    return height == 1


# Value modulo a prime, and the exact value while it is a rational constant of moderate size.
_Value = tuple[int, Fraction | None]


class _Evaluation:
    """The value of a program modulo `prime`; with no prime only the exact constants are followed,
    and the primes under square roots are collected in `radicands`."""

    def __init__(self, prime: int | None, seed: int) -> None:
        self.prime = prime
        self.p = prime or 1
        self.seed = seed
        self.radicands: set[int] = set()

    def run(self, program: list[Step]) -> int:
        stack: list[_Value] = []
        for step in program:
            kind = step[0]
            if kind == "int":
                stack.append((step[1] % self.p, _exact(Fraction(step[1]))))
            elif kind == "float":
                stack.append(self.decimal(step[1]))
            elif kind == "symbol":
                stack.append((_element("symbol " + step[1], self.seed) % self.p, None))
            elif kind == "constant":
                if step[1] != "pi":
                    raise _Unsupported
                stack.append((_element("pi", self.seed) % self.p, None))
            elif kind == "neg":
                value, exact = stack[-1]
                stack[-1] = (-value % self.p, None if exact is None else -exact)
            elif kind == "call":
                stack[-1] = self.call(step[1], stack[-1][1])
            else:
                right = stack.pop()
                stack[-1] = self.binary(kind, stack[-1], right)
        return stack[0][0]

    def decimal(self, literal: str) -> _Value:
        # The reference computes decimals in binary floating point; that is exact only for dyadic
        # rationals of few digits.
        value = Fraction(literal)
        top, bottom = value.numerator, value.denominator
        if bottom & (bottom - 1) or top.bit_length() > 40 or bottom.bit_length() > 20:
            raise _Unsupported
        return top * self.inverse(bottom) % self.p, value

    def inverse(self, value: int) -> int:
        if self.p == 1:
            return 0
        if value % self.p == 0:
            raise ZeroDivisionError
        return pow(value, -1, self.p)

    def binary(self, kind: str, left: _Value, right: _Value) -> _Value:
        if kind == "pow":
            return self.power(left, right[1])
        (a, a_exact), (b, b_exact) = left, right
        compute = _OPERATORS[kind]
        value = a * self.inverse(b) if kind == "div" else compute(a, b)
        both = a_exact is not None and b_exact is not None
        return value % self.p, _exact(compute(a_exact, b_exact)) if both else None

    def power(self, base: _Value, power: Fraction | None) -> _Value:
        if power is None or abs(power) > LIMITS["power_exponent"]:
            raise _Unsupported
        if power.denominator == 2:
            base = self.square_root(base[1])
            power *= 2
        if power.denominator != 1:
            raise _Unsupported
        n = int(power)
        value, exact = base
        if self.prime is None:
            result = 0
        else:
            result = pow(value if n >= 0 else self.inverse(value), abs(n), self.p)
        if exact is not None:
            bits = max(exact.numerator.bit_length(), exact.denominator.bit_length())
            exact = _exact(exact**n) if bits * abs(n) <= 2 * _MAX_EXACT_BITS else None
        return result, exact

    def call(self, name: str, exact: Fraction | None) -> _Value:
        if name == "sqrt":
            return self.square_root(exact)
        if exact is None:
            raise _Unsupported
        if name == "ln" and exact > 0:
            logs = [*_factors(exact.numerator), *((q, -e) for q, e in _factors(exact.denominator))]
            value = sum(e * _element(f"ln {q}", self.seed) for q, e in logs) % self.p
            return value, None if logs else Fraction(0)
        if name in ("factorial", "factorial2") and exact.denominator == 1:
            if not 0 <= exact <= LIMITS["factorial_argument"]:
                raise _Unsupported
            product = math.prod(range(int(exact), 0, -1 if name == "factorial" else -2))
            small = self.prime is None or exact <= 30
            return product % self.p, _exact(Fraction(product)) if small else None
        raise _Unsupported

    def square_root(self, exact: Fraction | None) -> _Value:
        """Root of a positive rational a/b as the root of a*b over b, prime by prime."""
        if exact is None or exact < 0:
            raise _Unsupported
        if exact == 0:
            return 0, Fraction(0)
        whole = irrational = 1
        odd = []
        for q, e in _factors(exact.numerator * exact.denominator):
            whole *= q ** (e // 2)
            if e % 2:
                odd.append(q)
                root = 0 if self.prime is None else pow(q, (self.prime + 1) // 4, self.prime)
                irrational = irrational * root % self.p
        self.radicands.update(odd)
        value = whole * irrational * self.inverse(exact.denominator) % self.p
        return value, None if odd else Fraction(whole, exact.denominator)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}


def _exact(value: Fraction) -> Fraction | None:
    small = value.numerator.bit_length() + value.denominator.bit_length() <= _MAX_EXACT_BITS
    return value if small else None


@lru_cache(maxsize=1024)
def _factors(number: int) -> tuple[tuple[int, int], ...]:
    """Prime factors of a positive integer with multiplicities; two large ones are unsupported."""
    factors = []
    q = 2
    while q * q <= number and q < _PRIMES_FOR_TRIAL:
        multiplicity = 0
        while number % q == 0:
            number //= q
            multiplicity += 1
        if multiplicity:
            factors.append((q, multiplicity))
        q += 1 if q == 2 else 2
    if number > 1:
        root = math.isqrt(number)
        if root * root == number and root < _PRIMES_FOR_TRIAL**2:
            factors.append((root, 2))
        elif number < _PRIMES_FOR_TRIAL**2:
            factors.append((number, 1))
        else:
            raise _Unsupported
    return tuple(factors)


@lru_cache(maxsize=1024)
def _element(name: str, seed: int) -> int:
    """An arbitrary element for a name, the same in every process."""
    return random.Random(f"{name} {seed}").getrandbits(60) + 2


@lru_cache(maxsize=1024)
def _field(seed: int, radicands: frozenset[int]) -> int:
    """A prime modulo which all `radicands` have a root; one of 2**k primes has, for k radicands."""
    for index in range(_PRIMES_TRIED):
        prime = _prime(seed, index)
        if all(pow(q, (prime - 1) // 2, prime) == 1 for q in radicands):
            return prime
    raise _Unsupported


@cache
def _prime(seed: int, index: int) -> int:
    """A prime of 61 bits that is 7 modulo 8, so that a root is a power and 2 has one."""
    source = random.Random(f"prime {seed} {index}")
    while True:
        candidate = source.getrandbits(60) | 1 << 60 | 7
        if _is_prime(candidate):
            return candidate


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with bases that decide it below 2**64."""
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        if number % base == 0:
            return number == base
        value = pow(base, odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True
