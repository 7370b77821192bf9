"""GRPO with trainer and vLLM server on one device, which here is the CPU: real servers."""

import os
from pathlib import Path

import psutil
import pytest
from launch_rewards import many_digits
from launching import launch

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.generation import vllm_server
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(vllm_server.installed_vllm() is None, reason="vLLM is missing: make vllm"),
]

SERVER = {"dtype": "float32", "max_model_len": 256}
TASK_ARGS = {"num_train": 32, "num_validation": 16}
SETTINGS = {
    "n_grpo_steps": 4,
    "rollout_batch_size": 32,
    "group_size": 8,
    "train_batch_size": 16,  # two updates a step: old log-probabilities are kept
    "loss_type": "grpo_clip",
    "gradient_accumulation_steps": 1,
    "max_completion_length": 16,
    "learning_rate": 1.0e-2,
    "eval_every": 2,
    "save_every": None,
    "seed": 3,
    "use_vllm": True,
}
# What follows from the rollouts alone; the server's own log-probabilities depend, in their last
# digits, on which requests it happens to run together.
SAME = ("loss", "grad_norm", "reward", "entropy", "length/mean", "eval_accuracy", "eval_length")


def make_trainer(model: Path, output_dir: Path, server: dict) -> R1ZeroGRPOTrainer:
    task = TaskArguments(task="chain_arithmetic", task_args=TASK_ARGS).load()
    return R1ZeroGRPOTrainer(
        model=str(model),
        reward_funcs=many_digits,
        args=R1ZeroGRPOConfig(
            output_dir=str(output_dir),
            disable_tqdm=True,
            vllm_server={**SERVER, **server},
            **SETTINGS,
        ),
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        stop=task.prompt.stop,
    )


def column(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.fixture(scope="module")
def awake_run(served_model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_device") / "awake"
    trainer = make_trainer(served_model_folder, folder, {"sleep_level": 0})
    trainer.train()
    trainer.server.close()
    return folder


def kill_server(trainer: R1ZeroGRPOTrainer) -> None:
    """kill -9 for every process of the server."""
    server = psutil.Process(trainer.server._engine.server.pid)
    for process in (server, *server.children(recursive=True)):
        os.kill(process.pid, 9)


def test_a_server_that_sleeps_and_dies_asleep_gives_the_same_run(
    awake_run, served_model_folder, tmp_path
):
    folder = tmp_path / "run"
    trainer = make_trainer(served_model_folder, folder, {"sleep_level": 2})
    asleep, compute_loss = [], trainer.compute_loss

    def spy(*args, **kwargs):
        asleep.append(trainer.server._engine.is_sleeping())
        if trainer.state.global_step == 4:
            trainer.compute_loss = compute_loss
            kill_server(trainer)
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    assert trainer.check_server() < 1e-5
    trainer.server.close()
    assert len(asleep) == 5
    assert all(asleep)  # by the server's own word
    for name in SAME:
        assert column(folder, name) == column(awake_run, name), name
    assert max(column(folder, "sampler_log_prob_diff/mean")) < 5e-3
    assert sum(column(folder, "seconds/server_wake")) > 0


def test_two_processes_take_the_same_order_and_share_memory(
    awake_run, served_model_folder, tmp_path
):
    recipe = {
        **SETTINGS,
        "task": "chain_arithmetic",
        "task_args": TASK_ARGS,
        "reward": "launch_rewards.many_digits",
        "vllm_server": {**SERVER, "sleep_level": 2, "weight_transfer": "ipc"},
        "report_to": "none",
    }
    folder = tmp_path / "run"
    done = launch(recipe, folder, served_model_folder, processes=2, timeout_seconds=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "weights by ipc" in done.stderr
    assert "through gloo" not in done.stderr
    for name in SAME:
        assert column(folder, name) == pytest.approx(column(awake_run, name), abs=1e-4), name
    assert min(column(folder, "seconds/server_sleep")[::2]) > 0
