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
import random
from fractions import Fraction
from functools import cache, lru_cache

from .bounds import LIMITS
from .program import Step

__all__ = ["is_zero_modulo_primes"]


class _Unsupported(Exception):
    """The formula leaves what can be mapped to a prime field."""


_MAX_EXACT_BITS = 256
_PRIMES_FOR_TRIAL = 2_000


def is_zero_modulo_primes(program: list[Step]) -> bool | None:
    """True or False where the formula is certainly zero or not zero, None where this method does
    not apply."""
    has_decimal = any(step[0] == "float" for step in program)
    try:
        if has_decimal:
            _reject_inexact_decimals(program)
        radicands = _scan(program)
        for seed in (1, 2):
            if _evaluate(program, _field(seed, radicands), seed) != 0:
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


def _scan(program: list[Step]) -> frozenset[int]:
    """Primes under square roots, found by a run without values."""
    found: set[int] = set()
    _run(program, None, found, 0)
    return frozenset(found)


def _evaluate(program: list[Step], prime: int, seed: int) -> int:
    return _run(program, prime, set(), seed)


def _run(program: list[Step], prime: int | None, radicands: set[int], seed: int) -> int:
    """Value modulo `prime`; with no prime only the exact constants are followed and `radicands` is
    filled."""
    p = prime or 1
    # Each entry: value modulo p, and the exact value while it is a rational constant of moderate
    # size.
    stack: list[tuple[int, Fraction | None]] = []
    for step in program:
        kind = step[0]
        if kind == "int":
            stack.append((step[1] % p, _exact(Fraction(step[1]))))
        elif kind == "float":
            stack.append(_decimal(step[1], p))
        elif kind == "symbol":
            stack.append((_element("symbol " + step[1], seed) % p, None))
        elif kind == "constant":
            if step[1] != "pi":
                raise _Unsupported
            stack.append((_element("pi", seed) % p, None))
        elif kind == "neg":
            value, exact = stack[-1]
            stack[-1] = (-value % p, None if exact is None else -exact)
        elif kind == "call":
            stack[-1] = _call(step[1], stack[-1], prime, radicands, seed)
        else:
            right = stack.pop()
            stack[-1] = _binary(kind, stack[-1], right, prime, radicands)
    return stack[0][0]


def _exact(value: Fraction) -> Fraction | None:
    small = value.numerator.bit_length() + value.denominator.bit_length() <= _MAX_EXACT_BITS
    return value if small else None


def _decimal(literal: str, p: int) -> tuple[int, Fraction | None]:
    # The reference computes decimals in binary floating point; that is exact only for dyadic
    # rationals of few digits.
    value = Fraction(literal)
    bits = value.numerator.bit_length()
    if (
        value.denominator & (value.denominator - 1)
        or bits > 40
        or value.denominator.bit_length() > 20
    ):
        raise _Unsupported
    return value.numerator * _inverse(value.denominator, p) % p, value


def _binary(
    kind: str,
    left: tuple[int, Fraction | None],
    right: tuple[int, Fraction | None],
    prime: int | None,
    radicands: set[int],
) -> tuple[int, Fraction | None]:
    a, a_exact = left
    b, b_exact = right
    p = prime or 1
    if kind == "pow":
        return _power(left, right, prime, radicands)
    both = a_exact is not None and b_exact is not None
    exact = None
    if kind == "add":
        value = (a + b) % p
        exact = _exact(a_exact + b_exact) if both else None  # type: ignore[operator]
    elif kind == "sub":
        value = (a - b) % p
        exact = _exact(a_exact - b_exact) if both else None  # type: ignore[operator]
    elif kind == "mul":
        value = a * b % p
        exact = _exact(a_exact * b_exact) if both else None  # type: ignore[operator]
    else:
        value = a * _inverse(b, p) % p
        exact = _exact(a_exact / b_exact) if both else None  # type: ignore[operator]
    return value, exact


def _inverse(value: int, p: int) -> int:
    if p == 1:
        return 0
    if value % p == 0:
        raise ZeroDivisionError
    return pow(value, -1, p)


def _power(
    base: tuple[int, Fraction | None],
    exponent: tuple[int, Fraction | None],
    prime: int | None,
    radicands: set[int],
) -> tuple[int, Fraction | None]:
    power = exponent[1]
    p = prime or 1
    if power is None or abs(power) > LIMITS["power_exponent"]:
        raise _Unsupported
    if power.denominator == 2:
        base = _square_root(base[1], prime, radicands)
        power *= 2
    if power.denominator != 1:
        raise _Unsupported
    n = int(power)
    value, exact = base
    result = 0 if p == 1 else pow(value if n >= 0 else _inverse(value, p), abs(n), p)
    if exact is not None:
        bits = max(exact.numerator.bit_length(), exact.denominator.bit_length())
        exact = _exact(exact**n) if bits * abs(n) <= 2 * _MAX_EXACT_BITS else None
    return result, exact


def _call(
    name: str,
    argument: tuple[int, Fraction | None],
    prime: int | None,
    radicands: set[int],
    seed: int,
) -> tuple[int, Fraction | None]:
    exact = argument[1]
    p = prime or 1
    if name == "sqrt":
        return _square_root(exact, prime, radicands)
    if exact is None:
        raise _Unsupported
    if name == "ln" and exact > 0:
        logs = [*_factors(exact.numerator), *((q, -e) for q, e in _factors(exact.denominator))]
        return sum(e * _element(f"ln {q}", seed) for q, e in logs) % p, None if logs else Fraction(
            0
        )
    if name in ("factorial", "factorial2") and exact.denominator == 1:
        if not 0 <= exact <= LIMITS["factorial_argument"]:
            raise _Unsupported
        step = 1 if name == "factorial" else 2
        product = 1
        for factor in range(int(exact), 0, -step):
            product = product * factor if prime is None else product * factor % p
        if prime is None or exact <= 30:
            return product % p, _exact(Fraction(product))
        return product % p, None
    raise _Unsupported


def _square_root(
    exact: Fraction | None, prime: int | None, radicands: set[int]
) -> tuple[int, Fraction | None]:
    """Root of a positive rational a/b as the root of a*b over b, prime by prime."""
    if exact is None or exact < 0:
        raise _Unsupported
    if exact == 0:
        return 0, Fraction(0)
    p = prime or 1
    whole = 1
    irrational = 1
    rational = True
    for q, e in _factors(exact.numerator * exact.denominator):
        whole *= q ** (e // 2)
        if e % 2:
            rational = False
            radicands.add(q)
            irrational = irrational * (0 if prime is None else _root_modulo(q, prime)) % p
    value = whole * irrational * _inverse(exact.denominator, p) % p
    return value, Fraction(whole, exact.denominator) if rational else None


@lru_cache(maxsize=1024)
def _factors(number: int) -> tuple[tuple[int, int], ...]:
    """Prime factors of a positive integer with multiplicities; unsupported if two large primes are
    among them."""
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
def _root_modulo(q: int, p: int) -> int:
    return pow(q, (p + 1) // 4, p)


@lru_cache(maxsize=1024)
def _field(seed: int, radicands: frozenset[int]) -> int:
    """A prime modulo which all `radicands` have a root; one of 2**k primes has, for k radicands."""
    for index in range(_PRIMES_TRIED):
        prime = _prime(seed, index)
        if all(pow(q, (prime - 1) // 2, prime) == 1 for q in radicands):
            return prime
    raise _Unsupported


_PRIMES_TRIED = 300


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
