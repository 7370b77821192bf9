"""What comes with the package by name: `trl-r1zero recipes`.

trl-r1zero recipes                             # all names, with a line each
trl-r1zero recipes quickstart/grpo > my.yaml   # one, as a start of one's own
"""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from trl_r1zero.recipe.bundled import (
    LAUNCH_CONFIGS,
    RECIPES,
    command_of,
    find_recipe,
    names,
    not_found,
    summary,
)

from .errors import command_line, exit_on
from .launch import DESCRIPTIONS


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero recipes") -> None:
    """List recipes and launch configurations, or print a recipe."""
    parser = command_line(program, __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as quickstart/grpo")
    args = parser.parse_args(argv)
    with exit_on(program, ValueError, OSError):
        print(_listing() if args.name is None else _one(args.name), end="")


def _listing() -> str:
    methods = (method.replace("_", "-") for method in DESCRIPTIONS)
    by_command: dict[str, list[str]] = {name: [] for name in (*methods, "eval", "sweep")}
    for name in names(RECIPES):
        by_command[command_of(RECIPES / f"{name}.yaml")].append(name)
    sections = [
        (f"trl-r1zero {command} {'' if command == 'sweep' else '--config '}NAME", RECIPES, found)
        for command, found in by_command.items()
    ]
    launch = "trl-r1zero grpo --accelerate_config NAME, and the other kinds of runs"
    sections.append((launch, LAUNCH_CONFIGS, names(LAUNCH_CONFIGS)))
    blocks = []
    for title, folder, found in sections:
        width = max(map(len, found))
        lines = [f"  {name.ljust(width)}  {summary(folder / f'{name}.yaml')}" for name in found]
        blocks.append("\n".join([title, *map(_fitted, lines)]))
    return "\n\n".join([*blocks, "`trl-r1zero recipes NAME > my.yaml` copies a recipe.\n"])


def _fitted(line: str) -> str:
    """One line of a terminal; whole where the output is no terminal."""
    if not sys.stdout.isatty():
        return line
    name = re.match(r" *\S+ *", line)
    start = name[0] if name else ""
    room = shutil.get_terminal_size().columns - len(start)
    return start + textwrap.shorten(line[len(start) :], max(room, 20), placeholder=" ...")


def _one(name: str) -> str:
    """A recipe's text, whose base is found from any folder."""
    path = find_recipe(name)
    if not path.is_file():
        raise ValueError(f"there is no recipe {name}{not_found(name)}")
    folder = os.path.relpath(path.parent, RECIPES)

    def by_name(match: re.Match[str]) -> str:
        return f"base: {os.path.normpath(os.path.join(folder, match[1])).removesuffix('.yaml')}"

    return re.sub(r"^base: *(\S+)", by_name, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
