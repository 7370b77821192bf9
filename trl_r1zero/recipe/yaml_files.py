"""Reads recipes from YAML with file and line of every key, and writes them.

YAML is read by its 1.1 rules, as other tools do, except where these surprise: `1e-5` is a number,
`1:30`, `010` and `2026-01-31` are strings. A repeated key is an error.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .bundled import find_recipe, not_found

# What YAML 1.2 reads as a float and 1.1 does not: an exponent without a dot or without a sign.
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_FLOAT = re.compile(
    rf"{_EXPONENT.pattern}|[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)


class RecipeError(ValueError):
    """A recipe or command line that cannot be read; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key of a file with its value."""

    key: str
    place: str
    value: Any
    text: str  # as written: YAML has turned `no` into False already


class _Loader(yaml.SafeLoader):
    """SafeLoader with this module's numbers, which also refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        _refuse_duplicates(node)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings that `_Loader` would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In double quotes every line break is an escape. In the other styles PyYAML writes them as
    # they are, and reads U+0085 back as a blank.
    style = '"' if len(text.splitlines()) > 1 or text[-1:].isspace() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)

_REPLACED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (("int", _INTEGER), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})$"), list("-+.0123456789")
    )
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"(?:{_EXPONENT.pattern})$"), list("-+.0123456789")
)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is a word", problem_mark=key.start_mark)
        if key.value in lines:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} is already on line {lines[key.value]}",
                problem_mark=key.start_mark,
            )
        lines[key.value] = key.start_mark.line + 1


def dump_yaml(value: Any, flow: bool = False) -> str:
    """YAML that this module reads back to an equal value; scalars are never folded over lines."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
        default_flow_style=flow,
    )


def read_recipe(path: Path, chain: tuple[Path, ...] = ()) -> list[Setting]:
    """The settings of a recipe, a file's or a bundled one's, those of its base first."""
    path = find_recipe(path)
    resolved = path.resolve()
    if resolved in chain:
        steps = " -> ".join(str(step) for step in (*chain, resolved))
        raise RecipeError(f"{path}: the recipe is, over its base, its own base: {steps}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        advice = not_found(path) if isinstance(error, FileNotFoundError) else ""
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}{advice}") from error
    try:
        settings = list(_settings_of(path, text))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {error}") from error

    inherited: list[Setting] = []
    for setting in settings:
        if setting.key == "base":
            if not isinstance(setting.value, str):
                raise RecipeError(
                    f"{setting.place}: base: got {setting.text}, expected the path of a recipe, "
                    f"relative to {path.parent}, or the name of a bundled one"
                )
            beside = path.parent / setting.value
            base = beside if beside.is_file() else find_recipe(setting.value)
            inherited = read_recipe(base if base.is_file() else beside, (*chain, resolved))
    return inherited + [setting for setting in settings if setting.key != "base"]


def _settings_of(path: Path, text: str) -> Iterator[Setting]:
    loader = _Loader(text)
    root = loader.get_single_node()
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}:{root.start_mark.line + 1}: a recipe is a mapping, `key: value`")
    _refuse_duplicates(root)
    for key, node in root.value:
        value = loader.construct_object(node, deep=True)
        written = node.value if isinstance(node, yaml.ScalarNode) else repr(value)
        yield Setting(str(key.value), f"{path}:{key.start_mark.line + 1}", value, written)


def parse_yaml_text(text: str) -> Any:
    """A command line argument by the same rules; what is no YAML is a string."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def format_value(value: Any) -> str:
    """A setting's value in a label: as short as YAML has it, 1e-4 and not 0.0001."""
    if isinstance(value, float):
        mantissa, e, exponent = f"{value:.6e}".partition("e")
        scientific = f"{float(mantissa):g}{e}{int(exponent)}"
        return min(f"{value:g}", scientific, key=len) if "e" not in f"{value:g}" else scientific
    return dump_yaml([value], flow=True).strip()[1:-1]
