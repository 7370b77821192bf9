"""The penalty for leaving a reference policy, in the loss or in the reward.

Shape legend: B batch, T length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import look_up, require_same_shape
from .masking import masked_normalize, zero_unselected

# Of ln(pi_ref / pi). Schulman 2020, "Approximating KL divergence".
KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: -log_ratio,
    "k2": lambda log_ratio: log_ratio.square() / 2,
    "k3": lambda log_ratio: torch.exp(log_ratio) - log_ratio - 1,
}


def compute_kl_penalty(
    policy_log_probs: Tensor,
    ref_log_probs: Tensor,
    old_log_probs: Tensor | None = None,
    estimator: str = "k3",
) -> Tensor:
    r"""Estimate of the KL divergence from the policy to the reference, per token.

    .. math:: k_1 = -\ln \rho,\qquad k_2 = \tfrac12 (\ln \rho)^2,\qquad k_3 = \rho - \ln \rho - 1,
              \qquad \rho = \pi_{ref}(y_{bt}) / \pi_\theta(y_{bt})

    Schulman 2020, "Approximating KL divergence". For samples of the policy k1 and k3 are unbiased,
    k2 nearly; k2 and k3 are never negative. k3 is GRPO's (Shao et al. 2024, arXiv:2402.03300,
    eq. 4).

    The gradient is another matter, for the samples' own dependence on the policy is missing in it:
    that of k1 is 0 on average, that of k2 is the gradient of the KL divergence itself, that of k3
    is the gradient of the divergence from the reference to the policy (Tang and Munos 2025,
    arXiv:2506.09477). With `old_log_probs` the penalty is multiplied by the importance ratio
    :math:`\pi_\theta / \pi_{old}`, whose gradient supplies what is missing (DeepSeek-V3.2,
    arXiv:2512.02556), on-policy too. k2 misses nothing: there the ratio is a constant, and corrects
    for the older policy alone.

    Args:
        policy_log_probs, ref_log_probs: (B, T), in nats; only the policy is differentiated.
        old_log_probs: (B, T), in nats, or None.
        estimator: a key of `KL_ESTIMATORS`.

    Returns:
        (B, T), in nats.

    Raises:
        ValueError: unknown estimator; the shapes differ.
    """
    estimate = look_up(KL_ESTIMATORS, estimator, "KL estimator")
    require_same_shape(ref_log_probs, "ref_log_probs", policy_log_probs, "policy_log_probs")
    penalty_BT = estimate(ref_log_probs.detach() - policy_log_probs)
    if old_log_probs is None:
        return penalty_BT
    require_same_shape(old_log_probs, "old_log_probs", policy_log_probs, "policy_log_probs")
    ratio_BT = torch.exp(policy_log_probs - old_log_probs.detach())
    return penalty_BT * (ratio_BT.detach() if estimator == "k2" else ratio_BT)


@torch.no_grad()
def compute_response_kl(
    old_log_probs: Tensor, ref_log_probs: Tensor, response_mask: Tensor, estimator: str = "k1"
) -> Tensor:
    r"""The penalty of whole responses, :math:`\sum_t m_{bt} k_{bt}`, to be taken off their rewards.

    A reward of :math:`r_b - \beta \sum_t k_{bt}` maximises reward less :math:`\beta` times the KL
    divergence of the responses, as InstructGPT does (Ouyang et al. 2022, arXiv:2203.02155, eq. 2)
    with k1. Its gradient is that of the policy gradient, so nothing is missing in it.

    Args:
        old_log_probs, ref_log_probs: (B, T), in nats, under the policy that sampled and under the
            reference.
        response_mask: (B, T), bool or 0/1. What stands under a 0 changes nothing.
        estimator: a key of `KL_ESTIMATORS`.

    Returns:
        (B,), in nats, without graph.

    Raises:
        ValueError: as `compute_kl_penalty`.
    """
    old_BT, ref_BT = (zero_unselected(x, response_mask) for x in (old_log_probs, ref_log_probs))
    penalty_BT = compute_kl_penalty(old_BT, ref_BT, estimator=estimator)
    return masked_normalize(penalty_BT, response_mask, 1.0, dim=1)
