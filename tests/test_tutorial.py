"""The pages for newcomers: their commands are accepted, and the keys that they name exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from tiny_models import REPOSITORY

from trl_r1zero.commands.launch import DESCRIPTIONS
from trl_r1zero.generation.vllm_server import VLLMServerConfig
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.runs.kinds import METHODS

TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text("utf-8")
COMING_FROM = (REPOSITORY / "docs" / "coming_from.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("trl-r1zero", "python"))
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_tutorial_is_accepted(words, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if words[0] == "python":
        assert (REPOSITORY / words[1]).is_file()
        source = (REPOSITORY / words[1]).read_text()
        for option in words[2::2]:
            assert f"{option.lstrip('-')}: " in source or f'"{option}"' in source, option
        return
    command, arguments = words[1], words[2:]
    if (method := command.replace("-", "_")) in DESCRIPTIONS:
        assert parse_recipe(METHODS[method], arguments).values["output_dir"]
    elif command == "eval":
        assert parse_recipe((EvaluationArguments,), arguments).values["model"]
    else:
        source = import_module(f"trl_r1zero.commands.{command}").__file__
        text = Path(source).read_text(encoding="utf-8")
        for option in (word for word in arguments if word.startswith("--")):
            assert f"{option} " in text or f'"{option}"' in text, option


def test_the_tutorial_has_the_figures_of_the_measurement():
    measured = (REPOSITORY / "docs" / "real_model.md").read_text("utf-8")
    for figure in re.findall(r"0\.\d{3} ± 0\.\d{3}|\d{2}\.\d ± 0\.\d", TUTORIAL):
        assert figure in measured, figure


# Other programs' names


def keys_of_ours() -> set[str]:
    dataclasses = [one for method in METHODS.values() for one in method]
    keys = {name for one in dataclasses for name in one.__dataclass_fields__}
    return keys | set(VLLMServerConfig.__dataclass_fields__)


def test_the_keys_that_newcomers_are_told_exist():
    keys, told = keys_of_ours(), 0
    for line in COMING_FROM.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("| ") or len(cells) != 2 or cells[1] == "here":
            continue
        for name in re.findall(r"`([a-z_]+)(?::[^`]*)?`", cells[1]):
            if name in keys:
                told += 1
            else:
                assert name in {"final", "prompt", "ground_truth", "stop", "task"} | NOT_KEYS, name
    assert told > 40


# Functions, columns and files that the tables name beside keys.
NOT_KEYS = {"train", "r1_zero_reward_fn", "question_only_reward_fn"}
