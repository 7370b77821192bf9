"""The short training of the CPU tests on a GPU, in bf16. Skipped without CUDA."""

import pytest
import torch
from launch_rewards import odd_digits
from tiny_models import make_tiny_model

from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroGRPOConfig, R1ZeroGRPOTrainer, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 64, "num_validation": 16}
).load()


def make_trainer(tokenizer, output_dir, reward, **settings) -> R1ZeroGRPOTrainer:
    settings = {
        "n_grpo_steps": 2,
        "rollout_batch_size": 64,
        "group_size": 8,
        "train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "loss_type": "grpo_clip",
        "max_completion_length": 16,
        "learning_rate": 1e-3,
        "eval_every": 1,
        "save_every": None,
        "disable_tqdm": True,
        "seed": 0,
        **settings,
    }
    return R1ZeroGRPOTrainer(
        model=make_tiny_model(tokenizer),
        reward_funcs=reward,
        args=R1ZeroGRPOConfig(output_dir=str(output_dir), **settings),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        processing_class=tokenizer,
        stop=TASK.prompt.stop,
    )


def train_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "reward" in line]


def test_training_runs_in_bf16_through_the_fused_head(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, odd_digits)
    assert trainer.args.bf16
    assert trainer.fused_lm_head
    assert trainer.model.dtype == torch.float32  # bf16 autocast over float32 weights
    trainer.train()
    lines = train_lines(tmp_path)
    assert len(lines) == 4
    assert all(0 < line["grad_norm"] < 100 for line in lines)
    # The same rows in the same micro-batches: bf16 gives the same ratio twice.
    assert lines[0]["ratio"] == pytest.approx(1.0, abs=1e-3)


def test_the_reward_goes_up_in_bf16(tokenizer, tmp_path):
    def digits(response: str, ground_truth: str) -> dict[str, float]:
        return {"reward": sum(character.isdigit() for character in response) / 10}

    trainer = make_trainer(
        tokenizer,
        tmp_path,
        digits,
        n_grpo_steps=25,
        train_batch_size=64,
        learning_rate=5e-3,
        loss_type="reinforce_with_baseline",
        eval_every=None,
    )
    trainer.train()
    rewards = [line["reward"] for line in train_lines(tmp_path)]
    assert sum(rewards[-3:]) / 3 > 3 * sum(rewards[:3]) / 3
