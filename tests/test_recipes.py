"""Every recipe is read as its script reads it, and an ablation changes what it says and no more."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import REPOSITORY
from trl import ModelConfig

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.evaluate_command import EvaluationArguments
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroGRPOConfig

RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
# recipes/<model>/<method>[-variant].yaml is for a script, which takes these.
DATACLASSES = {
    "grpo": (R1ZeroGRPOConfig, TaskArguments, ModelConfig),
    "eval": (EvaluationArguments,),
}
SCRIPTS = {"grpo": "grpo.py", "eval": "evaluate.py"}
MODEL_KEYS = {"grpo": "model_name_or_path", "eval": "model"}

QWEN = REPOSITORY / "recipes" / "qwen2.5-math-1.5b"
# Each ablation: the values that differ from grpo.yaml's, besides output_dir.
ABLATIONS: dict[str, dict[str, Any]] = {
    "grpo-no_baseline": {"loss_type": "no_baseline", "use_std_normalization": False},
    "grpo-masked_normalize": {"aggregation": "masked_normalize", "normalize_constant": 1024.0},
    "grpo-no_std": {"use_std_normalization": False},
    "grpo-off_policy_1x256_no_clip": {"loss_type": "grpo_no_clip"},
    "grpo-off_policy_2x128": {
        "loss_type": "grpo_clip",
        "epochs_per_rollout_batch": 2,
        "train_batch_size": 128,
        "gradient_accumulation_steps": 64,
    },
    "grpo-off_policy_4x64": {
        "loss_type": "grpo_clip",
        "epochs_per_rollout_batch": 4,
        "train_batch_size": 64,
        "gradient_accumulation_steps": 32,
    },
    "grpo-no_clip": {
        "loss_type": "grpo_no_clip",
        "epochs_per_rollout_batch": 4,
        "train_batch_size": 64,
        "gradient_accumulation_steps": 32,
    },
    "grpo-question_only": {"prompt": "question_only"},
    "grpo-lr_3e-6": {"learning_rate": 3e-6},
    "grpo-lr_3e-5": {"learning_rate": 3e-5},
    "grpo-lr_1e-4": {"learning_rate": 1e-4},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "recipes"))


def method_of(path: Path) -> str:
    return path.stem.partition("-")[0]


def parse(path: Path):
    return parse_recipe(DATACLASSES[method_of(path)], ["--config", str(path)])


def differences(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != others[name]}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_parses(path):
    recipe = parse(path)
    values = recipe.values
    method = method_of(path)
    assert (REPOSITORY / "recipes" / SCRIPTS[method]).is_file()
    assert {MODEL_KEYS[method], "output_dir", "task"} <= set(recipe.places)
    task = get_task(values["task"], **(values["task_args"] or {}))
    # Prompt and task go together.
    assert task.reward_fn(load_prompt(values["prompt"] or task.default_prompt))


def test_output_folders_are_distinct():
    folders = [parse(path).values["output_dir"] for path in RECIPES]
    assert len(set(folders)) == len(RECIPES)


def test_every_recipe_says_what_it_is_for():
    for path in RECIPES:
        assert path.read_text(encoding="utf-8").startswith("# "), name_of(path)
    for name in ABLATIONS:
        first_line = (QWEN / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert "?" in first_line, name


def test_the_default_recipe_is_the_handout():
    """What it writes out is also the default; the rest is the model, the data and the machine."""
    recipe = parse(QWEN / "grpo.yaml")
    defaults = parse_recipe(DATACLASSES["grpo"], []).values
    assert differences(recipe.values, defaults) == {
        "model_name_or_path": "Qwen/Qwen2.5-Math-1.5B",
        "train_data": "data/MATH/train.jsonl",
        "eval_data": "data/MATH/validation.jsonl",
        "prompt": "r1_zero",  # the task's own
        "output_dir": "runs/qwen2.5-math-1.5b/grpo",
        "seed": 0,
        "use_std_normalization": True,  # what unset stands for with a baseline
        "use_vllm": True,
        "vllm_server": {"devices": "1"},
        "eval_every": 10,
        "num_eval_examples": 1024,
    }
    assert recipe.instances[0].advantage == "group_mean_std"


def test_every_ablation_is_listed():
    assert {path.stem for path in QWEN.glob("grpo*.yaml")} - {"grpo"} == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_in_its_own_keys_only(name):
    values = parse(QWEN / f"{name}.yaml").values
    changed = differences(values, parse(QWEN / "grpo.yaml").values)
    assert changed.pop("output_dir") == f"runs/qwen2.5-math-1.5b/{name}"
    assert changed == ABLATIONS[name]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_keeps_micro_batches_of_two(name):
    config = parse(QWEN / f"{name}.yaml").instances[0]
    assert config.train_batch_size // config.gradient_accumulation_steps == 2


def test_the_clip_ablation_is_one_line():
    lines = yaml.safe_load((QWEN / "grpo-no_clip.yaml").read_text(encoding="utf-8"))
    assert set(lines) == {"base", "output_dir", "loss_type"}
    clipped = parse(QWEN / lines["base"])
    assert clipped.values["loss_type"] == "grpo_clip"
    assert clipped.instances[0].updates_per_grpo_step > 1


# Evaluations


def test_the_evaluation_recipe_is_the_handout():
    """What it writes out is also the default; the rest is the model, the data and the folder."""
    values = parse(QWEN / "eval-math-r1_zero.yaml").values
    defaults = parse_recipe(DATACLASSES["eval"], ["--model", "some/model"]).values
    assert differences(values, defaults) == {
        "model": "Qwen/Qwen2.5-Math-1.5B",
        "data": "data/MATH/validation.jsonl",
        "prompt": "r1_zero",  # the task's own
        "output_dir": "runs/qwen2.5-math-1.5b/eval-math-r1_zero",
    }
    assert (values["temperature"], values["top_p"], values["n"]) == (1.0, 1.0, 1)
    assert (values["min_tokens"], values["max_tokens"]) == (4, 1024)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("eval-math-question_only", {"prompt": "question_only"}),
        ("eval-gsm8k", {"task": "gsm8k", "data": "openai/gsm8k@main:test"}),
    ],
)
def test_an_evaluation_differs_in_its_own_keys_only(name, changed):
    values = parse(QWEN / f"{name}.yaml").values
    differing = differences(values, parse(QWEN / "eval-math-r1_zero.yaml").values)
    assert differing == {"output_dir": f"runs/qwen2.5-math-1.5b/{name}", **changed}


def test_the_quickstart_evaluates_as_it_trains():
    """The same questions and limits as the validation of the quickstart's own training."""
    training = parse(REPOSITORY / "recipes" / "quickstart" / "grpo.yaml").values
    values = parse(REPOSITORY / "recipes" / "quickstart" / "eval.yaml").values
    assert values["task"] == training["task"]
    assert values["num_examples"] == training["num_eval_examples"]
    assert values["max_tokens"] == training["max_completion_length"]
    assert values["model"] == training["model_name_or_path"]
