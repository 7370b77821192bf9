"""The short SFT and expert-iteration runs of the CPU tests in bf16. Skipped without CUDA."""

import pytest
import torch
from launch_rewards import many_digits
from tiny_models import make_tiny_model
from tiny_sft import TASK, make_sft_trainer

from trl_r1zero.trainers import ExpertIterationConfig, ExpertIterationTrainer, read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def column(folder, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder) if name in line]


def test_sft_runs_in_bf16_through_the_fused_head(tokenizer, tmp_path):
    trainer = make_sft_trainer(
        tokenizer, tmp_path, num_train_epochs=4, learning_rate=1e-2, eval_every=10
    )
    assert trainer.args.bf16
    assert trainer.fused_lm_head
    assert trainer.model.dtype == torch.float32  # bf16 autocast over float32 weights
    trainer.train()
    nlls = column(tmp_path, "nll")
    assert nlls[-1] < nlls[0] / 2
    assert all(0 < norm < 1000 for norm in column(tmp_path, "grad_norm"))


def test_expert_iteration_learns_in_bf16(tokenizer, tmp_path):
    ExpertIterationTrainer(
        model=make_tiny_model(tokenizer),
        args=ExpertIterationConfig(
            output_dir=str(tmp_path),
            n_ei_steps=4,
            ei_batch_size=16,
            group_size=8,
            sft_epochs_per_step=4,
            train_batch_size=8,
            gradient_accumulation_steps=2,
            max_completion_length=10,
            learning_rate=1e-2,
            disable_tqdm=True,
        ),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        reward_fn=many_digits,
        processing_class=tokenizer,
        stop=TASK.prompt.stop,
    ).train()
    accuracies = column(tmp_path, "rollout_accuracy")
    assert accuracies[-1] > accuracies[0] + 0.3
