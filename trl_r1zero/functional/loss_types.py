"""Surrogates by name, and the loss types: an advantage and a surrogate each.

Shape legend: B batch, T length.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trl_r1zero.common.naming import resolve
from trl_r1zero.common.plugins import call_by_name

from ._checks import look_up, require
from .advantages import AdvantageFn
from .policy_losses import (
    ClipRange,
    LossAndMetadata,
    compute_cispo_loss,
    compute_grpo_clip_loss,
    compute_grpo_no_clip_loss,
    compute_gspo_loss,
    compute_gspo_token_loss,
    compute_naive_policy_gradient_loss,
    require_advantages_B1,
)

SurrogateFn = Callable[..., LossAndMetadata]


# Both may be called with a cliprange too, as all others are.
def _reinforce(
    advantages: Tensor, policy_log_probs: Tensor, old: Tensor | None = None, cliprange: Any = None
) -> LossAndMetadata:
    return compute_naive_policy_gradient_loss(advantages, policy_log_probs), {}


def _unclipped_ratio(
    advantages: Tensor, policy_log_probs: Tensor, old_log_probs: Tensor, cliprange: Any = None
) -> LossAndMetadata:
    return compute_grpo_no_clip_loss(advantages, policy_log_probs, old_log_probs)


# (advantages (B, 1), policy_log_probs (B, T), old_log_probs (B, T) or None; and, by name, what a
# function has a parameter for: cliprange or None, response_mask (B, T), delta)
# -> (loss (B, T), metadata of (B, T) tensors)
SURROGATES: dict[str, SurrogateFn] = {
    "reinforce": _reinforce,
    "clipped_ratio": compute_grpo_clip_loss,
    "unclipped_ratio": _unclipped_ratio,
    "gspo": compute_gspo_loss,
    "gspo_token": compute_gspo_token_loss,
    "cispo": compute_cispo_loss,
}


@dataclass(frozen=True)
class LossType:
    """An advantage and a surrogate: keys of `ADVANTAGES` and `SURROGATES`, or such functions."""

    advantage: str | AdvantageFn
    surrogate: str | SurrogateFn

    def advantage_with(self, use_std_normalization: bool) -> str | AdvantageFn:
        """The advantage with or without division by the group standard deviation, which is a
        ValueError for anything but the group mean."""
        if not use_std_normalization:
            return self.advantage
        if self.advantage == "raw":
            raise ValueError(
                "use_std_normalization=True, but this loss type trains on raw rewards: there is no "
                "baseline to normalise; set use_std_normalization to False or choose a loss type "
                "with a baseline"
            )
        if self.advantage != "group_mean":
            raise ValueError(
                "use_std_normalization=True is for the advantage 'group_mean', and this loss type "
                f"has {self.advantage!r}; remove it"
            )
        return "group_mean_std"


LOSS_TYPES: dict[str, LossType] = {
    "no_baseline": LossType(advantage="raw", surrogate="reinforce"),
    "reinforce_with_baseline": LossType(advantage="group_mean", surrogate="reinforce"),
    "grpo_clip": LossType(advantage="group_mean", surrogate="clipped_ratio"),
    "grpo_no_clip": LossType(advantage="group_mean", surrogate="unclipped_ratio"),
}


def get_loss_type(name: str | LossType) -> LossType:
    """The loss type of a key of `LOSS_TYPES`, or at a dotted path, `package.module.name`; a
    `LossType` is itself. A ValueError if there is none."""
    loss_type = resolve("loss_type", name, LOSS_TYPES) if isinstance(name, str) else name
    if not isinstance(loss_type, LossType):
        raise ValueError(f"loss_type: {name!r} must be a LossType, got {loss_type!r:.100}")
    return loss_type


def compute_policy_gradient_loss(
    policy_log_probs: Tensor,
    loss_type: str | LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
    *,
    response_mask: Tensor | None = None,
    delta: float | None = None,
) -> LossAndMetadata:
    """The per-token loss of a loss type.

    Arguments that the loss type does not use may be given and are ignored.

    Args:
        policy_log_probs: (B, T), in nats.
        loss_type: as in `get_loss_type`.
        raw_rewards: (B, 1), needed by "no_baseline".
        advantages: (B, 1), needed by all others.
        old_log_probs: (B, T), in nats, needed by "grpo_clip" and "grpo_no_clip".
        cliprange, delta: needed by "grpo_clip", and allowed there; see `compute_grpo_clip_loss`.
        response_mask: (B, T), for surrogates that look at whole responses; None: all tokens.

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
    weights_B1 = require_advantages_B1(given, argument, policy_log_probs)
    surrogate, named = loss.surrogate, {"cliprange": cliprange, "delta": delta}
    if isinstance(surrogate, str):
        user, surrogate = f"surrogate {surrogate!r}", look_up(SURROGATES, surrogate, "surrogate")
        for name, value in {"old_log_probs": old_log_probs, **named}.items():
            parameter = inspect.signature(surrogate).parameters.get(name)
            if parameter is not None and parameter.default is parameter.empty:
                require(value, name, user)
    inputs = weights_B1, policy_log_probs, old_log_probs
    return call_by_name(surrogate, inputs, {**named, "response_mask": response_mask})
