"""`trl-r1zero grpo`, and the other kinds of runs: how they are launched, from any folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from tiny_models import REPOSITORY

from trl_r1zero.commands.launch import DESCRIPTIONS, launch_command
from trl_r1zero.commands.methods import MAKERS
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.runs.kinds import METHODS
from trl_r1zero.trainers import read_metrics

CONFIGS = REPOSITORY / "accelerate_configs"


def launched(method: str, *arguments: str):
    """What accelerate's own parser makes of the command."""
    command = launch_command(method, arguments)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    args = launch_command_parser().parse_args(command[3:])
    assert args.module
    assert args.training_script == "trl_r1zero.commands.training"
    assert args.training_script_args[0] == method
    return args


def test_every_kind_of_run_has_a_command():
    assert set(DESCRIPTIONS) == set(METHODS) == set(MAKERS)


def test_one_process_by_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = launched("grpo", "--config", "quickstart/grpo", "--seed", "3", "--report_to", "a", "b")
    assert args.config_file == str(CONFIGS / "single_gpu.yaml")
    assert args.num_processes is None
    recipe = str(REPOSITORY / "recipes/quickstart/grpo.yaml")
    assert args.training_script_args[1:] == [
        *("--config", recipe, "--seed", "3", "--report_to", "a", "b")
    ]
    validated = _validate_launch_command(args)[0]
    assert (validated.num_processes, validated.use_cpu) == (1, False)


def test_several_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    args = launched("sft", "--num_processes=2")
    assert args.config_file == str(CONFIGS / "cpu.yaml")
    assert args.num_processes == 2


def test_several_processes_with_gpus(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    assert launched("sft", "--num_processes", "2").config_file == str(CONFIGS / "multi_gpu.yaml")


@pytest.mark.parametrize("name", ["zero3", "zero3.yaml", "accelerate_configs/zero3.yaml"])
def test_a_launch_configuration_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = launched("dpo", "--accelerate_config", name)
    assert args.config_file == str(CONFIGS / "zero3.yaml")


def test_a_file_wins_over_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "grpo").write_text("seed: 4\n")
    (tmp_path / "cpu").write_text((CONFIGS / "cpu.yaml").read_text())
    args = launched("grpo", "--config", "quickstart/grpo", "--accelerate_config", "cpu")
    assert args.training_script_args[1:] == ["--config", "quickstart/grpo"]
    assert args.config_file == "cpu"


def test_flags_of_accelerate():
    arguments = ["--accelerate_config", "multi_node", "--bf16", "--", "--machine_rank", "1"]
    args = launched("grpo", *arguments)
    assert args.machine_rank == 1
    assert args.training_script_args == ["grpo", "--bf16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quickstrat/grpo"], "did you mean 'quickstart/grpo'?"),
        (["--config", "/no/such.yaml"], "there is no file or recipe /no/such.yaml"),
        (["--config", "quickstart/sft"], "a recipe of `trl-r1zero sft`; start that"),
        (["--config", "quickstart/eval"], "a recipe of `trl-r1zero eval`; start that"),
        (["--config", "experiments/clip"], "a recipe of `trl-r1zero sweep`; start that"),
        (["--accelerate_config", "zero4"], "did you mean 'zero3'?"),
        (["--num_processes", "0"], "give 1 or more"),
    ],
)
def test_what_cannot_be_launched(arguments, message, capsys):
    from trl_r1zero import cli

    with pytest.raises(SystemExit) as caught:
        cli.main(["grpo", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("trl-r1zero grpo: error: --")
    assert message in error


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trl_r1zero", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


# What libraries say at each start, or after an error of ours, that helps nobody.
NOISE = (
    "values were not passed",
    "Setting accelerator to CPU",
    "Writing model shards",
    "Loading weights",
    "Ignoring clean_up_tokenization_spaces",
    "Traceback",
)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_process_is_a_line_and_the_status(processes, tmp_path):
    wrong = ["--learning_rate=-1", "--output_dir", "run", "--num_processes", str(processes)]
    done = run(tmp_path, "grpo", "--config", "quickstart/grpo", *wrong)
    assert done.returncode == 2
    assert "learning_rate must be" in done.stderr
    for noise in NOISE:
        assert noise not in done.stderr


@pytest.mark.slow
def test_a_signal_is_the_status_and_the_line_is_the_command_that_was_given(
    tiny_model_folder, tmp_path
):
    keys = {
        "model_name_or_path": tiny_model_folder,
        "output_dir": tmp_path / "run",
        "n_grpo_steps": 1000,
        "rollout_batch_size": 8,
        "train_batch_size": 8,
        "max_completion_length": 8,
        "eval_every": "null",
    }
    words = [f"--{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "trl_r1zero", "grpo", "--config", "quickstart/grpo", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (tmp_path / "run" / "metrics.jsonl").is_file() and process.poll() is None:
            time.sleep(0.1)
        (trainer,) = psutil.Process(process.pid).children()
        trainer.terminate()
        told = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in told
    assert "-m trl_r1zero grpo --config quickstart/grpo" in told.rpartition("go on with: ")[2]


def test_a_run_from_a_folder_of_its_own(tiny_model_folder, tmp_path):
    """A recipe on a bundled one, and a reward of a module beside it."""
    (tmp_path / "my_reward.py").write_text(
        "def my_reward(response, ground_truth):\n    return {'reward': len(response) % 2}\n"
    )
    recipe = {
        "base": "quickstart/grpo",
        "model_name_or_path": str(tiny_model_folder),
        "reward": "my_reward.my_reward",
        "output_dir": "run",
        "n_grpo_steps": 1,
        "rollout_batch_size": 8,
        "train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 8,
        "num_eval_examples": 8,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    done = run(tmp_path, "grpo", "--config", "mine.yaml", "--seed", "5")
    assert done.returncode == 0, done.stderr[-4000:]
    for noise in NOISE:
        assert noise not in done.stderr + done.stdout
    assert len([line for line in read_metrics(tmp_path / "run") if "loss" in line]) == 1
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (resolved["seed"], resolved["group_size"]) == (5, 8)


def test_an_error_of_a_process_is_one_message(tmp_path):
    done = run(tmp_path, "expert_iteration", "--config", "quickstart/expert_iteration", "--sed=1")
    assert done.returncode != 0
    assert "trl-r1zero expert-iteration: error: command line: unknown key 'sed'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_by_name_is_that_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: quickstart/grpo\n")
    mine = parse_recipe(METHODS["grpo"], ["--config", str(path)])
    assert mine.values == parse_recipe(METHODS["grpo"], ["--config", "quickstart/grpo"]).values
