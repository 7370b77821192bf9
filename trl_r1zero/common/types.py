"""Strict conversion of YAML values to the types of dataclass hints."""

import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

# What `fit` returns for a value that is not of the type: None is a value like any other.
MISFIT = object()


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type that is none is its own only alternative."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(member for arg in typing.get_args(hint) for member in members(arg))
    return (type(None),) if hint is None else (hint,)


def element_type(hint: Any) -> Any:
    """What the lists hold that a hint admits: T for `list[T] | None`; None if it admits no list."""
    for member in members(hint):
        if (typing.get_origin(member) or member) in (list, tuple, Sequence):
            args = [arg for arg in typing.get_args(member) if arg is not Ellipsis]
            return typing.Union[tuple(args)] if args else Any  # noqa: UP007
    return None


def fit(value: Any, hint: Any) -> Any:
    """The value as an instance of the hinted type, or MISFIT.

    Allowed conversions: an int, or a string that `float` reads, to float; an enum's value to the
    enum; a list to a tuple; a string to a Path. In a union, a member that the value is already of
    goes before one that it can be converted to. A bool is neither an int nor a float.
    """
    tried = (_fit_member(value, one, convert) for convert in (False, True) for one in members(hint))
    return next((fitted for fitted in tried if fitted is not MISFIT), MISFIT)


def _fit_member(value: Any, hint: Any, convert: bool) -> Any:
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        # By type too, since True == 1.
        return next((arg for arg in args if type(arg) is type(value) and arg == value), MISFIT)
    kind = origin or hint
    if kind in (list, tuple, Sequence):
        return _fit_list(value, kind, args, convert)
    if kind in (dict, Mapping):
        return _fit_dict(value, args, convert)
    if convert and kind is float and type(value) in (int, str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return MISFIT
    if convert and kind is Path and isinstance(value, str):
        return Path(value)
    if convert and isinstance(kind, type) and issubclass(kind, Enum):
        same = (one for one in kind if type(one.value) is type(value) and one.value == value)
        return next(same, MISFIT)
    if kind in (bool, int, float, str, type(None)):
        return value if type(value) is kind else MISFIT
    return value if isinstance(kind, type) and isinstance(value, kind) else MISFIT


def _fit_list(value: Any, kind: Any, args: tuple[Any, ...], convert: bool) -> Any:
    made = tuple if kind is tuple else list
    if not isinstance(value, list if convert else made):
        return MISFIT
    hints = [args[0] if args else Any] * len(value)
    if made is tuple and args and args[-1] is not Ellipsis:
        hints = list(args)
    return _fit_all(list(value), hints, convert, made) if len(hints) == len(value) else MISFIT


def _fit_dict(value: Any, args: tuple[Any, ...], convert: bool) -> Any:
    if not isinstance(value, dict):
        return MISFIT
    key_hint, value_hint = args or (Any, Any)
    keys = _fit_all(list(value), [key_hint] * len(value), convert, list)
    values = _fit_all(list(value.values()), [value_hint] * len(value), convert, list)
    return MISFIT if MISFIT in (keys, values) else dict(zip(keys, values, strict=True))


def _fit_all(values: list[Any], hints: list[Any], convert: bool, kind: type) -> Any:
    fitted = []
    for value, hint in zip(values, hints, strict=True):
        # Without conversion, all elements have to be of their type as they are.
        one = fit(value, hint)
        if one is MISFIT or (not convert and type(one) is not type(value)):
            return MISFIT
        fitted.append(one)
    return kind(fitted)


def to_plain(value: Any) -> Any:
    """The value in YAML's own types, which `fit` turns into an equal one."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    return value


def type_name(hint: Any) -> str:
    """The type in words, for help and error messages: 'float or null', 'list of str'."""
    return " or ".join(dict.fromkeys(_member_name(member) for member in members(hint)))


def _member_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if hint is Any:
        return "anything"
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return _one_of(args)
    if kind in (list, tuple, Sequence):
        items = ", ".join(type_name(arg) for arg in args if arg is not Ellipsis and arg is not Any)
        return f"list of {items}" if items else "list"
    if kind in (dict, Mapping):
        return f"mapping from {type_name(args[0])} to {type_name(args[1])}" if args else "mapping"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of([member.value for member in kind])
    return getattr(kind, "__name__", str(kind))


def _one_of(values: Sequence[Any]) -> str:
    names = [str(value).lower() if value in (True, False) else str(value) for value in values]
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
