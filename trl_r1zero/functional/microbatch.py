"""Forward-to-backward of one micro-batch, for supervised fine-tuning and for GRPO.

Shape legend: B sequences of this micro-batch, T length.

Both steps are `aggregate_loss` for a train batch that is cut into `gradient_accumulation_steps`
micro-batches of B sequences each: num_sequences = B * gradient_accumulation_steps. The trainers
call `sft_microbatch_loss` and `grpo_microbatch_loss`, which take the true numbers of any train
batch, and do their own backward.
"""

import torch

from trl_r1zero.functional._checks import require
from trl_r1zero.functional.aggregation import aggregate_loss
from trl_r1zero.functional.kl import compute_kl_penalty
from trl_r1zero.functional.masking import zero_unselected
from trl_r1zero.functional.policy_losses import ClipRange, compute_policy_gradient_loss


def _num_sequences(policy_log_probs: torch.Tensor, gradient_accumulation_steps: int) -> int:
    if gradient_accumulation_steps < 1:
        raise ValueError(
            f"gradient_accumulation_steps must be at least 1, got {gradient_accumulation_steps}"
        )
    return policy_log_probs.shape[0] * gradient_accumulation_steps


def sft_microbatch_loss(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    num_sequences: float,
    normalize_constant: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""One micro-batch's share of the negative log-likelihood of its train batch's responses.

    .. math:: L = -\frac{1}{\text{num\_sequences}}
              \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{\text{normalize\_constant}}

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1.
        num_sequences: sequences of the whole train batch, over all micro-batches and ranks.
        normalize_constant: divisor of each sequence's sum, above 0.

    Returns:
        The loss, a scalar with graph; and metadata without graph: `num_response_tokens` (a scalar
        count).

    Raises:
        ValueError: shapes do not fit; num_sequences or normalize_constant not above 0.
    """
    loss = aggregate_loss(
        -policy_log_probs,
        response_mask,
        "masked_normalize",
        num_sequences=num_sequences,
        normalize_constant=normalize_constant,
    )
    return loss, {"num_response_tokens": response_mask.to(torch.bool).sum()}


def sft_microbatch_train_step(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""Negative log-likelihood of the responses; calls backward.

    `sft_microbatch_loss` with num_sequences = B * gradient_accumulation_steps:

    .. math:: L = -\frac{1}{B \cdot \text{gradient\_accumulation\_steps}}
              \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{\text{normalize\_constant}}

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1.
        gradient_accumulation_steps: micro-batches per optimizer step, at least 1.
        normalize_constant: divisor of each sequence's sum, above 0.

    Returns:
        The loss, a scalar without graph, already divided by the accumulation steps; and metadata
        without graph: `num_response_tokens` (a scalar count).

    Raises:
        ValueError: shapes do not fit; gradient_accumulation_steps below 1; normalize_constant not
            above 0.
    """
    loss, metadata = sft_microbatch_loss(
        policy_log_probs,
        response_mask,
        num_sequences=_num_sequences(policy_log_probs, gradient_accumulation_steps),
        normalize_constant=normalize_constant,
    )
    loss.backward()
    return loss.detach(), metadata


def _weigh_tokens(
    per_token_loss_BT: torch.Tensor, weights: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    shape, batch_size = per_token_loss_BT.shape, per_token_loss_BT.shape[0]
    if weights.shape not in (shape, (batch_size, 1)):
        raise ValueError(
            f"sampler_weights must have shape (B, T) = {tuple(shape)} or (B, 1) = "
            f"({batch_size}, 1), got {tuple(weights.shape)}"
        )
    weights_BT = zero_unselected(weights.detach().expand(shape), response_mask)
    return per_token_loss_BT * weights_BT


def grpo_microbatch_loss(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    loss_type: str,
    *,
    raw_rewards: torch.Tensor | None = None,
    advantages: torch.Tensor | None = None,
    old_log_probs: torch.Tensor | None = None,
    cliprange: ClipRange | None = None,
    ref_log_probs: torch.Tensor | None = None,
    beta: float = 0.0,
    correct_kl_bias: bool = False,
    sampler_weights: torch.Tensor | None = None,
    aggregation: str = "masked_mean",
    num_sequences: float | None = None,
    normalize_constant: float | None = None,
    num_tokens: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""One micro-batch's share of the loss of its train batch.

    `compute_policy_gradient_loss`, weighed by `sampler_weights` where they are given, plus, with a
    reference, :math:`\beta` times `compute_kl_penalty`, per token; then `aggregate_loss` with the
    denominators of the whole train batch.

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1. What stands under a 0, NaN and inf included, changes
            neither loss nor gradient; `ratio` is 1, `kl` 0 and `clipped` False there.
        loss_type, raw_rewards, advantages, old_log_probs, cliprange: as in
            `compute_policy_gradient_loss`.
        ref_log_probs: (B, T), in nats, under the reference model; needed if beta is not 0.
        beta: weight of the KL penalty.
        correct_kl_bias: give `compute_kl_penalty` the old log-probabilities too (needed then).
        sampler_weights: (B, T), or (B, 1) for whole responses: factors of the loss per token before
            the KL penalty is added, see `compute_sampler_importance_weights`. Never differentiated.
        aggregation, num_sequences, normalize_constant, num_tokens: as in `aggregate_loss`.

    Returns:
        The loss, a scalar with graph; and metadata without graph: the (B, T) tensors of the loss
        type, `kl` (B, T) if there is a penalty, and `num_response_tokens` (a scalar count).

    Raises:
        ValueError: as the functions above; beta without ref_log_probs.
    """
    policy_log_probs_BT = zero_unselected(policy_log_probs, response_mask)
    if old_log_probs is not None:
        old_log_probs = zero_unselected(old_log_probs, response_mask)
    per_token_loss_BT, metadata = compute_policy_gradient_loss(
        policy_log_probs_BT,
        loss_type,
        raw_rewards=raw_rewards,
        advantages=advantages,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
    )
    if sampler_weights is not None:
        per_token_loss_BT = _weigh_tokens(per_token_loss_BT, sampler_weights, response_mask)
    if beta != 0:
        reference_BT = require(ref_log_probs, "ref_log_probs", f"beta {beta}")
        kl_BT = compute_kl_penalty(
            policy_log_probs_BT,
            zero_unselected(reference_BT, response_mask),
            require(old_log_probs, "old_log_probs", "correct_kl_bias") if correct_kl_bias else None,
        )
        per_token_loss_BT = per_token_loss_BT + beta * kl_BT
        metadata["kl"] = kl_BT.detach()
    loss = aggregate_loss(
        per_token_loss_BT,
        response_mask,
        aggregation,
        num_sequences=num_sequences,
        normalize_constant=normalize_constant,
        num_tokens=num_tokens,
    )
    metadata["num_response_tokens"] = response_mask.to(torch.bool).sum()
    return loss, metadata


def grpo_microbatch_train_step(
    policy_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    gradient_accumulation_steps: int,
    loss_type: str,
    raw_rewards: torch.Tensor | None = None,
    advantages: torch.Tensor | None = None,
    old_log_probs: torch.Tensor | None = None,
    cliprange: ClipRange | None = None,
    *,
    aggregation: str = "masked_mean",
    normalize_constant: float | None = None,
    num_tokens: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Policy-gradient loss of one micro-batch; calls backward.

    `grpo_microbatch_loss` with num_sequences = B * gradient_accumulation_steps: by default the
    mean over each sequence's response tokens, the mean over the batch, over the accumulation steps.

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1. What stands under a 0, NaN and inf included, changes
            neither loss nor gradient; `ratio` is 1 and `clipped` False there.
        gradient_accumulation_steps: micro-batches per optimizer step, at least 1.
        loss_type, raw_rewards, advantages, old_log_probs, cliprange: as in
            `compute_policy_gradient_loss`.
        aggregation, normalize_constant, num_tokens: as in `aggregate_loss`. "masked_normalize"
            with a constant is the length-normalisation ablation; "token_mean" needs the number of
            response tokens in all accumulated micro-batches.

    Returns:
        The loss, a scalar without graph, already divided by the accumulation steps; and metadata
        without graph: the (B, T) tensors of the loss type, and `num_response_tokens` (a scalar).

    Raises:
        ValueError: as the two functions above; gradient_accumulation_steps below 1.
    """
    loss, metadata = grpo_microbatch_loss(
        policy_log_probs,
        response_mask,
        loss_type,
        raw_rewards=raw_rewards,
        advantages=advantages,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
        aggregation=aggregation,
        num_sequences=_num_sequences(policy_log_probs, gradient_accumulation_steps),
        normalize_constant=normalize_constant,
        num_tokens=num_tokens,
    )
    loss.backward()
    return loss.detach(), metadata
