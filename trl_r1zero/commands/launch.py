"""Starts a run through accelerate: `trl-r1zero grpo`, and the other kinds of runs.

The processes that train are those of `commands.training`; this one is their launcher.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.common.quiet import quiet_libraries
from trl_r1zero.recipe.bundled import (
    LAUNCH_CONFIGS,
    RECIPES,
    command_of,
    find_launch_config,
    find_recipe,
    names,
    not_found,
)
from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on

# Method (see `runs.kinds`) -> what it is for.
DESCRIPTIONS = {
    "grpo": "train with GRPO on rewards of sampled answers",
    "sft": "fine-tune on reasoning traces",
    "expert_iteration": "sample, keep what is right, fine-tune on it, repeat",
    "instruction_tuning": "tune on packed instruction data",
    "dpo": "train on pairs of a better and a worse response",
}
_OPTIONS = """\
Starts `accelerate launch`, whose processes {does}.
A recipe can name modules of the current directory, such as `reward: my_module.my_reward`.

--accelerate_config NAME|FILE
    How to launch: a file of accelerate's, or one of
    {configs}.
    Default: single_gpu for one process (a CPU where there is no GPU); for several multi_gpu, or cpu
    where there is no NVIDIA GPU.

--num_processes N
    Processes that train, over all machines. Default: the configuration's, or 1.

-- FLAGS
    What stands behind `--` goes to `accelerate launch`, such as `-- --machine_rank 1`."""


def program_of(method: str) -> str:
    """What messages call the program."""
    return f"trl-r1zero {method.replace('_', '-')}"


def description_of(method: str) -> str:
    """What `--help` says before a recipe's keys."""
    configs = ", ".join(names(LAUNCH_CONFIGS))
    return _OPTIONS.format(does=DESCRIPTIONS[method], configs=configs)


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which recipe, and how it is launched."""
    parser.add_argument("--config")
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes", type=int)


def main(method: str, argv: Sequence[str]) -> None:
    """Be `accelerate launch` for a run of this method; its exit status, and 2 for a command line,
    recipe or configuration that is not there, and for versions that do not fit."""
    program = program_of(method)
    with exit_on(program, ValueError, OSError, RuntimeError):
        check_requirements()
        command = launch_command(method, argv)
    quiet_libraries()
    from .launcher import launch

    raise SystemExit(launch(command[3:]))


def launch_command(method: str, argv: Sequence[str]) -> list[str]:
    """The command line of accelerate for one of `trl-r1zero`. A ValueError if there is no such
    recipe or configuration, the recipe is another command's, or the number of processes is not
    one."""
    separator = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(program_of(method), add_help=False, allow_abbrev=False)
    add_launch_options(parser)
    own, recipe_arguments = parser.parse_known_args(argv[:separator])
    if own.num_processes is not None and own.num_processes < 1:
        raise ValueError(f"--num_processes is {own.num_processes}; give 1 or more")
    if own.config is not None:
        recipe_arguments = ["--config", _recipe_of(method, own.config), *recipe_arguments]
    several = "multi_gpu" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
    name = own.accelerate_config or ("single_gpu" if own.num_processes in (None, 1) else several)
    file = find_launch_config(name)
    if not file.is_file():
        advice = not_found(name, LAUNCH_CONFIGS)
        raise ValueError(f"--accelerate_config: there is no file or configuration {name}{advice}")
    number = [] if own.num_processes is None else ["--num_processes", str(own.num_processes)]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *number),
        *argv[separator + 1 :],
        *("--module", "trl_r1zero.commands.training", method, *recipe_arguments),
    ]


def _recipe_of(method: str, name: str) -> str:
    """The path of a recipe, if it can be one of this method."""
    path = find_recipe(name)
    if not path.is_file():
        raise ValueError(f"--config: there is no file or recipe {name}{not_found(name)}")
    if path.is_relative_to(RECIPES) and path.parent != RECIPES:
        command = command_of(path)
        if command != method.replace("_", "-"):
            raise ValueError(f"--config: {name} is a recipe of `trl-r1zero {command}`; start that")
    return str(path)
