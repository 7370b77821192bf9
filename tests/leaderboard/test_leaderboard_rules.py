"""The rules as data, and runs that would break them: an error before any time is spent."""

import hashlib

import pytest
from datasets import Dataset
from leaderboard_runs import DATACLASSES, parsed
from tiny_models import REPOSITORY

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.devices import DeviceFacts, MachineFacts, visible_devices
from trl_r1zero.leaderboard import BOARDS, RuleBrokenError, get_board
from trl_r1zero.leaderboard.clock import CLOCK_FILE
from trl_r1zero.leaderboard.facts import collect_facts, hardware_facts
from trl_r1zero.leaderboard.rules import check_facts, check_settings, question_hashes, rows_facts
from trl_r1zero.leaderboard.runner import run_submission
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.rewards import REWARDS, r1_zero_reward_fn

RECIPES = sorted((REPOSITORY / "leaderboard").glob("*.yaml"))


# The boards


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_s_prompt_is_the_built_in_one(board):
    template = load_prompt(board.prompt).template
    assert hashlib.sha256(template.encode()).hexdigest() == board.prompt_sha256
    assert get_task(board.task).default_prompt == board.prompt
    assert REWARDS[board.reward] is get_task(board.task).reward_fn(load_prompt(board.prompt))


def test_the_math_board_is_that_of_the_handout():
    board = get_board("math")
    assert board.model == "Qwen/Qwen2.5-Math-1.5B"
    assert (board.num_problems, board.max_tokens, board.temperature) == (5000, 1024, 1.0)
    assert (board.budget_seconds, board.max_gpus) == (4 * 3600, 2)
    assert REWARDS[board.reward] is r1_zero_reward_fn


def test_the_embedded_board_s_problems_are_those_of_its_task():
    board = get_board("embedded")
    examples = get_task(board.task).load(split="validation")
    assert len(examples) == board.num_problems
    assert rows_facts((e.question, e.ground_truth) for e in examples) == {
        "num_rows": board.num_problems,
        "sha256": board.validation_sha256,
    }


def test_an_unknown_board_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'math'"):
        get_board("maths")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_keep_the_rules(path):
    recipe = parse_recipe(DATACLASSES, ["--config", str(path)])
    board, budget_seconds = recipe.instances[2].load()
    assert [check for check in check_settings(board, recipe.values) if not check.holds] == []
    assert budget_seconds == board.budget_seconds
    assert recipe.values["model_name_or_path"] == (
        board.model or "runs/quickstart/base_policy/final"
    )
    assert recipe.values["prompt"] in (None, board.prompt)
    assert recipe.values["save_every"] is not None  # a run that is killed can go on


def test_the_recipe_that_should_win_is_what_its_reasons_say():
    path = REPOSITORY / "leaderboard" / "qwen2.5-math-1.5b.yaml"
    values = parse_recipe(DATACLASSES, ["--config", str(path)]).values
    wanted = {
        "learning_rate": 3e-5,
        "lr_scheduler_type": "constant",
        "dtype": "bfloat16",
        "group_size": 8,
        "rollout_batch_size": 256,
        "train_batch_size": 256,
        "epochs_per_rollout_batch": 1,
        "beta": 0.0,
        "max_staleness": 1,
        "vllm_server": {"devices": "1"},
    }
    assert {name: values[name] for name in wanted} == wanted


# Checks that need a machine or a model that is not here


def math_facts(**changes):
    """Facts of a run that the math board allows, with changes by dotted name."""
    board = get_board("math")
    facts = {
        "model.name": board.model,
        "model.revision": "0" * 40,
        "model.architecture": "Qwen2ForCausalLM",
        "model.num_parameters": 1_543_714_304,
        "validation.num_rows": 5000,
        "validation.sha256": "0" * 64,
        "hardware.num_gpus": 2,
        "num_validation_questions": 0,
        "prompt": board.prompt_sha256,
        "reward": "r1_zero",
        **changes,
    }
    nested = {}
    for name, value in facts.items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return nested


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, []),
        ({"model.name": "models/Qwen2.5-Math-1.5B", "model.revision": None}, ["model"]),
        ({"model.revision": None}, ["model"]),  # a folder of that name
        ({"model.name": "Qwen/Qwen2.5-Math-1.5B-Instruct"}, ["model"]),
        ({"model.architecture": "LlamaForCausalLM"}, ["architecture"]),
        ({"validation.num_rows": 500}, ["validation problems"]),
        ({"num_validation_questions": 1}, ["validation questions in train_data"]),
        ({"prompt": "0" * 64}, ["prompt"]),
        ({"reward": "math"}, ["reward"]),
        ({"hardware.num_gpus": 3}, ["GPUs"]),
    ],
)
def test_facts_that_the_math_board_does_not_allow_are_named(changes, rules):
    checks = check_facts(get_board("math"), math_facts(**changes))
    assert [check.rule for check in checks if not check.holds] == rules


@pytest.mark.parametrize(
    ("num_processes", "visible", "server", "num_gpus"),
    [
        (1, None, None, 1),  # a process keeps to one of those that it sees
        (1, None, {"devices": "1"}, 2),
        (1, None, {"devices": "2,3", "tensor_parallel_size": 2}, 3),
        (1, None, {}, 2),
        (1, "6", {}, 1),  # both are on it
        (1, "6,7", {"devices": "0"}, 1),
        (2, "6,7", None, 2),
        (2, "6,7", {"devices": "1"}, 2),
        (2, "5,6,7", {}, 3),
        (1, "6,7", "somebody else's", 2),  # wherever it is
    ],
)
def test_gpus_are_those_of_trainer_and_server(
    num_processes, visible, server, num_gpus, monkeypatch
):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    count = 4 if visible is None else len(visible.split(","))
    devices = tuple(DeviceFacts(2**36, f"GPU {number}") for number in range(count))
    machine = MachineFacts(devices, visible_devices(environment, count))
    monkeypatch.setattr("trl_r1zero.leaderboard.facts.machine_facts", lambda: machine)
    monkeypatch.setattr("trl_r1zero.leaderboard.facts.is_cpu_build", lambda: False)
    values = {
        "use_vllm": server is not None,
        "vllm_server": server if isinstance(server, dict) else None,
    }
    facts = hardware_facts(values, num_processes, use_cpu=False)
    assert facts["num_gpus"] == num_gpus
    assert len(facts["gpu_names"]) == num_gpus
    assert hardware_facts(values, num_processes, use_cpu=True)["num_gpus"] == 0


def test_gpus_of_other_machines_count(monkeypatch):
    """Sixteen processes, eight on each of two machines."""
    monkeypatch.setattr(
        "trl_r1zero.leaderboard.facts.machine_facts", lambda: MachineFacts.assume("8x80GB")
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    values = {"use_vllm": False, "vllm_server": None}
    assert hardware_facts(values, 16, use_cpu=False)["num_gpus"] == 16


@pytest.mark.parametrize(
    ("board", "change", "holds"),
    [
        ("math", {}, True),
        ("math", {"model_revision": "refs/pr/9"}, False),
        ("math", {"model_init_kwargs": {"revision": "refs/pr/9"}}, False),
        ("embedded", {"model_init_kwargs": {"subfolder": "trained"}}, False),
        ("embedded", {"model_init_kwargs": {}}, True),
    ],
)
def test_weights_are_those_whose_hash_is_recorded(board, change, holds):
    path = next(path for path in RECIPES if (path.stem == "demo") == (board == "embedded"))
    values = {**parse_recipe(DATACLASSES, ["--config", str(path)]).values, **change}
    broken = [c.rule for c in check_settings(get_board(board), values) if not c.holds]
    assert broken == ([] if holds else list(change))


def test_questions_that_differ_in_white_space_or_case_alone_are_the_same():
    question = question_hashes([r"What is $\frac{1}{2} + x$?"])
    assert question_hashes([r"what is  $\frac{1}{2}+x$?"]) == question
    assert question_hashes(["What is\n$\\frac{1}{2} + \uff58$?"]) == question
    assert question_hashes(["another"]) != question


def test_a_reward_has_the_name_of_exactly_that_function(board_model, tmp_path):
    recipe = parsed(board_model, tmp_path)
    task = recipe.instances[1].load()
    assert collect_facts(recipe.values, task, 1, use_cpu=True)["reward"] == "r1_zero"

    def r1_zero(response, ground_truth):
        return {"reward": 1.0}

    task.reward.reward_fn = r1_zero
    assert collect_facts(recipe.values, task, 1, use_cpu=True)["reward"] not in REWARDS


# Runs that would break a rule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval_temperature": 0.5},
            "eval_temperature: got 0.5; allowed: 1.0. Set eval_temperature: 1.0",
        ),
        ({"top_k": 10}, "top_k: got 10; allowed: 0"),
        ({"eval_max_completion_length": 32}, "eval_max_completion_length: got 32; allowed: 64"),
        ({"task": "countdown"}, "task: got countdown; allowed: chain_arithmetic"),
        ({"eval_every": None}, "eval_every: got None"),
        ({"use_vllm": True}, "vllm_server: got a server that somebody else runs"),
        ({"task_args": {"num_train": 64, "num_validation": 100}}, "validation problems: got 100"),
        ({"task_args": {"num_train": 64, "seed": 1}}, "validation sha256: got "),
        ({"prompt": "r1_zero"}, "prompt: got .*Set prompt: chain_arithmetic"),
        ({"reward": "launch_rewards.never"}, "reward: got launch_rewards.never; allowed: r1_zero"),
        ({"budget_seconds": 1e6}, "budget_seconds must be above 0 and at most 240"),
        ({"eval_data": ["chain_arithmetic"]}, "eval_data: got a list of sets; give the board's"),
        ({"resume_from_checkpoint": "last"}, "resume_from_checkpoint: got 'last'; remove it"),
    ],
)
def test_a_run_that_would_break_a_rule_does_not_start(changes, message, board_model, tmp_path):
    with pytest.raises(RuleBrokenError, match=message):
        run_submission(parsed(board_model, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / CLOCK_FILE).exists()


def test_another_model_does_not_start(tiny_model_folder, tmp_path):
    with pytest.raises(RuleBrokenError, match=r"parameters: got .*; allowed: 632448"):
        run_submission(parsed(tiny_model_folder, tmp_path / "run"))


def test_all_broken_rules_are_named_at_once(board_model, tmp_path):
    recipe = parsed(board_model, tmp_path / "run", eval_top_p=0.9, eval_every=None)
    with pytest.raises(RuleBrokenError, match=r"(?s)eval_top_p: .*eval_every: "):
        run_submission(recipe)


def test_a_validation_question_in_the_training_data_is_found(board_model, tmp_path):
    recipe = parsed(board_model, tmp_path / "run")
    task = recipe.instances[1].load()
    leaked = {**task.eval_dataset[7]}
    leaked["question"] = leaked["question"].upper().replace(" ", "  ")
    task.train_dataset = Dataset.from_list([*task.train_dataset, leaked])
    recipe.instances[1].load = lambda: task
    with pytest.raises(RuleBrokenError, match="validation questions in train_data: got 1; allowed"):
        run_submission(recipe)
    assert not (tmp_path / "run" / CLOCK_FILE).exists()
