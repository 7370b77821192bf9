"""Per-token policy-gradient losses: the surrogates, and the named loss types built on them.

Shape legend: B batch, T length. Losses are per token and unmasked; which tokens count, and how
much, is decided in `aggregation`. Advantages and old log-probabilities are constants of the
optimisation: they are detached, so a caller may pass the policy's own log-probabilities as the old
ones (a first, on-policy step) and still get the policy gradient.

Under a 0 of the response mask a ratio may overflow; `microbatch.grpo_microbatch_train_step` shows
the order that keeps that out of the gradient (`zero_unselected` first, then the surrogate).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from trl_r1zero.common.naming import resolve

from ._checks import look_up, require, require_same_shape

ClipRange = float | tuple[float, float]
LossAndMetadata = tuple[Tensor, dict[str, Tensor]]
SurrogateFn = Callable[[Tensor, Tensor, Tensor | None, ClipRange | None], LossAndMetadata]


def _require_advantages_B1(advantages: Tensor, argument: str, policy_log_probs: Tensor) -> Tensor:
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


def _clip_bounds(cliprange: ClipRange) -> tuple[float, float]:
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
    advantages_B1 = _require_advantages_B1(
        raw_rewards_or_advantages, "raw_rewards_or_advantages", policy_log_probs
    )
    return -advantages_B1 * policy_log_probs


def compute_grpo_clip_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
    cliprange: ClipRange,
) -> LossAndMetadata:
    r"""The clipped importance ratio of PPO, as GRPO uses it, per token.

    .. math:: -\min\bigl(\rho A,\ \operatorname{clip}(\rho, 1 - c_{low}, 1 + c_{high}) A\bigr),
              \qquad \rho_{bt} = \pi_\theta(y_{bt}) / \pi_{old}(y_{bt})

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7; GRPO: Shao et al. 2024 (arXiv:2402.03300),
    eq. 3. A float `cliprange` c is c_low = c_high = c. A pair (low, high) is the clip-higher of
    DAPO (Yu et al. 2025, arXiv:2503.14476, section 3.1).

    Args:
        advantages: (B, 1), one per response.
        policy_log_probs: (B, T), in nats.
        old_log_probs: (B, T), in nats, under the policy that sampled; never differentiated.
        cliprange: a number at least 0, or a pair of them.

    Returns:
        The loss (B, T), and metadata without graph: `ratio` (B, T), and `clipped` (B, T) bool, True
        where the clipped branch is strictly the smaller one, so that the token has no gradient.

    Raises:
        ValueError: shapes do not fit; cliprange is negative or not a number or pair.
    """
    advantages_B1 = _require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_BT = _ratio_BT(policy_log_probs, old_log_probs)
    low, high = _clip_bounds(cliprange)
    unclipped_BT = ratio_BT * advantages_B1
    clipped_BT = ratio_BT.clamp(low, high) * advantages_B1
    metadata = {
        "clipped": clipped_BT.detach() < unclipped_BT.detach(),
        "ratio": ratio_BT.detach(),
    }
    return -torch.minimum(unclipped_BT, clipped_BT), metadata


def compute_grpo_no_clip_loss(
    advantages: Tensor,
    policy_log_probs: Tensor,
    old_log_probs: Tensor,
) -> LossAndMetadata:
    r"""The unclipped importance ratio, per token: :math:`-\rho_{bt} A_b`.

    `compute_grpo_clip_loss` without the clip, for the clip ablation; the same arguments, shapes and
    errors, and `ratio` (B, T) as metadata.
    """
    advantages_B1 = _require_advantages_B1(advantages, "advantages", policy_log_probs)
    ratio_BT = _ratio_BT(policy_log_probs, old_log_probs)
    return -ratio_BT * advantages_B1, {"ratio": ratio_BT.detach()}


def _reinforce(
    advantages: Tensor, policy: Tensor, old: Tensor | None, cliprange: ClipRange | None
) -> LossAndMetadata:
    return compute_naive_policy_gradient_loss(advantages, policy), {}


def _clipped_ratio(
    advantages: Tensor, policy: Tensor, old: Tensor | None, cliprange: ClipRange | None
) -> LossAndMetadata:
    user = "surrogate 'clipped_ratio'"
    old_BT = require(old, "old_log_probs", user)
    # The checker joins the members of the union to `object` when it solves for the type variable.
    bounds = cast(ClipRange, require(cliprange, "cliprange", user))
    return compute_grpo_clip_loss(advantages, policy, old_BT, bounds)


def _unclipped_ratio(
    advantages: Tensor, policy: Tensor, old: Tensor | None, cliprange: ClipRange | None
) -> LossAndMetadata:
    old_BT = require(old, "old_log_probs", "surrogate 'unclipped_ratio'")
    return compute_grpo_no_clip_loss(advantages, policy, old_BT)


# (advantages (B, 1), policy_log_probs (B, T), old_log_probs (B, T) or None, cliprange or None)
# -> (loss (B, T), metadata of (B, T) tensors)
SURROGATES: dict[str, SurrogateFn] = {
    "reinforce": _reinforce,
    "clipped_ratio": _clipped_ratio,
    "unclipped_ratio": _unclipped_ratio,
}


@dataclass(frozen=True)
class LossType:
    """An advantage (key of `ADVANTAGES`) and a surrogate: a key of `SURROGATES`, or a function like
    those there."""

    advantage: str
    surrogate: str | SurrogateFn

    def advantage_with(self, use_std_normalization: bool) -> str:
        """The key of `ADVANTAGES` with or without division by the group standard deviation.

        Raises:
            ValueError: std normalisation is asked for where no baseline is subtracted.
        """
        if not use_std_normalization:
            return self.advantage
        if self.advantage == "raw":
            raise ValueError(
                "use_std_normalization=True, but this loss type trains on raw rewards: there is no "
                "baseline to normalise; set use_std_normalization to False or choose a loss type "
                "with a baseline"
            )
        return f"{self.advantage}_std"


LOSS_TYPES: dict[str, LossType] = {
    "no_baseline": LossType(advantage="raw", surrogate="reinforce"),
    "reinforce_with_baseline": LossType(advantage="group_mean", surrogate="reinforce"),
    "grpo_clip": LossType(advantage="group_mean", surrogate="clipped_ratio"),
    "grpo_no_clip": LossType(advantage="group_mean", surrogate="unclipped_ratio"),
}


def get_loss_type(name: str) -> LossType:
    """The loss type of a key of `LOSS_TYPES`, or at a dotted path, `package.module.name`.

    Raises:
        ValueError: there is none.
    """
    loss_type = resolve("loss_type", name, LOSS_TYPES)
    if not isinstance(loss_type, LossType):
        raise ValueError(f"loss_type: {name!r} must be a LossType, got {loss_type!r:.100}")
    return loss_type


def compute_policy_gradient_loss(
    policy_log_probs: Tensor,
    loss_type: str,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
) -> LossAndMetadata:
    """The per-token loss of a loss type.

    Arguments that the loss type does not use may be given and are ignored.

    Args:
        policy_log_probs: (B, T), in nats.
        loss_type: as in `get_loss_type`.
        raw_rewards: (B, 1), needed by "no_baseline".
        advantages: (B, 1), needed by all others.
        old_log_probs: (B, T), in nats, needed by "grpo_clip" and "grpo_no_clip".
        cliprange: needed by "grpo_clip"; see `compute_grpo_clip_loss`.

    Returns:
        The loss (B, T), and metadata of (B, T) tensors without graph: `ratio` for both ratio
        losses, `clipped` for "grpo_clip".

    Raises:
        ValueError: loss_type is unknown, an argument it needs is missing, or shapes do not fit.
    """
    loss = get_loss_type(loss_type)
    argument = "raw_rewards" if loss.advantage == "raw" else "advantages"
    weights = raw_rewards if loss.advantage == "raw" else advantages
    given = require(weights, argument, f"loss_type {loss_type!r}")
    weights_B1 = _require_advantages_B1(given, argument, policy_log_probs)
    surrogate = loss.surrogate
    if isinstance(surrogate, str):
        surrogate = look_up(SURROGATES, surrogate, "surrogate")
    return surrogate(weights_B1, policy_log_probs, old_log_probs, cliprange)
