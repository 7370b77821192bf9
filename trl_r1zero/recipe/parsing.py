"""Strict recipes: a YAML file and `--key value` overrides become dataclass instances.

A recipe is a flat YAML mapping whose keys are the fields of one or several dataclasses:

    base: grpo.yaml          # optional: the recipe that this one changes, relative to this file
    learning_rate: 1e-5
    report_to: [tensorboard]

`base` is read first and may have a base of its own; a later value replaces an earlier one as a
whole (a mapping too). The command line comes last. Every key and every type is checked in every
file, and an error names the key, the file and the line.
"""

import copy
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.naming import did_you_mean

from .types import MISFIT, element_type, fit, members, to_plain, type_name
from .yaml_files import RecipeError, Setting, dump_yaml, parse_yaml_text, read_recipe

__all__ = ["ParsedRecipe", "RecipeError", "parse_recipe"]

# Keys that belong to the parser; no dataclass may have a field of that name.
_RESERVED = {
    "base": "path of the recipe that this one changes, relative to this file (in YAML only)",
    "config": "path of the recipe (on the command line only)",
}
_HELP_FLAGS = ("-h", "--help")
_HELP_HINT = "--help lists all keys"
_HELP_WIDTH = 100
_COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class ParsedRecipe:
    """What a recipe and a command line ask for.

    Attributes:
        instances: one instance per dataclass, in the order in which the dataclasses were given.
        values: every field that a recipe can set, with the value that its constructor got, which
            may differ from the instance's: a `__post_init__` derives and converts.
        places: for each key that was set, where ("recipes/x.yaml:3" or "command line"); the other
            keys have their defaults.
    """

    instances: tuple[Any, ...]
    values: dict[str, Any]
    places: dict[str, str]

    def to_yaml(self) -> str:
        """`values` as a recipe, defaults included, each set key with its place as a comment.

        Parsed again by the same dataclasses, it gives equal instances. Secrets are the exception:
        a field whose name ends in `_token` is left out.
        """
        sections = []
        for instance in self.instances:
            lines = [f"# {type(instance).__name__}\n"]
            for field in _settable_fields(type(instance)):
                if field.name.endswith("_token"):
                    continue
                text = dump_yaml({field.name: to_plain(self.values[field.name])})
                place = self.places.get(field.name)
                if place is not None:
                    # A comment cannot stand behind a value of several lines.
                    single = text.count("\n") == 1
                    text = f"{text[:-1]}  # {place}\n" if single else f"# {place}\n{text}"
                lines.append(text)
            sections.append("".join(lines))
        return "\n".join(sections)

    def write(self, path: str | Path) -> None:
        """Write `to_yaml` to a file, whose folder is made if need be."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_yaml(), encoding="utf-8")


def parse_recipe(
    dataclass_types: tuple[type, ...],
    argv: Sequence[str] | None = None,
    description: str = "",
    program: str | None = None,
) -> ParsedRecipe:
    """Read a recipe and its overrides from a command line into dataclass instances.

    The command line is `[--config RECIPE.yaml] [--key value | --key=value ...]`, each key once. A
    boolean can stand without a value (`--bf16`); a list takes several (`--report_to wandb
    tensorboard`) or YAML (`"[wandb]"`), a mapping takes YAML (`"{a: 1}"`). A string is taken
    literally. `--help` prints every key with its type and default and exits.

    Types are those of the dataclasses' hints. An int is taken for a float, a string that `float`
    reads too; a bool is never a number, and `2.0` is not an int. A field's own default is always
    allowed.

    Args:
        dataclass_types: their fields form one flat namespace.
        argv: the arguments. None, for scripts, stands for `sys.argv[1:]`; errors then end the
            program as argparse does: a message without a traceback, exit status 2.
        description: what `--help` says first, such as the script's docstring.
        program: what `--help` and messages call the program, the script's name by default; with it,
            errors end the program for an explicit argv too.

    Raises:
        RecipeError: with an explicit argv and no program, for what is wrong in the recipe or the
            command line; all wrong keys at once.
        ValueError: from a dataclass's own `__post_init__`, unchanged.
        TypeError: two dataclasses share a field, or a field has a reserved name.
    """
    fields = _namespace(dataclass_types)
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = program or Path(sys.argv[0]).name
    if any(flag in arguments for flag in _HELP_FLAGS):
        print(_help(dataclass_types, fields, description, name))
        raise SystemExit(0)
    if argv is not None and program is None:
        return _parse(dataclass_types, fields, arguments)
    try:
        return _parse(dataclass_types, fields, arguments)
    except ValueError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@dataclasses.dataclass(frozen=True)
class _Field:
    """A key of the namespace."""

    name: str
    hint: Any
    default: Callable[[], Any] | None  # None: the recipe has to set it

    def is_default(self, value: Any) -> bool:
        if self.default is None:
            return False
        default = self.default()
        return type(value) is type(default) and bool(value == default)


def _settable_fields(dataclass_type: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(dataclass_type) if field.init]


def _namespace(dataclass_types: tuple[type, ...]) -> dict[str, _Field]:
    owners: dict[str, type] = {}
    namespace = {}
    for dataclass_type in dataclass_types:
        hints = typing.get_type_hints(dataclass_type)
        for field in _settable_fields(dataclass_type):
            name = field.name
            if name in _RESERVED:
                raise TypeError(
                    f"{dataclass_type.__name__}.{name}: recipes use the key {name!r} themselves; "
                    f"rename the field"
                )
            if name in owners:
                raise TypeError(
                    f"both {owners[name].__name__} and {dataclass_type.__name__} have a field "
                    f"{name!r}, but a recipe's keys are one namespace; rename one of them"
                )
            owners[name] = dataclass_type
            namespace[name] = _Field(name, hints[name], _default_of(field))
    return namespace


def _default_of(field: dataclasses.Field) -> Callable[[], Any] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is dataclasses.MISSING:
        return None
    return lambda: field.default


def _parse(
    dataclass_types: tuple[type, ...], fields: dict[str, _Field], arguments: list[str]
) -> ParsedRecipe:
    options = _split_command_line(arguments)
    config = options.pop("config", None)
    given: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[str] = []

    def take(key: str, place: str, convert: Callable[[_Field], Any]) -> None:
        if key not in fields:
            problems.append(_unknown(key, place, fields))
            return
        try:
            places[key] = place
            given[key] = convert(fields[key])
        except RecipeError as error:
            problems.append(f"{place}: {key}: {error}")

    if config is not None:
        if len(config) != 1:
            raise RecipeError(f"--config takes one file, got {len(config)}: {' '.join(config)}")
        for setting in read_recipe(Path(config[0])):
            take(setting.key, setting.place, functools.partial(_fit_setting, setting))
    for key, texts in options.items():
        take(key, _COMMAND_LINE, functools.partial(_fit_texts, texts))

    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = given[name]
        elif field.default is not None:
            values[name] = field.default()
        elif name not in places:
            problems.append(f"{name}: no value given, and it has no default ({_HELP_HINT})")
    if problems:
        raise RecipeError("\n".join(problems))

    instances = []
    for dataclass_type in dataclass_types:
        names = [field.name for field in _settable_fields(dataclass_type)]
        # A copy, since a __post_init__ may change a mapping or a list in place.
        instances.append(dataclass_type(**copy.deepcopy({name: values[name] for name in names})))
    return ParsedRecipe(tuple(instances), values, places)


def _unknown(key: str, place: str, fields: dict[str, _Field]) -> str:
    if key in _RESERVED:
        return f"{place}: {key!r} cannot stand here: it is the {_RESERVED[key]}"
    suggestion = did_you_mean(key.replace("-", "_"), fields)
    return f"{place}: unknown key {key!r}{suggestion} ({_HELP_HINT})"


def _fit_setting(setting: Setting, field: _Field) -> Any:
    """A value from YAML as the field's type."""
    value, hint = setting.value, field.hint
    fitted = fit(value, hint)
    if fitted is not MISFIT:
        return fitted
    if field.is_default(value):
        return value
    kinds = {*members(hint), *members(element_type(hint))}
    scalar = value is not None and not isinstance(value, str | list | dict)
    advice = ""
    if scalar and fit(setting.text, hint) is not MISFIT:
        advice = f'; YAML reads it as {type(value).__name__}, so quote it: "{setting.text}"'
    elif isinstance(value, list) and str in kinds:
        advice = "; quote each string that YAML reads as something else (no, off, 1)"
    elif isinstance(value, float) and value.is_integer() and int in kinds:
        advice = f"; write {int(value)}"
    elif isinstance(value, str) and bool in kinds:
        advice = "; write true or false, without quotes"
    got = "null" if value is None else f"{setting.text} ({type(value).__name__})"
    raise RecipeError(f"got {got}, expected {type_name(hint)}{advice}")


# The command line's side.


def _split_command_line(arguments: list[str]) -> dict[str, list[str]]:
    """`--key a b --flag` as {"key": ["a", "b"], "flag": []}."""
    options: dict[str, list[str]] = {}
    open_values: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key, has_value, value = argument[2:].partition("=")
            if key in options:
                raise RecipeError(f"command line: --{key} is given twice; leave one")
            options[key] = [value] if has_value else []
            open_values = None if has_value else options[key]
        elif open_values is None:
            advice = f"give a recipe as --config {argument}" if not options else "quote the value"
            raise RecipeError(f"command line: unexpected argument {argument!r}; {advice}")
        else:
            open_values.append(argument)
    return options


def _fit_texts(texts: list[str], field: _Field) -> Any:
    """The arguments behind a `--key` as the field's type."""
    hint, item_hint = field.hint, element_type(field.hint)
    if not texts:
        if bool in members(hint):
            return True
        raise RecipeError(f"got no value, expected {type_name(hint)}")
    value = _fit_text(texts[0], hint) if len(texts) == 1 else MISFIT
    if value is MISFIT and item_hint is not None:
        items = [_fit_text(text, item_hint) for text in texts]
        value = MISFIT if any(item is MISFIT for item in items) else fit(items, hint)
    if value is MISFIT:
        several = len(texts) > 1 and item_hint is None
        advice = f"; write a value with blanks in quotes, --{field.name}='...'" if several else ""
        raise RecipeError(f"got {' '.join(texts)}, expected {type_name(hint)}{advice}")
    return value


def _fit_text(text: str, hint: Any) -> Any:
    """One argument as a value of the type; text is literal, but types other than str go first."""
    parsed = parse_yaml_text(text)
    if parsed is None and text not in ("null", "~"):  # such as an empty text, or "# a comment"
        parsed = text
    others = tuple(member for member in members(hint) if member is not str)
    if not isinstance(parsed, str) and others:
        value = fit(parsed, typing.Union[others])  # noqa: UP007
        if value is not MISFIT:
            return value
    return fit(text, hint)


# --help.


def _help(
    dataclass_types: tuple[type, ...], fields: dict[str, _Field], description: str, program: str
) -> str:
    blocks = [f"usage: {program} [--config RECIPE.yaml] [--key value ...]"]
    if description:
        blocks.append(description.strip())
    blocks.append(
        "--config FILE\n"
        + _indented(
            "The recipe: a YAML file with the keys below, and `base: FILE` for the recipe that it "
            "changes. Keys on the command line win over it."
        )
    )
    for dataclass_type in dataclass_types:
        settable = {field.name: field for field in _settable_fields(dataclass_type)}
        for owner, names in _by_owner(dataclass_type, list(settable)).items():
            of = "" if owner is dataclass_type else f" (of {dataclass_type.__name__})"
            blocks.append(f"{owner.__name__}{of}:")
            blocks += [_help_of(fields[name], settable[name], owner) for name in names]
    return "\n\n".join(blocks)


def _by_owner(dataclass_type: type, names: list[str]) -> dict[type, list[str]]:
    """The fields by the class that declares them last, the dataclass itself first."""
    owners: dict[type, list[str]] = {}
    left = list(names)
    for owner in dataclass_type.__mro__:
        declared = inspect.get_annotations(owner)
        mine = [name for name in left if name in declared]
        left = [name for name in left if name not in declared]
        if mine:
            owners[owner] = mine
    return owners


def _help_of(field: _Field, declared: dataclasses.Field, owner: type) -> str:
    default = "required"
    if field.default is not None:
        flow = dump_yaml([to_plain(field.default())], flow=True).strip()
        default = f"default {flow[1:-1]}"
    text = declared.metadata.get("help") or _docstring_entry(owner, field.name)
    title = f"--{field.name}: {type_name(field.hint)}, {default}"
    return f"{title}\n{_indented(text)}" if text else title


def _docstring_entry(owner: type, name: str) -> str:
    """The first sentence that a docstring says about a field, as `name (type): sentence.`"""
    entry = re.search(
        rf"^([ \t]*)`*{name}`*(?: *\([^\n]*\))?:[ \t]*(.*(?:\n\1[ \t]+\S.*)*)",
        owner.__doc__ or "",
        re.MULTILINE,
    )
    if entry is None:
        return ""
    return re.split(r"(?<=\.)\s", " ".join(entry[2].split()), maxsplit=1)[0]


def _indented(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), _HELP_WIDTH, initial_indent="    ", subsequent_indent="    "
    )
