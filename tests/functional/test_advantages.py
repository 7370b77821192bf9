"""Group advantages, worked by hand."""

import math

import pytest
import torch

from trl_r1zero.functional import (
    ADVANTAGES,
    compute_group_advantages,
    compute_group_normalized_rewards,
    normalize_group_rewards,
)
from trl_r1zero.functional.advantages import BASELINES, NORMALIZERS

# Two prompts, four responses each.
# Group 1: 1 0 0 1, mean 1/2, squared deviations 4 * 1/4 = 1, unbiased variance 1/3, std 0.57735.
# Group 2: 1 0 0 0, mean 1/4, squared deviations 9/16 + 3 * 1/16 = 3/4, variance 1/4, std 1/2.
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
CENTRED = [0.5, -0.5, -0.5, 0.5, 0.75, -0.25, -0.25, -0.25]
STD = [math.sqrt(1 / 3)] * 4 + [0.5] * 4


def reward_fn(response: str, ground_truth: str) -> dict[str, float]:
    correct = float(response == ground_truth)
    return {"reward": correct, "format_reward": 1.0, "answer_reward": correct}


RESPONSES = ["7", "x", "y", "7", "9", "7", "z", ""]
GROUND_TRUTHS = ["7"] * 4 + ["9"] * 4


def test_compute_group_normalized_rewards_no_normalize_by_std():
    advantages, raw_rewards, _ = compute_group_normalized_rewards(
        reward_fn, RESPONSES, GROUND_TRUTHS, 4, 1e-6, normalize_by_std=False
    )
    assert raw_rewards.tolist() == REWARDS
    assert advantages.tolist() == CENTRED
    assert advantages.dtype == raw_rewards.dtype == torch.float32


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_compute_group_normalized_rewards_normalize_by_std(eps):
    advantages, raw_rewards, _ = compute_group_normalized_rewards(
        reward_fn, RESPONSES, GROUND_TRUTHS, 4, eps, normalize_by_std=True
    )
    expected = [c / (s + eps) for c, s in zip(CENTRED, STD, strict=True)]
    assert raw_rewards.tolist() == REWARDS
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_compute_group_normalized_rewards_metadata():
    responses = [*RESPONSES, "a", "b", "c", "d"]  # a third group, all wrong
    _, _, metadata = compute_group_normalized_rewards(
        reward_fn, responses, [*GROUND_TRUTHS, *["0"] * 4], 4, 1e-6, normalize_by_std=True
    )
    # 3 of 12 right: mean 1/4, squared deviations 3 * 9/16 + 9 * 1/16 = 9/4, variance 9/4/11.
    assert metadata == pytest.approx(
        {
            "reward_mean": 0.25,
            "reward_std": math.sqrt(9 / 44),
            "reward_min": 0.0,
            "reward_max": 1.0,
            "format_reward_mean": 1.0,
            "answer_reward_mean": 0.25,
            "zero_advantage_group_fraction": 1 / 3,
        },
        abs=1e-6,
    )
    assert all(type(value) is float for value in metadata.values())


def test_metadata_has_only_the_parts_that_the_reward_function_gives():
    _, _, metadata = compute_group_normalized_rewards(
        lambda response, truth: {"reward": 2.0}, ["a"], ["b"], 1, 0.0, True
    )
    assert not metadata.keys() & {"format_reward_mean", "answer_reward_mean"}
    assert metadata["reward_mean"] == 2.0
    assert metadata["reward_std"] == 0.0


def test_raw_advantage_is_the_reward():
    assert compute_group_advantages(torch.tensor(REWARDS), 4, "raw", 1e-6).tolist() == REWARDS


@pytest.mark.parametrize("advantage", [name for name in ADVANTAGES if name != "raw"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -0.7, 1e-30, 16777217.0])
@pytest.mark.parametrize("group_size", [1, 3, 7, 8, 64])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(advantage, eps, reward, group_size):
    if advantage == "max_rl" and reward < 0:
        return
    rewards = torch.full((2 * group_size,), reward)
    advantages = compute_group_advantages(rewards, group_size, advantage, eps)
    assert advantages.tolist() == [0.0] * (2 * group_size)


def test_the_naive_formula_would_not_be_exactly_zero():
    # Why the test above exists: divided by std + 1e-6, rounding of the mean becomes a gradient.
    rewards = torch.full((7,), 0.1)
    assert (rewards - rewards.mean()).abs().max() > 0


@pytest.mark.parametrize("advantage", [n for n in ADVANTAGES if n != "group_mean_batch_std"])
def test_groups_do_not_see_each_other_and_order_within_does_not_matter(advantage):
    rewards_NG = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    permutation_N = torch.tensor([3, 0, 4, 1, 2])
    permutation_G = torch.tensor([7, 2, 5, 0, 1, 3, 6, 4])

    def advantages_of(rewards):
        return compute_group_advantages(rewards.reshape(-1), 8, advantage, 1e-6).reshape(5, 8)

    torch.testing.assert_close(
        advantages_of(rewards_NG[permutation_N][:, permutation_G]),
        advantages_of(rewards_NG)[permutation_N][:, permutation_G],
        rtol=1e-5,
        atol=1e-6,
    )
    alone = compute_group_advantages(rewards_NG[2], 8, advantage, 1e-6)
    assert torch.equal(alone, advantages_of(rewards_NG)[2])


def test_group_advantages_survive_a_large_offset():
    # 0 1 0 1 around 4096: the same advantages, exactly.
    low = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for advantage in ("group_mean", "group_mean_std"):
        assert torch.equal(
            compute_group_advantages(low + 4096, 4, advantage, 1e-6),
            compute_group_advantages(low, 4, advantage, 1e-6),
        )


EPS = 0.25
# The squared deviations of both groups: 1 + 3/4, of eight numbers of mean 0: variance 7/4/7.
BATCH_STD = 0.5
BY_HAND = {
    "raw": REWARDS,
    "group_mean": CENTRED,
    "group_mean_std": [c / (s + EPS) for c, s in zip(CENTRED, STD, strict=True)],
    # The others' mean: 1/3 for a 1 and 2/3 for a 0 of group 1; 0 and 1/3 in group 2.
    "leave_one_out": [2 / 3, -2 / 3, -2 / 3, 2 / 3, 1.0, -1 / 3, -1 / 3, -1 / 3],
    "group_mean_batch_std": [c / (BATCH_STD + EPS) for c in CENTRED],
    "max_rl": [c / (m + EPS) for c, m in zip(CENTRED, [0.5] * 4 + [0.25] * 4, strict=True)],
}


@pytest.mark.parametrize("advantage", list(ADVANTAGES))
def test_every_advantage_by_hand(advantage):
    advantages = compute_group_advantages(torch.tensor(REWARDS), 4, advantage, EPS)
    torch.testing.assert_close(advantages, torch.tensor(BY_HAND[advantage]))
    assert advantages.dtype == torch.float32


def test_max_rl_is_for_rewards_of_at_least_0():
    with pytest.raises(ValueError, match="rewards must be at least 0, got -1"):
        compute_group_advantages(torch.tensor([1.0, -1.0]), 2, "max_rl", 0.0)


def test_max_rl_is_the_mean_over_what_succeeded():
    """sum of A grad is the gradient's mean over right responses, less that over all."""
    gradients = torch.randn(8, generator=torch.Generator().manual_seed(0))
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])
    advantages = compute_group_advantages(rewards, 8, "max_rl", 0.0)
    expected = gradients[rewards == 1].mean() - gradients.mean()
    torch.testing.assert_close((advantages * gradients).mean(), expected)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_normalize_group_rewards_is_finite(baseline, normalizer):
    rewards = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert normalize_group_rewards(rewards, baseline, normalizer, 0.0).isfinite().all()
    with pytest.raises(ValueError, match="unknown baseline 'men'; did you mean 'mean'"):
        normalize_group_rewards(rewards, "men", normalizer, 0.0)
    with pytest.raises(ValueError, match="unknown normalizer 'sd'"):
        normalize_group_rewards(rewards, baseline, "sd", 0.0)


@pytest.mark.parametrize(
    ("rewards", "group_size", "advantage", "eps", "message"),
    [
        (torch.zeros(6), 4, "raw", 0.0, r"group_size=4, got \(6,\)"),
        (torch.zeros(2, 2), 2, "raw", 0.0, r"got \(2, 2\)"),
        (torch.zeros(4), 0, "raw", 0.0, "group_size must be at least 1, got 0"),
        (torch.zeros(4), 2, "raw", -1e-6, "advantage_eps must be at least 0"),
        (torch.tensor([0, math.nan]), 2, "raw", 0.0, "got nan at index 1"),
        (torch.zeros(4), 2, "group_maen", 0.0, "did you mean 'group_mean'.* Allowed: .*, raw"),
    ],
)
def test_compute_group_advantages_errors(rewards, group_size, advantage, eps, message):
    with pytest.raises(ValueError, match=message):
        compute_group_advantages(rewards, group_size, advantage, eps)


def test_compute_group_normalized_rewards_errors():
    with pytest.raises(ValueError, match="2 rollout_responses and 1 repeated_ground_truths"):
        compute_group_normalized_rewards(reward_fn, ["a", "b"], ["c"], 2, 0.0, True)
    with pytest.raises(ValueError, match="at least one"):
        compute_group_normalized_rewards(reward_fn, [], [], 2, 0.0, True)
