"""The GRPO trainer on real tiny models: its gradient, its rollouts, its files, its resume."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from launch_rewards import hangs_on_e, odd_digits
from peft import LoraConfig
from tiny_models import make_tiny_model
from transformers import Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_r1zero.functional import SAMPLER_CORRECTIONS, compute_group_advantages
from trl_r1zero.generation import Completion
from trl_r1zero.rewards import r1_zero_reward_fn
from trl_r1zero.task_arguments import TaskArguments
from trl_r1zero.trainers import R1ZeroGRPOConfig, R1ZeroGRPOTrainer, TRLReward, read_metrics
from trl_r1zero.trainers.rollouts import Rollout, RolloutBatch

TASK = TaskArguments(
    task="chain_arithmetic", task_args={"num_train": 32, "num_validation": 10}
).load()


def make_trainer(
    tokenizer,
    output_dir,
    *,
    reward=odd_digits,
    model=None,
    peft_config=None,
    stop=TASK.prompt.stop,
    **settings,
):
    settings = {
        "n_grpo_steps": 2,
        "rollout_batch_size": 16,
        "group_size": 4,
        "train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "eval_every": None,
        "save_every": None,
        "log_rollouts_every": None,
        "disable_tqdm": True,
        "seed": 0,
        **settings,
    }
    return R1ZeroGRPOTrainer(
        model=make_tiny_model(tokenizer) if model is None else model,
        reward_funcs=reward,
        args=R1ZeroGRPOConfig(output_dir=str(output_dir), **settings),
        train_dataset=TASK.train_dataset,
        eval_dataset=TASK.eval_dataset,
        processing_class=tokenizer,
        stop=stop,
        peft_config=peft_config,
    )


def train_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "reward" in line]


def make_rollouts(
    tokenizer, lengths: list[int], rewards: list[float], group_size: int, advantage="group_mean"
) -> list[Rollout]:
    """Random completions of the given lengths after different prompts."""
    generator = torch.Generator().manual_seed(1)
    advantages = compute_group_advantages(torch.tensor(rewards), group_size, advantage, 1e-4)
    rollouts = []
    for row, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        prompt = TASK.train_dataset[row // group_size]["prompt"]
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        rollouts.append(
            Rollout(
                prompt=prompt,
                ground_truth="1",
                prompt_ids=tokenizer(prompt)["input_ids"],
                completion=Completion(ids, "", "stop"),
                rewards={"reward": reward},
                advantage=advantages[row].item(),
            )
        )
    return rollouts


def gradient_of_update(trainer: R1ZeroGRPOTrainer, rollouts: list[Rollout]) -> torch.Tensor:
    """The flat gradient that `training_step` leaves for one update on these rollouts."""
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer._rollout_batch = RolloutBatch(rollouts, trainer.args.group_size)
    # `training_step` collects rollouts at a GRPO step's first update; they are here already.
    trainer.collect_rollouts = lambda inputs: trainer._rollout_batch
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, [])
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


LENGTHS = [3, 9, 1, 7, 4, 4, 12, 2]
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]


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
    ours._keep_log_probs(ours.model, rollouts, "old_log_probs")
    for rollout in rollouts:
        noise = 0.3 * torch.randn(rollout.length, generator=generator)
        rollout.ref_log_probs = rollout.old_log_probs - noise if beta else None
        rollout.old_log_probs = rollout.old_log_probs + noise
    (micro_batch,) = ours._microbatches(rollouts)
    ours_loss = ours._compute_loss(ours.model, micro_batch)
    ours_loss.backward()

    stock = make_trl_trainer(
        tokenizer, tmp_path, loss_type=trl_loss, epsilon_high=epsilon_high, beta=beta
    )
    stock_loss = stock._compute_loss(stock.model, as_trl_inputs(rollouts, tokenizer.pad_token_id))
    stock_loss.backward()

    assert ours_loss.item() == pytest.approx(stock_loss.item(), abs=1e-6)
    assert_same_gradients(ours.model, stock.model)


def make_trl_trainer(tokenizer, tmp_path, rollout_func=None, **settings) -> GRPOTrainer:
    """TRL's own trainer of `load_tiny`, in the middle of training; it gives out REWARDS."""
    trainer = GRPOTrainer(
        model=load_tiny(tokenizer, tmp_path),
        reward_funcs=lambda completions, **_: REWARDS,
        args=GRPOConfig(
            output_dir=str(tmp_path / "stock"),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_generations=4,
            max_completion_length=16,
            epsilon=0.2,
            bf16=False,
            report_to="none",
            **settings,
        ),
        train_dataset=TASK.train_dataset,
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def assert_same_gradients(model, other) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4), name


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
    ours._keep_log_probs(ours.model, rollouts, "old_log_probs")
    ours._keep_reference_log_probs(rollouts)
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
    (micro_batch,) = ours._microbatches(rollouts)
    loss = ours._compute_loss(ours.model, micro_batch)
    loss.backward()
    stock_loss = stock._compute_loss(stock.model, inputs)
    stock_loss.backward()
    assert loss.item() == pytest.approx(stock_loss.item(), abs=1e-6)
    assert_same_gradients(ours.model, stock.model)

    metrics = ours._update_metrics.collect(rollouts, ours.accelerator)
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
    (micro_batch,) = trainer._microbatches(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    expected = loss_by_hand(rollouts, twice_or_less, weight)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert abs(expected - loss_by_hand(rollouts, twice_or_less, lambda i, t: 1.0)) > 1e-3

    metrics = trainer._update_metrics.collect(rollouts, trainer.accelerator)
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
    (micro_batch,) = trainer._microbatches(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    assert loss == pytest.approx(loss_by_hand(rollouts, shift, weight), abs=1e-5)

    metrics = trainer._update_metrics.collect(rollouts, trainer.accelerator)
    weights = [weight(i, 0) for i in range(16)]
    assert metrics["importance_weight/mean"] == pytest.approx(np.mean(weights), abs=1e-5)
    assert metrics["importance_weight/min"] == pytest.approx(min(weights), abs=1e-5)
    assert metrics["importance_weight/max"] == pytest.approx(max(weights), abs=1e-5)


def test_without_the_correction_the_difference_is_logged_and_changes_nothing(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, min_tokens=0, gradient_accumulation_steps=1)
    rollouts = shifted_rollouts(trainer, lambda i, t: 0.1)
    (micro_batch,) = trainer._microbatches(rollouts)
    loss = trainer._compute_loss(trainer.model, micro_batch).item()
    metrics = trainer._update_metrics.collect(rollouts, trainer.accelerator)
    assert not any(name.startswith(("sampler", "importance")) for name in metrics)

    trainer.args.use_vllm = True
    assert trainer._compute_loss(trainer.model, micro_batch).item() == loss
    metrics = trainer._update_metrics.collect(rollouts, trainer.accelerator)
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
        trainer._keep_log_probs(trainer.model, rollouts, "old_log_probs")
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


def load_tiny(tokenizer, tmp_path):
    """The tiny model from a folder, as TRL loads its reference model from there again."""
    folder = tmp_path / "model"
    if not folder.exists():
        make_tiny_model(tokenizer).save_pretrained(folder)
    return Qwen2ForCausalLM.from_pretrained(folder)


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


def test_on_policy_makes_no_old_log_probs_and_off_policy_makes_them_once(tokenizer, tmp_path):
    calls = []
    for name, settings in {
        "on": {"train_batch_size": 16},
        "off": {"train_batch_size": 8, "epochs_per_rollout_batch": 2, "loss_type": "grpo_clip"},
    }.items():
        trainer = make_trainer(tokenizer, tmp_path / name, **settings)
        keep = trainer._keep_log_probs
        trainer._keep_log_probs = lambda *args, keep=keep, name=name: (
            calls.append(name),
            keep(*args),
        )
        trainer.train()
        lines = train_lines(tmp_path / name)
        assert len(lines) == (2 if name == "on" else 8)
        assert all(("ratio" in line) == (name == "off") for line in lines)
    assert calls == ["off", "off"]  # once for each of two rollout batches
    # The first update on a rollout batch still has the policy that sampled it: its rows keep what
    # its own forward pass gave.
    assert lines[0]["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert lines[0]["clip_fraction"] == 0.0
    assert lines[1]["ratio"] != 1.0


def test_rollouts_end_at_the_stop_string_and_nothing_after_it_is_trained(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, max_completion_length=24, min_tokens=0, stop=["e", "0"]
    )
    batch = trainer.collect_rollouts([TASK.train_dataset[i // 4] for i in range(16)])
    stopped = [row for row in batch.rollouts if set(row.completion.text) & {"e", "0"}]
    assert 3 <= len(stopped) <= 15
    for row in stopped:
        assert row.completion.text[-1] in "e0"
        assert not set(row.completion.text[:-1]) & {"e", "0"}
        before_last = tokenizer.decode(row.completion.token_ids[:-1])
        assert not set(before_last) & {"e", "0"}  # it ended with the token that completed it
        assert not row.completion.truncated
    eos = tokenizer.eos_token_id
    for row in batch.rollouts:
        if row not in stopped:
            assert row.completion.truncated == (row.completion.token_ids[-1] != eos)
    for micro_batch in trainer._microbatches(batch.rollouts):
        lengths = [row.length for row in micro_batch.rollouts]
        assert micro_batch.response_mask.sum(1).tolist() == lengths


def test_empty_completions_are_survived(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, rollout_batch_size=8, train_batch_size=8)
    rollouts = make_rollouts(tokenizer, [0, 0, 0, 0, 0, 3, 2, 0], REWARDS, 4)
    gradient = gradient_of_update(trainer, rollouts)
    assert torch.isfinite(gradient).all()
    assert gradient.norm() > 0


def test_truncated_completions_can_be_kept_out_of_the_loss(tokenizer, tmp_path):
    settings = {"max_completion_length": 6, "mask_truncated_completions": True}
    trainer = make_trainer(tokenizer, tmp_path, **settings)
    batch = trainer.collect_rollouts([TASK.train_dataset[i // 4] for i in range(16)])
    for row in batch.rollouts:
        assert row.trained != row.completion.truncated
    for micro_batch in trainer._microbatches(batch.rollouts):
        for row, mask in zip(micro_batch.rollouts, micro_batch.response_mask, strict=True):
            assert mask.sum() == (row.length if row.trained else 0)
        assert micro_batch.num_sequences == 16  # the denominator stays


def test_validation_grades_every_problem_once_and_reports_errors(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, eval_every=1, num_eval_examples=7)
    metrics = trainer.evaluate()
    rows = [
        json.loads(line)
        for line in (tmp_path / "evaluations" / "grpo_step_00000.jsonl").read_text().splitlines()
    ]
    assert [row["prompt"] for row in rows] == TASK.eval_dataset["prompt"][:7]
    correct = [row["answer_reward"] for row in rows]
    p = sum(correct) / 7
    assert metrics["eval_accuracy"] == pytest.approx(p)
    assert metrics["eval_accuracy_stderr"] == pytest.approx((p * (1 - p) / 6) ** 0.5)
    assert metrics["eval_num_examples"] == 7
    # The same random streams each time: two validations of one policy are equal.
    again = trainer.evaluate()
    assert again["eval_accuracy"] == metrics["eval_accuracy"]
    assert again["eval_length"] == metrics["eval_length"]


def test_validation_does_not_disturb_training(tokenizer, tmp_path):
    curves = []
    for name, eval_every in (("with", 1), ("without", None)):
        make_trainer(tokenizer, tmp_path / name, eval_every=eval_every).train()
        curves.append([(line["loss"], line["reward"]) for line in train_lines(tmp_path / name)])
    assert curves[0] == curves[1]


def test_every_parameter_moves_and_a_run_leaves_its_files(tokenizer, tmp_path):
    model = make_tiny_model(tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = make_trainer(
        tokenizer, tmp_path, model=model, eval_every=1, save_every=1, log_rollouts_every=1
    )
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    for path in (
        "metrics.jsonl",
        "config.json",
        "environment.json",
        "best/best.json",
        "best/model.safetensors",
        "rollouts/grpo_step_00001.md",
        "rollouts/grpo_step_00002.jsonl",
        "evaluations/grpo_step_00000.md",
        "evaluations/grpo_step_00002.jsonl",
        "checkpoint-2/optimizer.pt",
    ):
        assert (tmp_path / path).is_file(), path
    best = json.loads((tmp_path / "best/best.json").read_text())
    accuracies = [
        line["eval_accuracy"]
        for line in read_metrics(tmp_path)
        if line.get("eval_accuracy") is not None
    ]
    assert best["eval_accuracy"] == max(accuracies[1:])  # a trained model, not the one at the start
    line = train_lines(tmp_path)[0]
    for name in (
        "loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "reward",
        "format_reward",
        "answer_reward",
        "zero_advantage_groups",
        "length/mean",
        "length/max",
        "truncated",
        "tokens_per_second",
        "seconds/step",
        "seconds/generation",
        "seconds/reward",
        "seconds/forward",
        "seconds/backward",
        "grpo_step",
        "elapsed_seconds",
    ):
        assert name in line, name


@pytest.mark.parametrize("settings", [{}, {"train_batch_size": 8, "loss_type": "grpo_clip"}])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path, settings):
    """Metrics and weights, bit for bit, from a checkpoint in the middle."""
    settings = {
        "n_grpo_steps": 4,
        "eval_every": 2,
        "save_every": 2,
        "save_total_limit": None,
        **settings,
    }
    straight = make_trainer(tokenizer, tmp_path / "straight", **settings)
    straight.train()
    halfway = make_trainer(tokenizer, tmp_path / "resumed", **settings)
    updates = halfway.args.updates_per_grpo_step
    halfway.add_callback(StopAfter(2 * updates))
    halfway.train()
    resumed = make_trainer(
        tokenizer, tmp_path / "resumed", model=make_tiny_model(tokenizer, seed=9), **settings
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{2 * updates}"))

    def curve(folder):
        timed = ("seconds", "elapsed", "tokens_per_second", "train_")
        return [
            {k: v for k, v in line.items() if not any(word in k for word in timed)}
            for line in read_metrics(folder)
            if "train_runtime" not in line
        ]

    assert curve(tmp_path / "resumed") == curve(tmp_path / "straight")
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True
        return control


def test_lora_trains_the_adapter_only(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        model=load_tiny(tokenizer, tmp_path),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        beta=0.01,
        train_batch_size=8,
        loss_type="grpo_clip",
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert "kl" in train_lines(tmp_path)[0]


def test_the_kl_of_the_reference_itself_is_zero(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, model=load_tiny(tokenizer, tmp_path), beta=0.1)
    trainer.train()
    first, second = train_lines(tmp_path)
    assert first["kl"] == pytest.approx(0.0, abs=1e-7)
    assert second["kl"] > 1e-6


def test_the_model_goes_where_the_reward_points(tokenizer, tmp_path):
    """A reward for digits: 25 updates make an untrained model write more of them."""

    def digits(response: str, ground_truth: str) -> dict[str, float]:
        return {"reward": sum(character.isdigit() for character in response) / 10}

    trainer = make_trainer(
        tokenizer,
        tmp_path,
        reward=digits,
        n_grpo_steps=25,
        rollout_batch_size=64,
        group_size=8,
        train_batch_size=64,
        learning_rate=5e-3,
    )
    trainer.train()
    rewards = [line["reward"] for line in train_lines(tmp_path)]
    assert sum(rewards[-3:]) / 3 > 3 * sum(rewards[:3]) / 3


def test_settings_that_cannot_work_are_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        make_trainer(tokenizer, tmp_path, temperature=0.0)
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32 needs the fused head"):
        make_trainer(tokenizer, tmp_path, cast_lm_head_to_fp32=True)
    with pytest.raises(ValueError, match="lacks the columns"):
        R1ZeroGRPOTrainer(
            model=make_tiny_model(tokenizer),
            reward_funcs=odd_digits,
            args=R1ZeroGRPOConfig(output_dir=str(tmp_path)),
            train_dataset=TASK.train_dataset.remove_columns("ground_truth"),
            processing_class=tokenizer,
        )
    with pytest.raises(ValueError, match="the training set has 32 prompts"):
        make_trainer(tokenizer, tmp_path, rollout_batch_size=256, train_batch_size=256).train()


def test_reward_functions_of_trl_work_too(tokenizer, tmp_path):
    def trl_reward(completions, **kwargs):
        return [float(len(completion) % 2) for completion in completions]

    make_trainer(tokenizer, tmp_path, reward=[trl_reward, odd_digits]).train()
    line = train_lines(tmp_path)[0]
    assert 0.0 <= line["reward"] <= 2.0
    assert "answer_reward" in line


def test_a_reward_without_a_number_is_an_error(tokenizer, tmp_path):
    def silent(completions, **kwargs):
        return [None] * len(completions)

    with pytest.raises(ValueError, match="a reward function returned None"):
        make_trainer(tokenizer, tmp_path, reward=silent).train()


def test_output_folder_is_the_only_place_written_to(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(tokenizer, tmp_path / "run", eval_every=1).train()
    assert {path.name for path in Path(tmp_path).iterdir()} == {"run"}


def test_a_reward_that_hangs_costs_its_rows_and_not_the_run(tokenizer, tmp_path):
    reward = TRLReward(hangs_on_e, workers=1, deadline_seconds=0.3)
    try:
        make_trainer(tokenizer, tmp_path, reward=reward, log_rollouts_every=1).train()
    finally:
        reward.pool.close()
    lines = train_lines(tmp_path)
    assert len(lines) == 2
    rows = [
        json.loads(row)
        for table in sorted((tmp_path / "rollouts").glob("*.jsonl"))
        for row in table.read_text().splitlines()
    ]
    hung = [row for row in rows if "e" in row["response"]]
    assert 0 < len(hung) < len(rows)
    assert all(row["reward"] == 0.0 and row["rule"] == "reward_timeout" for row in hung)
    assert sum(line["reward_failures"] * 16 for line in lines) == pytest.approx(len(hung))


def test_evaluations_say_why_an_answer_is_wrong(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, eval_every=1, reward=r1_zero_reward_fn)
    trainer.evaluate()
    rows = (tmp_path / "evaluations" / "grpo_step_00000.jsonl").read_text().splitlines()
    assert {json.loads(row)["rule"] for row in rows} == {"no_think_answer_tags"}
