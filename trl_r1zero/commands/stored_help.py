"""`--help` of the commands that take a recipe's keys, at once: it is kept in files.

To list the keys themselves these commands import torch. The files hold for the versions of TRL and
transformers in their first line; with others a command lists its keys itself, in some seconds.

    python -m trl_r1zero.commands.stored_help    # write the files, after a change of keys
"""

from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import distributions
from io import StringIO
from pathlib import Path

from .launch import DESCRIPTIONS, description_of, program_of

FOLDER = Path(__file__).parent / "help"
# Command -> the method of its runs; none where it makes no run.
KEYED: Mapping[str, str | None] = {
    **{method.replace("_", "-"): method for method in DESCRIPTIONS},
    **dict.fromkeys(("chat", "eval", "judge", "serve")),
}


def help_text(command: str) -> str:
    """What `trl-r1zero COMMAND --help` prints."""
    file = FOLDER / f"{command}.txt"
    if command in KEYED and file.is_file():
        versions, _, text = file.read_text(encoding="utf-8").partition("\n")
        if versions == _versions():
            return text
    return made_help(command)


def made_help(command: str) -> str:
    """The same, listed by the command itself."""
    printed = StringIO()
    method = KEYED.get(command)
    with redirect_stdout(printed), suppress(SystemExit):
        if method is None:
            import_module(f"trl_r1zero.commands.{command}").main(["--help"])
        else:
            from trl_r1zero.recipe import parse_recipe
            from trl_r1zero.runs.kinds import METHODS

            parse_recipe(METHODS[method], ["--help"], description_of(method), program_of(method))
    return printed.getvalue()


def write() -> None:
    """Write the files anew."""
    FOLDER.mkdir(exist_ok=True)
    for command in KEYED:
        text = f"{_versions()}\n{made_help(command)}"
        (FOLDER / f"{command}.txt").write_text(text, encoding="utf-8")


def _versions() -> str:
    found = [(name, next(iter(distributions(name=name)), None)) for name in ("trl", "transformers")]
    return "# " + ", ".join(f"{name} {one.version if one else 'missing'}" for name, one in found)


if __name__ == "__main__":
    write()
