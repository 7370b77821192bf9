"""bfloat16 on a CPU: losses and gradients are those of float32, but for the dtype's noise; what an
optimizer loses with weights in bfloat16, and does not with autocast."""

import pytest
import torch
from tiny_grpo import LENGTHS, REWARDS, gradient_of_update, make_rollouts, make_trainer
from tiny_models import make_tiny_model
from tiny_sft import TRACES, make_sft_trainer

EPS = torch.finfo(torch.bfloat16).eps  # 2^-7
KINDS = {
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "weights": (torch.bfloat16, False),
}


def grpo_gradient(tokenizer, folder, model, bf16):
    trainer = make_trainer(
        tokenizer, folder, model=model, bf16=bf16, rollout_batch_size=8, train_batch_size=8
    )
    return gradient_of_update(trainer, make_rollouts(tokenizer, LENGTHS, REWARDS, 4)), None


def sft_gradient(tokenizer, folder, model, bf16):
    trainer = make_sft_trainer(tokenizer, folder, model=model, bf16=bf16)
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, trainer.rows[:8])
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()]), loss.item()


@pytest.mark.parametrize("of_kind", [grpo_gradient, sft_gradient])
def test_gradients_are_those_of_float32_within_the_noise(tokenizer, tmp_path, of_kind):
    # Weights that bfloat16 has, so that all three are of one model.
    results = {}
    for name, (dtype, bf16) in KINDS.items():
        model = make_tiny_model(tokenizer).to(torch.bfloat16).to(dtype)
        gradient, loss = of_kind(tokenizer, tmp_path / name, model, bf16)
        assert gradient.dtype == dtype
        results[name] = gradient.float(), loss
    exact, exact_loss = results["float32"]
    assert exact.norm() > 1e-3
    for name in ("autocast", "weights"):
        gradient, loss = results[name]
        # Rounding in each of some ten products on the way, in random directions.
        assert 0 < (gradient - exact).norm() / exact.norm() < 4 * EPS, name
        if exact_loss is not None:
            assert loss == pytest.approx(exact_loss, rel=EPS), name


def test_small_updates_are_lost_by_weights_in_bfloat16_and_not_under_autocast(tokenizer, tmp_path):
    moved = {}
    for name, (dtype, bf16) in KINDS.items():
        model = make_tiny_model(tokenizer).to(torch.bfloat16).to(dtype)
        settings = {"bf16": bf16, "learning_rate": 1e-5, "num_train_epochs": 1}
        trainer = make_sft_trainer(
            tokenizer, tmp_path / name, model=model, traces=TRACES.select(range(8)), **settings
        )
        weight = trainer.model.model.layers[0].mlp.up_proj.weight
        before = weight.detach().clone()
        trainer.train()
        moved[name] = (weight != before).float().mean().item()
    # Adam moves a weight by the learning rate; neighbours of 0.02 are 1.2e-4 apart in bfloat16.
    assert moved["autocast"] > 0.95 and moved["float32"] > 0.95
    assert moved["weights"] < 0.2
