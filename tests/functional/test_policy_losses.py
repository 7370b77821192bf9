"""Policy-gradient losses, worked by hand, and their derivatives."""

import math

import pytest
import torch

from trl_r1zero.functional import (
    ADVANTAGES,
    LOSS_TYPES,
    SURROGATES,
    LossType,
    compute_grpo_clip_loss,
    compute_grpo_no_clip_loss,
    compute_naive_policy_gradient_loss,
    compute_policy_gradient_loss,
)

# Probabilities under the old policy are 1/2 everywhere, so the ratio is twice the new one.
OLD = torch.full((2, 3), math.log(0.5))
RATIO = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
POLICY = OLD + RATIO.log()
ADVANTAGES_B1 = torch.tensor([[2.0], [-1.0]])
REWARDS_B1 = torch.tensor([[1.0], [0.0]])

# ratio * A            2 * (0.5 1 1.5) =  1  2  3        -1 * (0.5 1 1.5) = -0.5 -1 -1.5
# clip 0.2: ratio in [0.8, 1.2]:  2 * (0.8 1 1.2) = 1.6 2 2.4   -(0.8 1 1.2) = -0.8 -1 -1.2
# the smaller:                     1  2  2.4                    -0.8 -1 -1.5
UNCLIPPED_LOSS = torch.tensor([[-1.0, -2.0, -3.0], [0.5, 1.0, 1.5]])
CLIPPED_LOSS = torch.tensor([[-1.0, -2.0, -2.4], [0.8, 1.0, 1.5]])
CLIPPED = [[False, False, True], [True, False, False]]


def test_compute_naive_policy_gradient_loss():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, 0.0]])
    # -2 * (-1 -2 -3); +1 * (-0.5 -4 0)
    expected = torch.tensor([[2.0, 4.0, 6.0], [-0.5, -4.0, 0.0]])
    assert torch.equal(compute_naive_policy_gradient_loss(ADVANTAGES_B1, log_probs), expected)


def test_compute_grpo_clip_loss_large_cliprange():
    loss, metadata = compute_grpo_clip_loss(ADVANTAGES_B1, POLICY, OLD, 10.0)
    torch.testing.assert_close(loss, UNCLIPPED_LOSS)
    torch.testing.assert_close(metadata["ratio"], RATIO)
    assert not metadata["clipped"].any()


def test_compute_grpo_clip_loss_small_cliprange():
    loss, metadata = compute_grpo_clip_loss(ADVANTAGES_B1, POLICY, OLD, 0.2)
    torch.testing.assert_close(loss, CLIPPED_LOSS)
    torch.testing.assert_close(metadata["ratio"], RATIO)
    assert metadata["clipped"].dtype == torch.bool
    assert metadata["clipped"].tolist() == CLIPPED


def test_compute_grpo_clip_loss_pair_is_clip_higher():
    # Allowed ratios [0.8, 1.6]: 1.5 is inside now; the lower side still clips.
    loss, metadata = compute_grpo_clip_loss(ADVANTAGES_B1, POLICY, OLD, (0.2, 0.6))
    torch.testing.assert_close(loss, torch.tensor([[-1.0, -2.0, -3.0], [0.8, 1.0, 1.5]]))
    assert metadata["clipped"].tolist() == [[False, False, False], [True, False, False]]
    pair, _ = compute_grpo_clip_loss(ADVANTAGES_B1, POLICY, OLD, (0.2, 0.2))
    single, _ = compute_grpo_clip_loss(ADVANTAGES_B1, POLICY, OLD, 0.2)
    assert torch.equal(pair, single)


def test_compute_grpo_no_clip_loss():
    loss, metadata = compute_grpo_no_clip_loss(ADVANTAGES_B1, POLICY, OLD)
    torch.testing.assert_close(loss, UNCLIPPED_LOSS)
    assert metadata.keys() == {"ratio"}


ALL_ARGUMENTS = {
    "raw_rewards": REWARDS_B1,
    "advantages": ADVANTAGES_B1,
    "old_log_probs": OLD,
    "cliprange": 0.2,
}


def test_compute_policy_gradient_loss_no_baseline():
    loss, metadata = compute_policy_gradient_loss(POLICY, "no_baseline", **ALL_ARGUMENTS)
    # Rewards 1 and 0: minus the log-prob, and nothing.
    assert torch.equal(loss, torch.stack([-POLICY[0], torch.zeros(3)]))
    assert metadata == {}


def test_compute_policy_gradient_loss_reinforce_with_baseline():
    loss, metadata = compute_policy_gradient_loss(
        POLICY, "reinforce_with_baseline", **ALL_ARGUMENTS
    )
    # Advantages 2 and -1.
    assert torch.equal(loss, torch.stack([-2 * POLICY[0], POLICY[1]]))
    assert metadata == {}


def test_compute_policy_gradient_loss_grpo_clip():
    loss, metadata = compute_policy_gradient_loss(POLICY, "grpo_clip", **ALL_ARGUMENTS)
    torch.testing.assert_close(loss, CLIPPED_LOSS)
    assert metadata["clipped"].tolist() == CLIPPED


def test_compute_policy_gradient_loss_grpo_no_clip():
    loss, metadata = compute_policy_gradient_loss(POLICY, "grpo_no_clip", **ALL_ARGUMENTS)
    torch.testing.assert_close(loss, UNCLIPPED_LOSS)
    assert metadata.keys() == {"ratio"}


NEEDS = {
    "no_baseline": {"raw_rewards"},
    "reinforce_with_baseline": {"advantages"},
    "grpo_clip": {"advantages", "old_log_probs", "cliprange"},
    "grpo_no_clip": {"advantages", "old_log_probs"},
}


@pytest.mark.parametrize("loss_type", list(LOSS_TYPES))
def test_each_missing_argument_is_named_and_the_others_are_optional(loss_type):
    needed = {name: ALL_ARGUMENTS[name] for name in NEEDS[loss_type]}
    compute_policy_gradient_loss(POLICY, loss_type, **needed)
    for missing in needed:
        rest = {name: value for name, value in needed.items() if name != missing}
        with pytest.raises(ValueError, match=f"needs {missing}, got None"):
            compute_policy_gradient_loss(POLICY, loss_type, **rest)


def test_unknown_loss_type_lists_the_allowed_and_the_nearest():
    with pytest.raises(ValueError) as error:
        compute_policy_gradient_loss(POLICY, "grpo-clip", **ALL_ARGUMENTS)
    for name in LOSS_TYPES:
        assert name in str(error.value)
    assert "did you mean 'grpo_clip'?" in str(error.value)


def test_loss_types_are_made_of_registered_parts():
    for name, loss_type in LOSS_TYPES.items():
        assert loss_type.advantage in ADVANTAGES, name
        assert loss_type.surrogate in SURROGATES, name
        assert loss_type.advantage_with(False) == loss_type.advantage
        if loss_type.advantage != "raw":
            assert loss_type.advantage_with(True) == "group_mean_std"
            assert loss_type.advantage_with(True) in ADVANTAGES


def test_raw_rewards_have_no_baseline_to_normalise():
    with pytest.raises(ValueError, match="no baseline to normalise"):
        LossType(advantage="raw", surrogate="reinforce").advantage_with(True)


@pytest.mark.parametrize("surrogate", list(SURROGATES))
def test_positive_advantage_raises_the_log_prob_and_negative_lowers_it(surrogate):
    policy = OLD.clone().requires_grad_()
    loss, _ = SURROGATES[surrogate](ADVANTAGES_B1, policy, OLD, 0.2)
    loss.sum().backward()
    # On-policy (ratio 1) every surrogate has the policy gradient: d loss / d log p = -A.
    torch.testing.assert_close(policy.grad, (-ADVANTAGES_B1).expand(2, 3))


@pytest.mark.parametrize("surrogate", ["clipped_ratio", "unclipped_ratio"])
def test_the_policy_itself_may_be_passed_as_old(surrogate):
    policy = POLICY.clone().requires_grad_()
    loss, metadata = SURROGATES[surrogate](ADVANTAGES_B1, policy, policy, 0.2)
    loss.sum().backward()
    torch.testing.assert_close(policy.grad, (-ADVANTAGES_B1).expand(2, 3))
    assert not any(tensor.requires_grad for tensor in metadata.values())


@pytest.mark.parametrize("cliprange", [0.2, (0.2, 0.6), 10.0])
def test_grpo_clip_loss_gradient_by_finite_differences(cliprange):
    # Far from the kinks at the clip bounds, in float64.
    old = torch.full((2, 6), math.log(0.3), dtype=torch.float64)
    ratio = torch.tensor([0.1, 0.7, 0.9, 1.1, 1.4, 2.5], dtype=torch.float64).expand(2, 6)
    advantages = ADVANTAGES_B1.double()
    policy = (old + ratio.log()).requires_grad_()

    def total(log_probs):
        return compute_grpo_clip_loss(advantages, log_probs, old, cliprange)[0].sum()

    total(policy).backward()
    step = 1e-6
    for b in range(2):
        for t in range(6):
            nudge = torch.zeros_like(old)
            nudge[b, t] = step
            with torch.no_grad():
                slope = (total(policy + nudge) - total(policy - nudge)) / (2 * step)
            assert policy.grad[b, t].item() == pytest.approx(slope.item(), abs=1e-8)


def test_clipped_marks_exactly_the_tokens_without_gradient():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(16, 32, generator=generator)
    policy = (old + 0.4 * torch.randn(16, 32, generator=generator)).requires_grad_()
    advantages = torch.randn(16, 1, generator=generator)
    loss, metadata = compute_grpo_clip_loss(advantages, policy, old, 0.2)
    loss.sum().backward()
    assert 0.1 < metadata["clipped"].float().mean() < 0.9
    assert torch.equal(policy.grad == 0, metadata["clipped"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantages": torch.ones(2)}, r"\(2, 1\).*got \(2,\); use .unsqueeze\(1\)"),
        ({"advantages": torch.ones(3, 1)}, r"\(2, 1\).*got \(3, 1\)"),
        ({"advantages": torch.ones(2, 3)}, r"\(2, 1\).*got \(2, 3\)"),
        ({"old_log_probs": torch.zeros(2, 4)}, r"old_log_probs has shape \(2, 4\)"),
        ({"old_log_probs": torch.zeros(2, 1)}, r"old_log_probs has shape \(2, 1\)"),
        ({"cliprange": -0.1}, "at least 0, got -0.1"),
        ({"cliprange": math.nan}, "at least 0, got nan"),
        ({"cliprange": (0.1, 0.2, 0.3)}, r"pair \(low, high\)"),
    ],
)
def test_wrong_shapes_and_clipranges_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        compute_policy_gradient_loss(POLICY, "grpo_clip", **{**ALL_ARGUMENTS, **changes})


def test_a_square_batch_does_not_hide_a_flat_advantage():
    # (3,) against (3, 3) would broadcast over tokens instead of sequences.
    with pytest.raises(ValueError, match="unsqueeze"):
        compute_naive_policy_gradient_loss(torch.ones(3), torch.zeros(3, 3))
