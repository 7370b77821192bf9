"""Strict recipes: a YAML file and `--key value` overrides become dataclass instances.

A recipe is a flat YAML mapping whose keys are the fields of one or several dataclasses:

    base: grpo.yaml          # optional: the recipe that this one changes: relative to this file,
                             # or the name of a bundled one, such as quickstart/grpo
    learning_rate: 1e-5
    report_to: [tensorboard]

`base` is read first and may have a base of its own; a later value replaces an earlier one as a
whole (a mapping too). A setting that names a plug-in by its dotted path brings the options of the
plug-in as further keys (`trl_r1zero.common.plugins`). The command line comes last. Every key and
every type is checked in every file, and an error names the key, the file and the line.
"""

import copy
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl_r1zero.common.arguments import arg, default_of
from trl_r1zero.common.naming import did_you_mean
from trl_r1zero.common.plugins import REQUIRED, PlugIns
from trl_r1zero.common.types import MISFIT, element_type, fit, members, to_plain, type_name

from .yaml_files import RecipeError, Setting, dump_yaml, parse_yaml_text, read_recipe

# Keys that belong to the parser; no dataclass may have a field of that name.
_RESERVED = {
    "base": "recipe that this one changes: a path relative to this file, or a name (in YAML only)",
    "config": "path or name of the recipe (on the command line only)",
}
_HELP_FLAGS = ("-h", "--help")
_HELP_HINT = "--help lists all keys"
_HELP_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class ParsedRecipe:
    """What a recipe and a command line ask for."""

    # One per dataclass, in the order in which the dataclasses were given.
    instances: tuple[Any, ...]
    # Every field that a recipe can set, with the value that its constructor got, which may differ
    # from the instance's: a `__post_init__` derives and converts.
    values: dict[str, Any]
    # Each key that was set -> where: "recipes/x.yaml:3" or "command line".
    places: dict[str, str]
    # Each option of a plug-in -> the dataclass whose setting names the plug-in.
    options: dict[str, type] = dataclasses.field(default_factory=dict)

    def to_yaml(self) -> str:
        """`values` as a recipe, defaults included, each set key with its place as a comment.

        Parsed again by the same dataclasses, it gives equal instances. Secrets are the exception:
        a field whose name ends in `_token` is left out.
        """
        sections = []
        for instance in self.instances:
            lines = [f"# {type(instance).__name__}\n"]
            of_plugins = [key for key, owner in self.options.items() if owner is type(instance)]
            for name in (*_namespace((type(instance),)), *of_plugins):
                if name.endswith("_token"):
                    continue
                text = dump_yaml({name: to_plain(self.values[name])})
                place = self.places.get(name)
                if place is not None:
                    # A comment cannot follow a value of several lines.
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

    The command line is `[--config RECIPE] [--key value | --key=value ...]`, the last of a repeated
    key counts. A boolean can stand without a value (`--bf16`); a list takes several (`--report_to
    wandb tensorboard`) or YAML (`"[wandb]"`), a mapping takes YAML (`"{a: 1}"`). A string is taken
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
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = program or Path(sys.argv[0]).name
    if any(flag in arguments for flag in _HELP_FLAGS):
        print(_help(dataclass_types, description, name))
        raise SystemExit(0)
    if argv is not None and program is None:
        return _parse(dataclass_types, arguments)
    try:
        return _parse(dataclass_types, arguments)
    except (ValueError, OSError) as error:  # such as a prompt's file that is not there
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class _Key(NamedTuple):
    """A key of the namespace."""

    field: dataclasses.Field
    hint: Any
    owner: type
    default: Any


def _namespace(dataclass_types: tuple[type, ...]) -> dict[str, _Key]:
    keys: dict[str, _Key] = {}
    for owner in dataclass_types:
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            name = field.name
            if not field.init or not field.metadata.get("in_recipes", True):
                continue
            if name in _RESERVED:
                raise TypeError(
                    f"{owner.__name__}.{name}: recipes use the key {name!r} themselves; "
                    f"rename the field"
                )
            if name in keys:
                raise TypeError(
                    f"both {keys[name].owner.__name__} and {owner.__name__} have a field "
                    f"{name!r}, but a recipe's keys are one namespace; rename one of them"
                )
            keys[name] = _Key(field, hints[name], owner, default_of(field))
    return keys


def _parse(dataclass_types: tuple[type, ...], arguments: list[str]) -> ParsedRecipe:
    keys = _namespace(dataclass_types)
    texts = _split_command_line(arguments)
    config = texts.pop("config", None)
    if config is not None and len(config) != 1:
        raise RecipeError(f"--config takes one file, got {len(config)}: {' '.join(config)}")
    settings = [] if config is None else list(read_recipe(Path(config[0])))
    options = _options(dataclass_types, keys, settings, texts)
    keys |= options
    problems: list[str] = []
    values = {name: key.default for name, key in keys.items()}
    places: dict[str, str] = {}

    def take(name: str, place: str, convert: Callable[[Any, _Key], Any], value: Any) -> None:
        if name not in keys:
            problems.append(_unknown(name, place, keys))
            return
        try:
            places[name] = place
            values[name] = convert(value, keys[name])
        except RecipeError as error:
            problems.append(f"{place}: {name}: {error}")

    for setting in _spread(settings, options):
        take(setting.key, setting.place, _fit_setting, setting)
    for name, given in texts.items():
        take(name, "command line", _fit_texts, given)
    problems += [
        f"{name}: no value given, and it has no default ({_HELP_HINT})"
        for name, value in values.items()
        if value is dataclasses.MISSING and name not in places
    ]
    if problems:
        raise RecipeError("\n".join(problems))

    instances = []
    for owner in dataclass_types:
        # A copy, since a __post_init__ may change a mapping or a list in place.
        own = copy.deepcopy({name: values[name] for name in keys if keys[name].owner is owner})
        of_plugins = {name: own.pop(name) for name in options if name in own}
        instances.append(owner(**own, **({"plugin_options": of_plugins} if of_plugins else {})))
    owners = {name: key.owner for name, key in options.items()}
    return ParsedRecipe(tuple(instances), values, places, owners)


def _options(
    dataclass_types: tuple[type, ...],
    keys: dict[str, _Key],
    settings: Sequence[Setting],
    texts: dict[str, list[str]],
) -> dict[str, _Key]:
    """The options of the plug-ins that a recipe names."""
    raw = {name: key.default for name, key in keys.items()}
    raw |= {setting.key: setting.value for setting in settings}
    raw |= {name: given[0] for name, given in texts.items() if len(given) == 1}
    found: dict[str, _Key] = {}
    for owner in dataclass_types:
        if not issubclass(owner, PlugIns):
            continue
        try:
            options = owner.option_keys(raw)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        for name, (hint, default) in options.items():
            field = arg(dataclasses.MISSING if default is REQUIRED else default, "A plug-in's.")
            field.name = name
            if name in found:
                raise RecipeError(f"two plug-ins have the option {name}; rename one of them")
            found[name] = _Key(field, hint, owner, field.default)
    return found


def _spread(settings: Sequence[Setting], options: Iterable[str]) -> Iterable[Setting]:
    """The settings, of a mapping of a plug-in's options each by itself."""
    plugins = {key.rpartition(".")[0] for key in options}
    for setting in settings:
        if setting.key in plugins and isinstance(setting.value, dict):
            for name, value in setting.value.items():
                key = f"{setting.key}.{name}"
                yield Setting(key, setting.place, value, str(value))
        else:
            yield setting


def _unknown(key: str, place: str, keys: Iterable[str]) -> str:
    if key in _RESERVED:
        return f"{place}: {key!r} is not a key here: it is the {_RESERVED[key]}"
    suggestion = did_you_mean(key.replace("-", "_"), keys)
    return f"{place}: unknown key {key!r}{suggestion} ({_HELP_HINT})"


def _fit_setting(setting: Setting, key: _Key) -> Any:
    """A value from YAML as the field's type."""
    value, hint, default = setting.value, key.hint, key.default
    fitted = fit(value, hint)
    if fitted is not MISFIT:
        return fitted
    if type(value) is type(default) and value == default:
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
    """`--key a b --flag` as {"key": ["a", "b"], "flag": []}; of a repeated key the last counts."""
    options: dict[str, list[str]] = {}
    open_values: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key, has_value, value = argument[2:].partition("=")
            options[key] = [value] if has_value else []
            open_values = None if has_value else options[key]
        elif open_values is None:
            advice = "quote the value" if options else f"give a recipe as --config {argument}"
            raise RecipeError(f"command line: unexpected argument {argument!r}; {advice}")
        else:
            open_values.append(argument)
    return options


def _fit_texts(texts: list[str], key: _Key) -> Any:
    """The arguments behind a `--key` as the field's type."""
    hint, item_hint = key.hint, element_type(key.hint)
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
        advice = (
            f"; write a value with blanks in quotes, --{key.field.name}='...'" if several else ""
        )
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


def _help(dataclass_types: tuple[type, ...], description: str, program: str) -> str:
    blocks = [f"usage: {program} [--config RECIPE.yaml] [--key value ...]"]
    if description:
        blocks.append(description.strip())
    blocks.append(
        "--config FILE\n"
        + _indented(
            "The recipe: a YAML file with the keys below, and `base: FILE` for the recipe that it "
            "changes; or the name of a bundled one (`trl-r1zero recipes` lists them). Keys on the "
            "command line win over it."
        )
    )
    left = _namespace(dataclass_types)
    for dataclass_type in dataclass_types:
        # By the class that declares a field last, the dataclass itself first.
        for declarer in dataclass_type.__mro__:
            declared = inspect.get_annotations(declarer)
            if names := [n for n in left if n in declared and left[n].owner is dataclass_type]:
                of = "" if declarer is dataclass_type else f" (of {dataclass_type.__name__})"
                blocks.append(f"{declarer.__name__}{of}:")
                blocks += [_help_of(left.pop(name), declarer) for name in names]
    return "\n\n".join(blocks)


def _help_of(key: _Key, declarer: type) -> str:
    name, default = key.field.name, "required"
    if key.default is not dataclasses.MISSING:
        flow = dump_yaml([to_plain(key.default)], flow=True).strip()
        default = f"default {flow[1:-1]}"
    text = key.field.metadata.get("help") or _docstring_entry(declarer, name)
    title = f"--{name}: {type_name(key.hint)}, {default}"
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
