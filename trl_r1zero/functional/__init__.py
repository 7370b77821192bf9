"""Pure functions of tensors: masking, log-probabilities, advantages, losses. Needs torch only."""

from .advantages import (
    ADVANTAGES,
    compute_group_advantages,
    compute_group_normalized_rewards,
)
from .aggregation import AGGREGATIONS, aggregate_loss
from .importance import SAMPLER_CORRECTIONS, compute_sampler_importance_weights
from .kl import compute_kl_penalty
from .log_probs import compute_entropy, get_response_log_probs, log_probs_from_logits
from .masking import masked_mean, masked_normalize, zero_unselected
from .microbatch import (
    grpo_microbatch_loss,
    grpo_microbatch_train_step,
    sft_microbatch_loss,
    sft_microbatch_train_step,
)
from .policy_losses import (
    LOSS_TYPES,
    SURROGATES,
    LossType,
    compute_grpo_clip_loss,
    compute_grpo_no_clip_loss,
    compute_naive_policy_gradient_loss,
    compute_policy_gradient_loss,
    get_loss_type,
)
from .preference_losses import dpo_loss

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "LOSS_TYPES",
    "SAMPLER_CORRECTIONS",
    "SURROGATES",
    "LossType",
    "aggregate_loss",
    "compute_entropy",
    "compute_group_advantages",
    "compute_group_normalized_rewards",
    "compute_grpo_clip_loss",
    "compute_grpo_no_clip_loss",
    "compute_kl_penalty",
    "compute_naive_policy_gradient_loss",
    "compute_policy_gradient_loss",
    "compute_sampler_importance_weights",
    "dpo_loss",
    "get_loss_type",
    "get_response_log_probs",
    "grpo_microbatch_loss",
    "grpo_microbatch_train_step",
    "log_probs_from_logits",
    "masked_mean",
    "masked_normalize",
    "sft_microbatch_loss",
    "sft_microbatch_train_step",
    "zero_unselected",
]
