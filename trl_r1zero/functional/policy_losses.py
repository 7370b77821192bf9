"""Per-token policy-gradient losses: the formulas of the surrogates.

Shape legend: B batch, T length. Losses are per token and unmasked; which tokens count, and how
much, is decided in `aggregation`. Advantages and old log-probabilities are constants of the
optimisation: they are detached, so a caller may pass the policy's own log-probabilities as the old
ones (a first, on-policy step) and still get the policy gradient.

Under a 0 of the response mask a ratio may overflow; `microbatch.grpo_microbatch_train_step` shows
the order that keeps that out of the gradient (`zero_unselected` first, then the surrogate).
"""

import math

import torch
from torch import Tensor

from ._checks import require_same_shape
from .masking import zero_unselected

ClipRange = float | tuple[float, float]
LossAndMetadata = tuple[Tensor, dict[str, Tensor]]


def require_advantages_B1(advantages: Tensor, argument: str, policy_log_probs: Tensor) -> Tensor:
    """The advantages, detached; a ValueError unless they are (B, 1) beside (B, T)."""
    if policy_log_probs.dim() != 2:
        raise ValueError(
            f"policy_log_probs must have shape (B, T), got {tuple(policy_log_probs.shape)}"
        )
    batch_size = policy_log_probs.shape[0]
    if advantages.shape != (batch_size, 1):
        hint = "; use .unsqueeze(1)" if advantages.shape == (batch_size,) else ""
        raise ValueError(
            f"{argument} must have shape (B, 1) = ({batch_size}, 1) beside policy_log_probs of "
            f"shape {tuple(policy_log_probs.shape)}, got {tuple(advantages.shape)}{hint}"
        )
    return advantages.detach()


def _ratio_BT(policy_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    require_same_shape(old_log_probs, "old_log_probs", policy_log_probs, "policy_log_probs")
    return torch.exp(policy_log_probs - old_log_probs.detach())


def clip_bounds(cliprange: ClipRange) -> tuple[float, float]:
    """The interval [1 - low, 1 + high] of unclipped ratios."""
    bounds = (cliprange, cliprange) if isinstance(cliprange, int | float) else cliprange
    if len(bounds) != 2:
        raise ValueError(f"cliprange must be a number or a pair (low, high), got {cliprange!r}")
    low, high = bounds
    if not (low >= 0 and high >= 0 and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"cliprange must be finite and at least 0, got {cliprange!r}")
    return 1 - low, 1 + high


def compute_naive_policy_gradient_loss(
    raw_rewards_or_advantages: Tensor, policy_log_probs: Tensor
) -> Tensor:
    r"""REINFORCE, per token: :math:`-A_b \ln \pi_\theta(y_{bt})` (Williams 1992).

    Its value means nothing; its gradient is minus the policy gradient on on-policy data.

    Args:
        raw_rewards_or_advantages: (B, 1), one per response.
        policy_log_probs: (B, T), in nats.

    Returns:
        (B, T).

    Raises:
        ValueError: shapes do not fit.
    """
    advantages_B1 = require_advantages_B1(
        raw_rewards_or_advantages, "raw_rewards_or_advantages", policy_log_probs
    )
    return -advantages_B1 * policy_log_probs


def compute_grpo_clip_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    cliprange: ClipRange,
    delta: float | None = None,
) -> LossAndMetadata:
    r"""The clipped importance ratio of PPO, as GRPO uses it, per token.

    .. math:: -\min\bigl(\min(\rho, \delta) A,\
              \operatorname{clip}(\rho, 1 - c_{low}, 1 + c_{high}) A\bigr),
              \qquad \rho_{bt} = \pi_\theta(y_{bt}) / \pi_{old}(y_{bt})

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; GRPO: Shao et al. 2024 (arXiv:2402.03300),
    eq. 3. A float `cliprange` c is c_low = c_high = c. A pair (low, high) is the clip-higher of
    DAPO (Yu et al. 2025, arXiv:2503.14476, section 3.1).

    Without delta a negative advantage has no bound: the loss grows with the ratio. delta is that
    bound, the two-sided clip of INTELLECT-2 (arXiv:2505.07291); dual-clip PPO is the
    same (Ye et al. 2020, arXiv:1912.09729).

    Args:
        advantages: (B, 1), one per response.
        policy_log_probs: (B, T), in nats.
        old_log_probs: (B, T), in nats, under the policy that sampled; never differentiated.
        cliprange: a number at least 0, or a pair of them.
        delta: above 1 + c_high, or None for no such bound.

    Returns:
        The loss (B, T), and metadata without graph: `ratio` (B, T), and `clipped` (B, T) bool, True
        where a bound decides, so that the token has no gradient.

    Raises:
        ValueError: shapes do not fit; cliprange is negative or not a number or pair; delta is not
            above 1 + c_high.
    """
    advantages_B1 = require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_BT = _ratio_BT(policy_log_probs, old_log_probs)
    return _clipped(ratio_BT, advantages_B1, cliprange, delta)


def _clipped(
    ratio_BT: Tensor, advantages_B1: Tensor, cliprange: ClipRange, delta: float | None = None
) -> LossAndMetadata:
    low, high = clip_bounds(cliprange)
    unclipped_BT = ratio_BT * advantages_B1
    clipped_BT = ratio_BT.clamp(low, high) * advantages_B1
    cut_off_BT = clipped_BT.detach() < unclipped_BT.detach()
    if delta is not None:
        if not (delta > high and math.isfinite(delta)):
            raise ValueError(
                f"delta must be a finite number above 1 + cliprange = {high}, got {delta}: it "
                "bounds the ratios of negative advantages that the clip leaves free"
            )
        unclipped_BT = ratio_BT.clamp(max=delta) * advantages_B1
        cut_off_BT |= (ratio_BT.detach() > delta) & (advantages_B1 < 0)
    metadata = {"clipped": cut_off_BT, "ratio": ratio_BT.detach()}
    return -torch.minimum(unclipped_BT, clipped_BT), metadata


def compute_grpo_no_clip_loss(
    advantages: Tensor, policy_log_probs: Tensor, old_log_probs: Tensor
) -> LossAndMetadata:
    r"""The unclipped importance ratio, per token: :math:`-\rho_{bt} A_b`.

    `compute_grpo_clip_loss` without the clip, for the clip ablation; the same arguments, shapes and
    errors, and `ratio` (B, T) as metadata.
    """
    advantages_B1 = require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_BT = _ratio_BT(policy_log_probs, old_log_probs)
    return -ratio_BT * advantages_B1, {"ratio": ratio_BT.detach()}


def _mean_log_ratio_B1(policy: Tensor, old: Tensor, response_mask: Tensor | None) -> Tensor:
    require_same_shape(old, "old_log_probs", policy, "policy_log_probs")
    mask = torch.ones_like(policy) if response_mask is None else response_mask
    log_ratio_BT = zero_unselected(policy, mask) - zero_unselected(old.detach(), mask)
    # A row without response tokens has the ratio 1.
    counts_B1 = mask.to(torch.bool).sum(dim=1, keepdim=True).clamp(min=1)
    return log_ratio_BT.sum(dim=1, keepdim=True) / counts_B1


def compute_gspo_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    cliprange: ClipRange,
    response_mask: Tensor | None = None,
) -> LossAndMetadata:
    r"""The clipped ratio of whole responses, for each of their tokens.

    .. math:: -\min\bigl(s A,\ \operatorname{clip}(s, 1 - c_{low}, 1 + c_{high}) A\bigr),\qquad
              s_b = \Bigl(\frac{\pi_\theta(y_b)}{\pi_{old}(y_b)}\Bigr)^{1/|y_b|}
              = \exp \frac{\sum_t m_{bt} \ln \rho_{bt}}{\sum_t m_{bt}}

    GSPO: Zheng et al. 2025 (arXiv:2507.18071), eq. 5 to 7. The ratio is the geometric mean over a
    response's tokens, so it stays far nearer to 1 than a token's: the paper clips at (3e-4, 4e-4).

    Args:
        advantages, policy_log_probs, old_log_probs, cliprange: as in `compute_grpo_clip_loss`.
        response_mask: (B, T), bool or 0/1: the tokens of the response. None: all are.

    Returns:
        The loss (B, T), the same at every position of a row; and metadata without graph: `ratio`
        and `clipped`, (B, T), likewise.

    Raises:
        ValueError: as `compute_grpo_clip_loss`.
    """
    advantages_B1 = require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_B1 = _mean_log_ratio_B1(policy_log_probs, old_log_probs, response_mask).exp()
    return _clipped(ratio_B1.expand_as(policy_log_probs), advantages_B1, cliprange)


def compute_gspo_token_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    cliprange: ClipRange,
    response_mask: Tensor | None = None,
) -> LossAndMetadata:
    r"""`compute_gspo_loss` with a gradient through each token alone.

    The ratio of a token is :math:`\operatorname{sg}[s_b]\, \pi_\theta(y_{bt}) /
    \operatorname{sg}[\pi_\theta(y_{bt})]`, whose value is that of the response: GSPO-token, Zheng
    et al. 2025 (arXiv:2507.18071), eq. 13 and 14. With one advantage per response the gradient of
    the sum over a response is that of `compute_gspo_loss`; a loss that weighs tokens differently
    (`token_mask` of the sampler correction) tells them apart. Arguments, returns and errors are
    those of `compute_gspo_loss`.
    """
    advantages_B1 = require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_B1 = _mean_log_ratio_B1(policy_log_probs.detach(), old_log_probs, response_mask).exp()
    ratio_BT = ratio_B1 * torch.exp(policy_log_probs - policy_log_probs.detach())
    return _clipped(ratio_BT, advantages_B1, cliprange)


def compute_cispo_loss(
    advantages: Tensor, policy_log_probs: Tensor, old_log_probs: Tensor, cliprange: ClipRange
) -> LossAndMetadata:
    r"""REINFORCE with a clipped importance weight: no token loses its gradient.

    .. math:: -\operatorname{sg}\bigl[\operatorname{clip}(\rho, 1 - c_{low}, 1 + c_{high})\bigr]
              A \ln \pi_\theta

    CISPO: MiniMax-M1 (arXiv:2506.13585), eq. 4 and 5, whose weights have no lower bound: c_low of
    1 or more. sg stops the gradient. Arguments and errors are those of `compute_grpo_clip_loss`.

    Returns:
        The loss (B, T), and metadata without graph: `ratio` (B, T), and `clipped` (B, T) bool, True
        where the weight is a bound.
    """
    advantages_B1 = require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_BT = _ratio_BT(policy_log_probs.detach(), old_log_probs)
    weight_BT = ratio_BT.clamp(*clip_bounds(cliprange))
    metadata = {"clipped": weight_BT != ratio_BT, "ratio": ratio_BT}
    return -weight_BT * advantages_B1 * policy_log_probs, metadata
