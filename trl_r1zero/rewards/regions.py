"""Sets of real numbers as disjoint pieces: intervals, inequalities, R without points."""

import itertools
from collections.abc import Iterable

from .formula import Node, compile_tree
from .math_parser import MathValue
from .numeric import constant_value

Piece = tuple[Node, bool, Node, bool]  # low, whether it is closed there, high, whether closed
Region = list[Piece]

_INFINITY: Node = ("constant", "oo")
_MINUS_INFINITY: Node = ("neg", _INFINITY)


def region_of(value: MathValue) -> Region | None:
    """The pieces of a set of real numbers; None if `value` is none, or not known to be one."""
    kind = value[0]
    if kind == "tuple" and len(value[2]) == 2:
        return _interval(*value[1:])
    if kind == "named" and value[1] == "R":
        return [(_MINUS_INFINITY, False, _INFINITY, False)]
    if kind == "set":
        return [(node, True, node, True) for node in _numbers(value[1])]
    if kind == "relation":
        return _of_relation(value)
    if kind == "union":
        return _joined(value[1])
    if kind == "without":
        return _without(value)
    if kind == "list":
        return _of_conditions(value[1])
    return None


def _numbers(values: Iterable[MathValue]) -> list[Node]:
    return [value[1] for value in values if value[0] == "number"]


def _interval(opening: str, ends: list[MathValue], closing: str) -> Region | None:
    if any(end[0] != "number" for end in ends):
        return None
    low, high = (end[1] for end in ends)
    return [(low, opening == "[", high, closing == "]")]


def _joined(values: list[MathValue]) -> Region | None:
    regions = [region_of(value) for value in values]
    if any(region is None for region in regions):
        return None
    return [piece for region in regions for piece in region or ()]


def _of_relation(relation: MathValue) -> Region | None:
    _, sign, left, right = relation
    if sign == "between":  # a < |x| < b
        pieces = _interval(*right[1:])
        if pieces is None:
            return None
        low, low_closed, high, high_closed = pieces[0]
        return [(("neg", high), high_closed, ("neg", low), low_closed), *pieces]
    if left[0] != "number" or right[0] != "number":
        return None
    variable, bound = left[1], right[1]
    if not _is_variable(variable):
        variable, bound = bound, variable
        sign = sign.translate(str.maketrans("<>", "><"))
    if not _is_variable(variable) or any(step[0] == "symbol" for step in compile_tree(bound)):
        return None
    closed = sign.endswith("=") and sign != "!="
    inside = sign.startswith("<")
    if variable[0] == "call":  # |x| < a
        if inside:
            return [(("neg", bound), closed, bound, closed)]
        low = ("neg", bound)
        return [(_MINUS_INFINITY, False, low, closed), (bound, closed, _INFINITY, False)]
    if sign == "!=":
        return _around([bound])
    if sign == "=":
        return [(bound, True, bound, True)]
    if inside:
        return [(_MINUS_INFINITY, False, bound, closed)]
    return [(bound, closed, _INFINITY, False)]


def _is_variable(node: Node) -> bool:
    if node[0] == "call" and node[1] == "abs":
        return bool(node[2][0] == "symbol")
    return bool(node[0] == "symbol")


def _around(points: list[Node]) -> Region | None:
    """R without some points, which must be numbers that can be put in order."""
    values = [constant_value(compile_tree(point)) for point in points]
    if len(points) > 1 and None in values:
        return None
    ordered = [point for _, point in sorted(zip(values, points, strict=True), key=_first)]
    ends = [_MINUS_INFINITY, *ordered, _INFINITY]
    return [(low, False, high, False) for low, high in itertools.pairwise(ends)]


def _first(pair: tuple[float | None, Node]) -> float:
    return pair[0] or 0.0


def _without(value: MathValue) -> Region | None:
    _, whole, removed = value
    if whole != ("named", "R") or removed[0] != "set":
        return None
    points = _numbers(removed[1])
    return _around(points) if len(points) == len(removed[1]) else None


def _of_conditions(values: list[MathValue]) -> Region | None:
    """`x < 1, x > 3` are two half-lines; `x > 1, x < 3` the interval where both hold."""
    if values and values[0][:2] == ("relation", "!="):  # x != 0, 1
        values = [
            values[0],
            *(v if v[0] == "relation" else (*values[0][:3], v) for v in values[1:]),
        ]
    if all(value[0] == "relation" and value[1] == "!=" for value in values):
        return _around([value[3][1] for value in values if value[3][0] == "number"])
    pieces = _joined(values)
    if pieces is None or len(pieces) != 2 or any(value[0] != "relation" for value in values):
        return pieces
    (low, low_closed, _, _), (_, _, high, high_closed) = sorted(
        pieces, key=lambda piece: piece[0] == _MINUS_INFINITY
    )
    low_value, high_value = (constant_value(compile_tree(end)) for end in (low, high))
    if low_value is None or high_value is None or low_value >= high_value:
        return pieces
    return [(low, low_closed, high, high_closed)]
