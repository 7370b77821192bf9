"""Fields of dataclasses that become keys of recipes and options of commands."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple


class Range(NamedTuple):
    """What a value, where it is not None, must be; stands in the type of a field."""

    words: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Range("at least 0", lambda value: value >= 0)
Count = Annotated[int, Range("at least 1", lambda value: value >= 1)]
NonNegative = Annotated[float, AT_LEAST_0]
Positive = Annotated[float, Range("above 0", lambda value: value > 0)]


def arg(default: Any, help: str, *, in_recipes: bool = True, **of_field: Any) -> Any:
    """A field with its help, `dataclasses.MISSING` for none; `of_field` as in `field`. One that is
    not `in_recipes` is set from Python only."""
    metadata = {"help": help, "in_recipes": in_recipes}
    return dataclasses.field(default=default, metadata=metadata, **of_field)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field; `dataclasses.MISSING` if it has none."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def check_ranges(instance: Any) -> None:
    """Raise a ValueError for a field whose value is not in the range that its type names."""
    for name, hint in typing.get_type_hints(type(instance), include_extras=True).items():
        value = getattr(instance, name, None)
        for member in (hint, *typing.get_args(hint)):
            for limit in getattr(member, "__metadata__", ()):
                if isinstance(limit, Range) and value is not None and not limit.holds(value):
                    raise ValueError(f"{name} must be {limit.words}, got {value}")
