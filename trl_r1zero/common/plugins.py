"""Functions that users bring: named by dotted paths, with options that are recipe keys.

A plug-in is called with its inputs, in their order, and with what else its kind offers and it has a
parameter for. All its other parameters are options: `SELF.OPTION` in a recipe, SELF being the last
part of the dotted path, with the type and the default of the parameter.

    surrogate: my_package.losses.soft_clip
    soft_clip.tau: 2.0
"""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeGuard

from .arguments import arg
from .naming import resolve, unknown_name_message
from .types import MISFIT, fit, type_name

# What a recipe can say.
_PLAIN = bool | int | float | str | list | dict | Path | Enum | None
# The default of an option that has none.
REQUIRED = inspect.Parameter.empty
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_by_name(
    function: Callable[..., Any], inputs: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """`function` of the inputs, and of those of the named values that it has a parameter for."""
    parameters = inspect.signature(function).parameters
    return function(*inputs, **{key: named[key] for key in named if key in parameters})


def is_dotted(name: object) -> TypeGuard[str]:
    """Whether it is a dotted path, `package.module.name`; a text file is none."""
    if not isinstance(name, str) or "." not in name or name.endswith(".txt"):
        return False
    return all(map(str.isidentifier, name.split(".")))


class Option(NamedTuple):
    """A parameter of a plug-in that a recipe sets."""

    hint: Any
    default: Any  # or REQUIRED


@dataclass(frozen=True)
class Role:
    """How plug-ins of a kind are called."""

    kind: str  # the recipe's key
    inputs: tuple[str, ...]  # what they take by position
    named: tuple[str, ...]  # what they may take besides, by these names
    known: Mapping[str, Any]  # the registered ones
    # Whether one that takes fewer by position is refused here, and not where it is called first.
    counts_inputs: bool = True

    def options(self, name: str) -> dict[str, Option]:
        """The options of a plug-in by their keys in a recipe; registered ones have none. A
        ValueError if there is none at the path, or it cannot be called as its kind is."""
        if name in self.known:
            return {}
        function = resolve(self.kind, name, self.known)
        if not callable(function):
            return {}
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # of a builtin, which tells nothing
            return {}
        if self.counts_inputs:
            self._check_inputs(name, parameters)
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise ValueError(f"{self.kind}: {name}: a type of its signature: {error}") from error
        except TypeError:  # of an object that can be called
            hints = {}
        own = name.rpartition(".")[2]
        rest = [p for p in parameters[len(self.inputs) :] if p.name not in self.named]
        return {
            f"{own}.{p.name}": self._option(name, p, hints)
            for p in rest
            if p.kind not in _ANY_NUMBER
            and (p.default is REQUIRED or isinstance(p.default, _PLAIN))
        }

    def _check_inputs(self, name: str, parameters: Sequence[inspect.Parameter]) -> None:
        by_position = [p for p in parameters if p.kind in _BY_POSITION]
        takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        if len(by_position) < len(self.inputs) and not takes_any:
            further = f", and by name any of {', '.join(self.named)}" if self.named else ""
            raise ValueError(
                f"{self.kind}: {name} takes {len(by_position)} arguments by position, but is "
                f"called with {len(self.inputs)}: {', '.join(self.inputs)}{further}"
            )

    def _option(self, name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Option:
        if parameter.name in hints:
            return Option(hints[parameter.name], parameter.default)
        if parameter.default is REQUIRED:
            raise ValueError(
                f"{self.kind}: {name}: its parameter {parameter.name!r} has neither a type nor a "
                f"default, and is none of {', '.join((*self.inputs, *self.named))}; give it a type"
            )
        plain = isinstance(parameter.default, bool | int | float | str)
        return Option(type(parameter.default) if plain else Any, parameter.default)

    def bind(self, name: str, given: Mapping[str, Any]) -> Any:
        """What is registered under a name, or stands at a dotted path with its options set: those
        of `given`, which has options of other plug-ins too, by their keys in a recipe. A ValueError
        as `options`, or if an option has no value, or one of another type."""
        options, values = self.options(name), {}
        for key, (hint, default) in options.items():
            value = given.get(key, default)
            if value is REQUIRED:
                raise ValueError(f"{key}: no value given, and {self.kind} {name} has no default")
            fitted = value if value is default else fit(value, hint)
            if fitted is MISFIT:
                raise ValueError(f"{key}: got {value!r}, expected {type_name(hint)}")
            if value is not default:
                values[key.rpartition(".")[2]] = fitted
        function = resolve(self.kind, name, self.known)
        return partial(function, **values) if values else function


@dataclass
class PlugIns:
    """A base of settings of which some name plug-ins; `roles` are those of these, by name."""

    roles: ClassVar[Mapping[str, Role]] = {}

    plugin_options: dict[str, Any] | None = arg(
        None,
        'Options of plug-ins, {"soft_clip.tau": 2.0}; in a recipe each is a key.',
        in_recipes=False,
    )

    @classmethod
    def option_keys(cls, values: Mapping[str, Any]) -> dict[str, Option]:
        """The keys that a recipe with these values has besides the fields. A ValueError as
        `Role.options`, or if two plug-ins have a name."""
        keys: dict[str, Option] = {}
        for kind, role in cls.roles.items():
            name = values.get(kind)
            if isinstance(name, str) and is_dotted(name):
                options = role.options(name)
                if options.keys() & keys.keys():
                    raise ValueError(f"{kind}: two plug-ins are called {name}; rename one of them")
                keys |= options
        return keys

    def bound(self, kind: str) -> Any:
        """The plug-in of a setting, with its options; a registered one is its name."""
        name = getattr(self, kind)
        if not is_dotted(name):
            return name
        return self.roles[kind].bind(name, self.plugin_options or {})

    def check_options(self) -> None:
        """Raise a ValueError for an option that no plug-in has."""
        keys = self.option_keys(vars(self))
        for key in self.plugin_options or {}:
            if key not in keys:
                raise ValueError(unknown_name_message("option of a plug-in", key, keys))
