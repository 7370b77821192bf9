r"""Importance weights that correct for a sampler that is not quite the trainer.

Shape legend: B batch, T length.

An inference engine computes the same model by other kernels, so the tokens are drawn from
:math:`\pi_{sampler}`, which is near the trainer's :math:`\pi_{old}` and not equal to it. An
expectation under :math:`\pi_{old}` is one under :math:`\pi_{sampler}` with each sample weighed by
:math:`\pi_{old} / \pi_{sampler}`: the product over the tokens of a response. The weight of a single
token leaves out what came before it, which is biased and varies far less. Bounds keep a few large
weights from deciding the gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import look_up, require_same_shape
from .masking import zero_unselected


class SamplerCorrection(NamedTuple):
    """How a ratio becomes a weight."""

    per_sequence: bool  # one weight per response, the product over its tokens; else per token
    masks: bool  # a ratio outside of the bounds gives the weight 0; else it is clamped to them


SAMPLER_CORRECTIONS: dict[str, SamplerCorrection] = {
    "token_truncate": SamplerCorrection(per_sequence=False, masks=False),
    "token_mask": SamplerCorrection(per_sequence=False, masks=True),
    "sequence_truncate": SamplerCorrection(per_sequence=True, masks=False),
    "sequence_mask": SamplerCorrection(per_sequence=True, masks=True),
}


def _check_bounds(mode: str, clip_min: float | None, clip_max: float | None) -> None:
    for name, bound in (("clip_min", clip_min), ("clip_max", clip_max)):
        if bound is not None and not bound >= 0:
            raise ValueError(f"{name} bounds a ratio and must be at least 0 or None, got {bound}")
    if clip_min is not None and clip_max is not None and clip_min >= clip_max:
        raise ValueError(f"clip_min ({clip_min}) must be below clip_max ({clip_max})")
    if clip_min is None and clip_max is None and not SAMPLER_CORRECTIONS[mode].masks:
        raise ValueError(f"mode {mode!r} needs clip_min, clip_max or both, got None for both")


@torch.no_grad()
def compute_sampler_importance_weights(
    old_log_probs: Tensor,
    sampler_log_probs: Tensor,
    response_mask: Tensor,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> Tensor:
    r"""What each token's loss is multiplied by, because another program sampled it.

    With :math:`\rho_{bt} = \pi_{old}(y_{bt}) / \pi_{sampler}(y_{bt})`, or for the sequence modes
    :math:`\rho_b = \prod_t \rho_{bt}` over the response tokens:

    .. math:: w_{truncate} = \min(\max(\rho, c_{min}), c_{max}),\qquad
              w_{mask} = \rho\ \text{where}\ c_{min} \le \rho \le c_{max},\ \text{else}\ 0

    A bound of None is no bound. Truncated importance sampling is Ionides 2008 (J. Comput. Graph.
    Stat. 17(2)); with an inference engine as the sampler, Yao et al. 2025 ("Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training") clip the ratio of each token from above,
    and Liu et al. 2025 ("When Speed Kills Stability") leave out responses whose ratio is too large.
    The four modes, their bounds and the treatment of NaN are those of TRL's
    `vllm_importance_sampling_mode`.

    Args:
        old_log_probs: (B, T), in nats, under the trainer's model that the sampler was given.
        sampler_log_probs: (B, T), in nats, as the sampler reported them. NaN says that it could not
            tell: the token's ratio is 1.
        response_mask: (B, T), bool or 0/1. What stands under a 0, NaN and inf included, changes no
            weight of a response token; the ratio there is 1.
        mode: a key of `SAMPLER_CORRECTIONS`.
        clip_min, clip_max: the bounds of the ratio, at least 0, or None. The truncate modes need
            one of them.

    Returns:
        (B, T) for the token modes, (B, 1) for the sequence modes; without graph, in float32 or
        float64.

    Raises:
        ValueError: unknown mode; bounds that are negative, out of order or missing; shapes differ.
    """
    correction = look_up(SAMPLER_CORRECTIONS, mode, "mode of sampler correction")
    _check_bounds(mode, clip_min, clip_max)
    require_same_shape(sampler_log_probs, "sampler_log_probs", old_log_probs, "old_log_probs")
    old_BT, sampler_BT = (
        zero_unselected(x.to(torch.promote_types(x.dtype, torch.float32)), response_mask)
        for x in (old_log_probs, sampler_log_probs)
    )
    log_ratio = torch.nan_to_num(old_BT - sampler_BT, nan=0.0)
    if correction.per_sequence:
        log_ratio = log_ratio.sum(dim=-1, keepdim=True)
    ratio = log_ratio.exp()
    if clip_min is None and clip_max is None:
        return ratio
    clamped = ratio.clamp(min=clip_min, max=clip_max)
    return ratio.masked_fill(ratio != clamped, 0.0) if correction.masks else clamped
