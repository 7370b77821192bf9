"""Whether two values of `math_parser` are equal; see `_COMPARISONS` for what is compared with what.

Formulas are compared by their values (`modular`, `numeric`): an identity is accepted with certainty
only up to coincidence at four unrelated points; decimals must agree to 1e-6, absolutely, and to
1e-5, relatively.
"""

from collections.abc import Callable

from .formula import Node, Step, compile_tree
from .math_parser import MathValue, is_name
from .modular import is_zero_modulo_primes
from .numeric import constant_value, is_refuted, values_agree
from .regions import region_of

DECIMAL_TOLERANCE = 1e-6
Program = list[Step]


def equal_values(given: MathValue, truth: MathValue) -> bool:
    """Whether an answer states what the ground truth states."""
    given, truth = _plain(given), _plain(truth)
    compare = _COMPARISONS.get((given[0], truth[0]))
    if compare is not None and compare(given, truth):
        return True
    if "relation" not in (given[0], truth[0]) or given[0] != truth[0]:
        stated, expected = _stated(given), _stated(truth)
        if (stated, expected) != (given, truth) and equal_values(stated, expected):
            return True
    return _regions_agree(given, truth)


def symbols_of(value: object) -> frozenset[str]:
    """Names of all symbols in a value."""
    found = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple) and len(item) == 2 and item[0] == "symbol":
            found.add(item[1])
        elif isinstance(item, tuple | list):
            pending += item
    return frozenset(found)


def _plain(value: MathValue) -> MathValue:
    """A bracketed single value is that value; a list or set of one element too."""
    while value[0] in ("list", "set", "tuple"):
        items = value[2 if value[0] == "tuple" else 1]
        if len(items) != 1:
            break
        value = items[0]
    return value


def _stated(value: MathValue) -> MathValue:
    """What `x = 3` and `3 = x` say of x."""
    if value[0] == "relation" and value[1] == "=":
        if is_name(value[2]):
            return value[3]
        if is_name(value[3]):
            return value[2]
    return value


def _name(value: MathValue) -> MathValue | None:
    """What an equation says the value of."""
    stated = _stated(value)
    return None if stated == value else value[2] if stated == value[3] else value[3]


def _nodes_agree(a: Node, b: Node) -> bool:
    return a == b or _programs_agree(compile_tree(a), compile_tree(b))


def _programs_agree(a: Program, b: Program) -> bool:
    difference = [*a, *b, ("sub",)]
    # Unequal values are the cheapest to tell; equal ones need the exact test.
    if not any(step[0] == "float" for step in difference) and not is_refuted(difference, points=1):
        exactly = is_zero_modulo_primes(difference)
        if exactly is not None:
            return exactly
    return values_agree(a, b, DECIMAL_TOLERANCE)


def _as_sets(given: list[MathValue], truth: list[MathValue]) -> bool:
    """Whether each element is one of the other side's."""
    return all(any(equal_values(a, b) for b in truth) for a in given) and all(
        any(equal_values(a, b) for a in given) for b in truth
    )


def _unordered(given: list[MathValue], truth: list[MathValue]) -> bool:
    """Whether the elements agree in some order; every element is matched at most once."""
    left = list(truth)
    for item in given:
        match = next((other for other in left if equal_values(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _lists_agree(given: list[MathValue], truth: list[MathValue]) -> bool:
    """Numbers may be a sequence, in which one occurs twice; points are a set."""
    points = all(item[0] == "tuple" for item in (*given, *truth))
    names = [[_name(item) for item in side] for side in (given, truth)]
    if {*names[0]} == {*names[1]} and len({*names[0]} - {None}) > 1:
        # `x=3, y=4`: each name has its value.
        parts = [[item for item in side if _name(item) == name]
                 for name in names[0] for side in (given, truth)]  # fmt: skip
        return all(_unordered(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True))
    return (_as_sets if points else _unordered)(given, truth)


def _ordered(given: list[MathValue], truth: list[MathValue]) -> bool:
    return len(given) == len(truth) and all(map(equal_values, given, truth))


def _tuples_agree(given: MathValue, truth: MathValue) -> bool:
    # With two elements it may be an interval, whose ends are open or closed.
    same_brackets = (given[1], given[3]) == (truth[1], truth[3]) or len(truth[2]) > 2
    return same_brackets and _ordered(given[2], truth[2])


def _matrices_agree(given: MathValue, truth: MathValue) -> bool:
    return len(given[1]) == len(truth[1]) and all(map(_ordered, given[1], truth[1]))


def _vectors_agree(matrix: MathValue, items: list[MathValue]) -> bool:
    """A matrix of one row or one column beside the same numbers in a row; rows beside tuples."""
    rows = matrix[1]
    if len(rows) == 1 or all(len(row) == 1 for row in rows):
        return _ordered([entry for row in rows for entry in row], items)
    return len(rows) == len(items) and all(
        item[0] == "tuple" and _ordered(row, item[2]) for row, item in zip(rows, items, strict=True)
    )


# Values that symbols take where only a ratio matters.
_SAMPLES = (101, 257, 409, 577, 733, 887, 1039, 1201)


def _at_sample(program: Program, symbols: list[str]) -> Program:
    values = {name: 2 * i + _SAMPLES[i % len(_SAMPLES)] for i, name in enumerate(symbols)}
    return [("int", values[step[1]]) if step[0] == "symbol" else step for step in program]


def _relations_agree(given: MathValue, truth: MathValue) -> bool:
    """The same up to a factor, positive for an inequality; or one side solves the other."""
    sign, left, right = _normal_relation(given)
    other_sign, other_left, other_right = _normal_relation(truth)
    if sign != other_sign or {left[0], right[0], other_left[0], other_right[0]} != {"number"}:
        return False
    if equal_values(left, other_left) and equal_values(right, other_right):
        return True
    stated, expected = _stated(given), _stated(truth)
    if stated != given and expected != truth and equal_values(stated, expected):
        return True
    solved = _name(truth)
    if solved is not None and solved[1][0] != "mul" and not symbols_of(expected):
        return False  # what is solved for must stand alone
    a = compile_tree(("sub", left[1], right[1]))
    b = compile_tree(("sub", other_left[1], other_right[1]))
    symbols = sorted(symbols_of((given, truth)))
    a_sample, b_sample = _at_sample(a, symbols), _at_sample(b, symbols)
    values = constant_value(a_sample), constant_value(b_sample)
    if None in values or 0.0 in values:
        return False
    same_direction = values[0] * values[1] > 0 or sign in ("=", "!=")  # type: ignore[operator]
    if same_direction and _programs_agree([*a, *b_sample, ("mul",)], [*b, *a_sample, ("mul",)]):
        return True
    return sign == "=" and (_solves(given, b) or _solves(truth, a))


def _solves(solved: MathValue, equation: Program) -> bool:
    """Whether `y = E` is the one solution of an equation: linear in y, and zero at E."""
    _, _, left, right = solved
    for name, value in ((left, right), (right, left)):
        if name[1][0] != "symbol" or name[1][1] in symbols_of(value):
            continue
        symbol = name[1]

        def put(program: Program, symbol: Node = symbol) -> Program:
            return [new for step in equation for new in (program if step == symbol else [step])]

        zero: Program = [("int", 0)]
        steps = [put([symbol, ("int", n), ("add",)]) for n in (0, 1, 2)]
        outer = [*steps[0], *steps[2], ("add",)]
        linear = _programs_agree(outer, [("int", 2), *steps[1], ("mul",)])
        depends = not _programs_agree(steps[0], steps[1])
        if linear and depends and _programs_agree(put(compile_tree(value[1])), zero):
            return True
    return False


def _normal_relation(relation: MathValue) -> tuple[str, MathValue, MathValue]:
    sign, left, right = relation[1:]
    if sign.startswith(">"):
        return "<" + sign[1:], right, left
    return sign, left, right


def _regions_agree(given: MathValue, truth: MathValue) -> bool:
    """Sets of real numbers, as intervals, inequalities or names."""
    kinds = {given[0], truth[0]}
    if not kinds & {"relation", "union", "list", "named", "without"} or "number" in kinds:
        return False
    pieces, other_pieces = region_of(given), region_of(truth)
    if pieces is None or other_pieces is None or len(pieces) != len(other_pieces):
        return False
    left = list(other_pieces)
    for low, low_closed, high, high_closed in pieces:
        for other in left:
            if (low_closed, high_closed) == (other[1], other[3]) and (
                _nodes_agree(low, other[0]) and _nodes_agree(high, other[2])
            ):
                left.remove(other)
                break
        else:
            return False
    return True


def _named_agree(named: MathValue, value: MathValue) -> bool:
    return bool(value[1] == ("symbol", named[1]))  # \mathbf{R}, or R


_COMPARISONS: dict[tuple[str, str], Callable[[MathValue, MathValue], bool]] = {
    ("number", "number"): lambda a, b: _nodes_agree(a[1], b[1]),
    ("relation", "relation"): _relations_agree,
    ("tuple", "tuple"): _tuples_agree,
    ("matrix", "matrix"): _matrices_agree,
    ("named", "named"): lambda a, b: bool(a == b),
    ("named", "number"): _named_agree,
    ("number", "named"): lambda a, b: _named_agree(b, a),
    ("without", "without"): lambda a, b: equal_values(a[1], b[1]) and equal_values(a[2], b[2]),
    ("union", "union"): lambda a, b: _unordered(a[1], b[1]),
    ("list", "list"): lambda a, b: _lists_agree(a[1], b[1]),
    # Braces and the lack of them are not told apart; a set may be announced in words.
    **dict.fromkeys(
        [("set", "set"), ("set", "list"), ("list", "set")], lambda a, b: _as_sets(a[1], b[1])
    ),
    ("set", "number"): lambda a, b: _as_sets(a[1], [b]),  # {1, 1}
    ("number", "set"): lambda a, b: _as_sets([a], b[1]),
    # An ordered answer whose parts are named one by one.
    ("tuple", "list"): lambda a, b: _ordered(a[2], b[1]),
    ("list", "tuple"): lambda a, b: _ordered(a[1], b[2]),
    ("matrix", "tuple"): lambda a, b: a[0] == "matrix" and _vectors_agree(a, b[2]),
    ("tuple", "matrix"): lambda a, b: _vectors_agree(b, a[2]),
    ("matrix", "list"): lambda a, b: _vectors_agree(a, b[1]),
    ("list", "matrix"): lambda a, b: _vectors_agree(b, a[1]),
}
