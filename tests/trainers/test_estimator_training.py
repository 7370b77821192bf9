"""Estimators in the trainer: the loss beside TRL's, penalties in the reward, whole runs."""

import copy
import math

import pytest
import torch
import yaml
from test_grpo_gradient import as_trl_inputs
from tiny_grpo import (
    LENGTHS,
    REWARDS,
    assert_same_gradients,
    gradient_of_update,
    load_tiny,
    make_rollouts,
    make_trainer,
    make_trl_trainer,
    train_lines,
)
from tiny_models import REPOSITORY

from trl_r1zero.functional import (
    KL_ESTIMATORS,
    compute_group_advantages,
    compute_response_kl,
)
from trl_r1zero.trainers.grpo_loss import keep_log_probs, response_kl
from trl_r1zero.trainers.rollouts import RolloutBatch


def trainer_of_one_microbatch(tokenizer, tmp_path, **settings):
    return make_trainer(
        tokenizer,
        tmp_path / "ours",
        rollout_batch_size=16,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        model=load_tiny(tokenizer, tmp_path),
        **settings,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"surrogate": "gspo"},
            {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        ),
        (
            {"surrogate": "cispo", "cliprange": 1.0, "cliprange_high": 0.1},
            {"loss_type": "cispo", "epsilon_high": 1.1},
        ),
        (
            {"surrogate": "clipped_ratio", "delta": 1.3},
            {"loss_type": "grpo", "delta": 1.3},
        ),
        (
            {"surrogate": "clipped_ratio", "entropy_coef": 0.1},
            {"loss_type": "grpo", "entropy_coef": 0.1},
        ),
    ],
)
def test_loss_and_gradient_equal_those_of_trl(tokenizer, tmp_path, ours, theirs):
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4, "group_mean_std")
    generator = torch.Generator().manual_seed(2)
    aggregation = "token_mean" if theirs["loss_type"] == "cispo" else "masked_mean"
    trainer = trainer_of_one_microbatch(tokenizer, tmp_path, **{"aggregation": aggregation, **ours})
    keep_log_probs(trainer.policy, trainer.model, trainer.cut(rollouts), "old_log_probs")
    for rollout in rollouts:
        noise = 0.3 * torch.randn(rollout.length, generator=generator)
        rollout.old_log_probs = rollout.old_log_probs + noise
    (micro_batch,) = trainer.cut(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch)
    loss.backward()
    stock = make_trl_trainer(tokenizer, tmp_path, **theirs)
    expected = stock._compute_loss(stock.model, as_trl_inputs(rollouts, tokenizer.pad_token_id))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_same_gradients(trainer.model, stock.model)


@pytest.mark.parametrize("surrogate", ["gspo", "gspo_token", "cispo"])
@pytest.mark.parametrize("aggregation", ["masked_mean", "constant"])
def test_the_cut_does_not_change_the_gradient(tokenizer, tmp_path, surrogate, aggregation):
    gradients = []
    for cuts in (1, 8):
        trainer = make_trainer(
            tokenizer,
            tmp_path,
            rollout_batch_size=8,
            train_batch_size=8,
            gradient_accumulation_steps=cuts,
            surrogate=surrogate,
            aggregation=aggregation,
            entropy_coef=0.01,
        )
        rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4, "leave_one_out")
        gradients.append(gradient_of_update(trainer, rollouts))
    assert gradients[0].norm() > 1e-3
    assert torch.allclose(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_penalty_of_a_response(tokenizer, tmp_path, estimator):
    trainer = trainer_of_one_microbatch(
        tokenizer, tmp_path, beta=0.1, kl_in="reward", kl_estimator=estimator
    )
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4)
    rollouts[3].trained = False  # it is not in the loss, and counts in its group's mean
    batch = RolloutBatch(rollouts, 4)
    penalties, mean = response_kl(trainer.policy, batch, trainer.cut, trainer.timer)
    plain = copy.deepcopy(rollouts)
    for row in plain:
        row.trained = True
    for model, name in ((trainer.model, "old_log_probs"), (trainer.ref_model, "ref_log_probs")):
        keep_log_probs(trainer.policy, model, trainer.cut(plain), name)
    expected = torch.tensor(
        [
            compute_response_kl(
                row.old_log_probs[None],
                row.ref_log_probs[None],
                torch.ones(1, row.length),
                estimator,
            ).item()
            for row in plain
        ]
    )
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(penalties, expected, rtol=1e-4, atol=1e-6)
    assert mean == pytest.approx(expected.sum().item() / sum(LENGTHS), rel=1e-4)
    # They leave no trace on the rows.
    assert all(row.ref_log_probs is None for row in rollouts)
    trainer._set_advantages(batch)
    rewards = torch.tensor(REWARDS) - 0.1 * expected
    advantages = compute_group_advantages(rewards, 4, "group_mean_std", 1e-6)
    torch.testing.assert_close(
        torch.tensor([row.advantage for row in batch.rollouts]), advantages, rtol=1e-3, atol=1e-4
    )
    assert [row.rewards["reward"] for row in batch.rollouts] == REWARDS


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1, "kl_in": "reward", "kl_estimator": "k1"},
        {"beta": 0.1, "kl_estimator": "k2"},
        {"surrogate": "gspo", "advantage": "max_rl", "train_batch_size": 8, "entropy_coef": 0.01},
        {"surrogate": "cispo", "advantage": "leave_one_out", "train_batch_size": 8},
        {"surrogate": "clipped_ratio", "delta": 2.0, "advantage": "group_mean_batch_std"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run(tokenizer, tmp_path, settings):
    model = load_tiny(tokenizer, tmp_path)
    make_trainer(tokenizer, tmp_path / "run", model=model, **settings).train()
    lines = train_lines(tmp_path / "run")
    assert len(lines) == 2 * (16 // settings.get("train_batch_size", 16))
    for line in lines:
        assert all(math.isfinite(line[name]) for name in ("loss", "grad_norm", "entropy"))
        assert 0 <= line["pass@2"] <= line["pass@4"] <= 1
        assert ("kl" in line) == ("beta" in settings)
        if "entropy_coef" in settings or (settings.get("kl_in") is None and "beta" in settings):
            assert line["skipped_rows"] == 0
    assert any(line["grad_norm"] > 0 for line in lines)


# What `recipes/experiments/estimators.yaml` compares, one line of recipe each.
ESTIMATORS = yaml.safe_load((REPOSITORY / "recipes/experiments/estimators.yaml").read_text())[
    "variants"
]
# Losses and gradient norms of two updates on a rollout batch, on torch 2.13.0, CPU.
GOLDEN = {
    "REINFORCE": ([2.162193, 2.881394], [0.620763, 0.661993]),
    "RFT": ([1.946744, 2.881358], [0.547381, 0.662318]),
    "RLOO": ([-0.000944, -0.014392], [0.626847, 0.570088]),
    "MaxRL": ([-0.064788, 0.115419], [1.357598, 1.278007]),
    "GRPO": ([0.0, -0.004004], [0.867923, 0.853099]),
    "Dr. GRPO": ([0.00625, -0.008218], [0.433305, 0.421854]),
    "DAPO's loss": ([0.011547, -0.016555], [0.862259, 0.865635]),
    "REINFORCE++-baseline": ([0.014322, -0.01811], [0.992946, 0.929524]),
    "GSPO": ([0.0, 0.000736], [0.867923, 0.228701]),
    "CISPO": ([-0.065593, 0.07461], [0.862259, 0.865635]),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_golden_run_of_each_estimator(tokenizer, tmp_path, name):
    model = load_tiny(tokenizer, tmp_path)
    settings = {"n_grpo_steps": 1, "train_batch_size": 8, **ESTIMATORS[name]}
    # A common character as a stop makes responses of unequal lengths.
    make_trainer(tokenizer, tmp_path / "run", model=model, stop=("e",), **settings).train()
    lines = train_lines(tmp_path / "run")
    losses, norms = ([line[key] for line in lines] for key in ("loss", "grad_norm"))
    golden_losses, golden_norms = GOLDEN[name]
    assert losses == pytest.approx(golden_losses, abs=3e-6)
    assert norms == pytest.approx(golden_norms, rel=1e-4)
