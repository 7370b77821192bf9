"""Every command that a comment of a recipe or of a launch configuration gives is one that works."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from tiny_models import REPOSITORY
from transformers import TrainingArguments
from trl import ModelConfig

from trl_r1zero.leaderboard.runner import LeaderboardArguments
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.runs.kinds import METHODS
from trl_r1zero.trainers import R1ZeroGRPOConfig
from trl_r1zero.trainers.base_config import CheckedConfig

# What stands for a value of the reader's own.
PLACEHOLDERS = {"RECIPE": "recipes/quickstart/grpo.yaml", "RANK": "0", "ADDRESS": "127.0.0.1"}
DATACLASSES = {f"recipes/{method}.py": classes for method, classes in METHODS.items()} | {
    "leaderboard/run.py": (R1ZeroGRPOConfig, TaskArguments, LeaderboardArguments, ModelConfig)
}


def commands(path: Path) -> list[list[str]]:
    """The indented lines of its comments that start one of our programs, put together."""
    lines = [line[1:] for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = re.findall(r"^   ((?:accelerate launch|trl-r1zero) .*)$", text, re.MULTILINE)
    return [[PLACEHOLDERS.get(word, word) for word in shlex.split(line)] for line in found]


FILES = [
    path
    for folder in ("recipes", "leaderboard", "accelerate_configs")
    for path in sorted((REPOSITORY / folder).rglob("*.yaml"))
]
COMMANDS = [(path, command) for path in FILES for command in commands(path)]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def as_launched(command: list[str], monkeypatch: pytest.MonkeyPatch):
    """The launcher's arguments, and the recipe as each of the processes that it starts reads it."""
    launched = _validate_launch_command(launch_command_parser().parse_args(command[2:]))[0]
    # Without a file it depends on the machine; there is one process on a CPU.
    processes = launched.num_processes if launched.config_file else 1
    monkeypatch.setattr(CheckedConfig, "_launched_processes", processes)
    monkeypatch.setattr(TrainingArguments, "world_size", processes)
    recipe = parse_recipe(DATACLASSES[launched.training_script], launched.training_script_args)
    return launched, recipe


@pytest.mark.parametrize(
    ("path", "command"),
    COMMANDS,
    ids=[f"{path.parent.name}/{path.stem}-{number}" for number, (path, _) in enumerate(COMMANDS)],
)
def test_a_command_in_a_comment_works(path, command, monkeypatch):
    if command[:2] == ["trl-r1zero", "eval"]:
        assert parse_recipe((EvaluationArguments,), command[2:]).values["model"]
        return
    assert command[:2] == ["accelerate", "launch"], "a program that this test does not know"
    launched, recipe = as_launched(command, monkeypatch)
    # It would win over CUDA_VISIBLE_DEVICES, and hide the server's GPU from those who start it.
    assert launched.gpu_ids in (None, "all")
    device = recipe.values.get("ref_device")
    assert device is None or launched.num_processes == 1


def test_what_is_to_give_commands_does():
    given = {path.relative_to(REPOSITORY).as_posix() for path, _ in COMMANDS}
    expected = {f"recipes/qwen2.5-math-1.5b/{name}.yaml" for name in ("grpo", "sft")}
    expected |= {f"recipes/llama-3.1-8b/{name}.yaml" for name in ("dpo", "instruction_tuning")}
    expected |= {f"accelerate_configs/{path.name}" for path in FILES[-8:]}
    assert expected <= given


@pytest.mark.parametrize("method", ["grpo", "sft", "expert_iteration"])
def test_the_recipes_say_how_to_do_without_a_server(method, monkeypatch):
    path = REPOSITORY / "recipes" / "qwen2.5-math-1.5b" / f"{method}.yaml"
    recipes = [as_launched(command, monkeypatch)[1] for command in commands(path)]
    assert [recipe.values["use_vllm"] for recipe in recipes] == [True, False]


@pytest.mark.parametrize("name", ["multi_gpu", "zero2", "zero3", "fsdp2"])
def test_several_trainers_share_the_train_batch_of_one(name, monkeypatch):
    [command] = commands(REPOSITORY / "accelerate_configs" / f"{name}.yaml")
    launched, recipe = as_launched(command, monkeypatch)
    config = recipe.instances[0]
    assert (launched.num_processes, config.train_batch_size) == (4, 256)
    assert config.train_batch_share == 64
    assert config.gradient_accumulation_steps is None  # memory says how many rows at a time
