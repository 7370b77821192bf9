"""The 2026 edition's functions: by hand, and their step beside a plain loop."""

import copy
import inspect
import math

import pytest
import torch
from tiny_models import make_tiny_model

import trl_r1zero
from trl_r1zero import edition_2026
from trl_r1zero.edition_2026 import (
    aggregate_loss_across_microbatch,
    compute_group_normalized_rewards,
    compute_policy_gradient_loss,
    compute_rollout_rewards,
    get_response_log_probs,
    grpo_train_step,
    tokenize_prompt_and_output,
)

# The contract: names and order of arguments, and the defaults that it gives.
SIGNATURES = {
    "compute_rollout_rewards": "reward_fn rollout_responses repeated_ground_truths",
    "compute_group_normalized_rewards": "raw_rewards group_size baseline=mean advantage_eps=1e-06 "
    "advantage_normalizer=std",
    "compute_policy_gradient_loss": "raw_rewards_or_advantages policy_log_probs "
    "importance_reweighting_method=none old_log_probs=None cliprange=None response_mask=None",
    "aggregate_loss_across_microbatch": "per_token_policy_gradient_loss mask "
    "loss_normalization=sequence normalization_constant=None",
    "grpo_train_step": "model tokenizer optimizer gradient_accumulation_steps max_grad_norm "
    "reward_fn repeated_prompts rollout_responses repeated_ground_truths group_size "
    "baseline=mean advantage_eps=1e-06 advantage_normalizer=std "
    "importance_reweighting_method=none old_log_probs=None cliprange=None "
    "loss_normalization=sequence normalization_constant=None",
}
UNCHANGED = [
    "tokenize_prompt_and_output",
    "get_response_log_probs",
    "PackedSFTDataset",
    "iterate_batches",
    "parse_mmlu_response",
    "parse_gsm8k_response",
    "compute_per_instance_dpo_loss",
]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_contract(name):
    parameters = inspect.signature(getattr(edition_2026, name)).parameters.values()
    empty = inspect.Parameter.empty
    words = [p.name if p.default is empty else f"{p.name}={p.default}" for p in parameters]
    assert words == SIGNATURES[name].split()


def test_what_did_not_change_is_that_of_2025():
    for name in UNCHANGED:
        assert getattr(edition_2026, name) is getattr(trl_r1zero, name)
    assert set(edition_2026.__all__) == {*SIGNATURES, *UNCHANGED}


def reward_fn(response: str, ground_truth: str) -> dict[str, float]:
    right = float(response.strip() == ground_truth)
    return {"reward": right, "format_reward": 1.0, "answer_reward": right}


def test_compute_rollout_rewards():
    rewards, metadata = compute_rollout_rewards(
        reward_fn, ["4", "5", " 6", ""], ["4"] * 2 + ["6"] * 2
    )
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert metadata["reward_mean"] == metadata["answer_reward_mean"] == 0.5
    with pytest.raises(ValueError, match="2 rollout_responses and 1 repeated_ground_truths"):
        compute_rollout_rewards(reward_fn, ["a", "b"], ["c"])


# Group 1: 1 0 0 1, mean 1/2, unbiased std 0.57735. Group 2: 1 0 0 0, mean 1/4, std 1/2.
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
CENTRED = [0.5, -0.5, -0.5, 0.5, 0.75, -0.25, -0.25, -0.25]
SCALE = {
    "none": [1.0] * 8,
    "std": [math.sqrt(1 / 3)] * 4 + [0.5] * 4,
    "mean": [0.5] * 4 + [0.25] * 4,
}


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("normalizer", ["none", "std", "mean"])
@pytest.mark.parametrize("baseline", ["mean", "none"])
def test_compute_group_normalized_rewards(baseline, normalizer, eps):
    advantages, metadata = compute_group_normalized_rewards(
        REWARDS, 4, baseline, eps, advantage_normalizer=normalizer
    )
    above = CENTRED if baseline == "mean" else REWARDS.tolist()
    added = 0.0 if normalizer == "none" else eps
    expected = [a / (c + added) for a, c in zip(above, SCALE[normalizer], strict=True)]
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert metadata["zero_advantage_group_fraction"] == 0.0


def test_the_defaults_are_the_standard_grpo():
    advantages, _ = compute_group_normalized_rewards(REWARDS, 4)
    expected = compute_group_normalized_rewards(REWARDS, 4, "mean", 1e-6, "std")[0]
    assert torch.equal(advantages, expected)


@pytest.mark.parametrize("normalizer", ["none", "std", "mean"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_equal_rewards_have_no_advantage(normalizer, reward):
    rewards = torch.full((8,), reward)
    advantages, metadata = compute_group_normalized_rewards(
        rewards, 4, advantage_normalizer=normalizer
    )
    assert advantages.tolist() == [0.0] * 8
    assert metadata["zero_advantage_group_fraction"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "leave"}, "unknown baseline 'leave'; Allowed: mean, none"),
        ({"advantage_normalizer": "stdd"}, "unknown advantage_normalizer 'stdd'; did you mean"),
        ({"group_size": 3}, r"group_size=3, got \(8,\)"),
        ({"advantage_eps": -1.0}, "at least 0"),
    ],
)
def test_compute_group_normalized_rewards_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_group_normalized_rewards(**{"raw_rewards": REWARDS, "group_size": 4, **arguments})


# Ratios of tokens; the third of row 2 is padding. Geometric means: (2 * 1/2 * 1)^(1/3) = 1, and
# (2 * 8)^(1/2) = 4.
OLD = torch.full((2, 3), -1.0)
RATIO = torch.tensor([[2.0, 0.5, 1.0], [2.0, 8.0, 3.0]])
POLICY = OLD + RATIO.log()
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ADVANTAGES = torch.tensor([[1.0], [-2.0]])
LOSSES = {
    "none": -ADVANTAGES * POLICY,
    "noclip": -ADVANTAGES * RATIO,
    # Row 1: -min(2, 1.2), -min(0.5, 0.8), -min(1, 1). Row 2: 2 * max(ratio, 1.2).
    "grpo": torch.tensor([[-1.2, -0.5, -1.0], [4.0, 16.0, 6.0]]),
    "gspo": torch.tensor([[-1.0] * 3, [8.0] * 3]),
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("method", LOSSES)
def test_compute_policy_gradient_loss(method, flat):
    loss, metadata = compute_policy_gradient_loss(
        ADVANTAGES.squeeze(1) if flat else ADVANTAGES, POLICY, method, OLD, 0.2, MASK
    )
    torch.testing.assert_close(loss, LOSSES[method])
    assert ("ratio" in metadata) == (method != "none")
    assert ("clip_fraction" in metadata) == (method in ("grpo", "gspo"))
    if method == "grpo":
        assert metadata["clip_fraction"].item() == pytest.approx(1 / 5)
    # What it does not use may be left out.
    if method == "none":
        torch.testing.assert_close(compute_policy_gradient_loss(ADVANTAGES, POLICY)[0], loss)


def test_gspo_clips_whole_responses():
    loss, metadata = compute_policy_gradient_loss(-ADVANTAGES, POLICY, "gspo", OLD, 0.2, MASK)
    # s A: -1 and 8; clipped: -1 and 1.2 * 2.
    torch.testing.assert_close(loss, torch.tensor([[1.0] * 3, [-2.4] * 3]))
    assert metadata["clip_fraction"].item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("missing", ["old_log_probs", "cliprange", "response_mask"])
@pytest.mark.parametrize("method", LOSSES)
def test_missing_arguments_are_named(method, missing):
    given = {"old_log_probs": OLD, "cliprange": 0.2, "response_mask": MASK}
    del given[missing]
    needs = {"noclip": ["old_log_probs"], "grpo": ["old_log_probs", "cliprange"]}
    needs["gspo"] = [*needs["grpo"], "response_mask"]
    if missing in needs.get(method, []):
        with pytest.raises(ValueError, match=f"needs {missing}, got None"):
            compute_policy_gradient_loss(ADVANTAGES, POLICY, method, **given)
    else:
        compute_policy_gradient_loss(ADVANTAGES, POLICY, method, **given)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="importance_reweighting_method 'gpro'; did you mean 'g"):
        compute_policy_gradient_loss(ADVANTAGES, POLICY, "gpro", OLD, 0.2)


LOSS = torch.tensor([[3.0, 5.0, 9.0], [2.0, 3.0, 4.0]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float])
def test_aggregate_loss_across_microbatch(dtype):
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=dtype)
    assert aggregate_loss_across_microbatch(LOSS, mask).item() == pytest.approx((4 + 3) / 2)
    assert aggregate_loss_across_microbatch(LOSS, mask, "sequence", 10).item() == 3.5
    constant = aggregate_loss_across_microbatch(LOSS, mask, "constant", 10)
    assert constant.item() == pytest.approx(17 / 10)
    assert constant.shape == ()
    with pytest.raises(ValueError, match="needs normalization_constant"):
        aggregate_loss_across_microbatch(LOSS, mask, "constant")
    with pytest.raises(ValueError, match="unknown loss_normalization 'token'"):
        aggregate_loss_across_microbatch(LOSS, mask, "token")


# The step, beside a plain loop

PROMPTS = [f"Q: {n} + 1 = " for n in range(3) for _ in range(4)]
RESPONSES = ["1", "22", "1", "34 5", "2", "2 2", "3", "9", "3", "3 ", "33", "4444 4"]
TRUTHS = [str(n + 1) for n in range(3) for _ in range(4)]


def plain_loss(model, tokenizer, advantages, method, old, normalization, constant):
    """The formulas once more, on the whole batch at once."""
    batch = tokenize_prompt_and_output(PROMPTS, RESPONSES, tokenizer)
    logits = model(batch["input_ids"]).logits
    log_probs = logits.log_softmax(-1).gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1)
    mask, weights = batch["response_mask"].double(), advantages.unsqueeze(1)
    if method == "none":
        loss = -weights * log_probs
    else:
        log_ratio = log_probs - old
        if method == "gspo":
            log_ratio = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        ratio = log_ratio.exp()
        bound = {"noclip": math.inf, "grpo": 0.2, "gspo": 0.05}[method]
        loss = -torch.minimum(ratio * weights, ratio.clamp(1 - bound, 1 + bound) * weights)
        loss = loss.expand_as(log_probs)
    if normalization == "constant":
        return (loss * mask).sum() / constant
    return ((loss * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize(
    ("method", "normalization", "baseline", "normalizer"),
    [
        ("none", "sequence", "mean", "std"),
        ("none", "constant", "none", "none"),
        ("noclip", "constant", "mean", "mean"),
        ("grpo", "sequence", "mean", "std"),
        ("gspo", "constant", "mean", "none"),
    ],
)
def test_the_step_is_that_of_a_plain_loop(
    tokenizer, steps, method, normalization, baseline, normalizer
):
    # In float64: the first steps of Adam turn the rounding of a gradient near 0 into an update.
    model = make_tiny_model(tokenizer).double()
    reference = copy.deepcopy(model)
    batch = tokenize_prompt_and_output(PROMPTS, RESPONSES, tokenizer)
    with torch.no_grad():
        old = get_response_log_probs(model, batch["input_ids"], batch["labels"])["log_probs"]
    old = old + 0.2 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0)).double()
    cliprange = {"grpo": 0.2, "gspo": 0.05}.get(method)
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        for m in (model, reference)
    ]
    for _ in range(2):
        loss, metadata = grpo_train_step(
            model,
            tokenizer,
            optimizers[0],
            steps,
            0.5,
            reward_fn,
            PROMPTS,
            RESPONSES,
            TRUTHS,
            4,
            baseline,
            1e-6,
            normalizer,
            method,
            old if method != "none" else None,
            cliprange,
            normalization,
            96.0,
        )
        advantages, _ = compute_group_normalized_rewards(
            compute_rollout_rewards(reward_fn, RESPONSES, TRUTHS)[0],
            4,
            baseline,
            1e-6,
            normalizer,
        )
        expected = plain_loss(reference, tokenizer, advantages, method, old, normalization, 96.0)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizers[1].step()
        optimizers[1].zero_grad()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
        assert not loss.requires_grad
        assert metadata["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert all(p.grad is None for p in model.parameters())
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert ("clip_fraction" in metadata) == (method in ("grpo", "gspo"))


def step(tokenizer, **changes):
    model = make_tiny_model(tokenizer)
    arguments = {
        "model": model,
        "tokenizer": tokenizer,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1.0),
        "gradient_accumulation_steps": 1,
        "max_grad_norm": None,
        "reward_fn": reward_fn,
        "repeated_prompts": PROMPTS,
        "rollout_responses": RESPONSES,
        "repeated_ground_truths": TRUTHS,
        "group_size": 4,
        **changes,
    }
    return model, grpo_train_step(**arguments)


def test_rows_without_advantage_change_nothing(tokenizer):
    before = [p.clone() for p in make_tiny_model(tokenizer).parameters()]
    model, (loss, metadata) = step(tokenizer, repeated_ground_truths=["none of them"] * 12)
    assert loss.item() == 0.0 and metadata["zero_advantage_group_fraction"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "from 1 to the number of rows, 12, got 0"),
        ({"gradient_accumulation_steps": 13}, "got 13"),
        ({"repeated_prompts": PROMPTS[:8]}, "8 repeated_prompts and 12 rollout_responses"),
        ({"importance_reweighting_method": "noclip"}, "needs old_log_probs, got None"),
        (
            {"importance_reweighting_method": "noclip", "old_log_probs": torch.zeros(12, 2)},
            r"old_log_probs has shape \(12, 2\)",
        ),
        ({"loss_normalization": "constant"}, "needs normalization_constant"),
        ({"group_size": 5}, "group_size=5"),
    ],
)
def test_grpo_train_step_errors(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        step(tokenizer, **changes)
