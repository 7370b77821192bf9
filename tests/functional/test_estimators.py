"""GSPO, GSPO-token, CISPO, the two-sided clip, KL estimators and entropy bonus: by hand, and their
gradients beside autograd on the plain formula.
"""

import math

import pytest
import torch

from trl_r1zero.functional import (
    KL_ESTIMATORS,
    LossType,
    compute_cispo_loss,
    compute_entropy,
    compute_grpo_clip_loss,
    compute_gspo_loss,
    compute_gspo_token_loss,
    compute_kl_penalty,
    compute_policy_gradient_loss,
    compute_response_kl,
    compute_sampler_importance_weights,
    get_response_log_probs,
    grpo_microbatch_loss,
    log_probs_from_logits,
    masked_mean,
)

LN2 = math.log(2)
# Ratios of tokens; the last of row 2 is padding.
RATIO = torch.tensor([[2.0, 0.5, 4.0], [0.5, 0.125, 9.0]])
OLD = torch.full((2, 3), -1.0)
POLICY = OLD + RATIO.log()
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ADVANTAGES = torch.tensor([[3.0], [-1.0]])
# Of responses: (2 * 1/2 * 4)^(1/3) and (1/2 * 1/8)^(1/2).
SEQUENCE_RATIO = [4 ** (1 / 3), 0.25]


# Surrogates by hand


@pytest.mark.parametrize("loss_fn", [compute_gspo_loss, compute_gspo_token_loss])
def test_gspo_by_hand(loss_fn):
    loss, metadata = loss_fn(ADVANTAGES, POLICY, OLD, (0.3, 0.4), MASK)
    # Row 1: min(1.587 * 3, 1.4 * 3) = 4.2, clipped. Row 2: min(-0.25, -0.7) = -0.7, clipped.
    expected = torch.tensor([[-4.2] * 3, [0.7] * 3])
    torch.testing.assert_close(loss * MASK, expected * MASK)
    assert metadata["clipped"][MASK.bool()].all()
    torch.testing.assert_close(metadata["ratio"][:, 0], torch.tensor(SEQUENCE_RATIO))
    # Inside of the bounds, or on the side where the clip does not bind, the ratio itself.
    loss, metadata = loss_fn(-ADVANTAGES, POLICY, OLD, (0.3, 0.4), MASK)
    torch.testing.assert_close(loss[:, 0], torch.tensor([3 * SEQUENCE_RATIO[0], -0.25]))
    assert not metadata["clipped"].any()


@pytest.mark.parametrize("loss_fn", [compute_gspo_loss, compute_gspo_token_loss])
def test_gspo_of_a_row_without_tokens_and_without_a_mask(loss_fn):
    loss, _ = loss_fn(ADVANTAGES, POLICY, OLD, 10.0, torch.zeros(2, 3))
    assert loss[:, 0].tolist() == [-3.0, 1.0]
    # Without a mask all tokens are of the response.
    loss, _ = loss_fn(ADVANTAGES, POLICY, OLD, 10.0)
    assert loss[1, 0].item() == pytest.approx((0.5 * 0.125 * 9) ** (1 / 3))


def test_gspo_token_equals_gspo_in_the_gradient_of_a_response():
    gradients = []
    for loss_fn in (compute_gspo_loss, compute_gspo_token_loss):
        policy = POLICY.clone().requires_grad_()
        loss, _ = loss_fn(ADVANTAGES, policy, OLD, 10.0, MASK)
        masked_mean(loss, MASK, dim=1).sum().backward()
        gradients.append(policy.grad)
    torch.testing.assert_close(*gradients)
    # -s A / tokens
    assert gradients[0][0, 1].item() == pytest.approx(-SEQUENCE_RATIO[0] * 3 / 3)
    assert gradients[0][1].tolist() == pytest.approx([0.125, 0.125, 0.0])


def test_gspo_token_lets_tokens_weigh_differently():
    policy = POLICY.clone().requires_grad_()
    loss, _ = compute_gspo_token_loss(ADVANTAGES, policy, OLD, 10.0, MASK)
    loss[0, 0].backward()
    assert policy.grad[0].tolist() == pytest.approx([-3 * SEQUENCE_RATIO[0], 0.0, 0.0])


def test_cispo_by_hand():
    policy = POLICY.clone().requires_grad_()
    loss, metadata = compute_cispo_loss(ADVANTAGES, policy, OLD, (0.6, 1.5))
    weight = torch.tensor([[2.0, 0.5, 2.5], [0.5, 0.4, 2.5]])
    torch.testing.assert_close(loss, -weight * ADVANTAGES * POLICY)
    assert metadata["clipped"].tolist() == [[False, False, True], [False, True, True]]
    loss.sum().backward()
    # The weight is a constant, and a clipped token keeps its gradient.
    torch.testing.assert_close(policy.grad, -weight * ADVANTAGES)


def test_cispo_without_a_lower_bound():
    loss, _ = compute_cispo_loss(ADVANTAGES, POLICY, OLD, (1.0, 4.0))
    torch.testing.assert_close(loss, -RATIO.clamp(max=5) * ADVANTAGES * POLICY)


def test_two_sided_clip_by_hand():
    advantages = -ADVANTAGES
    policy = POLICY.clone().requires_grad_()
    loss, metadata = compute_grpo_clip_loss(advantages, policy, OLD, 0.2, delta=3.0)
    # Row 1, A = -3: 3 * (2, 0.8, 3): 0.5 is below the clip, 4 above delta.
    # Row 2, A = 1: -(0.5, 0.125, 1.2).
    expected = torch.tensor([[6.0, 2.4, 9.0], [-0.5, -0.125, -1.2]])
    torch.testing.assert_close(loss, expected)
    assert metadata["clipped"].tolist() == [[False, True, True], [False, False, True]]
    loss.sum().backward()
    assert torch.equal(policy.grad == 0, metadata["clipped"])
    plain, _ = compute_grpo_clip_loss(advantages, POLICY, OLD, 0.2)
    assert plain[0, 2].item() == pytest.approx(12.0)
    for delta in (1.2, 0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="delta must be a finite number above"):
            compute_grpo_clip_loss(advantages, POLICY, OLD, 0.2, delta=delta)


# Surrogates beside autograd on the plain formula


def plain_surrogate(name, a, policy, old, mask, low, high, delta):
    ratio = torch.exp(policy - old)
    if name == "cispo":
        return -ratio.clamp(1 - low, 1 + high).detach() * a * policy
    if name == "gspo":
        lengths = mask.sum(1, keepdim=True)
        ratio = torch.exp(((policy - old) * mask).sum(1, keepdim=True) / lengths)
        ratio = ratio.expand_as(policy)
    if name == "gspo_token":
        lengths = mask.sum(1, keepdim=True)
        ratio = torch.exp(((policy - old) * mask).sum(1, keepdim=True) / lengths).detach()
        ratio = ratio * policy.exp() / policy.exp().detach()
    bounded = ratio if delta is None else torch.minimum(ratio, torch.tensor(delta))
    return -torch.minimum(bounded * a, ratio.clamp(1 - low, 1 + high) * a)


@pytest.mark.parametrize("aggregation", ["masked_mean", "masked_normalize", "constant"])
@pytest.mark.parametrize(
    ("surrogate", "delta"),
    [("gspo", None), ("gspo_token", None), ("cispo", None), ("clipped_ratio", 1.5)],
)
def test_the_gradient_is_that_of_the_plain_formula(surrogate, delta, aggregation):
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(16, 12, generator=generator, dtype=torch.float64)
    policy = old + 0.5 * torch.randn(16, 12, generator=generator, dtype=torch.float64)
    a = torch.randn(16, 1, generator=generator, dtype=torch.float64)
    mask = torch.arange(12) < torch.randint(1, 13, (16, 1), generator=generator)
    ours, plain = (policy.clone().requires_grad_() for _ in range(2))
    constant = None if aggregation == "masked_mean" else 7.0
    loss, metadata = grpo_microbatch_loss(
        ours,
        mask,
        LossType("group_mean", surrogate),
        advantages=a,
        old_log_probs=old,
        cliprange=(0.1, 0.15),
        delta=delta,
        aggregation=aggregation,
        num_sequences=16,
        normalize_constant=constant,
    )
    per_token = plain_surrogate(surrogate, a, plain, old, mask.double(), 0.1, 0.15, delta) * mask
    expected = {
        "masked_mean": (per_token.sum(1) / mask.sum(1)).mean(),
        "masked_normalize": per_token.sum() / 7 / 16,
        "constant": per_token.sum() / 7,
    }[aggregation]
    (gradient,) = torch.autograd.grad(loss, ours)
    (plain_gradient,) = torch.autograd.grad(expected, plain)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, plain_gradient)
    assert 0.05 < metadata["clipped"][mask].double().mean() < 0.95
    assert gradient.any()


@pytest.mark.parametrize("surrogate", ["gspo", "gspo_token", "cispo", "clipped_ratio"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask_changes_nothing(surrogate, garbage):
    results = []
    for value, old_value in ((0.0, 0.0), (garbage, -garbage)):
        policy = torch.where(MASK.bool(), POLICY, value).requires_grad_()
        loss, _ = grpo_microbatch_loss(
            policy,
            MASK,
            LossType("group_mean", surrogate),
            advantages=ADVANTAGES,
            old_log_probs=torch.where(MASK.bool(), OLD, old_value),
            cliprange=1.0,
            num_sequences=2,
        )
        loss.backward()
        results.append((loss, policy.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("missing", ["old_log_probs", "cliprange"])
def test_what_a_surrogate_needs(missing):
    given = {"advantages": ADVANTAGES, "old_log_probs": OLD, "cliprange": 0.2, missing: None}
    with pytest.raises(ValueError, match=f"surrogate 'gspo' needs {missing}, got None"):
        compute_policy_gradient_loss(POLICY, LossType("group_mean", "gspo"), **given)


# KL

REFERENCE = torch.tensor([[-1.0, -1.0, -1.0]]) + torch.tensor([[0.0, LN2, -LN2]])
KL_BY_HAND = {
    "k1": [0.0, -LN2, LN2],
    "k2": [0.0, LN2**2 / 2, LN2**2 / 2],
    "k3": [0.0, 1 - LN2, LN2 - 0.5],
}


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_by_hand(estimator):
    policy = torch.full((1, 3), -1.0)
    penalty = compute_kl_penalty(policy, REFERENCE, estimator=estimator)
    torch.testing.assert_close(penalty, torch.tensor([KL_BY_HAND[estimator]]))
    mask = torch.tensor([[0, 1, 1]])
    policy[0, 0] = math.nan
    whole = compute_response_kl(policy, REFERENCE, mask, estimator)
    torch.testing.assert_close(whole, torch.tensor([sum(KL_BY_HAND[estimator][1:])]))
    assert compute_response_kl(policy, REFERENCE, mask).item() == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'"):
        compute_kl_penalty(policy, REFERENCE, estimator="k4")


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_with_the_ratio_the_mean_gradient_is_that_of_the_kl(estimator):
    """Off-policy too: samples of an old policy, over all of a vocabulary of 8."""
    generator = torch.Generator().manual_seed(1)
    logits, reference, old = torch.randn(3, 1, 8, generator=generator).double()
    reference, old = reference.log_softmax(-1), old.log_softmax(-1)
    logits.requires_grad_()
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    penalty = compute_kl_penalty(logits.log_softmax(-1), reference, old, estimator)
    (gradient,) = torch.autograd.grad((old.exp() * penalty).sum(), logits)
    torch.testing.assert_close(gradient, exact)


# Entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_the_entropy_is_autograds(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 5), generator=generator)
    weights = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)

    class Model(torch.nn.Module):
        def forward(self, ids):
            return type("Output", (), {"logits": ours})

    ours, plain = (logits.clone().requires_grad_() for _ in range(2))
    result = get_response_log_probs(
        Model(), labels, labels, True, temperature=temperature, entropy_has_graph=True
    )
    (
        (result["log_probs"] * weights[0]).sum() + (result["token_entropy"] * weights[1]).sum()
    ).backward()
    scaled = (plain / temperature).log_softmax(-1)
    entropy = -torch.special.xlogy(scaled.exp(), scaled.exp()).sum(-1)
    picked = scaled.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    ((picked * weights[0]).sum() + (entropy * weights[1]).sum()).backward()
    torch.testing.assert_close(result["token_entropy"], entropy)
    torch.testing.assert_close(ours.grad, plain.grad)
    # An excluded token, of probability 0, has no gradient.
    ours.data[0, 1, 2], ours.grad = -math.inf, None
    labels[0, 1] = 3
    result = get_response_log_probs(Model(), labels, labels, True, entropy_has_graph=True)
    result["token_entropy"].sum().backward()
    assert ours.grad.isfinite().all() and ours.grad[0, 1, 2] == 0
    without = get_response_log_probs(Model(), labels, labels, True)
    assert not without["token_entropy"].requires_grad


@pytest.mark.parametrize("aggregation", ["masked_mean", "masked_normalize"])
def test_the_entropy_bonus_is_the_mean_over_tokens(aggregation):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator).requires_grad_()
    labels = torch.randint(5, (2, 3), generator=generator)
    settings = {"aggregation": aggregation, "num_sequences": 2}
    settings["normalize_constant"] = 4.0 if aggregation == "masked_normalize" else None

    def loss_of(entropy_coef):
        return grpo_microbatch_loss(
            log_probs_from_logits(logits, labels),
            MASK,
            "reinforce_with_baseline",
            advantages=ADVANTAGES,
            token_entropy=compute_entropy(logits),
            entropy_coef=entropy_coef,
            num_tokens=5,
            **settings,
        )[0]

    bonus = masked_mean(compute_entropy(logits), MASK)
    torch.testing.assert_close(loss_of(0.1), loss_of(0.0) - 0.1 * bonus)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss_of(0.1), loss_of(0.0), bonus)]
    torch.testing.assert_close(gradients[0], gradients[1] - 0.1 * gradients[2])
    with pytest.raises(ValueError, match=r"entropy_coef 0\.1 needs token_entropy"):
        grpo_microbatch_loss(
            POLICY, MASK, "no_baseline", raw_rewards=ADVANTAGES, entropy_coef=0.1, **settings
        )


# IcePop


def test_icepop_is_token_mask_with_two_bounds():
    """Tokens whose ratio is outside of [0.5, 5] are left out; the others keep their ratio."""
    sampler = OLD - torch.tensor([[0.4, 0.5, 5.0], [5.1, 1.0, 1.0]]).log()
    weights = compute_sampler_importance_weights(OLD, sampler, MASK, "token_mask", 0.5001, 5.0001)
    torch.testing.assert_close(weights * MASK, torch.tensor([[0, 0, 5.0], [0, 1.0, 0]]))
