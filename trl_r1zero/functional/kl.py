"""The per-token penalty for leaving a reference policy.

Shape legend: B batch, T length.
"""

import torch
from torch import Tensor

from ._checks import require_same_shape


def compute_kl_penalty(
    policy_log_probs: Tensor,
    ref_log_probs: Tensor,
    old_log_probs: Tensor | None = None,
) -> Tensor:
    r"""Estimate of the KL divergence from the policy to the reference, per token.

    .. math:: \rho - \ln \rho - 1, \qquad \rho = \pi_{ref}(y_{bt}) / \pi_\theta(y_{bt})

    Unbiased for samples of the policy, and never negative: the estimator k3 of Schulman (2020,
    "Approximating KL divergence"), as in GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 4).

    Its value is unbiased, its gradient is not: the samples' own dependence on the policy is
    missing. With `old_log_probs` the penalty is multiplied by the importance ratio
    :math:`\pi_\theta / \pi_{old}`, whose gradient supplies it (DeepSeek-V3.2, arXiv:2512.02556),
    on-policy too.

    All arguments and the result are (B, T), in nats; only the policy is differentiated. A
    ValueError if the shapes differ.
    """
    require_same_shape(ref_log_probs, "ref_log_probs", policy_log_probs, "policy_log_probs")
    log_ratio_BT = ref_log_probs.detach() - policy_log_probs
    penalty_BT = torch.exp(log_ratio_BT) - log_ratio_BT - 1
    if old_log_probs is None:
        return penalty_BT
    require_same_shape(old_log_probs, "old_log_probs", policy_log_probs, "policy_log_probs")
    return penalty_BT * torch.exp(policy_log_probs - old_log_probs.detach())
