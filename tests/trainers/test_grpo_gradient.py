"""The gradient of a GRPO update: the same for every cut and either head, and TRL's own."""

import pytest
import torch
from tiny_grpo import (
    LENGTHS,
    REWARDS,
    assert_same_gradients,
    gradient_of_update,
    load_tiny,
    make_rollouts,
    make_trainer,
    make_trl_trainer,
)

from trl_r1zero.trainers.grpo_loss import keep_log_probs
from trl_r1zero.trainers.rollouts import Rollout


@pytest.mark.parametrize("aggregation", ["masked_mean", "masked_normalize", "token_mean"])
@pytest.mark.parametrize(
    "loss_type", ["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]
)
def test_the_cut_into_microbatches_does_not_change_the_gradient(
    tokenizer, tmp_path, loss_type, aggregation
):
    gradients = []
    for number_of_cuts in (1, 2, 8):
        trainer = make_trainer(
            tokenizer,
            tmp_path,
            rollout_batch_size=8,
            train_batch_size=8,
            gradient_accumulation_steps=number_of_cuts,
            loss_type=loss_type,
            aggregation=aggregation,
            use_std_normalization=False,
        )
        advantage = "raw" if loss_type == "no_baseline" else "group_mean"
        rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4, advantage)
        gradients.append(gradient_of_update(trainer, rollouts))
    assert gradients[0].norm() > 1e-3
    assert torch.allclose(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
    assert torch.allclose(gradients[2], gradients[0], atol=1e-6, rtol=1e-5)


def as_trl_inputs(rollouts: list[Rollout], pad_id: int) -> dict[str, torch.Tensor]:
    """Rollouts as TRL's own batch: prompts padded on the left, completions on the right."""
    width_p = max(len(row.prompt_ids) for row in rollouts)
    width_c = max(row.length for row in rollouts)

    def left(ids, value):
        return [value] * (width_p - len(ids)) + list(ids)

    def right(ids, value):
        return list(ids) + [value] * (width_c - len(ids))

    inputs = {
        "prompt_ids": torch.tensor([left(row.prompt_ids, pad_id) for row in rollouts]),
        "prompt_mask": torch.tensor([left([1] * len(row.prompt_ids), 0) for row in rollouts]),
        "completion_ids": torch.tensor(
            [right(row.completion.token_ids, pad_id) for row in rollouts]
        ),
        "completion_mask": torch.tensor([right([1] * row.length, 0) for row in rollouts]),
        "advantages": torch.tensor([row.advantage for row in rollouts]),
        "old_per_token_logps": torch.tensor(
            [right(row.old_log_probs.tolist(), 0.0) for row in rollouts]
        ),
        "num_items_in_batch": torch.tensor(float(sum(row.length for row in rollouts))),
    }
    if rollouts[0].ref_log_probs is not None:
        inputs["ref_per_token_logps"] = torch.tensor(
            [right(row.ref_log_probs.tolist(), 0.0) for row in rollouts]
        )
    return inputs


@pytest.mark.parametrize("epsilon_high", [None, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("trl_loss", "aggregation", "constant"),
    [
        ("grpo", "masked_mean", None),
        ("dr_grpo", "masked_normalize", 16.0),
        ("bnpo", "token_mean", None),
    ],
)
def test_loss_and_gradient_equal_those_of_trl(
    tokenizer, tmp_path, trl_loss, aggregation, constant, beta, epsilon_high
):
    """Same rollouts, same old and reference log-probabilities, same settings: same numbers."""
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4, "group_mean_std")
    generator = torch.Generator().manual_seed(2)
    ours = make_trainer(
        tokenizer,
        tmp_path / "ours",
        rollout_batch_size=16,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        loss_type="grpo_clip",
        cliprange=0.2,
        cliprange_high=epsilon_high,
        aggregation=aggregation,
        normalize_constant=constant,
        beta=beta,
        model=load_tiny(tokenizer, tmp_path),
    )
    # Old log-probabilities near the policy's, some of them outside of the clip range.
    keep_log_probs(ours.policy, ours.model, ours.cut(rollouts), "old_log_probs")
    for rollout in rollouts:
        noise = 0.3 * torch.randn(rollout.length, generator=generator)
        rollout.ref_log_probs = rollout.old_log_probs - noise if beta else None
        rollout.old_log_probs = rollout.old_log_probs + noise
    (micro_batch,) = ours.cut(rollouts)
    ours_loss = ours._compute_loss(ours.model, micro_batch)
    ours_loss.backward()

    stock = make_trl_trainer(
        tokenizer, tmp_path, loss_type=trl_loss, epsilon_high=epsilon_high, beta=beta
    )
    stock_loss = stock._compute_loss(stock.model, as_trl_inputs(rollouts, tokenizer.pad_token_id))
    stock_loss.backward()

    assert ours_loss.item() == pytest.approx(stock_loss.item(), abs=1e-6)
    assert_same_gradients(ours.model, stock.model)


def test_the_fused_head_gives_the_same_gradient_packed_or_not(tokenizer, tmp_path):
    gradients = [
        gradient_of_update(
            make_trainer(
                tokenizer,
                tmp_path,
                rollout_batch_size=8,
                train_batch_size=8,
                temperature=0.7,
                fused_lm_head=fused,
                pack_rows=packed,
            ),
            make_rollouts(tokenizer, LENGTHS, REWARDS, 4),
        )
        for fused, packed in ((False, False), (True, False), (True, True))
    ]
    for gradient in gradients[1:]:
        assert torch.allclose(gradients[0], gradient, atol=1e-6, rtol=1e-4)
