"""The DPO loss, worked by hand, its derivatives, and its limits."""

import math

import pytest
import torch

from trl_r1zero.functional import dpo_loss, masked_normalize

LN2, LN3 = math.log(2), math.log(3)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# Log-ratios to the reference: chosen +2, -1, 0; rejected -2, +3, 0.
POLICY_CHOSEN, POLICY_REJECTED = tensor(-10, -21, -5), tensor(-14, -17, -4)
REF_CHOSEN, REF_REJECTED = tensor(-12, -20, -5), tensor(-12, -20, -4)
ALL = (POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED)


def test_by_hand():
    losses, metadata = dpo_loss(*ALL, beta=0.5)
    # beta (2 + 2) = 2, beta (-1 - 3) = -2, 0; and -ln sigmoid(m) = ln(1 + e^-m)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), LN2]
    assert losses.tolist() == pytest.approx(expected)
    assert metadata["chosen_rewards"].tolist() == [1.0, -0.5, 0.0]
    assert metadata["rejected_rewards"].tolist() == [-1.0, 1.5, 0.0]
    assert metadata["margins"].tolist() == [2.0, -2.0, 0.0]
    assert metadata["accuracies"].tolist() == [True, False, False]  # a tie is no success
    assert metadata["log_prob_accuracies"].tolist() == [True, False, False]
    assert metadata.keys() == {
        "chosen_rewards",
        "rejected_rewards",
        "margins",
        "accuracies",
        "log_prob_accuracies",
    }


def test_probabilities_that_give_whole_fractions():
    # Log-ratio ln 3 for the chosen and 0 for the rejected one: sigmoid(ln 3) = 3/4.
    losses, _ = dpo_loss(tensor(LN3), tensor(-7), tensor(0), tensor(-7), beta=1.0)
    assert losses.item() == pytest.approx(math.log(4 / 3))
    losses, _ = dpo_loss(tensor(-7), tensor(LN3), tensor(-7), tensor(0), beta=1.0)
    assert losses.item() == pytest.approx(math.log(4))
    # At beta 2 the ratio counts twice: 9 to 1.
    losses, _ = dpo_loss(tensor(LN3), tensor(-7), tensor(0), tensor(-7), beta=2.0)
    assert losses.item() == pytest.approx(math.log(10 / 9))


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_equal_log_ratios_give_log_2(beta):
    shift = tensor(3, -40, 0)
    policy = (REF_CHOSEN + shift, REF_REJECTED + shift)
    losses, metadata = dpo_loss(*policy, REF_CHOSEN, REF_REJECTED, beta)
    assert losses.tolist() == pytest.approx([LN2] * 3)
    assert metadata["margins"].tolist() == pytest.approx([0.0] * 3)


def test_the_two_accuracies_are_of_different_things():
    # The rejected response is likelier under the policy, but less so than under the reference.
    _, metadata = dpo_loss(tensor(-10), tensor(-6), tensor(-10), tensor(-3), beta=0.1)
    assert metadata["accuracies"].item() is True
    assert metadata["log_prob_accuracies"].item() is False


def test_gradient_by_hand():
    """d loss / d log pi(chosen) = -beta sigmoid(-margin), and the opposite for the rejected one."""
    chosen, rejected, ref_chosen, ref_rejected = (x.clone().requires_grad_() for x in ALL)
    losses, metadata = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    losses.sum().backward()
    sigmoids = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 0.5]
    assert chosen.grad.tolist() == pytest.approx([-0.5 * s for s in sigmoids])
    assert rejected.grad.tolist() == pytest.approx([0.5 * s for s in sigmoids])
    assert ref_chosen.grad is None
    assert ref_rejected.grad is None
    assert not any(value.requires_grad for value in metadata.values())


def test_gradient_by_finite_differences():
    policy = (POLICY_CHOSEN.clone().requires_grad_(), POLICY_REJECTED.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda chosen, rejected: dpo_loss(chosen, rejected, REF_CHOSEN, REF_REJECTED, 0.3)[0],
        policy,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_margins_are_stable(dtype):
    zeros = torch.zeros(2, dtype=dtype)
    chosen = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    losses, _ = dpo_loss(chosen, zeros, zeros, zeros, beta=1.0)
    # exp(1e4) would be infinite; the loss is the margin on one side, and 0 on the other.
    assert losses.tolist() == [1e4, 0.0]
    losses.sum().backward()
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_log_probs_of_long_responses_keep_their_digits():
    """float32 resolves 1e5 to 1/128; chosen minus rejected first would be wrong by 0.007."""
    policy_chosen, ref_chosen = torch.tensor([-1e5 + 1 / 64]), torch.tensor([-1e5])
    policy_rejected, ref_rejected = torch.tensor([-3.3]), torch.tensor([-3.299])
    _, metadata = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=1.0)
    assert metadata["margins"].item() == pytest.approx(1 / 64 + 0.001, abs=1e-6)


def test_tokens_that_both_responses_share_cancel():
    plain, _ = dpo_loss(*ALL, beta=0.5)
    policy_prompt, ref_prompt = tensor(-30, -2, -8), tensor(-31, -5, -1)
    whole, _ = dpo_loss(
        POLICY_CHOSEN + policy_prompt,
        POLICY_REJECTED + policy_prompt,
        REF_CHOSEN + ref_prompt,
        REF_REJECTED + ref_prompt,
        beta=0.5,
    )
    torch.testing.assert_close(whole, plain)


def test_from_token_log_probs():
    """Sums over the response, padding left out, whatever stands there."""
    log_probs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -4.0, math.nan]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    chosen, rejected = masked_normalize(log_probs, mask, 1.0, dim=1).chunk(2)
    losses, metadata = dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-2.0]), 1.0)
    assert metadata["chosen_rewards"].tolist() == [0.0]  # -1 - 2 + 3
    assert metadata["rejected_rewards"].tolist() == [-2.0]  # -4 + 2
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-2)))


NAMES = (
    "policy_chosen_log_probs",
    "policy_rejected_log_probs",
    "ref_chosen_log_probs",
    "ref_rejected_log_probs",
)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_wrong_shapes_are_named(name, shape):
    arguments = dict(zip(NAMES, ALL, strict=True))
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"^{name} has shape .*policy_chosen_log_probs has shape"):
        dpo_loss(**arguments, beta=0.1)


def test_log_probs_of_tokens_are_told_to_be_summed():
    with pytest.raises(ValueError, match=r"\(B,\).*got \(2, 5\); sum .*masked_normalize"):
        dpo_loss(*[torch.zeros(2, 5)] * 4, beta=0.1)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_beta_is_above_0(beta):
    with pytest.raises(ValueError, match="dpo_loss: beta must be a finite number above 0, got"):
        dpo_loss(*ALL, beta=beta)
