"""The command line: `trl-r1zero COMMAND ...`. To add a command, add a module to
`commands` and a line to `COMMANDS`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from trl_r1zero import __version__
from trl_r1zero.common.naming import unknown_name_message

PROGRAM = "trl-r1zero"

# Command -> what it is for. The module of its name in `commands` has a `main(argv)` that returns an
# exit status (None: 0), and is imported when called, so that help and errors come at once.
COMMANDS = {
    "sweep": "run experiments: grids of runs, and seeds",
    "report": "curves and tables of runs, and of groups",
    "eval": "sample and grade answers, and write a report",
    "grade": "grade responses of a file, and say why they are wrong",
    "judge": "let a model judge answers that nothing grades",
    "compare": "put evaluations side by side, with paired errors",
    "leaderboard": "verify submissions, and list them",
    "doctor": "say what would go wrong with a run, before it starts",
    "serve": "serve a model with vLLM, to train or evaluate with",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments behind the program's name; those of this process by default.

    Returns:
        The exit status: the command's, 2 for a command line that cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"{PROGRAM} {__version__}")
    elif command in COMMANDS:
        module = import_module(f"trl_r1zero.commands.{command}")
        status: int | None = module.main(arguments[1:])
        return status or 0
    else:
        print(
            f"{PROGRAM}: error: {unknown_name_message('command', command, COMMANDS)}\n"
            f"{PROGRAM} --help says what they do.",
            file=sys.stderr,
        )
        return 2
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--key value ...]",
            "",
            "R1-Zero-style reinforcement learning from verifiable rewards, on Hugging Face TRL.",
            "",
            *commands,
            "",
            f"{PROGRAM} COMMAND --help lists its keys; {PROGRAM} --version says the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
