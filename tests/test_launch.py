"""The user's command, `accelerate launch recipes/grpo.py`, with one and with two processes."""

import json
from pathlib import Path

import pytest
import yaml
from launching import launch, run_here

from trl_r1zero.trainers import read_metrics

RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 9},
    "reward": "launch_rewards.odd_digits",
    "n_grpo_steps": 2,
    "rollout_batch_size": 32,
    "group_size": 4,
    "train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "loss_type": "grpo_clip",
    "max_completion_length": 12,
    "learning_rate": 3.0e-3,
    "eval_every": 1,
    "save_every": 1,
    "seed": 3,
    "report_to": "tensorboard",
}


AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="module")
def one_process(tiny_model_folder, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("launch") / "one"
    done = launch(RECIPE, folder, tiny_model_folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


# Losses and gradient norms of the four updates of RECIPE, from the run on torch 2.13.0, CPU.
GOLDEN_LOSSES = [0.0, -0.00369358, 0.0, 0.00083356]
GOLDEN_GRAD_NORMS = [0.5467954, 0.4436840, 0.5000864, 0.3987298]


def test_a_launched_run_gives_the_golden_losses(one_process):
    folder, _ = one_process
    assert losses(folder) == pytest.approx(GOLDEN_LOSSES, abs=2e-6)
    norms = [line["grad_norm"] for line in read_metrics(folder) if "loss" in line]
    assert norms == pytest.approx(GOLDEN_GRAD_NORMS, rel=1e-4)


def test_a_launched_run_leaves_everything_on_disk(one_process):
    folder, stdout = one_process
    for name in (
        "metrics.jsonl",
        "recipe.yaml",
        "environment.json",
        "report.md",
        "curve.png",
        "final/model.safetensors",
        "final/tokenizer.json",
        "best/best.json",
        "checkpoint-4/optimizer.pt",
        "rollouts/grpo_step_00001.md",
        "evaluations/grpo_step_00002.md",
    ):
        assert (folder / name).is_file(), name
    assert list(folder.glob("**/events.out.tfevents*")), "TensorBoard's file is missing"
    assert "accuracy" in stdout
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["group_size"] == 4
    assert resolved["cliprange"] == 0.2  # a default
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["trl"].startswith("1.16")


def test_two_processes_give_the_losses_of_one(one_process, tiny_model_folder, tmp_path):
    folder, _ = one_process
    done = launch(RECIPE, tmp_path / "two", tiny_model_folder, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["num_processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(folder), abs=1e-6)
    for name in ("reward", "entropy", "grad_norm", "length/mean", "clip_fraction", "eval_accuracy"):
        pairs = [
            [line[name] for line in read_metrics(run) if name in line]
            for run in (folder, tmp_path / "two")
        ]
        assert pairs[1] == pytest.approx(pairs[0], rel=1e-4, abs=1e-6), name


def test_two_processes_take_the_same_penalty_off_the_reward(tiny_model_folder, tmp_path):
    recipe = {**RECIPE, "beta": 0.1, "kl_in": "reward", "kl_estimator": "k1", "eval_every": None}
    folders = [tmp_path / "one", tmp_path / "two"]
    run_here(recipe, folders[0], tiny_model_folder)
    done = launch(recipe, folders[1], tiny_model_folder, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "grad_norm", "kl", "reward"):
        one, two = ([line[name] for line in read_metrics(run) if "loss" in line] for run in folders)
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6), name
        assert any(abs(value) > 1e-5 for value in one), name


def test_a_finished_run_is_not_overwritten_and_can_be_reported_again(
    one_process, tiny_model_folder, capsys
):
    folder, _ = one_process
    before = (folder / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit, match="2"):
        run_here(RECIPE, folder, tiny_model_folder)
    assert "already holds a run" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run_here({**RECIPE, "group_size": 8}, folder, tiny_model_folder, *AUTO)
    assert "group_size: 4 there, 8 here" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_text() == before
    run_here(RECIPE, folder, tiny_model_folder, *AUTO)
    assert losses(folder) == [
        line["loss"] for line in map(json.loads, before.splitlines()) if "loss" in line
    ]
    assert "accuracy" in capsys.readouterr().out


def test_a_typo_in_a_recipe_is_an_error_before_anything_starts(tiny_model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here({**RECIPE, "learning_rat": 1e-3}, tmp_path / "typo", tiny_model_folder)
    assert stopped.value.code != 0
    error = capsys.readouterr().err
    assert "learning_rat" in error
    assert "learning_rate" in error
    assert not (tmp_path / "typo").exists()
