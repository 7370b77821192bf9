"""Expert iteration through a real vLLM server."""

import pytest
from launching import launch

from trl_r1zero.trainers import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 64, "num_validation": 64},
    "reward": "launch_rewards.many_digits",
    "n_ei_steps": 3,
    "ei_batch_size": 16,
    "group_size": 8,
    "sft_epochs_per_step": 3,
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 16,
    "learning_rate": 1.0e-2,
    "use_vllm": True,
    "vllm_check_syncs": 10,
    "seed": 3,
}


def test_expert_iteration_learns_through_a_server(vllm_server, served_model_folder, tmp_path):
    """With two processes; each synchronisation is checked: the server has that step's weights."""
    folder = tmp_path / "run"
    done = launch(
        {**RECIPE, "vllm_server_base_url": vllm_server.base_url},
        folder,
        served_model_folder,
        script="expert_iteration.py",
        processes=2,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = read_metrics(folder)
    accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    assert accuracies[-1] > accuracies[0] + 0.3
    rollouts = [line for line in lines if "rollout_accuracy" in line]
    assert [line["ei_step"] for line in rollouts] == [1, 2, 3]
    # vLLM gives no entropies: they are the trainer's own.
    entropies = [line["rollout_entropy"] for line in rollouts]
    assert entropies[0] > entropies[-1] > 0
    assert all(line["eval_entropy"] > 0 for line in lines if "eval_accuracy" in line)
