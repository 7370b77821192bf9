"""The KL penalty by hand, its gradient, and its place in the loss of a micro-batch."""

import math

import pytest
import torch

from trl_r1zero.functional import compute_kl_penalty, grpo_microbatch_loss

LN2 = math.log(2)
POLICY = torch.tensor([[-1.0, -1.0, -1.0]])
# The reference finds the tokens equally likely, twice as likely, half as likely.
REFERENCE = POLICY + torch.tensor([[0.0, LN2, -LN2]])
# rho - ln rho - 1:  1 - 0 - 1;  2 - ln 2 - 1;  1/2 + ln 2 - 1
PENALTY = torch.tensor([[0.0, 1 - LN2, LN2 - 0.5]])


def test_compute_kl_penalty():
    torch.testing.assert_close(compute_kl_penalty(POLICY, REFERENCE), PENALTY)


def test_compute_kl_penalty_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = -10 * torch.rand(2, 50, 20, generator=generator, dtype=torch.float64)
    penalty = compute_kl_penalty(policy, reference)
    assert (penalty > 0).all()
    assert torch.equal(compute_kl_penalty(policy, policy), torch.zeros(50, 20).double())


def test_compute_kl_penalty_is_unbiased():
    """Its mean under the policy is KL(policy || reference), exactly: a sum over the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 1, 8, generator=generator).double().log_softmax(-1)
    kl = (policy.exp() * (policy - reference)).sum()
    assert kl > 0.1
    torch.testing.assert_close((policy.exp() * compute_kl_penalty(policy, reference)).sum(), kl)


def test_compute_kl_penalty_gradient():
    policy = POLICY.double().requires_grad_()
    reference = REFERENCE.double().requires_grad_()
    compute_kl_penalty(policy, reference).sum().backward()
    # d/d ln pi (rho - ln rho - 1) = 1 - rho:  0, -1, 1/2
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, -1.0, 0.5]]).double())
    assert reference.grad is None
    # The same by finite differences.
    step = 1e-6
    with torch.no_grad():
        difference = compute_kl_penalty(policy + step, reference) - compute_kl_penalty(
            policy - step, reference
        )
    torch.testing.assert_close(policy.grad, difference / (2 * step), atol=1e-8, rtol=1e-6)


def test_compute_kl_penalty_with_importance_ratio():
    # Ratios of policy to old 1, 2, 1/2.
    old = POLICY - torch.tensor([[0.0, LN2, -LN2]])
    penalty = compute_kl_penalty(POLICY, REFERENCE, old)
    torch.testing.assert_close(penalty, PENALTY * torch.tensor([[1.0, 2.0, 0.5]]))


def test_importance_ratio_makes_the_gradient_that_of_the_kl():
    """On-policy the ratio is 1, the value stays, and the mean gradient is the gradient of KL."""
    generator = torch.Generator().manual_seed(1)
    logits, reference = torch.randn(2, 1, 8, generator=generator).double()
    reference = reference.log_softmax(-1)
    logits.requires_grad_()
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)

    def mean_gradient(old: torch.Tensor | None) -> torch.Tensor:
        policy = logits.log_softmax(-1)
        mean = (policy.detach().exp() * compute_kl_penalty(policy, reference, old)).sum()
        return torch.autograd.grad(mean, logits)[0]

    torch.testing.assert_close(mean_gradient(policy.detach()), exact)
    assert not torch.allclose(mean_gradient(None), exact, atol=1e-2)


def test_compute_kl_penalty_shapes():
    with pytest.raises(ValueError, match=r"ref_log_probs has shape \(1, 2\), but policy_log_probs"):
        compute_kl_penalty(POLICY, REFERENCE[:, :2])
    with pytest.raises(ValueError, match="old_log_probs has shape"):
        compute_kl_penalty(POLICY, REFERENCE, POLICY[:, :2])


# In the loss of a micro-batch

MASK = torch.tensor([[False, True, True]])


def loss_of(policy, reference, beta=0.1, mask=MASK, **settings):
    return grpo_microbatch_loss(
        policy,
        mask,
        "reinforce_with_baseline",
        advantages=torch.tensor([[2.0]]),
        ref_log_probs=reference,
        beta=beta,
        num_sequences=1,
        **settings,
    )


def test_grpo_microbatch_loss_with_beta():
    policy = POLICY.clone().requires_grad_()
    loss, metadata = loss_of(policy, REFERENCE)
    # -2 * -1 = 2 per token, plus 0.1 * mean(1 - ln 2, ln 2 - 1/2) = 0.1 * 1/4
    assert loss.item() == pytest.approx(2 + 0.025)
    torch.testing.assert_close(metadata["kl"], PENALTY * MASK)
    assert not metadata["kl"].requires_grad
    loss.backward()
    # (-2 + 0.1 * (1 - rho)) / 2 tokens
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, -1.05, -0.975]]))


def test_grpo_microbatch_loss_without_beta():
    loss, metadata = loss_of(POLICY, REFERENCE, beta=0.0)
    assert loss.item() == 2.0
    assert "kl" not in metadata
    assert loss_of(POLICY, None, beta=0.0)[0].item() == 2.0


@pytest.mark.parametrize("correct_kl_bias", [False, True])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_grpo_microbatch_loss_ignores_garbage_under_the_mask(garbage, correct_kl_bias):
    def run(value):
        policy, reference, old = POLICY.clone(), REFERENCE.clone(), POLICY - 0.1
        policy[0, 0] = reference[0, 0] = old[0, 0] = value
        policy.requires_grad_()
        loss, metadata = loss_of(
            policy, reference, old_log_probs=old, correct_kl_bias=correct_kl_bias
        )
        loss.backward()
        return loss, policy.grad, metadata["kl"]

    for clean, dirty in zip(run(-1.0), run(garbage), strict=True):
        assert torch.equal(clean, dirty)
    assert run(garbage)[1][0, 0] == 0.0


def test_grpo_microbatch_loss_beta_needs_its_log_probs():
    with pytest.raises(ValueError, match=r"beta 0\.1 needs ref_log_probs"):
        loss_of(POLICY, None)
    with pytest.raises(ValueError, match="correct_kl_bias needs old_log_probs"):
        loss_of(POLICY, REFERENCE, correct_kl_bias=True)
