"""The command line: `trl-r1zero COMMAND ...`. To add a command, add a module to
`commands` and a line to `COMMANDS`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from trl_r1zero import __version__
from trl_r1zero.common.naming import search_here, unknown_name_message

PROGRAM = "trl-r1zero"

# Command -> what it is for. The module of its name in `commands` has a `main(argv)` that returns an
# exit status (None: 0), and is imported when called, so that help and errors come at once.
COMMANDS = {
    "quickstart": "make a small model, train it with GRPO, and show that it learned",
    "recipes": "list the recipes and launch configurations that come by name",
    "init": "write a project to edit: data, task, prompt, reward, recipe, test",
    "sweep": "run experiments: grids of runs, and seeds",
    "watch": "show runs on a page that follows them",
    "runs": "list runs: state, steps, accuracy, age, size",
    "report": "curves and tables of runs, and of groups",
    "eval": "sample and grade answers, and write a report",
    "chat": "ask a run or a model a question",
    "grade": "grade responses of a file, and say why they are wrong",
    "judge": "let a model judge answers that nothing grades",
    "compare": "put evaluations side by side, with paired errors",
    "leaderboard": "verify submissions, and list them",
    "doctor": "say what would go wrong with a run, before it starts",
    "serve": "serve a model with vLLM, to train or evaluate with",
    "completion": "complete commands, recipes and keys in bash, zsh or fish",
}


def commands() -> dict[str, str]:
    """All commands: those that start a run (`commands.launch`), and `COMMANDS`."""
    from trl_r1zero.commands.launch import DESCRIPTIONS

    runs = {method.replace("_", "-"): text for method, text in DESCRIPTIONS.items()}
    return runs | COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments behind the program's name; those of this process by default.

    Returns:
        The exit status: the command's, 2 for a command line that cannot be read.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as of programs that the signal ends


def _run(arguments: list[str]) -> int:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    known, name = commands(), command.replace("_", "-")
    if name not in known:
        print(
            f"{PROGRAM}: error: {unknown_name_message('command', command, known)}\n"
            f"{PROGRAM} --help says what they do.",
            file=sys.stderr,
        )
        return 2
    search_here()
    own = rest[: rest.index("--")] if "--" in rest else rest
    if {"-h", "--help"} & set(own):
        from trl_r1zero.commands.stored_help import KEYED, help_text

        if name in KEYED:
            print(help_text(name), end="")
            return 0
    status: int | None
    if name == "completion":
        status = import_module("trl_r1zero.commands.completion").main(rest, list(known))
    elif name in COMMANDS:
        status = import_module(f"trl_r1zero.commands.{name}").main(rest)
    else:
        status = import_module("trl_r1zero.commands.launch").main(name.replace("-", "_"), rest)
    return status or 0


def _help() -> str:
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in known.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--key value ...]",
            "",
            "R1-Zero-style reinforcement learning from verifiable rewards, on Hugging Face TRL.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists its keys; {PROGRAM} --version says the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
