"""Pure functions of tensors: masking, log-probabilities, advantages, losses. Needs torch only."""

from .advantages import (
    ADVANTAGES,
    compute_group_advantages,
    compute_group_normalized_rewards,
    compute_rollout_rewards,
    in_groups,
    normalize_group_rewards,
    zero_group_fraction,
)
from .aggregation import AGGREGATIONS, aggregate_loss, uses_constant
from .dry_calls import check_advantage, check_aggregation, check_surrogate
from .importance import SAMPLER_CORRECTIONS, compute_sampler_importance_weights
from .kl import KL_ESTIMATORS, compute_kl_penalty, compute_response_kl
from .log_probs import compute_entropy, get_response_log_probs, log_probs_from_logits
from .loss_types import (
    LOSS_TYPES,
    SURROGATES,
    LossType,
    compute_policy_gradient_loss,
    get_loss_type,
)
from .masking import masked_mean, masked_normalize, zero_unselected
from .microbatch import (
    grpo_microbatch_loss,
    grpo_microbatch_train_step,
    sft_microbatch_loss,
    sft_microbatch_train_step,
)
from .overlong import soft_overlong_penalty
from .policy_losses import (
    compute_cispo_loss,
    compute_grpo_clip_loss,
    compute_grpo_no_clip_loss,
    compute_gspo_loss,
    compute_gspo_token_loss,
    compute_naive_policy_gradient_loss,
)
from .preference_losses import dpo_loss

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "KL_ESTIMATORS",
    "LOSS_TYPES",
    "SAMPLER_CORRECTIONS",
    "SURROGATES",
    "LossType",
    "aggregate_loss",
    "check_advantage",
    "check_aggregation",
    "check_surrogate",
    "compute_cispo_loss",
    "compute_entropy",
    "compute_group_advantages",
    "compute_group_normalized_rewards",
    "compute_grpo_clip_loss",
    "compute_grpo_no_clip_loss",
    "compute_gspo_loss",
    "compute_gspo_token_loss",
    "compute_kl_penalty",
    "compute_naive_policy_gradient_loss",
    "compute_policy_gradient_loss",
    "compute_response_kl",
    "compute_rollout_rewards",
    "compute_sampler_importance_weights",
    "dpo_loss",
    "get_loss_type",
    "get_response_log_probs",
    "grpo_microbatch_loss",
    "grpo_microbatch_train_step",
    "in_groups",
    "log_probs_from_logits",
    "masked_mean",
    "masked_normalize",
    "normalize_group_rewards",
    "sft_microbatch_loss",
    "sft_microbatch_train_step",
    "soft_overlong_penalty",
    "uses_constant",
    "zero_group_fraction",
    "zero_unselected",
]
