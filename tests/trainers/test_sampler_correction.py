"""The loss corrected for a sampler whose log-probabilities differ from the trainer's."""

import math

import numpy as np
import pytest
import torch
from tiny_grpo import (
    LENGTHS,
    REWARDS,
    TASK,
    assert_same_gradients,
    gradient_of_update,
    load_tiny,
    make_rollouts,
    make_trainer,
    make_trl_trainer,
)

from trl_r1zero.functional import SAMPLER_CORRECTIONS
from trl_r1zero.trainers import R1ZeroGRPOTrainer
from trl_r1zero.trainers.grpo_loss import keep_log_probs
from trl_r1zero.trainers.rollouts import Rollout


def correct_for_the_sampler(trainer: R1ZeroGRPOTrainer, mode: str, clip_min=None, clip_max=None):
    """Settings that would connect to a server, had the trainer been made with them.

    All rows are run, so that the statistics are those of all.
    """
    trainer.args.skip_zero_advantages = False
    trainer.args.use_vllm = True
    trainer.args.vllm_importance_sampling_correction = True
    trainer.args.vllm_importance_sampling_mode = mode
    trainer.args.vllm_importance_sampling_clip_min = clip_min
    trainer.args.vllm_importance_sampling_clip_max = clip_max


# The smallest and the largest weight: a bound or 0; None is something within the bounds.
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
@pytest.mark.parametrize(
    ("mode", "smallest", "largest"),
    [
        ("token_truncate", 0.8, 1.25),
        ("token_mask", 0.0, None),
        ("sequence_truncate", 0.8, 1.25),
        ("sequence_mask", 0.0, None),
    ],
)
def test_the_correction_for_the_sampler_equals_that_of_trl(
    tokenizer, tmp_path, mode, smallest, largest
):
    """From the sampler's log-probabilities on, with a policy that has moved since and a KL term."""
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4, "group_mean_std")
    ours = make_trainer(
        tokenizer,
        tmp_path / "ours",
        rollout_batch_size=16,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        loss_type="grpo_clip",
        beta=0.04,
        model=load_tiny(tokenizer, tmp_path),
    )
    correct_for_the_sampler(ours, mode, 0.8, 1.25)
    keep_log_probs(ours.policy, ours.model, ours.cut(rollouts), "old_log_probs")
    keep_log_probs(ours.policy, ours.ref_model, ours.cut(rollouts), "ref_log_probs")
    generator = torch.Generator().manual_seed(2)
    for row in rollouts:
        noise = 0.3 * torch.randn(row.length, generator=generator)
        row.completion.log_probs = (row.old_log_probs - noise).tolist()
    rollouts[0].completion.log_probs[1] = float("nan")

    def rollout_func(prompts, trainer):
        """The same rollouts; to TRL a log-probability that the sampler could not tell is None."""
        return {
            "prompt_ids": [row.prompt_ids for row in rollouts],
            "completion_ids": [row.completion.token_ids for row in rollouts],
            "logprobs": [
                [None if value != value else value for value in row.completion.log_probs]
                for row in rollouts
            ],
        }

    stock = make_trl_trainer(
        tokenizer,
        tmp_path,
        rollout_func,
        loss_type="grpo",
        beta=0.04,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=0.8,
        vllm_importance_sampling_clip_max=1.25,
    )
    stock.use_vllm, stock._last_loaded_step = True, 0
    inputs = stock._generate_and_score_completions([{"prompt": row.prompt} for row in rollouts])

    for model in (ours.model, stock.model):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    (micro_batch,) = ours.cut(rollouts)
    loss = ours._compute_loss(ours.model, micro_batch)
    loss.backward()
    stock_loss = stock._compute_loss(stock.model, inputs)
    stock_loss.backward()
    assert loss.item() == pytest.approx(stock_loss.item(), abs=1e-6)
    assert_same_gradients(ours.model, stock.model)

    metrics = ours.update_metrics.collect(rollouts, ours.accelerator)
    theirs = {name: values[-1] for name, values in stock._metrics["train"].items()}
    for name, their_name in (
        ("sampler_log_prob_diff/mean", "sampling/sampling_logp_difference/mean"),
        ("sampler_log_prob_diff/max", "sampling/sampling_logp_difference/max"),
        ("importance_weight/mean", "sampling/importance_sampling_ratio/mean"),
        ("importance_weight/min", "sampling/importance_sampling_ratio/min"),
        ("importance_weight/max", "sampling/importance_sampling_ratio/max"),
    ):
        assert metrics[name] == pytest.approx(theirs[their_name], abs=1e-5), name
    assert metrics["importance_weight/min"] == pytest.approx(smallest)
    if largest is None:
        assert 1.0 < metrics["importance_weight/max"] <= 1.25
    else:
        assert metrics["importance_weight/max"] == pytest.approx(largest)


def shifted_rollouts(trainer: R1ZeroGRPOTrainer, shift) -> list[Rollout]:
    """Rollouts of the policy as a sampler would report them that gives the token at position t of
    row i the log-probability of the policy minus `shift(i, t)`."""
    rollouts = trainer.collect_rollouts([TASK.train_dataset[i // 4] for i in range(16)]).rollouts
    for i, row in enumerate(rollouts):
        row.completion.log_probs = [
            log_prob - shift(i, t) for t, log_prob in enumerate(row.completion.log_probs)
        ]
    return rollouts


def loss_by_hand(rollouts: list[Rollout], shift, weight) -> float:
    """Mean over rows of the mean over tokens of -weight(i, t) * advantage * ln pi."""
    total = 0.0
    for i, row in enumerate(rollouts):
        log_probs = [value + shift(i, t) for t, value in enumerate(row.completion.log_probs)]
        weighed = [weight(i, t) * log_prob for t, log_prob in enumerate(log_probs)]
        total -= row.advantage * sum(weighed) / row.length
    return total / len(rollouts)


# Twice as likely to the trainer as to the sampler, 0.9 times as likely, twice, ...
def twice_or_less(i: int, t: int) -> float:
    return math.log(2.0) if t % 2 == 0 else math.log(0.9)


@pytest.mark.parametrize(
    ("mode", "clip_max", "weight", "statistics"),
    [
        ("token_truncate", 1.5, lambda i, t: 1.5 if t % 2 == 0 else 0.9, (0.9, 1.5)),
        ("token_mask", 1.5, lambda i, t: 0.0 if t % 2 == 0 else 0.9, (0.0, 0.9)),
        ("token_mask", None, lambda i, t: 2.0 if t % 2 == 0 else 0.9, (0.9, 2.0)),
    ],
)
def test_the_loss_is_corrected_for_the_sampler_by_token(
    tokenizer, tmp_path, mode, clip_max, weight, statistics
):
    # Below min_tokens the sampler's log-probabilities are those without the end-of-sequence token.
    trainer = make_trainer(tokenizer, tmp_path, min_tokens=0, gradient_accumulation_steps=1)
    rollouts = shifted_rollouts(trainer, twice_or_less)
    correct_for_the_sampler(trainer, mode, None, clip_max)
    (micro_batch,) = trainer.cut(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    expected = loss_by_hand(rollouts, twice_or_less, weight)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert abs(expected - loss_by_hand(rollouts, twice_or_less, lambda i, t: 1.0)) > 1e-3

    metrics = trainer.update_metrics.collect(rollouts, trainer.accelerator)
    shifts = [abs(twice_or_less(i, t)) for i, row in enumerate(rollouts) for t in range(row.length)]
    weights = [weight(i, t) for i, row in enumerate(rollouts) for t in range(row.length)]
    assert metrics["sampler_log_prob_diff/mean"] == pytest.approx(np.mean(shifts), abs=1e-5)
    assert metrics["sampler_log_prob_diff/max"] == pytest.approx(math.log(2.0), abs=1e-5)
    assert metrics["importance_weight/mean"] == pytest.approx(np.mean(weights), abs=1e-5)
    assert metrics["importance_weight/min"] == pytest.approx(statistics[0], abs=1e-5)
    assert metrics["importance_weight/max"] == pytest.approx(statistics[1], abs=1e-5)


@pytest.mark.parametrize("mode", ["sequence_truncate", "sequence_mask"])
def test_the_loss_is_corrected_for_the_sampler_by_response(tokenizer, tmp_path, mode):
    """A tenth of a nat per token in rows of odd number: exp(0.1 T), above 2 from T = 7 on."""

    def shift(i: int, t: int) -> float:
        return 0.1 * (i % 2)

    def weight(i: int, t: int) -> float:
        ratio = math.exp(shift(i, t) * rollouts[i].length)
        return ratio if ratio <= 2.0 else {"sequence_truncate": 2.0, "sequence_mask": 0.0}[mode]

    trainer = make_trainer(
        tokenizer,
        tmp_path,
        min_tokens=0,
        stop=["e", "0"],
        max_completion_length=24,
        gradient_accumulation_steps=1,
    )
    rollouts = shifted_rollouts(trainer, shift)
    odd = [row.length for row in rollouts[1::2]]
    assert min(odd) < 7 < max(odd)
    correct_for_the_sampler(trainer, mode, None, 2.0)
    (micro_batch,) = trainer.cut(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    assert loss == pytest.approx(loss_by_hand(rollouts, shift, weight), abs=1e-5)

    metrics = trainer.update_metrics.collect(rollouts, trainer.accelerator)
    weights = [weight(i, 0) for i in range(16)]
    assert metrics["importance_weight/mean"] == pytest.approx(np.mean(weights), abs=1e-5)
    assert metrics["importance_weight/min"] == pytest.approx(min(weights), abs=1e-5)
    assert metrics["importance_weight/max"] == pytest.approx(max(weights), abs=1e-5)


def test_without_the_correction_the_difference_is_logged_and_changes_nothing(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, min_tokens=0, gradient_accumulation_steps=1)
    rollouts = shifted_rollouts(trainer, lambda i, t: 0.1)
    (micro_batch,) = trainer.cut(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    metrics = trainer.update_metrics.collect(rollouts, trainer.accelerator)
    assert not any(name.startswith(("sampler", "importance")) for name in metrics)

    trainer.args.use_vllm = True
    assert trainer._compute_loss(trainer.model, micro_batch).item() == loss
    metrics = trainer.update_metrics.collect(rollouts, trainer.accelerator)
    assert metrics["sampler_log_prob_diff/mean"] == pytest.approx(0.1, abs=1e-5)
    assert metrics["sampler_log_prob_diff/max"] == pytest.approx(0.1, abs=1e-5)
    assert not any(name.startswith("importance") for name in metrics)


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_the_cut_does_not_change_the_corrected_gradient(tokenizer, tmp_path, mode):
    gradients, logged = [], []
    for number_of_cuts in (1, 4):
        trainer = make_trainer(
            tokenizer,
            tmp_path,
            rollout_batch_size=8,
            train_batch_size=8,
            gradient_accumulation_steps=number_of_cuts,
        )
        rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4)
        keep_log_probs(trainer.policy, trainer.model, trainer.cut(rollouts), "old_log_probs")
        for i, row in enumerate(rollouts):
            row.completion.log_probs = (row.old_log_probs - 0.1 * (i - 3)).tolist()
        correct_for_the_sampler(trainer, mode, 0.8, 1.25)
        gradients.append(gradient_of_update(trainer, rollouts))
        names = ("sampler_log_prob_diff/mean", "importance_weight/mean", "importance_weight/min")
        logged.append([trainer._metrics["train"][name] for name in names])
    assert gradients[0].norm() > 1e-3
    assert torch.allclose(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
    for a, b in zip(*logged, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_the_correction_needs_the_samplers_log_probs(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, rollout_batch_size=8, train_batch_size=8)
    correct_for_the_sampler(trainer, "token_mask")
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4)
    with pytest.raises(ValueError, match="needs the sampler's log-probabilities"):
        gradient_of_update(trainer, rollouts)
